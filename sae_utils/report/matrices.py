"""Tables of train source x eval source: what SAEs of one source are, and what becomes of their latents, on another."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from sae_utils.report.findings import Comparison, Findings, Spread
from sae_utils.report.origin import NAMES

Cell = Callable[[Comparison, str], Spread | None]


@dataclass(frozen=True)
class Matrix:
    """A number of every train source on every eval source, over seeds."""

    title: str
    unit: str
    is_high_good: bool
    cell: Cell
    interval: Callable[[Comparison, str], tuple[float, float] | None] = lambda comparison, column: None


def _of_evaluations(name: str, title: str, unit: str, *, is_high_good: bool) -> Matrix:
    return Matrix(
        title,
        unit,
        is_high_good,
        lambda comparison, column: comparison.of_evaluations(name, column),
        lambda comparison, column: comparison.interval_of_evaluations(name, column),
    )


def _found_in(comparison: Comparison, column: str) -> Spread | None:
    """How often latents come back in SAEs of other seeds: of their own source, or of another one."""
    if column == comparison.dataset:
        return comparison.of_stability("mean")
    variant = comparison.saes[0].get("variant", "")
    return comparison.of_elsewhere(f"{column}_{variant}" if variant else column, "mean")


MATRICES = (
    _of_evaluations("fvu", "FVU", "no unit; 0 is perfect", is_high_good=False),
    _of_evaluations(
        "fvu_without_first_position", "FVU without first position", "no unit; 0 is perfect", is_high_good=False
    ),
    _of_evaluations("ce_recovered", "CE recovered", "no unit; 1 is perfect", is_high_good=True),
    _of_evaluations("ce_diff_nats", "CE difference", "nats per token; 0 is perfect", is_high_good=False),
)
"""What SAEs are worth on every source."""

SHARED_MATRICES = (
    Matrix("Come back", "mean share of the SAEs of that source", True, _found_in),
    _of_evaluations("also_live_share", "Fire there, too", "share of those that fire on their own", is_high_good=True),
    _of_evaluations("firing_overlap", "Firing overlap", "share; 1 is as on their own", is_high_good=True),
)
"""What becomes of an SAE's latents on every source: whether they are found there, and whether they fire."""


def source_matrices(findings: Findings, matrices: Sequence[Matrix]) -> list[dict[str, Any]]:
    """For each target and layer, the tables of train source x eval source; none if only one source was evaluated on.

    A table with the numbers of the one before is left out: where first positions are excluded, FVU without them is FVU.

    Returns:
        Of each `target`, `layer`, the `tables` whose numbers are there, and the `floor` of how often latents come back.
    """
    columns = findings.eval_sources
    if len(columns) < 2:
        return []
    groups = []
    for target, layer, members in findings.groups:
        tables = _that_differ([table for matrix in matrices if (table := _table(members, columns, matrix))])
        floor = Spread.of(each.mean for member in members if (each := member.of_stability("floor")))
        if tables:
            groups.append({"target": target, "layer": layer, "tables": tables, "floor": floor})
    return groups


def agreement_matrices(findings: Findings) -> list[dict[str, Any]]:
    """For each target and layer, agreement of every two sources across seeds, and within each; of three or more."""
    groups = []
    for target, layer, members in findings.groups:
        names = [each.source for each in members]
        here = [each for each in findings.agreements if (each["target"], each["layer"]) == (target, layer)]
        found = {frozenset((each["source"], each["source_b"])): each for each in here if each["kind"] != "same_seed"}
        if len(names) > 2 and len({each["kind"] for each in found.values()}) > 1:
            tables = [_agreements(names, found, measure, title) for measure, title in NAMES.items()]
            groups.append({"target": target, "layer": layer, "tables": tables})
    return groups


def _agreements(
    names: Sequence[str], found: dict[frozenset[str], dict[str, Any]], measure: str, title: str
) -> dict[str, Any]:
    """One table: a stronger colour is more agreement."""
    known = [each[measure] for each in found.values()]
    lowest, extent = min(known), (max(known) - min(known)) or 1.0
    rows = []
    for name in names:
        records = [found.get(frozenset((name, other))) for other in names]
        cells = [
            each
            and {
                "value": Spread(each[measure], each[f"{measure}_lowest"], each[f"{measure}_highest"], each["n_pairs"]),
                "interval": each[f"{measure}_interval"],
                "shade": (each[measure] - lowest) / extent,
                "is_own": other == name,
            }
            for other, each in zip(names, records, strict=True)
        ]
        nothing = {"value": None, "interval": None, "shade": 0, "is_own": False}
        rows.append({"source": name, "cells": [cell or nothing for cell in cells]})
    unit = "no unit" if measure == "mean_matched_cosine" else "share of latents"
    return {
        "title": title,
        "unit": f"{unit}; outlined: within a source; a stronger colour is more",
        "columns": list(names),
        "rows": rows,
    }


def _that_differ(tables: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tables without those whose rows are the same as of the one before."""
    return tables[:1] + [table for before, table in pairwise(tables) if table["rows"] != before["rows"]]


def _table(members: list[Comparison], columns: list[str], matrix: Matrix) -> dict[str, Any] | None:
    """One table with, per cell, the number over seeds and its place between the worst and the best of the table."""
    cells = [[matrix.cell(each, column) for column in columns] for each in members]
    known = [cell.mean for row in cells for cell in row if cell]
    if not known:
        return None
    worst, best = (min(known), max(known)) if matrix.is_high_good else (max(known), min(known))
    extent = abs(best - worst) or 1.0
    rows = [
        {
            "source": each.source,
            "cells": [
                {
                    "value": cell,
                    "interval": matrix.interval(each, column),
                    "shade": abs(cell.mean - worst) / extent if cell else 0,
                    "is_own": column == each.dataset,
                }
                for cell, column in zip(row, columns, strict=True)
            ],
        }
        for each, row in zip(members, cells, strict=True)
    ]
    return {"title": matrix.title, "unit": matrix.unit, "columns": columns, "rows": rows}
