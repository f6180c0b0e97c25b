"""report.html: its numbers are the records', its data survive hostile tokens, and what is missing is said."""

import json
import re
import shutil
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_fixture import HOSTILE, edit_metrics, write_results

from sae_utils.errors import MissingInputError
from sae_utils.report.feature_files import CALL, feature_files
from sae_utils.report.page import write_report

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """What the tests look for: rows of the answer table, scripts, links, ids; and whether tags are balanced."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.rows: list[dict] = []
        self.scripts: dict[str, str] = {}
        self.links: list[str] = []
        self.ids: list[str] = []
        self.choices: list[dict[str, str]] = []
        self.open: list[str] = []
        self.mismatched: list[str] = []
        self.script_id = self.metric = None
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.ids += [values["id"]] if "id" in values else []
        self.choices += [values] if tag == "option" and values["value"].isdigit() else []
        self.links += [values[name] for name in ("href", "src") if name in values]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append({"numbers": defaultdict(list), "cells": []})
        elif tag == "td" and self.rows:
            self.metric = values.get("data-metric")
        elif tag == "data" and self.metric:
            self.rows[-1]["numbers"][self.metric].append([float(values["value"]), ""])
        elif tag == "script" and "id" in values:
            self.script_id = values["id"]
            self.scripts[self.script_id] = ""

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.mismatched.append(tag)
        if tag in ("td", "script"):
            self.metric = self.script_id = None

    def handle_data(self, data):
        if self.script_id:
            self.scripts[self.script_id] += data
        if self.open and self.open[-1] == "data" and self.metric:
            self.rows[-1]["numbers"][self.metric][-1][1] += data
        if self.open and self.open[-1] in ("td", "th") and self.rows:
            self.rows[-1]["cells"].append(data.strip())

    @property
    def answers(self) -> dict[tuple[str, int], dict[str, list]]:
        """Numbers of the answer table by source and layer; of one target."""
        rows = [row for row in self.rows if "fvu" in row["numbers"] or "ffr" in row["numbers"]]
        return {(row["cells"][0], int(row["cells"][1])): row["numbers"] for row in rows}


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def test_every_number_of_the_answer_table_is_the_records(tmp_path):
    """Recomputed here from metrics.json, exact to the last digit, and the text shown is that number rounded."""
    results = write_results(tmp_path, text_sources=["corpus"], n_seeds=3, n_features=3)
    metrics = json.loads((results / "metrics.json").read_text())
    answers = Page(write_report(results)).answers
    assert set(answers) == {(source, layer) for source in ("tiny-model", "corpus") for layer in (7, 15)}
    for (source, layer), shown in answers.items():
        saes = [sae for sae in metrics["saes"] if (sae["source"], sae["layer"]) == (source, layer)]
        pairs = [pair for pair in metrics["pairs"] if pair["source"] == pair["source_b"] == source]
        pairs = [pair for pair in pairs if pair["layer"] == layer]
        own = [each for sae in saes for each in sae["evaluations"] if each["eval_source"] == source]
        assert (len(saes), len(pairs), len(own)) == (3, 3, 3)
        ratios = [pair["sfr"] for pair in pairs]
        names = ("fvu", "fvu_without_first_position", "ce_recovered", "dead_share")
        expected = {
            "sfr": [mean(ratios)],
            "sfr_range": [min(ratios), max(ratios)],
            "sfr_floor": [mean(pair["sfr_floor"] for pair in pairs)],
            "ffr": [mean(sae["random_tokens"]["ffr"] for sae in saes)],
        } | {name: [mean(each[name] for each in own)] for name in names}
        assert {name: [value for value, _ in values] for name, values in shown.items()} == expected
        for values in shown.values():
            for value, text in values:
                number = float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
                decimals = len(text.rstrip("%").split(".")[1]) + (2 if text.endswith("%") else 0)
                assert abs(number - value) <= 0.5000001 * 10**-decimals


def test_intervals_stand_beside_their_numbers(tmp_path):
    """Mean of the pairs' ends, in the answer and at every threshold; where there is none, there are no brackets."""
    results = write_results(tmp_path, n_seeds=3, n_features=3)
    gone = {"sfr_live": None, "sfr_live_interval": None, "sfr_both_interval": None}
    edit_metrics(results, lambda metrics: metrics["pairs"][-1].update(gone))
    pairs = [pair for pair in json.loads((results / "metrics.json").read_text())["pairs"] if pair["layer"] == 15]
    text = write_report(results).read_text(encoding="utf-8")
    for name in ("sfr", "sfr_floor", "mean_matched_cosine", "mean_matched_cosine_floor"):
        assert beside([pair[name] for pair in pairs], [pair[f"{name}_interval"] for pair in pairs]) in text, name
    for threshold in ("0.5", "0.9"):
        values, intervals = ([pair[name][threshold] for pair in pairs] for name in ("sfr_at", "sfr_at_interval"))
        assert beside(values, intervals) in text, threshold
    live = [pair for pair in pairs if pair["sfr_live"] is not None]
    assert beside([pair["sfr_live"] for pair in live], [pair["sfr_live_interval"] for pair in live]) in text
    both = mean(pair["sfr_both"] for pair in pairs)
    assert f'<data value="{both}">{both:.3f}</data></td>' in text, "one pair of it has no interval"


def beside(values: list[float], intervals: list[list[float]], form: str = ".3f") -> str:
    """A mean and its interval as the page shows them."""
    low, high = (format(mean(interval[end] for interval in intervals), form) for end in (0, 1))
    return f'<data value="{mean(values)}">{mean(values):{form}}</data><small class="ends">[{low}, {high}]</small>'


def test_held_out_and_random_numbers_have_their_intervals_too(tmp_path):
    """In the answer, on every source, and of fake features: the mean of the seeds' ends, as they are recorded."""
    results = write_results(tmp_path, text_sources=["corpus"], n_seeds=3, n_features=3)
    saes = [
        sae
        for sae in json.loads((results / "metrics.json").read_text())["saes"]
        if (sae["source"], sae["layer"]) == ("corpus", 15)
    ]
    sections = sections_of(write_report(results))
    for shown, eval_source, name, form in (
        ("answer", "corpus", "fvu", ".4f"),
        ("answer", "corpus", "fvu_without_first_position", ".4f"),
        ("answer", "corpus", "ce_recovered", ".3f"),
        ("sources", "tiny-model", "fvu", ".3f"),
        ("sources", "tiny-model", "ce_recovered", ".3f"),
        ("sources", "corpus", "ce_diff_nats", ".3f"),
    ):
        found = [each for sae in saes for each in sae["evaluations"] if each["eval_source"] == eval_source]
        values, intervals = ([each[field] for each in found] for field in (name, f"{name}_interval"))
        assert beside(values, intervals, form) in sections[shown], (shown, name)
    for shown, name in (("answer", "ffr"), ("fakes", "ffr"), ("fakes", "ffr_scale_free")):
        found = [sae["random_tokens"] for sae in saes]
        values, intervals = ([each[field] for each in found] for field in (name, f"{name}_interval"))
        assert beside(values, intervals, ".2%") in sections[shown], (shown, name)
    assert "latents (SFR), held-out sequences (FVU, CE) and blocks of random sequences" in sections["answer"]


def test_a_seed_without_an_interval_leaves_the_mean_without_one(tmp_path):
    """Ends of the other seeds alone would be the interval of another mean."""
    results = write_results(tmp_path, layers=[7], n_features=3)

    def lose(metrics):
        metrics["saes"][0]["evaluations"][0]["fvu_interval"] = None
        del metrics["saes"][0]["random_tokens"]["ffr_interval"]

    edit_metrics(results, lose)
    answer = sections_of(write_report(results))["answer"]
    cells = dict(re.findall(r'<td data-metric="(\w+)">(.*?)</td>', answer))
    assert {name for name, cell in cells.items() if "ends" in cell} == {
        *("sfr_floor", "fvu_without_first_position", "ce_recovered")
    }
    assert "held-out sequences" in answer and "random sequences" not in answer


def sections_of(page: Path) -> dict[str, str]:
    """The parts of a page by their ids."""
    return dict(re.findall(r'<section id="(\w+)"(.*?)</section>', page.read_text(encoding="utf-8"), flags=re.DOTALL))


def test_page_is_well_formed_and_needs_nothing_from_outside(tmp_path):
    results = write_results(tmp_path, text_sources=["corpus"], n_features=3)
    page = Page(write_report(results))
    assert page.mismatched == [] and page.open == []
    assert len(page.ids) == len(set(page.ids))
    outside = [link for link in page.links if not link.startswith(("#", "figures/", "metrics.", "data:,"))]
    assert outside == []
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]+"|http-equiv', "", page.text)


@pytest.mark.slow
def test_every_linked_file_is_there(tmp_path):
    from sae_utils.report.figures import write_figures

    results = write_results(tmp_path, text_sources=["corpus"], n_features=3)
    write_figures(results)
    linked = [link for link in Page(write_report(results)).links if not link.startswith(("#", "data:"))]
    assert len(linked) > 10
    assert [link for link in linked if not (results / link).exists()] == []
    page = Page(results / "report.html")
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)


def test_the_same_results_give_the_same_page(tmp_path):
    results = write_results(tmp_path, n_features=3)
    first = write_report(results).read_bytes()
    assert write_report(results).read_bytes() == first


def test_features_in_the_page_are_those_of_the_files(tmp_path):
    """Read back as the page's script reads them: tokens by number, activations by position."""
    results = write_results(tmp_path, hostile=True)
    page = Page(write_report(results))
    stored = [
        features
        for layer in (7, 15)
        for features in json.loads(
            (results / f"details/tiny-model_from_tiny-model_layers.{layer}.features.json").read_text()
        )["seeds"].values()
    ]
    assert len(page.scripts) == len(stored) == 4
    for index, features in enumerate(stored):
        data = json.loads(page.scripts[f"features-{index}"])
        assert [feature["latent"] for feature in data["features"]] == [feature["latent"] for feature in features]
        for shown, feature in zip(data["features"], features, strict=True):
            assert shown["cosine"] == pytest.approx(feature["best_cosine"], rel=1e-3)
            assert (shown["partner"], shown["partnerSeed"]) == (feature["partner"], feature["partner_seed"])
            for (ids, active, peak), context in zip(shown["contexts"], feature["contexts"], strict=True):
                assert [data["tokens"][i] for i in ids] == context["tokens"]
                values = dict(zip(active[::2], active[1::2], strict=True))
                assert [values.get(i, 0) for i in range(len(ids))] == pytest.approx(context["activations"], rel=1e-3)
                assert peak == context["peak"]


def test_a_partner_is_linked_only_if_it_is_in_the_page(tmp_path):
    page = Page(write_report(write_results(tmp_path)))
    saes = [json.loads(page.scripts[f"features-{index}"]) for index in range(4)]
    latents = [{feature["latent"] for feature in sae["features"]} for sae in saes]
    linked = 0
    for index, sae in enumerate(saes):
        other = index ^ 1  # the other seed of the same layer
        for feature in sae["features"]:
            assert feature["partnerSae"] == (other if feature["partner"] in latents[other] else None)
            linked += feature["partnerSae"] is not None
    assert linked


def test_a_stronger_colour_is_a_better_number_in_every_table(tmp_path):
    """A high FVU is bad and a high CE recovered is good: by size, a dark cell would mean both."""
    results = write_results(tmp_path, text_sources=["corpus"], layers=[7], n_features=1)
    text = write_report(results).read_text()
    assert "a stronger colour is a better number" in text
    tables = re.findall(r'<table class="matrix">.*?</table>', text, flags=re.DOTALL)
    assert len(tables) == 6
    for table in tables:
        cells = re.findall(r'--shade: ([\d.]+)".*?<data value="([^"]+)"', table)
        shades = [float(shade) for shade, _ in sorted(cells, key=lambda cell: float(cell[1]))]
        is_high_good = "FVU" not in table and "CE difference" not in table
        assert shades == sorted(shades, reverse=not is_high_good)
        assert {min(shades), max(shades)} == {0, 1}


def test_hostile_names_and_tokens_stay_text(tmp_path):
    name = "a <script>$x_1$ & \"b\" {{ 7 * 7 }} 'c'"
    page = Page(write_report(write_results(tmp_path, targets=[name], sources=[name], hostile=True, n_features=3)))
    assert page.mismatched == [] and "49" not in page.answers
    assert {source for source, _ in page.answers} == {name}
    assert page.text.count("<script") == 4 + 1
    assert set(HOSTILE) <= set(json.loads(page.scripts["features-0"])["tokens"])


# how large it gets


def offered(path: Path) -> list[dict]:
    """Features of every SAE that a page lets choose, from wherever the page would take them."""
    page, found = Page(path), []
    for index, choice in enumerate(page.choices):
        assert choice["value"] == str(index)
        if "data-file" in choice:
            text = (path.parent / choice["data-file"]).read_text(encoding="utf-8")
            name, data = json.loads(f"[{text.removeprefix(CALL).removesuffix(');' + chr(10))}]")
            assert name == choice["data-file"] and f"features-{index}" not in page.scripts
        else:
            data = json.loads(page.scripts[f"features-{index}"])
        found.append(data)
    return found


def test_a_page_is_never_larger_than_its_cap_and_all_features_it_offers_are_there(tmp_path):
    """Mail refuses it otherwise; and what lies beside it is what would be in it, to the last number."""
    results = write_results(tmp_path, layers=[7], n_seeds=3, n_features=20, hostile=True)
    page = write_report(results)
    whole, n_bytes = offered(page), page.stat().st_size
    assert len(whole) == 3 and feature_files(results) == [] and "keep them together" not in page.read_text()
    size = len(json.dumps(whole[0], separators=(",", ":")))
    for max_bytes, n_beside in ((n_bytes - 9, 1), (n_bytes - size, 2), (80_000, 3)):
        page = write_report(results, max_bytes=max_bytes)
        assert page.stat().st_size <= max_bytes
        assert offered(page) == whole and len(feature_files(results)) == n_beside, max_bytes
        said = f"Features of {n_beside} of the 3 SAEs lie in <code>features/</code> beside this page"
        assert (said in page.read_text()) == (n_beside > 0)
    write_report(results)
    assert not (results / "features").exists()


def test_what_is_left_out_is_said_and_the_answer_stays(tmp_path):
    """With a hundred sources, tables of every two of them are larger than all else together."""
    results = write_results(tmp_path, layers=[7], text_sources=["corpus"], n_features=1)
    before = Page(write_report(results))
    page = write_report(results, max_bytes=70_000)
    after = Page(page)
    assert page.stat().st_size <= 70_000
    assert after.answers == before.answers and after.mismatched == []
    n_charts = before.text.count('<svg class="chart"') - after.text.count('<svg class="chart"')
    assert n_charts > 3 and "This figure would make this page too large; it is in the files." in after.text
    for name in re.findall(r'<figure id="figure-(\w+)">\s*<p class="missing">', after.text):
        assert f'href="figures/{name}.svg"' in after.text
    smallest = Page(write_report(results, max_bytes=1))
    assert smallest.answers == before.answers and "<svg class=" not in smallest.text
    assert "The tables of 2 sources would make this page too large; their numbers are in" in smallest.text
    assert "The table “Fake features” would make this page too large; its numbers are in" in smallest.text
    assert len(smallest.text.encode()) < 60_000


# what is missing


def test_one_seed_says_what_it_needs(tmp_path):
    page = Page(write_report(write_results(tmp_path, n_seeds=1, n_features=3)))
    assert page.text.count("needs two seeds") >= 3
    assert all("sfr" not in numbers and numbers["fvu"] for numbers in page.answers.values())
    assert "Caution" not in page.text


def test_a_page_of_records_alone(tmp_path):
    """A results folder that was copied without its details still tells the answer."""
    results = write_results(tmp_path)
    shutil.rmtree(results / "details")
    shutil.rmtree(tmp_path / "checkpoints")
    page = Page(write_report(results))
    assert len(page.answers) == 2 and page.scripts == {}
    assert page.text.count('class="missing"') == 5  # curves, cosines, sources, rates, browser
    assert '"use strict"' not in page.text


def test_undefined_numbers_are_dashes_and_never_nan(tmp_path):
    results = write_results(tmp_path, text_sources=["corpus"], n_features=3)

    def undefine(metrics):
        metrics["datasets"][0]["quality"] |= {"mean_nll_nats": None, "first_token_kl_nats": None}
        for sae in metrics["saes"]:
            sae["random_tokens"] |= {"ffr": None, "n_fake": None}
            for each in sae["evaluations"]:
                each |= {"fvu": None, "ce_recovered": None}
        for pair in metrics["pairs"]:
            pair |= {"sfr_live": None, "n_live": 0}

    edit_metrics(results, undefine)
    page = Page(write_report(results))
    assert not re.search(
        r"\b(nan|none|null|inf)\b",
        re.sub(r"<script.*?</script>|<style.*?</style>|<svg.*?</svg>|<[^>]+>", " ", page.text, flags=re.DOTALL),
        flags=re.IGNORECASE,
    )
    assert all(numbers["dead_share"] and not numbers.get("fvu") for numbers in page.answers.values() if numbers)


def test_no_results_is_one_line(tmp_path):
    with pytest.raises(MissingInputError, match="there are no results in"):
        write_report(tmp_path)
