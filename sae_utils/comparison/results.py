"""The results of all comparisons: `metrics.json`, the same as a tidy `metrics.csv`, and arrays for figures.

metrics.json holds `{"schema": 2, "saes": [...], "pairs": [...], "datasets": [...]}`: one record per SAE with what was
measured on each source's held-out tokens (`evaluations`) and on random tokens, one per pair of seeds, one per source.
Every record says which weights it was measured on, so that nothing is measured twice and nothing old is kept.
"""

import csv
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sae_utils.paths import cell_name
from sae_utils.records import read_json, write_json, write_text

SCHEMA = 2

CSV_COLUMNS = ("target", "source", "layer", "seed", "seed_b", "eval_source", "metric", "value")

IDENTITY_NAMES = ("target", "source", "layer", "seed", "seed_b", "eval_source")
"""Fields of a record that say what it is about."""


@dataclass
class Results:
    """Everything that a results folder says in numbers."""

    folder: Path
    """The results folder."""

    saes: dict[tuple, dict[str, Any]] = field(default_factory=dict)
    """By target, source, layer and seed."""

    pairs: dict[tuple, dict[str, Any]] = field(default_factory=dict)
    """By target, source, layer and both seeds."""

    datasets: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By name."""

    changed: set[tuple[str, str]] = field(default_factory=set)
    """Target and source of what was measured since the results were read."""

    def save(self) -> Path:
        """Write `metrics.json` and `metrics.csv`; the path of the former."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "metrics.json"
        saes, pairs = ([group[key] for key in sorted(group)] for group in (self.saes, self.pairs))
        datasets = [self.datasets[name] for name in sorted(self.datasets)]
        write_json(path, {"schema": SCHEMA, "saes": saes, "pairs": pairs, "datasets": datasets})
        write_text(self.folder / "metrics.csv", tidy_csv(saes, pairs))
        return path

    def arrays_path(self, target: str, source: str, layer: int) -> Path:
        """Where the arrays of one cell's layer are."""
        return self.folder / "details" / f"{cell_name(target, source)}_layers.{layer}.npz"

    def arrays(self, target: str, source: str, layer: int) -> dict[str, np.ndarray]:
        """The arrays of one cell's layer, by name; none if nothing was measured yet."""
        return read_arrays(self.arrays_path(target, source, layer))

    def add_arrays(self, target: str, source: str, layer: int, **arrays: np.ndarray) -> None:
        """Add arrays to those of one cell's layer, in one step."""
        path = self.arrays_path(target, source, layer)
        write_arrays(path, read_arrays(path) | arrays)


def read_results(folder: Path) -> Results:
    """What earlier runs found; nothing if there is no `metrics.json` of this schema."""
    results, path = Results(folder), folder / "metrics.json"
    if path.exists() and (known := read_json(path)).get("schema") == SCHEMA:
        results.saes = {sae_key(record): record for record in known["saes"]}
        results.pairs = {pair_key(record): record for record in known["pairs"]}
        results.datasets = {record["name"]: record for record in known["datasets"]}
    return results


def sae_key(record: dict[str, Any]) -> tuple:
    """What tells an SAE's record from others."""
    return record["target"], record["source"], record["layer"], record["seed"]


def pair_key(record: dict[str, Any]) -> tuple:
    """What tells a pair's record from others."""
    return (*sae_key(record), record["seed_b"])


def tidy_csv(saes: list[dict[str, Any]], pairs: list[dict[str, Any]]) -> str:
    """One line per number: what it is about, its name, its value. Names of nested numbers are joined by dots."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for record in [*saes, *pairs]:
        about = {name: record[name] for name in IDENTITY_NAMES if name in record}
        for evaluation in record.get("evaluations", []):
            where = about | {"eval_source": evaluation["eval_source"]}
            writer.writerows(where | {"metric": name, "value": value} for name, value in _numbers(evaluation))
        rest = {name: value for name, value in record.items() if name not in (*IDENTITY_NAMES, "evaluations")}
        writer.writerows(about | {"metric": name, "value": value} for name, value in _numbers(rest))
    return text.getvalue()


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Arrays of an .npz file by name; none if it is not there."""
    if not path.exists():
        return {}
    with np.load(path) as stored:
        return dict(stored)


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an .npz file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name("writing_" + path.name)
    with open(scratch, "wb") as file:
        np.savez_compressed(file, **arrays)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)


def _numbers(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float | int]]:
    """Every number in a record with its name; undefined ones are left out."""
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield prefix + name, value
