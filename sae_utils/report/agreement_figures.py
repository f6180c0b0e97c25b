"""Figures of pairs of SAEs: agreement across seeds, across sources, and by how often latents fire."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from sae_utils.report import plots
from sae_utils.report.drawing import INK, MUTED, SERIES, Chart, Key, Panel
from sae_utils.report.findings import Findings, Spread
from sae_utils.report.origin import NAMES
from sae_utils.report.panels import make_chart, rows_panel, rows_width, series_keys, source_colour
from sae_utils.report.rounding import rounded

COSINE_BIN = 0.02

SIDE_WIDTH = 4.6
"""Inches of one of two panels of rows side by side."""

AGREEMENT_LABELS = {
    "sfr": f"shared feature ratio (share of latents, cosine > {plots.SHARED_COSINE})",
    "mean_matched_cosine": "mean cosine of matched latents",
}

RATE_BINS = ("never", "0", "1e-05", "0.0001", "0.001", "0.01", "0.1")
"""Ranges of firing rates, ascending, as results name them."""


def seed_agreement(findings: Findings, *, width: float | None = None) -> Chart | None:
    """SFR of every pair of seeds, its mean and interval, and the floor of untrained SAEs.

    One panel a target, `width` inches.
    """
    panels, width = [], width or rows_width(findings)
    for target in findings.targets:
        members = [each for each in findings.comparisons if each.target == target and each.of_pairs("sfr")]
        rows = [
            plots.Row(
                findings.label(each, target=False),
                source_colour(findings, each),
                [pair["sfr"] for pair in each.pairs if pair.get("sfr") is not None],
                floor.mean if (floor := each.of_pairs("sfr_floor")) else None,
                each.interval_of_pairs("sfr"),
            )
            for each in members
        ]
        words = "; ".join(
            f"{row.label}: {rounded(each.of_pairs('sfr').mean, 3)}" for row, each in zip(rows, members, strict=True)
        )
        panels.append(
            rows_panel(
                target,
                rows,
                partial(plots.draw_agreement, label=AGREEMENT_LABELS["sfr"]),
                f"Shared feature ratio, {target}: {words}",
                width,
            )
        )
    legend = [Key("mean of pairs", INK, "dot"), Key("a pair of seeds", INK, "ring"), Key("untrained", MUTED, "diamond")]
    if all(len(each.pairs) < 2 for each in findings.comparisons):
        legend[:2] = [Key("trained", INK, "dot")]
    if any(each.interval_of_pairs("sfr") for each in findings.comparisons):
        legend.append(Key("95% interval", INK))
    return make_chart("seed_agreement", panels, legend, n_columns=2)


def source_agreement(findings: Findings, *, width: float | None = None) -> Chart | None:
    """Agreement within every source and between every two, of other seeds and of the same; two panels a layer."""
    panels = []
    for target, layer, members in findings.groups:
        for measure, name in NAMES.items():
            rows = [
                row
                for each in sorted(_here(findings, target, layer), key=lambda each: _place(findings, each))
                if (row := _agreement_row(findings, each, measure))
            ]
            if len(members) > 1 and len(rows) > len(members):
                words = "; ".join(f"{row.label}: {rounded(sum(row.values) / len(row.values), 3)}" for row in rows)
                draw = partial(plots.draw_agreement, rows=rows, label=AGREEMENT_LABELS[measure])
                size = (width or SIDE_WIDTH, 0.55 + 0.42 * len(rows))
                title = f"{name}, {findings.group_label(target, layer)}"
                panels.append(Panel(title, draw, f"{name}, {target}, layer {layer}: {words}", size))
    legend = [
        Key("mean of pairs", INK, "dot"),
        Key("a pair of SAEs", INK, "ring"),
        Key("untrained", MUTED, "diamond"),
        Key("95% interval", INK),
    ]
    return make_chart("source_agreement", panels, legend, n_columns=2)


def matched_cosines(findings: Findings) -> Chart | None:
    """Distribution of the decoder cosines of matched features, trained and untrained; one panel a comparison."""
    trained = {id(each): each.pair_arrays("cosine") for each in findings.comparisons}
    untrained = {id(each): each.pair_arrays("floor_cosine") for each in findings.comparisons}
    drawn = [each for each in findings.comparisons if trained[id(each)]]
    if not drawn:
        return None
    lowest = min(values.min() for each in drawn for values in trained[id(each)] + untrained[id(each)])
    n_bins = round((1 - np.floor(lowest * 10) / 10) / COSINE_BIN)
    bins = np.linspace(1 - n_bins * COSINE_BIN, 1, n_bins + 1)
    top = 1.25 * max(plots.percent_in_bins(values, bins).max() for each in drawn for values in trained[id(each)])
    panels = []
    for each in drawn:
        mean = each.of_pairs("mean_matched_cosine")
        words = f"Cosines of matched features, {each.target}, {each.source}, layer {each.layer}"
        draw = partial(
            plots.draw_cosines,
            trained=trained[id(each)],
            untrained=untrained[id(each)],
            bins=bins,
            top=top,
            colour=source_colour(findings, each),
        )
        panels.append(Panel(findings.label(each), draw, words + (f": mean {rounded(mean.mean, 3)}" if mean else "")))
    return make_chart("matched_cosines", panels, [*series_keys(findings, seeds=False), Key("untrained", MUTED, "area")])


def agreement_by_rate(findings: Findings) -> Chart | None:
    """Mean cosine of matched latents by how often they fire, over pairs of seeds; a panel a target and layer."""
    panels = []
    for target, layer, members in findings.groups:
        lines = [
            (means, source_colour(findings, each))
            for each in members
            if (means := _means_by_rate(each.pairs)) and any(means.values())
        ]
        floors = Spread.of(pair.get("mean_matched_cosine_floor") for each in members for pair in each.pairs)
        if lines:
            words = f"Mean cosine of matched latents by firing rate, {target}, layer {layer}"
            draw = partial(plots.draw_by_rate, lines=lines, bins=RATE_BINS, floor=floors and floors.mean)
            panels.append(Panel(findings.group_label(target, layer), draw, words))
    keys = [*series_keys(findings, seeds=False), Key("untrained, all latents", MUTED, dash=1)]
    return make_chart("agreement_by_rate", panels, keys)


def _means_by_rate(pairs: Sequence[dict[str, Any]]) -> dict[str, Spread | None]:
    """Mean cosine in each range of firing rates, over pairs; None where no latent is."""
    ranges = [pair.get("by_firing_rate") or {} for pair in pairs]
    return {name: Spread.of(each[name]["mean_matched_cosine"] for each in ranges if name in each) for name in RATE_BINS}


def _here(findings: Findings, target: str, layer: int) -> list[dict[str, Any]]:
    """Agreements of one target and layer."""
    return [each for each in findings.agreements if (each["target"], each["layer"]) == (target, layer)]


def _place(findings: Findings, agreement: dict[str, Any]) -> tuple[int, int, int]:
    """Order of rows: within sources first, then between them, then of the same seeds; by source."""
    ends = sorted(findings.sources.index(agreement[end]) for end in ("source", "source_b"))
    return ("within", "between", "same_seed").index(agreement["kind"]), *ends


def _agreement_row(findings: Findings, agreement: dict[str, Any], measure: str) -> plots.Row | None:
    """The pairs of one kind of two sources; None if they are not there."""
    ends = agreement["source"], agreement["source_b"]
    names = "target", "layer", "n_latents", "source", "source_b", "kind"
    values = [pair[measure] for pair in findings.pairs if all(pair[name] == agreement[name] for name in names)]
    if not values:
        return None
    if agreement["kind"] == "within":
        label, colour = f"{ends[0]}, other seeds", SERIES[findings.sources.index(ends[0]) % len(SERIES)]
    else:
        seeds = "other seeds" if agreement["kind"] == "between" else "same seed"
        label, colour = f"{ends[0]} and {ends[1]}, {seeds}", INK if agreement["kind"] == "between" else MUTED
    interval = agreement[f"{measure}_interval"]
    return plots.Row(label, colour, values, agreement[f"{measure}_floor"], interval and tuple(interval))
