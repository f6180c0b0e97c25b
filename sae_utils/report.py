"""Results for people: the table on the terminal and the collected records."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae_utils.records import read_json, write_json

_COLUMNS = ("target", "source", "layer", "seed", "FVU", "FVU w/o 1st", "dead", "path")


def results_table(records: Sequence[dict[str, Any]]) -> str:
    """Text table, one line per SAE: target, source, layer, seed, FVU on held-out tokens, dead share, path.

    `FVU w/o 1st` leaves out the first position of each sequence; `dead` is the share of latents that never fire on the
    held-out tokens.
    """
    rows = [
        (
            record["target"],
            record["source"],
            str(record["layer"]),
            str(record["seed"]),
            _number(record["fvu"]),
            _number(record["fvu_without_first_position"]),
            f"{record['dead_share']:.1%}",
            record["path"],
        )
        for record in records
    ]
    widths = [max(len(row[i]) for row in [_COLUMNS, *rows]) for i in range(len(_COLUMNS))]
    is_right = [column in ("layer", "seed", "FVU", "FVU w/o 1st", "dead") for column in _COLUMNS]
    lines = [
        "  ".join(
            cell.rjust(w) if right else cell.ljust(w) for cell, w, right in zip(row, widths, is_right, strict=True)
        )
        for row in [_COLUMNS, tuple("-" * width for width in widths), *rows]
    ]
    return "\n".join(line.rstrip() for line in lines)


def collect_records(results_dir: Path, records: Sequence[dict[str, Any]]) -> Path:
    """Put records into `results/metrics.json`; an SAE that is already there is replaced, others stay."""
    path = results_dir / "metrics.json"
    results_dir.mkdir(parents=True, exist_ok=True)
    known = read_json(path)["saes"] if path.exists() else []
    merged = {_identity(record): record for record in [*known, *records]}
    write_json(path, {"schema": 1, "saes": [merged[key] for key in sorted(merged)]})
    return path


def _identity(record: dict[str, Any]) -> tuple:
    return record["target"], record["source"], record["layer"], record["seed"]


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
