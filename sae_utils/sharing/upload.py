"""Finished folders sent to the hub: what is not there yet, in one commit, so that a repository is whole or not there.

What was sent before a run was killed, and stands in no commit yet, is kept by the hub and not sent again.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import disable_progress_bars

from sae_utils.disk import describe_bytes
from sae_utils.errors import InputError
from sae_utils.sharing.asking import BusyError, UnreachableError, asking_the_hub
from sae_utils.sharing.login import check_login, check_rights, missing_login
from sae_utils.sharing.repositories import Repository, name_repositories

logger = logging.getLogger(__name__)

COMMIT_MESSAGE = "Push by ucl-sae"
"""Of every commit of ours; a card that another commit has changed is not ours any more."""

CARD_FILE = "README.md"
"""The page of a repository, which people may edit there."""


@dataclass(frozen=True)
class PushChoice:
    """Where finished folders are sent."""

    org: str
    """Organisation or account of the hub."""

    is_public: bool
    """Whether new repositories are seen by all."""

    def describe(self, kind: str, folders: Sequence[Path]) -> str:
        """What would be sent; nobody is asked.

        Raises:
            InputError: If the hub takes no such name.
        """
        repositories = name_repositories(self.org, kind, folders)
        lines = [each.describe(is_public=self.is_public) for each in repositories]
        return "\n".join([*lines, *filter(None, [missing_login(self.org)])])

    def send(self, kind: str, folders: Sequence[Path], *, quiet: bool = False) -> Iterator[str]:
        """Send what is not there yet, folder by folder; what fails does not keep others from being sent.

        Args:
            kind: `dataset` or `model`.
            folders: Finished folders.
            quiet: No bars.

        Yields:
            One line for each repository.

        Raises:
            InputError: If any could not be sent, when all have been tried.
        """
        if quiet:
            disable_progress_bars()
        check_rights(self.org)
        failed: list[str] = []
        for each in name_repositories(self.org, kind, folders):
            try:
                yield send(each, is_public=self.is_public)
            except InputError as err:
                failed.append(str(err))
                if isinstance(err, UnreachableError) and not isinstance(err, BusyError):
                    break
        if failed:
            raise InputError(f"all else is done: {' | '.join(failed)}")


def find_push(org: str | None, *, is_public: bool, is_plan: bool) -> PushChoice | None:
    """Where finished folders are sent; None for nowhere. What cannot work is said before anything is loaded.

    Args:
        org: `--push_to_hub`.
        is_public: `--public`.
        is_plan: Whether nothing will be sent, so that the hub is not asked.

    Raises:
        InputError: If there is no login, or it may not write there.
    """
    if org is None:
        if is_public:
            raise InputError("--public says who sees what --push_to_hub sends, and that is not given")
        return None
    if not is_plan:
        check_login(org)
    return PushChoice(org, is_public)


def send(repository: Repository, *, is_public: bool) -> str:
    """Send what a repository does not have yet, and remove what our folder has no more; one line on the outcome.

    Raises:
        InputError: If that is not possible.
    """
    repository.check()
    api, files = HfApi(), repository.files()
    with asking_the_hub(f"{repository.id} could not be sent"):
        there = files_there(api, repository)
        if there is None:
            api.create_repo(repository.id, repo_type=repository.kind, private=not is_public, exist_ok=True)
            there = {}
        changed = {name: path for name, path in files.items() if not is_same(there.get(name), path)}
        if CARD_FILE in changed and is_edited(api, repository, there):
            logger.warning("%s: its %s was edited there, and is left as it is", repository.id, CARD_FILE)
            del changed[CARD_FILE]
        gone = [name for name in there if name not in files and repository.is_ours(name)]
        url = f"{api.endpoint}/{'datasets/' if repository.kind == 'dataset' else ''}{repository.id}"
        if not changed and not gone:
            return f"{url} has it all already"
        operations = [CommitOperationAdd(name, path) for name, path in changed.items()]
        operations += [CommitOperationDelete(name) for name in gone]
        api.create_commit(repository.id, operations, commit_message=COMMIT_MESSAGE, repo_type=repository.kind)
    n_bytes = sum(path.stat().st_size for path in changed.values())
    return f"{url}: sent {len(changed)} of {len(files)} files, {describe_bytes(n_bytes)}"


def files_there(api: HfApi, repository: Repository) -> dict[str, RepoFile] | None:
    """What a repository holds, by name; None if there is no such repository."""
    try:
        tree = list(api.list_repo_tree(repository.id, recursive=True, repo_type=repository.kind))
    except RepositoryNotFoundError:
        return None
    return {each.path: each for each in tree if isinstance(each, RepoFile)}


def is_same(there: RepoFile | None, path: Path) -> bool:
    """Whether a repository's file has the bytes of ours."""
    if there is None or there.size != path.stat().st_size:
        return False
    if there.lfs is not None:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == there.lfs.sha256
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest() == there.blob_id


def is_edited(api: HfApi, repository: Repository, there: dict[str, RepoFile]) -> bool:
    """Whether a card is there that somebody else's commit has written, such as one on the hub's pages."""
    if CARD_FILE not in there:
        return False
    (card,) = api.get_paths_info(repository.id, [CARD_FILE], expand=True, repo_type=repository.kind)
    return card.last_commit is not None and card.last_commit.title != COMMIT_MESSAGE
