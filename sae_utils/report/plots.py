"""What is drawn into one set of axes: rows of dots, curves, histograms, matrices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from sae_utils.report.drawing import GRID, INK, MUTED, PAPER, dash_style, stairs_dash
from sae_utils.report.findings import Curve, Spread
from sae_utils.report.rounding import rounded

SHARED_COSINE = 0.7
"""Decoder cosine above which two matched features count as the same one (Cho et al. 2025)."""

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

BEST_SHADE = "#6fb1dc"  # dark text stays readable on it
SHADES = LinearSegmentedColormap.from_list("shades", ["#f4f8fb", BEST_SHADE])

MAX_POSITION_LABELS = 8
"""Most bins of positions that all have their number written below them."""

ON_PAPER = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.8}
"""Ground of a number that stands on a line."""


@dataclass(frozen=True)
class Row:
    """One line of a dot plot."""

    label: str
    colour: str
    values: Sequence[float]
    """What the dots show."""

    reference: float | None
    """What they are to be held against: the floor, or the most that is possible."""

    interval: tuple[float, float] | None = None
    """95 % interval of the mean of the values."""


def draw_agreement(ax: Axes, *, rows: Sequence[Row], label: str) -> None:
    """A number from 0 to 1: a ring for each pair if there are several, a dot for the mean, a line from the floor to it.

    The mean's interval is a bar with ends, so that it is seen over the line and the dot.
    """
    for y, row in enumerate(rows):
        mean = sum(row.values) / len(row.values)
        ax.plot([row.reference or 0.0, mean], [y, y], color=row.colour, linewidth=1.6, solid_capstyle="butt")
        if len(row.values) > 1:
            ax.plot(row.values, [y] * len(row.values), "o", color=row.colour, mfc="none", markersize=3.5, mew=0.8)
        ax.plot([mean], [y], "o", color=row.colour, markersize=5.5)
        if row.reference is not None:
            ax.plot([row.reference], [y], "D", color=MUTED, markerfacecolor="none", markersize=3.6, mew=0.9)
        if row.interval is not None:
            ax.plot(row.interval, [y, y], color=INK, linewidth=0.8, marker="|", markersize=7, mew=0.8)
        _note(ax, rounded(mean, 3), max(*row.values, *(row.interval or ())), y, bbox=ON_PAPER)
    _label_rows(ax, rows)
    ax.set_xlim(-0.012, 1.06)
    ax.set_xticks(np.linspace(0, 1, 6))
    ax.set_xlabel(label)


def draw_counts(ax: Axes, *, rows: Sequence[Row], most: float, label: str) -> None:
    """Counts from 0 to `most`: a dot each, a tick for the reference, the numbers beside."""
    for y, row in enumerate(rows):
        ax.plot(row.values, [y] * len(row.values), "o", color=row.colour, markersize=4.5, alpha=0.8, mew=0)
        ax.plot([row.reference], [y], "|", color=MUTED, markersize=9, mew=1.4)
        _note(ax, ", ".join(f"{count:,}" for count in row.values), max(row.values), y, bbox=ON_PAPER)
    _label_rows(ax, rows)
    ax.set_xlim(-0.012 * most, 1.06 * most)
    ax.set_xlabel(label)


def draw_curves(ax: Axes, *, curves: Sequence[tuple[Curve, str, int]], limits: tuple[float, float]) -> None:
    """FVU over training tokens on a log scale; a curve comes with its colour and the number of its seed."""
    for (tokens, values), colour, index in curves:
        ax.plot(tokens, values, color=colour, linewidth=1.1, **dash_style(index))
    _set_log_axis(ax, limits)
    ax.set_xlim(0)
    ax.locator_params(axis="x", nbins=5)
    ax.xaxis.set_major_formatter(lambda tokens, _: short_count(tokens))
    ax.grid(axis="y")
    ax.set_xlabel("training tokens")
    ax.set_ylabel("FVU (no unit, log scale)")


def draw_positions(
    ax: Axes,
    *,
    lines: Sequence[tuple[Mapping[int, Spread | None], str, int]],
    limits: tuple[float, float],
    label: str,
    is_log: bool,
) -> None:
    """A number in bins of positions that double in width; a gap where it is not defined.

    A line is means by the first position of their bin; it comes with its colour and the number of its line style.
    """
    for means, colour, index in lines:
        values = [np.nan if spread is None else spread.mean for spread in means.values()]
        places = [_place(first) for first in means]
        ax.plot(places, values, color=colour, linewidth=1.1, marker="o", markersize=2.6, mew=0, **dash_style(index))
    if is_log:
        _set_log_axis(ax, limits)
    ax.set_ylim(*limits)
    firsts = sorted({first for means, *_ in lines for first in means})
    every = -(-len(firsts) // MAX_POSITION_LABELS)
    names = [f"{first}" if i % every == 0 else "" for i, first in enumerate(firsts)]
    ax.set_xticks([_place(first) for first in firsts], names)
    ax.grid(axis="y")
    ax.set_xlabel("position in the sequence (first of its bin, log scale)")
    ax.set_ylabel(label)


def draw_cosines(
    ax: Axes,
    *,
    trained: Sequence[np.ndarray],
    untrained: Sequence[np.ndarray],
    bins: np.ndarray,
    top: float,
    colour: str,
) -> None:
    """Histograms of matched cosines, a line per pair; the floor as an area, cut at `top` and then with its height."""
    floors = [percent_in_bins(values, bins) for values in untrained]
    for heights in floors:
        ax.stairs(heights, bins, fill=True, color=MUTED, alpha=0.35 / len(floors), linewidth=0)
    if floors and (peak := np.max(floors)) > top:
        x = bins[np.argmax(np.max(floors, axis=0))]
        _note(ax, f"up to {peak:.0f}%", x, top, offset=(14, -2), va="top", color=MUTED, size=7)
    for i, values in enumerate(trained):
        ax.stairs(percent_in_bins(values, bins), bins, color=colour, linewidth=1.2, **stairs_dash(i))
    ax.axvline(SHARED_COSINE, color=INK, linewidth=0.8, linestyle=(0, (2, 2)))
    _note(ax, "shared", SHARED_COSINE, top, offset=(3, -2), va="top", size=7)
    ax.set_xlim(bins[0], 1)
    ax.set_ylim(0, top)
    ax.set_xlabel("cosine of matched decoder rows")
    ax.set_ylabel(f"latents (% per {bins[1] - bins[0]:.2f})")


def draw_rates(ax: Axes, *, rates: Sequence[tuple[np.ndarray, str, int]], bins: np.ndarray) -> None:
    """Histograms of log10 firing rates; `bins` are log10 and end at 0. Latents that never fire are in no bin."""
    for values, colour, index in rates:
        live = np.log10(np.clip(values[values > 0], 10 ** bins[0], 1.0))
        heights = 100 * np.histogram(live, bins)[0] / len(values)
        ax.stairs(heights, bins, color=colour, linewidth=1.1, **stairs_dash(index))
    decades = np.arange(bins[0], 0.5)
    ax.set_xticks(decades, ["10" + f"{decade:.0f}".translate(SUPERSCRIPTS) if decade else "1" for decade in decades])
    ax.set_xlim(bins[0], 0)
    ax.set_ylim(0)
    ax.set_xlabel("firing rate (share of held-out tokens, log scale)")
    ax.set_ylabel("latents (% per fifth of a decade)")


def draw_by_rate(
    ax: Axes, *, lines: Sequence[tuple[Mapping[str, Spread | None], str]], bins: Sequence[str], floor: float | None
) -> None:
    """Mean cosines in ranges of firing rates, with the lowest and the highest pair; a gap where no latent is."""
    for means, colour in lines:
        values = [np.nan if means[name] is None else means[name].mean for name in bins]
        ax.plot(range(len(bins)), values, color=colour, linewidth=1.1, marker="o", markersize=2.6, mew=0)
        known = {x: means[name] for x, name in enumerate(bins) if means[name] is not None}
        low, high = ([getattr(spread, end) for spread in known.values()] for end in ("low", "high"))
        ax.vlines(list(known), low, high, color=colour, linewidth=0.8)
    if floor is not None:
        ax.axhline(floor, color=MUTED, linewidth=1.0, **dash_style(1))
    ax.set_xticks(range(len(bins)), [_rate_name(name) for name in bins])
    ax.set_xlim(-0.4, len(bins) - 0.6)
    ax.set_ylim(0, 1)
    ax.grid(axis="y")
    ax.set_xlabel("firing rate, from (share of held-out tokens)")
    ax.set_ylabel("mean cosine of matched latents")


def draw_over(
    ax: Axes,
    *,
    lines: Sequence[tuple[Sequence[tuple[float, Spread]], str]],
    floor: float | None,
    x_label: str,
    y_label: str,
    is_share: bool,
) -> None:
    """Means over a number on a log scale, with the lowest and the highest; a line comes with its colour.

    The axis of a share goes from 0 to 1, any other from 0, or from what is lower.
    """
    for points, colour in lines:
        xs, spreads = [x for x, _ in points], [spread for _, spread in points]
        ax.plot(xs, [each.mean for each in spreads], color=colour, linewidth=1.1, marker="o", markersize=3.4, mew=0)
        ax.vlines(xs, [each.low for each in spreads], [each.high for each in spreads], color=colour, linewidth=0.8)
    if floor is not None:
        ax.axhline(floor, color=MUTED, linewidth=1.0, **dash_style(1))
    ax.set_xscale("log")
    ticks = sorted({x for points, _ in lines for x, _ in points})
    ax.set_xticks(ticks, [short_count(x) for x in ticks])
    ax.minorticks_off()
    lowest = min(each.low for points, _ in lines for _, each in points)
    ax.set_ylim(*((0, 1) if is_share else (min(0.0, lowest), None)))
    ax.grid(axis="y")
    ax.set_xlabel(x_label)
    ax.set_ylabel(y_label)


def draw_matrix(ax: Axes, *, matrix: Mapping[str, Mapping[str, Spread | None]], is_high_good: bool) -> None:
    """Means by train source and eval source, printed on shades from the worst of the matrix to its best."""
    rows, columns = list(matrix), list(next(iter(matrix.values())))
    means = np.array(
        [[np.nan if (cell := matrix[row][column]) is None else cell.mean for column in columns] for row in rows]
    )
    ax.pcolormesh(means if is_high_good else -means, cmap=SHADES, edgecolors="white", linewidth=1.5)
    for y, x in np.ndindex(means.shape):
        ax.text(x + 0.5, y + 0.5, "n/a" if np.isnan(means[y, x]) else rounded(means[y, x], 3), ha="center", va="center")
    ax.set_xticks(np.arange(len(columns)) + 0.5, [_on_lines(name) for name in columns])
    ax.set_yticks(np.arange(len(rows)) + 0.5, [_on_lines(name) for name in rows])
    ax.tick_params(length=0)
    ax.invert_yaxis()
    ax.spines[:].set_visible(False)
    ax.set_xlabel("measured on")
    ax.set_ylabel("trained on")


def percent_in_bins(values: np.ndarray, bins: np.ndarray) -> np.ndarray:
    """Histogram in percent of all values; what lies outside counts to the outermost bins.

    >>> percent_in_bins(np.array([0.1, 0.2, 0.9, 1.0000001]), np.array([0.0, 0.5, 1.0])).tolist()
    [50.0, 50.0]
    """
    return 100 * np.histogram(np.clip(values, bins[0], bins[-1]), bins)[0] / len(values)


def short_count(n: float) -> str:
    """A number of tokens as axes show it.

    >>> short_count(0), short_count(47616), short_count(1.5e8)
    ('0', '47.6k', '150M')
    """
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(n) >= unit:
            return f"{n / unit:.3g}{name}"
    return f"{n:.3g}"


def steps_around(values: Sequence[float]) -> tuple[float, float] | None:
    """Ends of a log axis around the values above 0, at 1, 2 or 5 of a decade; None if there is no such value.

    >>> steps_around([0.0, 0.25, 0.3, 1.7])
    (0.2, 2.0)
    """
    positive = [value for value in values if value > 0]
    if not positive:
        return None
    low, high = min(positive), max(positive)
    decades = range(int(np.floor(np.log10(low))) - 1, int(np.ceil(np.log10(high))) + 2)
    steps = [step * 10.0**decade for decade in decades for step in (1, 2, 5)]
    return max(step for step in steps if step < low), min(step for step in steps if step > high)


def margins_around(values: Sequence[float]) -> tuple[float, float] | None:
    """Ends of an axis around the values, with some room; None if there is none.

    >>> margins_around([3.0, 5.0])
    (2.9, 5.1)
    """
    if not values:
        return None
    margin = 0.05 * (max(values) - min(values)) or 0.5
    return min(values) - margin, max(values) + margin


def _place(first: int) -> float:
    """Where a bin stands on the axis of positions: those that begin at 0, 1, 2, 4, 8 at equal distances."""
    return 1 + np.log2(first) if first else 0.0


def _rate_name(name: str) -> str:
    """The beginning of a range of firing rates, on an axis.

    >>> _rate_name("never"), _rate_name("0"), _rate_name("0.001")
    ('never', '> 0', '10⁻³')
    """
    if name in ("never", "0"):
        return "> 0" if name == "0" else name
    return "10" + f"{np.log10(float(name)):.0f}".translate(SUPERSCRIPTS)


def _set_log_axis(ax: Axes, limits: tuple[float, float]) -> None:
    """A vertical log scale with few, plain numbers."""
    ticks = _log_ticks(*limits)
    ax.set_yscale("log")
    ax.set_ylim(*limits)
    ax.minorticks_off()
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])


def _note(
    ax: Axes, text: str, x: float, y: float, *, offset: tuple[int, int] = (6, 0), va: str = "center", **style: object
) -> None:
    """Text beside a point, `offset` in points."""
    ax.annotate(text, (x, y), offset, textcoords="offset points", va=va, **({"size": 7.5} | style))


def _label_rows(ax: Axes, rows: Sequence[Row]) -> None:
    """Horizontal rows from the top, each with its label above its line, so that names may be long."""
    for y, row in enumerate(rows):
        ax.axhline(y, color=GRID, linewidth=0.6, zorder=0)
        place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        ax.annotate(row.label, (0, y), (0, 6), size=7.5, color=MUTED, **place)
    ax.set_ylim(len(rows) - 0.6, -0.75)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of every decade between the limits; whole decades only when that is many."""
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    steps = (1, 2, 5) if high / low < 300 else (1,)
    return [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]


def _on_lines(name: str, length: int = 14) -> str:
    """A long name on several lines, broken at a hyphen where one is near."""
    lines = [""]
    for part in name.replace("-", "-\n").splitlines():
        if lines[-1] and len(lines[-1]) + len(part) > length:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)
