"""Which folder is which repository of the hub, and which of its files belong there."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from sae_utils.disk import describe_bytes
from sae_utils.errors import InputError
from sae_utils.generated_data import open_samples, read_generation_record

FILES = {
    "dataset": ("generation.json", "data-*.arrow", "dataset_info.json", "state.json", "README.md"),
    "model": (
        "run*.json",
        "config*.json",
        "layers.*/cfg.json",
        "layers.*/sae.safetensors",
        "metrics*.jsonl",
        "README.md",
    ),
}
"""Files of finished folders, by what the hub calls their repositories; the first is of a record without which a folder
is not finished. Nothing else leaves this machine: not what runs left there, nor the ids of W&B runs."""

CALLED = {"dataset": "data set", "model": "model"}
"""What a kind of repository is called."""


@dataclass(frozen=True)
class Repository:
    """A finished folder's repository."""

    kind: str
    """`dataset` or `model`, as the hub has it."""

    id: str
    """Organisation or account, and name of the folder."""

    folder: Path
    """The folder."""

    def is_ours(self, name: str) -> bool:
        """Whether a file of this name, seen from the folder or the repository, is one that we would have written."""
        patterns = (each for each in FILES[self.kind] if each.count("/") == name.count("/"))
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    @property
    def is_finished(self) -> bool:
        """Whether the folder is there, which it is as a whole or not at all."""
        return any(self.folder.glob(FILES[self.kind][0]))

    def check(self) -> None:
        """Compare the samples of a data set with its record; SAEs are compared by who finds them.

        Raises:
            DamagedFileError: If they are not the ones that were sampled.
        """
        if self.kind == "dataset":
            open_samples(self.folder, read_generation_record(self.folder))

    def files(self) -> dict[str, Path]:
        """Files to send, by their names in the repository."""
        paths = {path for pattern in FILES[self.kind] for path in self.folder.glob(pattern) if path.is_file()}
        return {path.relative_to(self.folder).as_posix(): path for path in sorted(paths)}

    def describe(self, *, is_public: bool) -> str:
        """What would be sent, in a few lines."""
        who = "seen by all" if is_public else "private"
        files = self.files() if self.is_finished else {}
        sizes = {name: path.stat().st_size for name, path in files.items()}
        amount = f"{len(files)} files, {describe_bytes(sum(sizes.values()))}" if files else "when it is finished"
        head = f"to the hub: {CALLED[self.kind]} {self.id} ({who} if it is new), {amount}"
        return "\n".join([head, *(f"  {name}: {n:,} bytes" for name, n in sizes.items())])


def name_repositories(org: str, kind: str, folders: Sequence[Path]) -> list[Repository]:
    """The repository of each folder.

    Args:
        org: Organisation or account.
        kind: `dataset` or `model`.
        folders: Finished folders, or those that will be.

    Raises:
        InputError: If the hub takes no such name.
    """
    found = [Repository(kind, f"{org}/{folder.name}", folder) for folder in folders]
    for each in found:
        try:
            validate_repo_id(each.id)
        except HFValidationError as err:
            raise InputError(
                f"--push_to_hub {org}: the hub takes no repository of the name {each.id!r}; names there have at most "
                f"96 letters, digits and - _ . in them"
            ) from err
    return found
