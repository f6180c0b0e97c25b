"""The results of all comparisons: `metrics.json`, the same as a tidy `metrics.csv`, and arrays for figures.

metrics.json holds `{"schema": 4, "saes": [...], "pairs": [...], "datasets": [...]}`: one record per SAE with what was
measured on each source's held-out tokens (`evaluations`) and on random tokens, one per pair of SAEs, one per source.
Every record says which weights it was measured on, so that nothing is measured twice and nothing old is kept.

Several runs may share a folder: each adds what it is about to what stands there, one after the other.
"""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sae_utils.errors import InputError
from sae_utils.files import (
    DamagedFileError,
    Record,
    read_record,
    reading,
    removal,
    write_record,
    write_text,
    written_whole,
)
from sae_utils.locks import LONG_PATIENCE_SEC, Lock
from sae_utils.paths import cell_name

SCHEMA = 4

READABLE = (3, 4)
"""Schemas whose SAEs are read; pairs of schema 3 lack numbers, and are matched again."""

PAIR_RECORD = "record"
"""Name under which the archive of a pair has its record, as JSON."""

PAGE_SIGN = "<title>SAE comparison"
"""What every page of ours begins with, so that nobody else's is overwritten."""

IDENTITY_NAMES = ("target", "source", "layer", "seed", "source_b", "seed_b", "kind", "measure", "eval_source")
"""Fields of a record that say what it is about."""

CSV_COLUMNS = (*IDENTITY_NAMES, "metric", "value")

SaeKey = tuple[str, str, int, int]
"""Target, source, layer and seed."""

PairKey = tuple[str, str, int, int, str, int]
"""Target, source, layer and seed of the first SAE, source and seed of the second."""


@dataclass
class Results:
    """Everything that a results folder says in numbers."""

    folder: Path
    """The results folder."""

    saes: dict[SaeKey, dict[str, Any]] = field(default_factory=dict)
    """By target, source, layer and seed."""

    pairs: dict[PairKey, dict[str, Any]] = field(default_factory=dict)
    """By target, source, layer and seed of the first SAE, and source and seed of the second."""

    datasets: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By name."""

    agreements: list[dict[str, Any]] = field(default_factory=list)
    """What the pairs of each kind have in common, by target, layer and sources; see `across.agreement_record`."""

    contrasts: list[dict[str, Any]] = field(default_factory=list)
    """Agreement between sources held against that within them; see `across.contrast`."""

    changed: set[tuple[str, str]] = field(default_factory=set)
    """Target and source of what was measured since the results were read."""

    own: set[tuple] | None = None
    """Keys of the SAEs that this run is about; None for all. Those of others may change on disk meanwhile."""

    is_written_here: bool = True
    """Whether this process writes `metrics.json`; of several, one does. Arrays are written by whoever finds them."""

    def save(self) -> Path:
        """Write `metrics.json` and `metrics.csv`, with what other runs have written there since; the former's path.

        Raises:
            InputError: If what stands there is not ours, or damaged.
        """
        path = self.folder / "metrics.json"
        if not self.is_written_here or self._is_saved():
            return path
        with self.lock():
            self._take_in(read_results(self.folder))
            content = self._content()
            write_record(path, content)
            write_text(self.folder / "metrics.csv", tidy_csv(content))
        return path

    def lock(self) -> Lock:
        """Held by whoever writes into the folder, for seconds."""
        refusal = f"another run has been writing into {self.folder} for {LONG_PATIENCE_SEC / 60:.0f} minutes"
        return Lock(self.folder, "results", refusal=refusal, patience_sec=LONG_PATIENCE_SEC)

    def is_current(self, pair: dict[str, Any]) -> bool:
        """Whether the weights and the arrays of a pair of SAEs are still those that were measured."""
        now = [self.saes[key]["weights_fingerprint"] for key in keys_of_pair(pair) if key in self.saes]
        return pair["weights_fingerprints"] == now and self.pair_path(pair_key(pair)).exists()

    def _content(self) -> dict[str, Any]:
        """What `metrics.json` holds."""
        saes, pairs = ([group[key] for key in sorted(group)] for group in (self.saes, self.pairs))
        datasets = [self.datasets[name] for name in sorted(self.datasets)]
        summaries = {"agreements": self.agreements, "contrasts": self.contrasts}
        return {"schema": SCHEMA, "saes": saes, "pairs": pairs, **summaries, "datasets": datasets}

    def _is_saved(self) -> bool:
        """Whether the files hold just this; then their times stay as they are."""
        there, content = read_results(self.folder), self._content()
        table = self.folder / "metrics.csv"
        if there._content() != content or not table.exists() or not content["saes"]:
            return False
        return table.read_bytes() == tidy_csv(content).encode()

    def _take_in(self, there: "Results") -> None:
        """Add what stands on disk of SAEs that this run is not about; of its own, it knows better."""
        if self.own is None:
            return
        own_sources = {self.saes[key]["dataset"] for key in self.own}
        self.saes = there.saes | {key: self.saes[key] for key in self.own}
        others = {key: pair for key, pair in there.pairs.items() if not set(keys_of_pair(pair)) <= self.own}
        self.pairs = {key: pair for key, pair in (others | self.pairs).items() if self.is_current(pair)}
        self.datasets = there.datasets | {name: self.datasets[name] for name in own_sources & set(self.datasets)}

    def arrays_path(self, target: str, source: str, layer: int) -> Path:
        """Where the arrays of one cell's layer are."""
        return self.folder / "details" / f"{cell_name(target, source)}_layers.{layer}.npz"

    def arrays(self, target: str, source: str, layer: int) -> dict[str, np.ndarray]:
        """The arrays of one cell's layer, by name; none if nothing was measured yet."""
        return read_arrays(self.arrays_path(target, source, layer))

    def add_arrays(self, target: str, source: str, layer: int, **arrays: np.ndarray) -> None:
        """Add arrays to those of one cell's layer, in one step."""
        path = self.arrays_path(target, source, layer)
        with self.lock():
            write_arrays(path, read_arrays(path) | arrays)

    def pair_path(self, key: PairKey) -> Path:
        """Where the arrays of a pair are, and what is known of it."""
        target, source, layer, seed, source_b, seed_b = key
        folder = self.folder / "details" / f"{target}_layers.{layer}.pairs"
        return folder / f"{source}_seed_{seed}_with_{source_b}_seed_{seed_b}.npz"

    def pair_arrays(self, key: PairKey) -> dict[str, np.ndarray]:
        """The arrays of a pair, by name; none if it was not matched yet."""
        return {name: array for name, array in read_arrays(self.pair_path(key)).items() if name != PAIR_RECORD}

    def write_pair(self, record: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Write the arrays of a pair and its record, in one step."""
        path = self.pair_path(pair_key(record))
        with self.lock():
            write_arrays(path, arrays | {PAIR_RECORD: np.array(json.dumps(record))})

    def take_in_pair(self, key: PairKey, fingerprints: list[str]) -> bool:
        """Add what stands on disk of a pair of these weights; whether there was any."""
        path = self.pair_path(key)
        if not path.exists():
            return False
        with reading(path, remeasure(path)):
            record = json.loads(str(read_arrays(path)[PAIR_RECORD]))
        if pair_key(record) != key or record["weights_fingerprints"] != fingerprints:
            return False
        self.pairs[key] = record
        self.changed |= {each[:2] for each in keys_of_pair(record)}
        return True


def read_results(folder: Path) -> Results:
    """What earlier runs found; nothing if there is no `metrics.json` of a schema that can be read.

    Raises:
        InputError: If a file of that name is not ours, or damaged.
    """
    results, path = Results(folder), folder / "metrics.json"
    if path.exists() and (known := read_metrics(path))["schema"] in READABLE:
        with reading(path, remeasure(path)):
            results.saes = {sae_key(record): record for record in known["saes"]}
            pairs = known["pairs"] if known["schema"] == SCHEMA else []
            results.pairs = {pair_key(record): record for record in pairs}
            results.datasets = {record["name"]: record for record in known["datasets"]}
            results.agreements, results.contrasts = known.get("agreements", []), known.get("contrasts", [])
    return results


def read_metrics(path: Path) -> Record:
    """`metrics.json`, of any schema.

    Raises:
        DamagedFileError: If it is not ours, or damaged, or has names in it that lead out of the results folder.
    """
    known = read_record(path, remeasure(path), schema=int, saes=list)
    with reading(path, remeasure(path)):
        records, names = [*known["saes"], *known.get("pairs", [])], ("target", "source", "source_b")
        named = [record[name] for record in records for name in names if name in record]
    if wrong := [name for name in named if not isinstance(name, str) or Path(name).name != name]:
        raise DamagedFileError(path, f"{wrong[0]!r} is no name of a model or a corpus", remeasure(path))
    return known


def remeasure(path: Path) -> str:
    """What to do about a damaged file of results."""
    return f"{removal(path)} if you do not need it, and the same command measures what it held again"


def check_are_ours(folder: Path) -> None:
    """Refuse files under our names that something else made, before anything is computed.

    Raises:
        InputError: If there is one.
    """
    path, table, page = (folder / name for name in ("metrics.json", "metrics.csv", "report.html"))
    if path.exists():
        read_metrics(path)
    others = [
        each
        for each, sign in ((table, ",".join(CSV_COLUMNS)), (page, PAGE_SIGN))
        if each.exists() and (not each.is_file() or sign.encode() not in each.read_bytes())
    ]
    figures, is_ours = folder / "figures", any(each.exists() for each in (path, table, page))
    if figures.exists() and not is_ours and (not figures.is_dir() or any(figures.iterdir())):
        others.append(figures)
    if (features := folder / "features").exists() and not features.is_dir():
        others.append(features)
    if others:
        raise InputError(
            f"{others[0]} is not of this project, and would be overwritten; move it away, or give another --results_dir"
        )


def sae_key(record: dict[str, Any]) -> SaeKey:
    """What tells an SAE's record from others."""
    return record["target"], record["source"], record["layer"], record["seed"]


def pair_key(record: dict[str, Any]) -> PairKey:
    """What tells a pair's record from others."""
    return (*sae_key(record), record["source_b"], record["seed_b"])


def keys_of_pair(record: dict[str, Any]) -> tuple[SaeKey, SaeKey]:
    """The two SAEs of a pair."""
    target, source, layer, seed, source_b, seed_b = pair_key(record)
    return (target, source, layer, seed), (target, source_b, layer, seed_b)


def tidy_csv(content: dict[str, Any]) -> str:
    """One line per number: what it is about, its name, its value. Names of nested numbers are joined by dots.

    The two ends of an interval, such as `sfr_interval`, are `sfr_low` and `sfr_high`; a bin of positions is named
    by its first, such as `by_position.4.fvu`. Of a probe, `eval_source` is the data set, and names begin with `probe.`.

    Args:
        content: Of `metrics.json`.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for record in [record for kind in ("saes", "pairs", "agreements", "contrasts") for record in content[kind]]:
        about = {name: record[name] for name in IDENTITY_NAMES if name in record}
        for evaluation in record.get("evaluations", []):
            where = about | {"eval_source": evaluation["eval_source"]}
            writer.writerows(where | {"metric": name, "value": value} for name, value in _numbers(evaluation))
        for probe in record.get("probes", []):
            where = about | {"eval_source": probe["name"]}
            writer.writerows(where | {"metric": name, "value": value} for name, value in _numbers(probe, "probe."))
        lists = "evaluations", "probes"
        rest = {name: value for name, value in record.items() if name not in (*IDENTITY_NAMES, *lists)}
        writer.writerows(about | {"metric": name, "value": value} for name, value in _numbers(rest))
    return text.getvalue()


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Arrays of an .npz file by name; none if it is not there. The format has checksums of its own.

    Raises:
        DamagedFileError: If it cannot be read.
    """
    if not path.exists():
        return {}
    with reading(path, remeasure(path)), np.load(path) as stored:
        return dict(stored)


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an .npz file in one step, in the order of names: which arrays were measured first does not show."""
    n_bytes = sum(np.asarray(array).nbytes for array in arrays.values())
    with written_whole(path, n_bytes=n_bytes) as file, open(file.scratch, "wb") as stored:
        np.savez_compressed(stored, **dict(sorted(arrays.items())))


def _numbers(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float | int]]:
    """Every number in a record with its name; undefined ones are left out."""
    for name, value in record.items():
        stem = prefix + name.removesuffix("_interval")
        if isinstance(value, dict):
            yield from _numbers(value, f"{stem}.")
        elif name == "by_position":
            for each in value:
                yield from _numbers(each, f"{stem}.{each['first']}.")
        elif isinstance(value, list) and value and all(isinstance(each, float) for each in value):
            yield from zip((f"{stem}_low", f"{stem}_high"), value, strict=True)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield prefix + name, value
