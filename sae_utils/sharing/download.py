"""A generated data set on the hub, fetched whole into the folder of data sets; from then on it is one that lies there.

<datasets>/<name>.fetching/    what has come so far, for the same command to go on with
"""

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import disable_progress_bars, validate_repo_id

from sae_utils.disk import check_space
from sae_utils.errors import InputError, MissingInputError
from sae_utils.files import DamagedFileError, flush_to_disk, remove_folder
from sae_utils.generated_data import RECORD_FILE, open_samples, read_generation_record
from sae_utils.locks import Lock
from sae_utils.paths import DatasetKey
from sae_utils.sharing.asking import asking_the_hub
from sae_utils.sharing.repositories import Repository

PREFIX = "hf://"
"""How a reference to something on the hub begins."""

FETCHING_SUFFIX = ".fetching"
"""Ending of the folder of a data set that has not come whole yet; it is none of a data set."""

KEPT_BY_LIBRARY = ".cache"
"""Where the hub's library notes, inside that folder, what it has fetched."""

_REFERENCE = re.compile(r"hf://(?:datasets/)?((?!datasets/)[^/]+)/([^/]+)/?")


@dataclass(frozen=True)
class SharedDataset:
    """A generated data set on the hub."""

    reference: str
    """As it was given."""

    id: str
    """Its repository."""

    key: DatasetKey
    """What its folder is called by."""


def find_shared(references: Sequence[str]) -> list[SharedDataset]:
    """Those of some references that are of the hub; nobody is asked.

    >>> find_shared(["pythia-1.4b", "hf://datasets/somebody/tiny_42_1.0_0.9"])[0].id
    'somebody/tiny_42_1.0_0.9'

    Raises:
        InputError: If one is not of the form `hf://datasets/ORG/NAME` or `hf://ORG/NAME`, or NAME is none of a data
            set.
    """
    return [_parse(each) for each in references if each.startswith(PREFIX)]


def fetch(shared: SharedDataset, datasets_dir: Path, *, quiet: bool = False) -> None:
    """Bring a data set here, whole or not at all; one that is here is left as it is, and nobody is asked.

    Args:
        shared: Which.
        datasets_dir: Where it gets a folder of its own name.
        quiet: No bars.

    Raises:
        MissingInputError: If it is not on the hub, or not shown to us.
        InputError: If it is no data set of ours, is not whole there, or the hub does not answer.
    """
    final = datasets_dir / shared.key.folder
    if final.exists():
        return
    if quiet:
        disable_progress_bars()
    with Lock(datasets_dir, final.name, refusal=f"another run is at {final}; wait for it"):
        if not final.exists():
            _fetch(shared, final)


def _fetch(shared: SharedDataset, final: Path) -> None:
    """Fetch what is missing, look at it, and give it its name."""
    work = final.with_name(final.name + FETCHING_SUFFIX)
    names, commit = _look_up(shared, work)
    try:
        _download(shared, [RECORD_FILE], commit, work)
        record = read_generation_record(work)
        _check_name(shared, record["settings"])
        _download(shared, names, commit, work)
        open_samples(work, record)
    except DamagedFileError as err:
        remove_folder(work)
        raise InputError(
            f"--source_models {shared.reference} is no whole data set of generate_datasets.py: {err.path.name} "
            f"({err.found}); have it sent again, or give another"
        ) from err
    shutil.rmtree(work / KEPT_BY_LIBRARY)
    for path in work.iterdir():
        if path.name in names:
            flush_to_disk(path)
        else:  # of an earlier commit
            path.unlink()
    os.replace(work, final)


def _look_up(shared: SharedDataset, work: Path) -> tuple[list[str], str]:
    """Files of the data set in its newest commit, for which there is room, and that commit.

    Raises:
        InputError: If there are none, or no room.
    """
    repository = Repository("dataset", shared.id, work)
    with asking_the_hub(f"--source_models {shared.reference} could not be fetched"):
        info = HfApi().repo_info(shared.id, repo_type=repository.kind, files_metadata=True)
    sizes = {each.rfilename: each.size or 0 for each in info.siblings if repository.is_ours(each.rfilename)}
    if RECORD_FILE not in sizes:
        raise MissingInputError(
            f"--source_models {shared.reference} has no {RECORD_FILE}, so it is no data set of generate_datasets.py; "
            f"give it to --text_datasets if it has texts"
        )
    n_bytes = sum(size for name, size in sizes.items() if not (work / name).exists())
    check_space(work.parent, n_bytes, shared.reference)
    return list(sizes), info.sha


def _download(shared: SharedDataset, names: Sequence[str], commit: str, work: Path) -> None:
    """Fetch files, in parts that were fetched before from where these end."""
    where: dict[str, Any] = {"repo_type": "dataset", "revision": commit, "local_dir": work}
    with asking_the_hub(f"--source_models {shared.reference} could not be fetched"):
        for name in names:
            HfApi().hf_hub_download(shared.id, name, **where)


def _check_name(shared: SharedDataset, settings: dict[str, Any]) -> None:
    """Refuse a data set that is called like another: results and seeds would be taken for that one's.

    Raises:
        InputError: If it is.
    """
    made = DatasetKey(settings["model"], settings["seed"], settings["temperature"], settings["top_p"])
    if made != shared.key:
        raise InputError(f"--source_models {shared.reference} holds {made.folder}; give its repository that name")


def _parse(reference: str) -> SharedDataset:
    """A reference, taken apart."""
    match = _REFERENCE.fullmatch(reference)
    found, key = (f"{match[1]}/{match[2]}", DatasetKey.from_folder(match[2])) if match else ("", None)
    try:
        validate_repo_id(found)
    except HFValidationError:
        match = None
    if match is None:
        raise InputError(
            f"--source_models {reference} must be {PREFIX}datasets/ORG/NAME or {PREFIX}ORG/NAME, as on the Hugging "
            f"Face hub"
        )
    if key is None:
        raise InputError(
            f"--source_models {reference} must end in the name of a generated data set (MODEL_SEED_TEMPERATURE_TOP-P, "
            f"such as pythia-1.4b_42_1.0_0.9), got {match[2]}; other data sets go to --text_datasets"
        )
    return SharedDataset(reference, found, key)
