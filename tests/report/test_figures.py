"""Figures: which there are, that they are whole, and that the same results give the same bytes."""

import json
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from report_fixture import edit_metrics, write_results

from sae_utils.errors import InputError, MissingInputError
from sae_utils.files import DamagedFileError
from sae_utils.report import plots
from sae_utils.report.drawing import SERIES, STYLE, Chart, Key, Panel, _compose, inline_svg, save_chart
from sae_utils.report.figures import by_position, make_charts, most_fakes, seed_agreement, write_figures
from sae_utils.report.findings import MAX_CURVE_POINTS, Spread, read_curve, read_findings

ALL = {
    "seed_agreement",
    "training_fvu",
    "by_position",
    "matched_cosines",
    "source_agreement",
    "agreement_by_rate",
    "sources_fvu",
    "sources_ce_recovered",
    "firing_rates",
    "fake_features",
}


@pytest.fixture
def results(tmp_path) -> Path:
    return write_results(tmp_path, text_sources=["corpus"])


def chart_names(results: Path) -> set[str]:
    return {chart.name for chart in make_charts(read_findings(results))}


@pytest.mark.slow
def test_every_figure_is_written_as_png_and_svg(results):
    paths = write_figures(results)
    assert {path.name for path in paths} == {f"{name}.{kind}" for name in ALL for kind in ("png", "svg")}
    for path in paths:
        assert path.parent == results / "figures"
        if path.suffix == ".svg":
            assert len(list(ElementTree.parse(path).iter())) > 20
        else:
            assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5_000


@pytest.mark.slow
def test_the_same_results_give_the_same_bytes(tmp_path):
    """A figure that changes without its numbers changing makes every commit of results a false alarm."""
    first = write_results(tmp_path / "first")
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    again = tmp_path / "second/results"
    pairs = list(zip(write_figures(first), write_figures(again), strict=True))
    assert pairs and all(a.name == b.name and a.read_bytes() == b.read_bytes() for a, b in pairs)


def test_positions_that_differ_in_the_last_bit_give_the_same_bytes(tmp_path, monkeypatch):
    """As processors with and without AVX-512 have them."""
    panels = [Panel(title, lambda ax: ax.loglog([1, 30], [2, 3000]), "words") for title in ("one", "two")]
    lay_out = ConstrainedLayoutEngine.execute

    def elsewhere(engine, figure):
        grids = lay_out(engine, figure)
        for ax in figure.axes:
            ax.set_position([np.nextafter(each, 1) for each in ax.get_position(original=True).bounds])
        return grids

    here = [inline_svg(panels[0], "one"), *(path.read_bytes() for path in save_chart(Chart("two", panels), tmp_path))]
    monkeypatch.setattr(ConstrainedLayoutEngine, "execute", elsewhere)
    assert here == [
        inline_svg(panels[0], "one"),
        *(path.read_bytes() for path in save_chart(Chart("two", panels), tmp_path)),
    ]


def test_a_larger_grid_has_a_panel_for_each_comparison_or_target_and_layer(tmp_path):
    results = write_results(
        tmp_path, targets=["a-1b", "b-2b"], sources=["a-1b", "b-2b"], text_sources=["web"], n_seeds=3, n_features=2
    )
    n_panels = {chart.name: len(chart.panels) for chart in make_charts(read_findings(results))}
    groups, comparisons = 2 * 2, 2 * 2 * 3
    assert n_panels == {
        "seed_agreement": 2,
        "training_fvu": groups,
        "by_position": 2 * groups,
        "matched_cosines": comparisons,
        "source_agreement": 2 * groups,
        "agreement_by_rate": groups,
        "sources_fvu": groups,
        "sources_ce_recovered": groups,
        "firing_rates": groups,
        "fake_features": 2,
    }


def test_one_seed_and_one_source_leave_out_what_they_cannot_show(tmp_path):
    results = write_results(tmp_path, n_seeds=1)
    assert chart_names(results) == {"training_fvu", "by_position", "firing_rates", "fake_features"}


def test_without_details_and_curves_the_records_alone_are_drawn(results):
    shutil.rmtree(results / "details")
    shutil.rmtree(results.parent / "checkpoints")
    assert chart_names(results) == ALL - {"training_fvu", "matched_cosines", "firing_rates"}


def test_details_missing_for_one_comparison_leave_out_that_panel(results):
    next((results / "details").rglob("corpus_seed_0_with_corpus_seed_1.npz")).unlink()
    charts = {chart.name: chart for chart in make_charts(read_findings(results))}
    assert len(charts["matched_cosines"].panels) == 3


def test_undefined_numbers_are_left_out(results):
    def undefine(metrics):
        for sae in metrics["saes"]:
            sae["random_tokens"] = None
            for each in sae["evaluations"]:
                each["ce_recovered"] = None
        for pair in metrics["pairs"]:
            pair["sfr_live"] = pair["sfr_floor"] = None

    edit_metrics(results, undefine)
    assert chart_names(results) == ALL - {"sources_ce_recovered", "fake_features"}


def test_an_sae_without_a_live_latent_is_drawn(tmp_path):
    results = write_results(tmp_path, layers=[7])
    path = next((results / "details").glob("*.npz"))
    with np.load(path) as stored:
        arrays = dict(stored)
    np.savez(path, **(arrays | {"firing_rate_0": np.zeros_like(arrays["firing_rate_0"])}))
    for panel in next(c for c in make_charts(read_findings(results)) if c.name == "firing_rates").panels:
        panel.draw(Figure().subplots())


def test_dots_stand_at_the_recorded_ratios(tmp_path):
    """The figure is what people look at: a dot that is not the record's number would be the answer of nobody."""
    results = write_results(tmp_path, n_seeds=3, layers=[7])
    pairs = json.loads((results / "metrics.json").read_text())["pairs"]
    (panel,) = seed_agreement(read_findings(results)).panels
    ax = Figure().subplots()
    panel.draw(ax)
    drawn = [line.get_xdata().tolist() for line in ax.lines if line.get_linestyle() == "None"]
    ratios = [pair["sfr"] for pair in pairs]
    floor = sum(pair["sfr_floor"] for pair in pairs) / 3
    assert drawn == [ratios, [pytest.approx(sum(ratios) / 3)], [floor]]
    (bar,) = (line.get_xdata() for line in ax.lines if line.get_marker() == "|")
    assert list(bar) == pytest.approx([sum(pair["sfr_interval"][end] for pair in pairs) / 3 for end in (0, 1)])


def test_numbers_without_an_interval_have_no_bar(tmp_path):
    """One pair without an interval leaves the mean without one: of the others alone it would be another mean's."""
    results = write_results(tmp_path, n_seeds=3, layers=[7])
    edit_metrics(results, lambda metrics: metrics["pairs"][1].update(sfr_interval=None))
    chart = seed_agreement(read_findings(results))
    ax = Figure().subplots()
    chart.panels[0].draw(ax)
    assert [line for line in ax.lines if line.get_marker() == "|"] == []
    assert "95% interval" not in [key.label for key in chart.legend]


def test_lines_by_position_are_means_of_the_recorded_bins(tmp_path):
    """Over seeds and on the SAE's own source; a bin of which nothing is kept is a gap, and no zero."""
    results = write_results(tmp_path, text_sources=["corpus"], n_seeds=3, layers=[7])
    saes = json.loads((results / "metrics.json").read_text())["saes"]
    panels = by_position(read_findings(results)).panels
    assert [panel.title for panel in panels] == ["FVU, layer 7", "Cross-entropy, layer 7"]
    for panel, names in zip(panels, (["fvu"], ["ce_sae_nats", "ce_clean_nats"]), strict=True):
        ax = Figure().subplots()
        panel.draw(ax)
        lines = iter(ax.lines)
        for source, colour in (("tiny-model", SERIES[0]), ("corpus", SERIES[1])):
            own = [
                each for sae in saes for each in sae["evaluations"] if sae["source"] == each["eval_source"] == source
            ]
            for name in names:
                line = next(lines)
                assert line.get_color() == colour
                assert line.get_xdata().tolist() == [0, 1, 2, 3, 4, 5, 6, 7]  # bins from 0, 1, 2, 4, ..., 64 on
                bins = zip(*(each["by_position"] for each in own), strict=True)
                means = [np.mean([each[name] for each in seeds]) for seeds in list(bins)[1:]]
                assert line.get_ydata().tolist()[1:] == pytest.approx(means)
                assert np.isnan(line.get_ydata()[0])
        assert next(lines, None) is None
        low, high = ax.get_ylim()
        assert all(low <= value <= high for line in ax.lines for value in line.get_ydata()[1:])
        assert len(ax.get_yticks()) >= 2


def test_results_without_positions_have_no_figure_of_them(results):
    """Older results lack them; and where no prediction counts, there is FVU and no cross-entropy."""

    def lose(metrics):
        for sae in metrics["saes"]:
            for each in sae["evaluations"]:
                del each["by_position"]

    def undefine(metrics):
        for sae in metrics["saes"]:
            for each in sae["evaluations"]:
                for bin_ in each["by_position"]:
                    bin_ |= {"ce_clean_nats": None, "ce_sae_nats": None}

    edit_metrics(results, undefine)
    assert [panel.title for panel in by_position(read_findings(results)).panels] == ["FVU, layer 7", "FVU, layer 15"]
    edit_metrics(results, lose)
    assert chart_names(results) == ALL - {"by_position"}


def test_many_bins_are_labelled_sparsely_and_the_first_always(tmp_path):
    """A row of 2,048 tokens has twelve bins, whose numbers would run into each other."""
    values = {first: Spread.of([1.0]) for first in (0, *(2**i for i in range(11)))}
    ax = Figure().subplots()
    plots.draw_positions(ax, lines=[(values, SERIES[0], 0)], limits=(0.5, 2), label="FVU", is_log=True)
    assert [label.get_text() for label in ax.get_xticklabels()] == [
        *("0", "", "2", "", "8", "", "32", "", "128", "", "512", "")
    ]


def test_axes_enclose_any_values_with_two_numbers_at_least():
    """Between two ticks of a log axis nobody can read a value."""
    rng = np.random.default_rng(0)
    for values in [[1.0], [0.3, 0.31], [5e-7, 80.0], *(10 ** rng.uniform(-6, 3, (50, 3)))]:
        low, high = plots.steps_around(values)
        ax = Figure().subplots()
        plots.draw_positions(ax, lines=[], limits=(low, high), label="FVU", is_log=True)
        assert low <= min(values) and max(values) <= high
        assert sum(low <= tick <= high for tick in ax.get_yticks()) >= 2
    assert plots.steps_around([0.0]) is None and plots.margins_around([]) is None


def test_legends_stay_within_their_figure():
    """A file whose legend is cut off names the wrong half of its lines."""
    names = [f"a-model-with-a-rather-long-name-{i}b" for i in range(6)]
    panel = Panel("title", lambda ax: ax.plot([0, 1]), "words")
    for n_panels in (1, 2, 3):
        with rc_context(STYLE):
            figure = _compose(Chart("chart", [panel] * n_panels, [Key(name, SERIES[0]) for name in names]))
            figure.draw_without_rendering()
            box = figure.legends[0].get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0
        assert all(ax.get_tightbbox().y0 > box.y1 for ax in figure.axes)


def test_trained_histograms_are_shown_whole(results):
    """The floor's peak may be cut, and is then labelled; what is compared with it may not."""
    chart = next(chart for chart in make_charts(read_findings(results)) if chart.name == "matched_cosines")
    assert len(chart.panels) == 4
    for panel in chart.panels:
        ax = Figure().subplots()
        panel.draw(ax)
        floor, trained = (patch.get_data().values for patch in ax.patches)
        top = ax.get_ylim()[1]
        assert trained.max() < top
        labels = [text.get_text() for text in ax.texts]
        assert (f"up to {floor.max():.0f}%" in labels) == (floor.max() > top)
        assert trained.sum() == pytest.approx(100) and floor.sum() == pytest.approx(100)


@pytest.mark.parametrize(("name", "best"), [("fvu", min), ("ce_recovered", max)])
def test_the_best_number_of_a_matrix_is_the_darkest(results, name, best):
    """In every figure alike, which its legend says."""
    chart = next(chart for chart in make_charts(read_findings(results)) if chart.name == f"sources_{name}")
    assert [key.label for key in chart.legend] == ["a stronger colour is a better number, within each panel"]
    for panel in chart.panels:
        figure = Figure()
        ax = figure.subplots()
        panel.draw(ax)
        figure.draw_without_rendering()
        brightness = ax.collections[0].get_facecolor()[:, :3].sum(axis=1)
        shown = [float(text.get_text()) for text in ax.texts]
        assert shown[int(brightness.argmin())] == best(shown)


def test_cosines_beyond_one_by_rounding_are_counted():
    """float32 gives 1.0000001 for identical rows; a histogram that drops them loses the features that agree best."""
    heights = plots.percent_in_bins(np.array([0.5, 1.0000001]), np.linspace(0, 1, 11))
    assert heights.tolist() == [0, 0, 0, 0, 0, 50, 0, 0, 0, 50]


def test_firing_rates_of_all_latents_and_the_dead_add_up():
    """Heights are shares of all latents, so what is missing to 100 % is dead: the caption says so."""
    ax = Figure().subplots()
    rates = np.array([1.0, 0.1, 0.001, 0.0], dtype=np.float32)
    plots.draw_rates(ax, rates=[(rates, SERIES[0], 0)], bins=np.linspace(-3, 0, 16))
    heights = ax.patches[0].get_data().values
    assert heights.sum() == pytest.approx(75)


def test_inline_drawings_hand_over_colours_and_have_ids_of_their_own():
    """Two matplotlib SVGs in one page share ids, and then clip each other's curves."""

    def draw(ax):
        ax.plot([0, 1], [0, 2], color=SERIES[0])
        ax.set_xlim(0, 0.5)
        ax.set_xlabel("a $b$ <c>")

    panel = Panel("title", draw, 'words "quoted" <b>')
    first, second = (ElementTree.fromstring(inline_svg(panel, name).replace("xlink:", "")) for name in ("one", "two"))
    ids = [{element.get("id") for element in svg.iter()} - {None} for svg in (first, second)]
    assert ids[0] and not ids[0] & ids[1]
    assert first.get("aria-label") == 'words "quoted" <b>'
    text = inline_svg(panel, "one")
    assert "var(--series-0)" in text and SERIES[0] not in text
    assert "a $b$ &lt;c&gt;" in text
    for reference in set(text.split("url(#")[1:]):
        assert reference.split(")")[0] in ids[0]


def test_most_fakes_is_ten_k_but_never_more_than_there_are():
    assert most_fakes({"k": 32, "n_latents": 2304}) == 320
    assert most_fakes({"k": 32, "n_latents": 256}) == 256


def test_curves_are_thinned_to_means_and_skip_what_is_not_finite(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"tokens": n, "fvu/layers.7/seed_0": float(n)}) for n in range(1, 601)]
    path.write_text("\n".join([*lines, '{"tokens": 601}', '{"tokens": 602, "fvu/layers.7/seed_0": NaN}']) + "\n")
    tokens, values = read_curve(path, "fvu/layers.7/seed_0")
    assert len(tokens) == MAX_CURVE_POINTS == 300
    assert tokens[:2].tolist() == values[:2].tolist() == [1.5, 3.5]
    assert [len(part) for part in read_curve(path, "fvu/layers.8/seed_0")] == [0, 0]


def test_what_is_wrong_with_a_results_folder_is_said(tmp_path):
    with pytest.raises(MissingInputError, match=r"no metrics\.json; run train_sae\.py"):
        write_figures(tmp_path)
    (tmp_path / "metrics.json").write_text('{"schema": 1, "saes": []}')
    with pytest.raises(InputError, match="schema 4 and at least one SAE, got schema 1 and 0 SAEs"):
        write_figures(tmp_path)
    assert not (tmp_path / "figures").exists()
    (tmp_path / "metrics.jsonl").write_text('{"tokens": 1}\n{"tok')
    with pytest.raises(InputError, match=r"metrics\.jsonl line 2 is not JSON"):
        read_curve(tmp_path / "metrics.jsonl", "fvu")


def test_what_stands_where_a_figure_goes_is_named(tmp_path):
    """One line that names it, and not a traceback of the library that draws."""
    chart = make_charts(read_findings(write_results(tmp_path)))[0]
    path = tmp_path / f"{chart.name}.png"
    path.mkdir()
    with pytest.raises(InputError, match=f"{path} cannot be written .Is a directory.; move away what stands there"):
        save_chart(chart, tmp_path)


@pytest.mark.parametrize("kind", ["npz", "features.json"])
def test_a_folder_in_the_place_of_details_is_damage(tmp_path, kind):
    """Passed over, figures and page would be without a source, and nobody would know why."""
    results = write_results(tmp_path)
    path = next((results / "details").glob(f"*.{kind}"))
    path.unlink()
    path.mkdir()
    with pytest.raises(DamagedFileError, match=f"{path} is damaged .Is a directory.; rm -r {path} if"):
        read_findings(results)
