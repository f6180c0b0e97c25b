"""The comparison of a target as W&B shows it: what was compared, and the tables, whose cells are single values."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_utils.comparison.results import Results
from sae_utils.report.feature_files import feature_files

Row = dict[str, Any]
"""A row of a table, by column."""


def comparison_config(results: Results, target: str) -> dict[str, Any]:
    """What was compared of a target, by which a team's dashboard filters and groups.

    Numbers that all of its SAEs share stand alone, otherwise there is a list of them.
    """
    saes = _of(target, results.saes.values())
    found = {name: sorted({record[name] for record in saes}) for name in ("n_latents", "k", "layer", "seed")}
    sources = sorted({record.get("dataset", record["source"]) for record in saes})
    shared = {name: found[name][0] if len(found[name]) == 1 else found[name] for name in ("n_latents", "k")}
    return {"target": target, "sources": sources, **shared, "layers": found["layer"], "seeds": found["seed"]}


def comparison_files(results: Results) -> dict[str, Path]:
    """Files of a results folder that say everything about it, by their names in there: numbers, and a whole page."""
    paths = [results.folder / name for name in ("report.html", "metrics.json", "metrics.csv")]
    return {path.relative_to(results.folder).as_posix(): path for path in [*paths, *feature_files(results.folder)]}


def comparison_tables(results: Results, target: str) -> dict[str, list[Row]]:
    """Tables by name: SAEs on each source, pairs of SAEs, agreement of sources, between them held against within.

    They have the numbers of `metrics.json` under the names of `metrics.csv`, but for those that are nested deeper than
    one: by position, by firing rate.
    """
    saes = [row for record in _of(target, results.saes.values()) for row in _rows_of_sae(record)]
    groups = {"pairs": results.pairs.values(), "agreements": results.agreements, "contrasts": results.contrasts}
    others = {name: [_cells(record) for record in _of(target, group)] for name, group in groups.items()}
    return {name: _same_columns(rows) for name, rows in ({"saes": saes} | others).items()}


def _rows_of_sae(record: Mapping[str, Any]) -> list[Row]:
    """A row for each source that an SAE was measured on; one without such numbers if it has diverged."""
    about = _cells(record)
    random_tokens = {f"random_tokens.{name}": value for name, value in _cells(record["random_tokens"] or {}).items()}
    return [about | _cells(evaluation) | random_tokens for evaluation in record["evaluations"]] or [about]


def _cells(record: Mapping[str, Any]) -> Row:
    """What of a record fits a cell: texts, numbers, and the two ends of intervals."""
    cells: Row = {}
    for name, value in record.items():
        if name.endswith("_interval") and isinstance(value, list):
            stem = name.removesuffix("_interval")
            cells[f"{stem}_low"], cells[f"{stem}_high"] = value
        elif value is None or isinstance(value, str | int | float):
            cells[name] = value
    return cells


def _same_columns(rows: Sequence[Row]) -> list[Row]:
    """The rows with all columns that any of them has, as far as one has something there."""
    columns = dict.fromkeys(name for row in rows for name, value in row.items() if value is not None)
    return [{name: row.get(name) for name in columns} for row in rows]


def _of(target: str, records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those records that are of a target, in the order of what they are about."""
    about = ("layer", "source", "seed", "source_b", "seed_b")
    mine = [record for record in records if record["target"] == target]
    return sorted(mine, key=lambda record: [record.get(name, 0) for name in about if name in record])
