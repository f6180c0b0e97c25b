"""What a results folder says, read back and grouped: one `Comparison` per target, source and layer.

metrics.json is required; the arrays and features in `details`, and the training curves beside the SAEs, are optional.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sae_utils.comparison.results import SCHEMA, Results, pair_key, read_arrays, read_metrics, remeasure
from sae_utils.errors import InputError, MissingInputError
from sae_utils.files import read_record
from sae_utils.paths import cell_name, losses_files

MAX_CURVE_POINTS = 300
"""Points kept of a training curve; each is the mean of the steps that it stands for."""

Curve = tuple[np.ndarray, np.ndarray]
"""Tokens and values, both `(points,)`."""


@dataclass(frozen=True)
class Spread:
    """Mean of some numbers, and the smallest and the largest of them."""

    mean: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Spread | None":
        """Mean and extremes of the values that are defined; None if none is.

        >>> Spread.of([0.25, None, 0.75])
        Spread(mean=0.5, low=0.25, high=0.75, n=2)
        """
        known = [value for value in values if value is not None]
        return cls(sum(known) / len(known), min(known), max(known), len(known)) if known else None


@dataclass
class Comparison:
    """All seeds of one target, source and layer: their records, the pairs of them, and what `details` has."""

    target: str
    source: str
    layer: int
    saes: list[dict[str, Any]] = field(default_factory=list)
    pairs: list[dict[str, Any]] = field(default_factory=list)
    """Of two seeds."""

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    """Arrays of the npz file, by name; empty without one."""

    arrays_of_pairs: list[dict[str, np.ndarray]] = field(default_factory=list)
    """Arrays of each pair, by name; empty where there is no file."""

    features: dict[str, Any] | None = None
    """Content of the features file; None without one."""

    @property
    def dataset(self) -> str:
        """Name of the data set behind the source; SAEs of one may be listed as several sources."""
        return dataset_of(self.saes[0])

    @property
    def seeds(self) -> list[int]:
        """Seeds of the SAEs, ascending."""
        return [sae["seed"] for sae in self.saes]

    def of_saes(self, name: str) -> Spread | None:
        """A number of the SAE records, over seeds."""
        return Spread.of(sae.get(name) for sae in self.saes)

    def of_pairs(self, name: str) -> Spread | None:
        """A number of the pair records, over pairs."""
        return Spread.of(pair.get(name) for pair in self.pairs)

    def interval_of_pairs(self, name: str) -> tuple[float, float] | None:
        """95 % interval of `of_pairs`: the mean of the pairs' low ends and of their high ends.

        As wide as if all pairs were off in the same direction: they share SAEs, so they are not independent. None if a
        pair with this number has no interval.
        """
        return _interval_in(self.pairs, name)

    def of_codes(self, name: str) -> Spread | None:
        """A number of what matched latents do, over pairs."""
        return Spread.of((pair.get("codes") or {}).get(name) for pair in self.pairs)

    def of_unstable(self, name: str) -> Spread | None:
        """A number of directions that are not found again, over pairs and both ways."""
        records = [pair.get("unstable") or {} for pair in self.pairs]
        return Spread.of(record.get(each) for record in records for each in (name, f"{name}_b"))

    def of_stability(self, name: str) -> Spread | None:
        """A number of how often latents come back, over seeds."""
        return Spread.of((sae.get("stability") or {}).get(name) for sae in self.saes)

    def of_elsewhere(self, source: str, name: str) -> Spread | None:
        """The same in SAEs of another source."""
        records = [(sae.get("stability") or {}).get("elsewhere") or {} for sae in self.saes]
        return Spread.of((record.get(source) or {}).get(name) for record in records)

    def of_thresholds(self, threshold: str) -> Spread | None:
        """SFR at another threshold, over pairs."""
        return Spread.of((pair.get("sfr_at") or {}).get(threshold) for pair in self.pairs)

    def interval_of_thresholds(self, threshold: str) -> tuple[float, float] | None:
        """The same as `interval_of_pairs`, of SFR at another threshold."""
        return _mean_interval((pair.get("sfr_at_interval") or {}).get(threshold) for pair in self.pairs)

    def of_random_tokens(self, name: str) -> Spread | None:
        """A number measured on random tokens, over seeds."""
        return Spread.of(self.random_token_values(name))

    def interval_of_random_tokens(self, name: str) -> tuple[float, float] | None:
        """95 % interval of `of_random_tokens`: the mean of the seeds' low ends and of their high ends.

        As wide as if all seeds were off in the same direction: they are measured on the same tokens. None if a seed
        with this number has no interval.
        """
        return _interval_in([sae.get("random_tokens") or {} for sae in self.saes], name)

    def random_token_values(self, name: str) -> list[float]:
        """The same, one by one, where they are defined."""
        values = [(sae.get("random_tokens") or {}).get(name) for sae in self.saes]
        return [value for value in values if value is not None]

    def pair_arrays(self, name: str) -> list[np.ndarray]:
        """An array of each pair, as far as they are there."""
        return [arrays[name] for arrays in self.arrays_of_pairs if name in arrays]

    def seed_arrays(self, name: str) -> dict[int, np.ndarray]:
        """An array of each seed, as far as they are there."""
        names = {seed: f"{name}_{seed}" for seed in self.seeds}
        return {seed: self.arrays[each] for seed, each in names.items() if each in self.arrays}

    def of_evaluations(self, name: str, eval_source: str | None = None) -> Spread | None:
        """A number measured on held-out tokens, over seeds; of the SAEs' own source unless another is named."""
        return Spread.of(self.evaluation_values(name, eval_source))

    def has_other(self, name: str, other: str) -> bool:
        """Whether two numbers measured on held-out tokens of the SAEs' own source differ for any seed."""
        return self.evaluation_values(name) != self.evaluation_values(other)

    def evaluation_values(self, name: str, eval_source: str | None = None) -> list[float]:
        """The same, one by one, where they are defined."""
        values = [each.get(name) for each in self._evaluations(eval_source)]
        return [value for value in values if value is not None]

    def interval_of_evaluations(self, name: str, eval_source: str | None = None) -> tuple[float, float] | None:
        """The same as `interval_of_random_tokens`, of a number measured on held-out tokens."""
        return _interval_in(self._evaluations(eval_source), name)

    def of_positions(self, name: str) -> dict[int, Spread | None]:
        """A number measured on held-out tokens of the SAEs' own source, over seeds, in bins of positions.

        Bins go by their first position, ascending; None where nothing is kept in one. Empty if none were measured.
        """
        bins = [each for evaluation in self._evaluations() for each in evaluation.get("by_position") or []]
        firsts = sorted({each["first"] for each in bins})
        return {first: Spread.of(each.get(name) for each in bins if each["first"] == first) for first in firsts}

    def _evaluations(self, eval_source: str | None = None) -> list[dict[str, Any]]:
        """What the SAEs are on held-out tokens of a source, their own unless another is named."""
        wanted = self.dataset if eval_source is None else eval_source
        found = [each for sae in self.saes for each in sae.get("evaluations") or []]
        return [each for each in found if each["eval_source"] == wanted]

    @cached_property
    def curves(self) -> dict[int, Curve]:
        """FVU of the training batches over tokens, by seed; seeds without a `metrics.jsonl` are left out."""
        curves = {}
        for sae in self.saes:
            for path in losses_files(Path(sae["path"]).parent):
                curve = read_curve(path, f"fvu/layers.{self.layer}/seed_{sae['seed']}") if path.is_file() else ([], [])
                if len(curve[0]):
                    curves[sae["seed"]] = curve
        return curves


def dataset_of(sae: dict[str, Any]) -> str:
    """Name of the data set that an SAE was trained on."""
    return sae.get("dataset", sae["source"])


@dataclass
class Findings:
    """Everything a results folder holds."""

    comparisons: list[Comparison]
    """By target, layer and source."""

    datasets: list[dict[str, Any]]
    """Data set records."""

    pairs: list[dict[str, Any]] = field(default_factory=list)
    """Records of all pairs, of one source and of two."""

    agreements: list[dict[str, Any]] = field(default_factory=list)
    """What the pairs of every two sources have in common."""

    contrasts: list[dict[str, Any]] = field(default_factory=list)
    """Agreement between sources held against that within them."""

    @property
    def saes(self) -> Iterator[dict[str, Any]]:
        """All SAE records."""
        return (sae for comparison in self.comparisons for sae in comparison.saes)

    @property
    def targets(self) -> list[str]:
        """Names of the target models."""
        return list(dict.fromkeys(each.target for each in self.comparisons))

    @property
    def sources(self) -> list[str]:
        """Names of the sources trained on."""
        return list(dict.fromkeys(each.source for each in self.comparisons))

    @property
    def layers(self) -> list[int]:
        """Layers, ascending."""
        return sorted({each.layer for each in self.comparisons})

    @property
    def eval_sources(self) -> list[str]:
        """Sources that SAEs were evaluated on: those trained on first, in their order."""
        evaluated = [each["eval_source"] for sae in self.saes for each in sae.get("evaluations") or []]
        own = [each.dataset for each in self.comparisons]
        return [source for source in dict.fromkeys([*own, *evaluated]) if source in evaluated]

    @property
    def shuffled(self) -> set[str]:
        """Names of the data sets whose tokens were shuffled."""
        return {each["name"] for each in self.datasets if each["kind"] == "shuffled"}

    @property
    def groups(self) -> list[tuple[str, int, list[Comparison]]]:
        """Target, layer, and the comparisons of its sources."""
        return [
            (target, layer, members)
            for target in self.targets
            for layer in self.layers
            if (members := [each for each in self.comparisons if (each.target, each.layer) == (target, layer)])
        ]

    def label(self, comparison: Comparison, *, target: bool = True) -> str:
        """What tells a comparison from the others: its layer, and its target and source where there are several."""
        parts = [comparison.target] if target and len(self.targets) > 1 else []
        parts.append(f"layer {comparison.layer}")
        return ", ".join([*parts, f"trained on {comparison.source}"] if len(self.sources) > 1 else parts)

    def group_label(self, target: str, layer: int) -> str:
        """Target and layer; the target is left out where there is only one."""
        return f"{target}, layer {layer}" if len(self.targets) > 1 else f"layer {layer}"


def read_findings(results_dir: Path) -> Findings:
    """Read a results folder.

    Raises:
        MissingInputError: If there is no `metrics.json`.
        InputError: If it has no SAE, or another schema than `SCHEMA`.
    """
    path = results_dir / "metrics.json"
    if not path.is_file():
        raise MissingInputError(f"there are no results in {results_dir.resolve()}: no metrics.json; run train_sae.py")
    metrics = read_metrics(path)
    if metrics.get("schema") != SCHEMA or not metrics.get("saes"):
        raise InputError(
            f"{path} must have schema {SCHEMA} and at least one SAE, got schema {metrics.get('schema')!r} and "
            f"{len(metrics.get('saes') or [])} SAEs; run train_sae.py again, it writes the file anew"
        )
    comparisons = _group(metrics, results_dir)
    summaries = [metrics.get(name) or [] for name in ("pairs", "agreements", "contrasts")]
    return Findings(comparisons, metrics.get("datasets") or [], *summaries)


def read_curve(path: Path, name: str) -> Curve:
    """One curve of a `metrics.jsonl`, thinned to at most `MAX_CURVE_POINTS` points.

    Steps without this number, or where it is not finite, are left out.

    Raises:
        InputError: If a line is not JSON.
    """
    steps = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            step = json.loads(line)
        except ValueError as err:
            raise InputError(f"{path} line {number} is not JSON ({err}); remove the file to do without it") from err
        if step.get(name) is not None and np.isfinite(step[name]):
            steps.append((step["tokens"], step[name]))
    tokens, values = np.array(steps, dtype=np.float64).reshape(-1, 2).T
    return thin(tokens), thin(values)


def thin(values: np.ndarray) -> np.ndarray:
    """Means of at most `MAX_CURVE_POINTS` runs of neighbours, as equal in length as can be.

    >>> thin(np.arange(600.0))[:3].tolist()
    [0.5, 2.5, 4.5]
    """
    if len(values) <= MAX_CURVE_POINTS:
        return values
    return np.array([part.mean() for part in np.array_split(values, MAX_CURVE_POINTS)])


def _interval_in(records: Iterable[dict[str, Any]], name: str) -> tuple[float, float] | None:
    """Mean interval of a number of the records that have it."""
    return _mean_interval(record.get(f"{name}_interval") for record in records if record.get(name) is not None)


def _mean_interval(intervals: Iterable[Sequence[float] | None]) -> tuple[float, float] | None:
    """Mean of the low ends and mean of the high ends; None if there is none, or one is not defined.

    >>> _mean_interval([[0.25, 0.5], [0.75, 1.0]]), _mean_interval([[0.25, 0.5], None])
    ((0.5, 0.75), None)
    """
    known = list(intervals)
    if not known or None in known:
        return None
    low, high = (sum(ends) / len(known) for ends in zip(*known, strict=True))
    return low, high


def _group(metrics: dict[str, Any], results_dir: Path) -> list[Comparison]:
    """Records put together by target, source and layer, with their details."""
    comparisons: dict[tuple[str, str, int], Comparison] = {}
    details, results = results_dir / "details", Results(results_dir)
    within = [pair for pair in metrics.get("pairs") or [] if pair["source"] == pair["source_b"]]
    for kind, records in (("saes", metrics["saes"]), ("pairs", within)):
        for record in records:
            key = record["target"], record["source"], record["layer"]
            getattr(comparisons.setdefault(key, Comparison(*key)), kind).append(record)
    comparisons = {key: each for key, each in comparisons.items() if each.saes}
    for each in comparisons.values():
        each.saes.sort(key=lambda sae: sae["seed"])
        each.pairs.sort(key=lambda pair: (pair["seed"], pair["seed_b"]))
        each.arrays_of_pairs = [results.pair_arrays(pair_key(pair)) for pair in each.pairs]
        stem = f"{cell_name(each.target, each.source)}_layers.{each.layer}"
        if (arrays := details / f"{stem}.npz").exists():
            each.arrays = read_arrays(arrays)
        if (features := details / f"{stem}.features.json").exists():
            each.features = read_record(features, remeasure(features))
    return _ordered(list(comparisons.values()), metrics)


def _ordered(comparisons: list[Comparison], metrics: dict[str, Any]) -> list[Comparison]:
    """By target, layer and source, so that neighbours differ in the source alone; generated sources before texts."""
    targets = list(dict.fromkeys(each.target for each in comparisons))
    kinds = ["generated", "text", "shuffled"]
    datasets = sorted(metrics.get("datasets") or [], key=lambda record: kinds.index(record["kind"]))
    names = list(dict.fromkeys([*(record["name"] for record in datasets), *(each.dataset for each in comparisons)]))
    given = [each.source for each in comparisons]
    return sorted(
        comparisons,
        key=lambda each: (
            targets.index(each.target),
            each.layer,
            names.index(each.dataset),
            given.index(each.source),
        ),
    )
