"""What lies in a folder, and what differs between two: every byte, but for the few that may honestly differ."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

MAY_DIFFER = {
    "wandb.json": ("id", "checksum"),  # every start of a cell is a W&B run of its own; and what follows from the id
    "generation.json": ("git_commit", "checksum"),  # of the checkout, in which somebody may work meanwhile
    # Inputs lie outside of the studies here, nearer to one than to another.
    "run.json": ("git_commit", "checksum", "dataset_from_here", "target_from_here"),
}
"""By a file's name: fields that differ between two unbroken runs. Two such runs were compared byte by byte in the same
places, and nothing else did: figures, pages and archives have no time stamps in them."""

NOT_PROMISED = (".rates.json",)
"""Files of which nothing is promised: how fast this machine was just now, for plans."""

SCRATCH = ("writing_", ".tmp", ".unfinished", ".locks", "whole.arrow", "previous")
"""What is in the name of something half-written or held."""


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder by its path, with a hash of its bytes; empty folders, too. Links are not followed."""
    found = {}
    for here, folders, files in os.walk(folder):
        where = Path(here).relative_to(folder)
        for name in files:
            if name not in NOT_PROMISED and not (Path(here) / name).is_symlink():
                found[str(where / name)] = fingerprint(Path(here) / name)
        if not folders and not files and where != Path():
            found[f"{where}/"] = "an empty folder"
    return found


def fingerprint(path: Path) -> str:
    """Hash of a file's bytes, without the fields that may differ."""
    data = path.read_bytes()
    if names := MAY_DIFFER.get(path.name):
        try:
            record = json.loads(data)
            data = json.dumps({name: value for name, value in record.items() if name not in names}).encode()
        except (ValueError, AttributeError):
            pass  # damaged: all of it counts
    return hashlib.sha256(data).hexdigest()[:16]


def differences(found: Mapping[str, str], expected: Mapping[str, str], *, but_for: Iterable[str] = ()) -> list[str]:
    """One phrase for every file that is missing, too many, or another one.

    >>> differences({"a": "1", "b": "2"}, {"a": "3", "c": "4"})
    ['a differs', 'b is left over', 'c is missing']
    """
    phrases = []
    for path in sorted((found.keys() | expected.keys()) - set(but_for)):
        if path not in expected:
            phrases.append(f"{path} is left over")
        elif path not in found:
            phrases.append(f"{path} is missing")
        elif found[path] != expected[path]:
            phrases.append(f"{path} differs")
    return phrases


def half_written(found: Iterable[str]) -> list[str]:
    """Paths that only a run under way may have, or one that is to be gone on with.

    >>> half_written(["d/.locks/x.lock", "d/x.unfinished/settings.json", "d/x.unfinished/writing_a", "d/x/data.arrow"])
    ['d/x.unfinished/writing_a']
    """
    return [path for path in found if any(part.startswith("writing_") for part in path.split("/")) or ".tmp" in path]


def copy(source: Path, target: Path) -> None:
    """Copy a folder with its links as they are."""
    shutil.copytree(source, target, symlinks=True)
