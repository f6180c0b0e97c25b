"""What figures have in common: panels of rows, colours of sources, legends."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from sae_utils.report import plots
from sae_utils.report.drawing import MUTED, SERIES, Chart, Key, Panel
from sae_utils.report.findings import Comparison, Findings

ROWS_WIDTH, PANEL_WIDTH = 9.5, 3.4
"""Inches: of a panel of rows that stands alone, and of panels side by side."""


def source_colour(findings: Findings, comparison: Comparison) -> str:
    """Colour of a comparison's source, the same in every figure."""
    return SERIES[findings.sources.index(comparison.source) % len(SERIES)]


def series_keys(findings: Findings, *, seeds: bool = True) -> list[Key]:
    """Legend of sources by colour and seeds by line style; a single one needs no name."""
    sources = [Key(source, SERIES[i % len(SERIES)]) for i, source in enumerate(findings.sources)]
    is_one = len(sources) == 1
    if not seeds:
        return [Key("trained", SERIES[0])] if is_one else sources
    all_seeds = sorted({sae["seed"] for sae in findings.saes})
    dashes = [Key(f"seed {seed}", SERIES[0] if is_one else MUTED, dash=i) for i, seed in enumerate(all_seeds)]
    return ([] if is_one else sources) + (dashes if len(dashes) > 1 else [])


def rows_width(findings: Findings) -> float:
    """Inches of a panel of rows: the whole width where there is one target."""
    return ROWS_WIDTH if len(findings.targets) == 1 else PANEL_WIDTH


def rows_panel(target: str, rows: Sequence[plots.Row], draw: Any, description: str, width: float) -> Panel | None:
    """A panel of rows, as high as they need; None without any."""
    return Panel(target, partial(draw, rows=rows), description, (width, 0.55 + 0.42 * len(rows))) if rows else None


def make_chart(
    name: str, panels: Sequence[Panel | None], legend: Sequence[Key] = (), n_columns: int = 3
) -> Chart | None:
    """The chart of the panels that are there; None without any."""
    drawn = [panel for panel in panels if panel is not None]
    return Chart(name, drawn, legend, n_columns) if drawn else None
