"""Features beside the page: those with which it would be too large lie in files that it reads when they are asked for.

A page that was opened from a disk may not fetch anything, but it may load scripts: a file calls a function of the page
with the features of an SAE. Its name has a checksum of them. So a page finds its own files or none, never those of
another report, and has them until another page stands in its place.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from sae_utils.files import SCRATCH_PREFIX, checksum_text, write_text
from sae_utils.report.feature_data import SaeFeatures

FOLDER = "features"

CALL = "addFeatures("
"""What every file begins with: the page's function. Files that begin otherwise are not ours."""


def file_name(sae: SaeFeatures) -> str:
    """Path of an SAE's file, as seen from the page."""
    return f"{FOLDER}/{sae.name}.{checksum_text(sae.text)}.js"


def write_features(results_dir: Path, saes: Sequence[SaeFeatures]) -> None:
    """Write a file for each SAE; those that are there stay as they are."""
    for sae in saes:
        name = file_name(sae)
        write_text(results_dir / name, f"{CALL}{json.dumps(name)},{sae.text});\n")


def remove_unused(results_dir: Path, saes: Sequence[SaeFeatures]) -> None:
    """Remove files of earlier reports, but for those of these SAEs; files that no report has written stay."""
    folder, used = results_dir / FOLDER, {results_dir / file_name(sae) for sae in saes}
    if not folder.is_dir():
        return
    of_killed = (path for path in folder.glob(f"{SCRATCH_PREFIX}*.js") if path.is_file())
    for path in {*feature_files(results_dir), *of_killed} - used:
        path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def feature_files(results_dir: Path) -> list[Path]:
    """Files that reports have written beside the page; those of the last one, once it is complete."""
    found = [path for path in sorted((results_dir / FOLDER).glob("*.js")) if path.is_file()]
    return [path for path in found if not path.name.startswith(SCRATCH_PREFIX) and _is_ours(path)]


def _is_ours(path: Path) -> bool:
    """Whether a file begins as ours do."""
    with path.open("rb") as file:
        return file.read(len(CALL)) == CALL.encode()
