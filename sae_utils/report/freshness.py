"""Whether page and figures still show what the results hold: they are drawn again only when something has changed."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from sae_utils.comparison.results import read_metrics
from sae_utils.files import checksum_files, checksum_text, read_record, removal, write_record
from sae_utils.paths import losses_files

RECORD_FILE = "report.json"
"""What the page and the figures were drawn from, and their checksums."""

OWN_FILES = Path(__file__).parent
"""The code that draws, and its templates: with another version of it, all is drawn again."""


def fresh_figures(results_dir: Path) -> list[Path] | None:
    """The figures, if they and the page are those that were drawn from the results as they are; None if not."""
    path = results_dir / RECORD_FILE
    if not path.exists():
        return None
    record = read_record(path, f"{removal(path)}, and the report is drawn again", inputs=str, checksums=dict)
    names = list(record["checksums"])
    are_there = all((results_dir / name).is_file() for name in names)
    if not are_there or record["inputs"] != checksum_inputs(results_dir):
        return None
    if checksum_files(results_dir, names) != record["checksums"]:
        return None
    return [results_dir / name for name in names if name.startswith("figures/")]


def record_report(results_dir: Path, drawn: Iterable[Path]) -> None:
    """Write down what page and figures were drawn from.

    Args:
        results_dir: The results folder.
        drawn: The page and the figures.
    """
    names = [path.relative_to(results_dir).as_posix() for path in drawn]
    about = {"inputs": checksum_inputs(results_dir), "checksums": checksum_files(results_dir, names)}
    write_record(results_dir / RECORD_FILE, about)


def checksum_inputs(results_dir: Path) -> str:
    """Checksum of everything that the report shows, and of what shows it, wherever these lie."""
    metrics = results_dir / "metrics.json"
    folders = {Path(record["path"]).parent for record in read_metrics(metrics)["saes"]}
    curves = [path for folder in folders for path in losses_files(folder)]
    details = (each for each in (results_dir / "details").rglob("*") if each.suffix in (".npz", ".json"))
    own = [path for path in OWN_FILES.rglob("*") if path.suffix in (".py", ".j2", ".css", ".js")]
    digests = [
        f"{path.parent.name}/{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        for path in [metrics, *curves, *details, *own]
        if path.is_file()
    ]
    return checksum_text("\n".join(sorted(digests)))
