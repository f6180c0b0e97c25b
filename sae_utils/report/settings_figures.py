"""Figures over what a study varies beside its sources: training tokens, and how many latents are active."""

from collections.abc import Callable, Sequence
from functools import partial

from sae_utils.records import name_without
from sae_utils.report import plots
from sae_utils.report.drawing import MUTED, SERIES, Chart, Key, Panel
from sae_utils.report.findings import Comparison, Findings, Spread
from sae_utils.report.origin import NAMES
from sae_utils.report.panels import make_chart
from sae_utils.report.rounding import rounded

Line = tuple[str, list[Comparison]]
"""What comparisons have in common beside what is varied, and the comparisons by what is varied."""

WIDTH = 4.6
"""Inches of one of two panels side by side."""


def agreement_over_tokens(findings: Findings) -> Chart | None:
    """Agreement of seeds over training tokens, where SAEs of several budgets are there; two panels a layer."""
    groups, colours = _lines(findings, "tokens", _n_tokens)
    panels = []
    for target, layer, lines in groups:
        for measure, name in NAMES.items():
            points = [
                [(_n_tokens(each), spread) for each in line if (spread := each.of_pairs(measure))] for _, line in lines
            ]
            floor = Spread.of(pair.get(f"{measure}_floor") for _, line in lines for each in line for pair in each.pairs)
            if any(len(each) > 1 for each in points):
                draw = partial(
                    plots.draw_over,
                    lines=[(own, colours[line]) for own, (line, _) in zip(points, lines, strict=True)],
                    floor=floor and floor.mean,
                    x_label="training tokens (log scale)",
                    y_label=name,
                    is_share=True,
                )
                words = f"{name} of seeds over training tokens, {target}, layer {layer}: {_said(lines, points)}"
                title = f"{name}, {findings.group_label(target, layer)}"
                panels.append(Panel(title, draw, words, (WIDTH, 2.4)))
    return make_chart("agreement_over_tokens", panels, [*_keys(colours), _UNTRAINED], n_columns=2)


def quality_over_l0(findings: Findings) -> Chart | None:
    """FVU and CE recovered over active latents per token, where SAEs of several k are there; two panels a layer."""
    groups, colours = _lines(findings, "k", lambda each: each.saes[0]["k"])
    panels = []
    for target, layer, lines in groups:
        for name, label in (("fvu", "FVU (no unit)"), ("ce_recovered", "CE recovered (share)")):
            points = [
                [(l0.mean, spread) for each in line if (l0 := _own(each, "l0")) and (spread := _own(each, name))]
                for _, line in lines
            ]
            if any(len(each) > 1 for each in points):
                draw = partial(
                    plots.draw_over,
                    lines=[(own, colours[line]) for own, (line, _) in zip(points, lines, strict=True)],
                    floor=None,
                    x_label="active latents per token, L0 (log scale)",
                    y_label=label,
                    is_share=False,
                )
                words = f"{label} over active latents, {target}, layer {layer}: {_said(lines, points)}"
                title = f"{label.partition(' (')[0]}, {findings.group_label(target, layer)}"
                panels.append(Panel(title, draw, words, (WIDTH, 2.4)))
    return make_chart("quality_over_l0", panels, _keys(colours), n_columns=2)


def lines_over(members: Sequence[Comparison], setting: str, value: Callable[[Comparison], int]) -> list[Line]:
    """Comparisons of one target and layer that differ in one setting alone, by what else they are, ascending.

    Args:
        members: The comparisons.
        setting: Its name in names of variants.
        value: What a comparison has of it.

    Returns:
        Those lines that have two values at least.
    """
    by_rest: dict[str, list[Comparison]] = {}
    for each in members:
        by_rest.setdefault(name_without(each.source, setting), []).append(each)
    lines = [(name, sorted(line, key=value)) for name, line in by_rest.items()]
    return [(name, line) for name, line in lines if len({value(each) for each in line}) > 1]


_UNTRAINED = Key("untrained", MUTED, dash=1)


def _n_tokens(comparison: Comparison) -> int:
    return comparison.saes[0]["n_train_tokens"]


def _own(comparison: Comparison, name: str) -> Spread | None:
    """A number on held-out tokens of the data set trained on."""
    return comparison.of_evaluations(name, comparison.dataset)


def _lines(
    findings: Findings, setting: str, value: Callable[[Comparison], int]
) -> tuple[list[tuple[str, int, list[Line]]], dict[str, str]]:
    """Target, layer and lines of those that have any; and the colour of every line, the same in all panels."""
    groups = [
        (target, layer, lines)
        for target, layer, members in findings.groups
        if (lines := lines_over(members, setting, value))
    ]
    names = dict.fromkeys(name for _, _, lines in groups for name, _ in lines)
    return groups, {name: SERIES[i % len(SERIES)] for i, name in enumerate(names)}


def _keys(colours: dict[str, str]) -> list[Key]:
    """Legend of the lines."""
    return [Key(name, colour) for name, colour in colours.items()]


def _said(lines: Sequence[Line], points: Sequence[Sequence[tuple[float, Spread]]]) -> str:
    """The first and the last point of every line, in words."""
    return "; ".join(
        f"{name} from {rounded(own[0][1].mean, 3)} to {rounded(own[-1][1].mean, 3)}"
        for (name, _), own in zip(lines, points, strict=True)
        if own
    )
