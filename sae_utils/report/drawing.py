"""How figures look and how they are stored: colours, type, and SVG that a page can hold in light and in dark.

Matplotlib's object interface only: nothing global is set, no window is opened. The same figure gives the same bytes,
also on processors whose arithmetic differs in the last bit.
"""

import io
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sae_utils.files import write_bytes

INK, MUTED, GRID, PAPER = "#1b1f24", "#5b6470", "#d9dde2", "#fefefe"

SERIES = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#56b4e9", "#e69f00", "#332288", "#999933")
"""Okabe & Ito's colours, with a darker purple, then two of Paul Tol's muted ones: told apart by people with any common
colour blindness."""

DASHES = ((None, None), (4, 1.6), (1.2, 1.4), (6, 1.5, 1.2, 1.5))
"""Line styles of seeds, in turn: solid, dashed, dotted, dash-dotted."""

CSS_NAMES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper"} | {
    colour: f"series-{i}" for i, colour in enumerate(SERIES)
}
"""Colours that a page replaces by its own variables, `var(--ink)` and so on."""

PNG_DPI = 200

KEY_WIDTH, LETTER_WIDTH = 0.5, 0.066
"""Inches that an entry of a legend takes without its label, and for each letter of that."""

STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "text.color": INK,
    "text.parse_math": False,  # names of models are not formulas
    "lines.linewidth": 1.2,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "axes.facecolor": "none",
    "svg.fonttype": "none",  # text stays text: small, searchable, in the reader's own font inside a page
}


@dataclass(frozen=True)
class Key:
    """An entry of a legend."""

    label: str
    colour: str
    mark: str = "line"
    """line, dot, ring, diamond or area."""

    dash: int = 0
    """Index into `DASHES`, for lines."""


@dataclass(frozen=True)
class Panel:
    """One set of axes."""

    title: str
    draw: Callable[[Axes], None]
    description: str
    """What it shows, in words with the main numbers, for readers who do not see it."""

    size: tuple[float, float] = (3.4, 2.2)
    """Width and height, inches."""


@dataclass(frozen=True)
class Chart:
    """A figure: panels that share a legend."""

    name: str
    """Stem of its files."""

    panels: Sequence[Panel]
    legend: Sequence[Key] = field(default=())
    n_columns: int = 3
    """Most panels side by side in the files."""


class RoundedLayout(ConstrainedLayoutEngine):
    """Constrained layout to a millionth of the figure's size.

    Positions depend on logarithms and powers of tick values, whose last bit NumPy computes otherwise with AVX-512 than
    without, and an SVG names its clip paths by a hash of all their digits.
    """

    def execute(self, fig: Figure) -> dict[Any, Any] | None:
        """Lay out a figure; returns its layout grids, as the parent does."""
        grids = super().execute(fig)
        for ax in fig.axes:
            ax.set_position([round(each, 6) for each in ax.get_position(original=True).bounds])
            ax.set_in_layout(True)  # it was taken out by giving it a position, and is laid out anew for the next file
        return grids


def save_chart(chart: Chart, folder: Path) -> list[Path]:
    """Write a chart as `<name>.png`, 200 dots per inch, and `<name>.svg`; the paths of both."""
    paths = [folder / f"{chart.name}.png", folder / f"{chart.name}.svg"]
    with rc_context(STYLE | {"svg.hashsalt": chart.name}):
        figure = _compose(chart)
        _save(figure, paths[0], dpi=PNG_DPI)
        _save(figure, paths[1], metadata={"Date": None})  # a date would make every run's file another one
    return paths


def inline_svg(panel: Panel, name: str) -> str:
    """A panel without its title as an `<svg>` element for a page: colours are CSS variables, the font is the page's.

    Args:
        panel: What to draw.
        name: Unique in the page; every id inside begins with it.
    """
    with rc_context(STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=panel.size, layout=RoundedLayout())
        panel.draw(figure.subplots())
        stored = io.StringIO()
        figure.savefig(stored, format="svg", transparent=True, metadata={"Date": None})
    return _for_page(stored.getvalue(), name, panel.description)


def _save(figure: Figure, path: Path, **options) -> None:
    """Write a figure in one step."""
    stored = io.BytesIO()
    figure.savefig(stored, format=path.suffix[1:], **options)
    write_bytes(path, stored.getvalue())


def _compose(chart: Chart) -> Figure:
    """All panels in one figure, with titles and the legend below."""
    n_columns = min(chart.n_columns, len(chart.panels))
    n_rows = -(-len(chart.panels) // n_columns)
    width, height = chart.panels[0].size
    tallest = max(panel.size[1] for panel in chart.panels)
    n_keys = _keys_per_line(chart.legend, width * n_columns)
    legend_height = 0.17 + 0.18 * -(-len(chart.legend) // n_keys) if chart.legend else 0.0
    figure = Figure(
        figsize=(width * n_columns, max(height, tallest + 0.3) * n_rows + legend_height),
        layout=RoundedLayout(w_pad=0.06, h_pad=0.06, wspace=0.04, hspace=0.04),
    )
    axes = figure.subplots(n_rows, n_columns, squeeze=False).flatten()
    for ax, panel in zip(axes, chart.panels, strict=False):
        panel.draw(ax)
        ax.set_title(textwrap.fill(panel.title, round(13 * panel.size[0])))
    for ax in axes[len(chart.panels) :]:
        ax.set_axis_off()
    if chart.legend:
        figure.legend(handles=[_handle(key) for key in chart.legend], loc="outside lower left", ncols=n_keys)
    return figure


def _keys_per_line(legend: Sequence[Key], width: float) -> int:
    """How many entries of a legend fit beside each other into `width` inches, all as wide as the longest."""
    longest = max((len(key.label) for key in legend), default=0)
    per_key = KEY_WIDTH + LETTER_WIDTH * longest
    return max(1, min(len(legend), int(width / per_key)))


def _handle(key: Key):
    """Matplotlib's artist for a legend entry."""
    if key.mark == "area":
        return Patch(facecolor=key.colour, alpha=0.35, label=key.label)
    if key.mark == "line":
        return Line2D([], [], color=key.colour, label=key.label, **dash_style(key.dash))
    marker = {"dot": "o", "ring": "o", "diamond": "D", "tick": "|"}[key.mark]
    face = key.colour if key.mark == "dot" else "none"
    return Line2D([], [], linestyle="none", marker=marker, color=key.colour, markerfacecolor=face, label=key.label)


def dash_style(index: int) -> dict[str, object]:
    """Line arguments of the index-th seed."""
    dash = DASHES[index % len(DASHES)]
    return {} if dash[0] is None else {"dashes": dash}


def stairs_dash(index: int) -> dict[str, object]:
    """The same for the outlines of histograms, which take it in another form."""
    style = dash_style(index)
    return {"linestyle": (0, style["dashes"])} if style else {}


def _for_page(svg: str, name: str, description: str) -> str:
    """Strip what only a file of its own needs, make ids unique, and hand colours and font over to the page."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    head, body = body.split(">", 1)
    view_box = re.search(r'viewBox="[^"]+"', head)[0]
    referenced = set(re.findall(r'(?:url\(|href=")#([^")]+)', body))
    body = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in referenced else "", body)
    body = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", body)
    for colour, css_name in CSS_NAMES.items():
        body = body.replace(colour, f"var(--{css_name})")
    body = re.sub(r"(font: [\d.]+px) [^;\"]+", r"\1 var(--sans)", body)
    body = re.sub(r"\n\s*", "\n", body)
    return f'<svg class="chart" {view_box} role="img" aria-label="{escape(description)}">{body.strip()}'
