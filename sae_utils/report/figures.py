"""The figures of a comparison: which there are, what goes into them, and their files."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sae_utils.report import plots
from sae_utils.report.agreement_figures import agreement_by_rate, matched_cosines, seed_agreement, source_agreement
from sae_utils.report.budgets import at_largest_budget
from sae_utils.report.drawing import INK, MUTED, SERIES, Chart, Key, Panel, save_chart
from sae_utils.report.findings import Comparison, Findings, read_findings
from sae_utils.report.panels import PANEL_WIDTH, make_chart, rows_panel, rows_width, series_keys, source_colour
from sae_utils.report.rounding import rounded
from sae_utils.report.settings_figures import agreement_over_tokens, quality_over_l0

RATE_BIN = 0.2
"""Width of a bin of log10 firing rates."""


def write_figures(results_dir: Path) -> list[Path]:
    """Write every figure that the results allow as PNG and SVG into `<results_dir>/figures`; their paths.

    Raises:
        MissingInputError: If there is no `metrics.json`.
        InputError: If it has no SAE, or another schema than `SCHEMA`.
    """
    folder = results_dir / "figures"
    charts = make_charts(read_findings(results_dir))
    folder.mkdir(parents=True, exist_ok=True)
    return [path for chart in charts for path in save_chart(chart, folder)]


def make_charts(findings: Findings) -> list[Chart]:
    """The charts whose numbers are there: without a second seed there is no agreement, without details no histogram.

    Of several budgets, the largest; the others are points of the figure over training tokens.
    """
    largest = at_largest_budget(findings)
    makers = (
        seed_agreement,
        source_agreement,
        training_curves,
        by_position,
        matched_cosines,
        agreement_by_rate,
        lambda _: agreement_over_tokens(findings),
        quality_over_l0,
        partial(source_matrix, name="fvu", title="FVU", is_high_good=False),
        partial(source_matrix, name="ce_recovered", title="CE recovered", is_high_good=True),
        firing_rates,
        fake_features,
    )
    return [chart for make in makers if (chart := make(largest)) is not None]


def training_curves(findings: Findings) -> Chart | None:
    """FVU of the training batches over tokens, log scale; one panel a target and layer, a colour a source."""
    values = [curve[1] for each in findings.comparisons for curve in each.curves.values()]
    positive = np.concatenate([np.empty(0), *values])
    positive = positive[positive > 0]
    if not len(positive):
        return None
    limits = (positive.min() / 1.15, positive.max() * 1.15)
    panels = []
    for target, layer, members in findings.groups:
        curves = [
            (curve, source_colour(findings, each), each.seeds.index(seed))
            for each in members
            for seed, curve in each.curves.items()
        ]
        if curves:
            words = f"FVU over training tokens, {target}, layer {layer}: " + "; ".join(
                f"{each.source} ends at {rounded(next(iter(each.curves.values()))[1][-1], 3)}"
                for each in members
                if each.curves
            )
            draw = partial(plots.draw_curves, curves=curves, limits=limits)
            panels.append(Panel(findings.group_label(target, layer), draw, words))
    return make_chart("training_fvu", panels, series_keys(findings))


def by_position(findings: Findings) -> Chart | None:
    """FVU, log scale, and cross-entropy by position in the sequence, mean over seeds; a colour a source.

    Two panels a target and layer; all of FVU have the same axis, and all of cross-entropy.
    """
    kinds = [
        ("FVU", ("fvu",), plots.steps_around, {"label": "FVU (no unit, log scale)", "is_log": True}),
        (
            "Cross-entropy",
            ("ce_sae_nats", "ce_clean_nats"),
            plots.margins_around,
            {"label": "cross-entropy (nats per token)", "is_log": False},
        ),
    ]
    panels = []
    for target, layer, members in findings.groups:
        for title, names, around, axis in kinds:
            values = [value for each in findings.comparisons for name in names for value in _position_means(each, name)]
            lines = [
                (each.of_positions(name), source_colour(findings, each), dash)
                for each in members
                for dash, name in enumerate(names)
            ]
            if (limits := around(values)) and any(spread for line, *_ in lines for spread in line.values()):
                words = f"{title} by position, {target}, layer {layer}: " + "; ".join(
                    f"{each.source} from {rounded(means[0], 3)} to {rounded(means[-1], 3)}"
                    for each in members
                    if (means := _position_means(each, names[0]))
                )
                draw = partial(plots.draw_positions, lines=lines, limits=limits, **axis)
                panels.append(Panel(f"{title}, {findings.group_label(target, layer)}", draw, words))
    sources = series_keys(findings, seeds=False) if len(findings.sources) > 1 else []
    colour = MUTED if sources else SERIES[0]
    models = [Key("with the SAE", colour), Key("untouched model", colour, dash=1)]
    return make_chart("by_position", panels, [*sources, *models], n_columns=4 if len(findings.groups) > 2 else 2)


def source_matrix(findings: Findings, *, name: str, title: str, is_high_good: bool) -> Chart | None:
    """A number for every train source on every eval source, mean over seeds; one panel a target and layer.

    A stronger colour is a better number, whatever the number is.
    """
    columns = findings.eval_sources
    panels = []
    for target, layer, members in findings.groups:
        matrix = {each.source: {column: each.of_evaluations(name, column) for column in columns} for each in members}
        if len(columns) > 1 and any(cell for row in matrix.values() for cell in row.values()):
            words = f"{title} of {target}, layer {layer}, by train source and eval source"
            size = (PANEL_WIDTH, 1.3 + 0.35 * len(members))
            draw = partial(plots.draw_matrix, matrix=matrix, is_high_good=is_high_good)
            panels.append(Panel(f"{title}, {findings.group_label(target, layer)}", draw, words, size))
    legend = [Key("a stronger colour is a better number, within each panel", plots.BEST_SHADE, "area")]
    return make_chart(f"sources_{name}", panels, legend, n_columns=2)


def firing_rates(findings: Findings) -> Chart | None:
    """Distribution of the firing rates of live latents, log scale; one panel a target and layer, a colour a source."""
    rates = [rate[rate > 0] for each in findings.comparisons for rate in each.seed_arrays("firing_rate").values()]
    lowest = min((rate.min() for rate in rates if len(rate)), default=None)
    if lowest is None:
        return None
    first = min(np.floor(np.log10(lowest)), -1)
    bins = np.linspace(first, 0, round(-first / RATE_BIN) + 1)
    panels = []
    for target, layer, members in findings.groups:
        series = [
            (rate, source_colour(findings, each), each.seeds.index(seed))
            for each in members
            for seed, rate in each.seed_arrays("firing_rate").items()
        ]
        if series:
            words = f"Firing rates of live latents, {target}, layer {layer}"
            draw = partial(plots.draw_rates, rates=series, bins=bins)
            panels.append(Panel(findings.group_label(target, layer), draw, words))
    return make_chart("firing_rates", panels, series_keys(findings))


def fake_features(findings: Findings, *, width: float | None = None) -> Chart | None:
    """Number of fake features of every SAE, beside the most that are possible; one panel a target, `width` inches."""
    panels, width = [], width or rows_width(findings)
    for target in findings.targets:
        rows = [
            plots.Row(
                findings.label(each, target=False), source_colour(findings, each), counts, most_fakes(each.saes[0])
            )
            for each in findings.comparisons
            if each.target == target and (counts := each.random_token_values("n_fake"))
        ]
        most = max((row.reference for row in rows), default=0)
        draw = partial(plots.draw_counts, most=most, label="fake features (latents)")
        words = "; ".join(f"{row.label}: {', '.join(map(str, row.values))} of {row.reference}" for row in rows)
        panels.append(rows_panel(target, rows, draw, f"Fake features, {target}: {words}", width))
    legend = [Key("an SAE", INK, "dot"), Key("most that are possible", MUTED, "tick")]
    return make_chart("fake_features", panels, legend, n_columns=2)


def most_fakes(sae: dict[str, Any]) -> int:
    """Most latents that can be active on more than a tenth of the tokens when only k are active on each."""
    return min(10 * sae["k"], sae["n_latents"])


def _position_means(comparison: Comparison, name: str) -> list[float]:
    """A number in each bin of positions, mean over seeds, where it is defined."""
    return [spread.mean for spread in comparison.of_positions(name).values() if spread]
