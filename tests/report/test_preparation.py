"""How text was prepared, as the page tells it: what rows hold, what was left out, and of which SAEs that is known."""

import html
import json
import re
from pathlib import Path
from typing import Any

from report_fixture import edit_metrics, write_results

from sae_utils.report.findings import Findings, read_findings
from sae_utils.report.page import write_report
from sae_utils.report.preparation import (
    exclusion_sentence,
    packing_sentences,
    packings,
    random_tokens_sentence,
)

STAYS = "Where a layer's output is replaced by reconstructions, it stays as it is at these positions."


def section(results: Path, name: str) -> str:
    """A part of the page, as text without entities."""
    return html.unescape(write_report(results).read_text().split(f'<section id="{name}"')[1].split("</section>")[0])


def with_excluded(results: Path, excluded_of: Any) -> Findings:
    """Findings in which SAEs are without what `excluded_of` says of their records; "" for no such field."""

    def exclude(metrics):
        for sae in metrics["saes"]:
            sae["exclude"] = excluded_of(sae)
            if sae["exclude"] == "":
                del sae["exclude"]

    edit_metrics(results, exclude)
    return read_findings(results)


def test_rows_are_told_once_per_target_and_source_with_the_recorded_counts(tmp_path):
    """Seeds and layers of a cell read the same rows: a line for each would be one number told many times."""
    results = write_results(tmp_path, targets=["a", "b"], sources=["a"], text_sources=["web"], n_seeds=3, n_features=1)
    saes = json.loads((results / "metrics.json").read_text())["saes"]
    table = section(results, "data").split('id="packing-table"')[1].split("</table>")[0]
    rows = re.findall(r'<tr><th scope="row">(\w+)</th>(.*?)</tr>', table)
    assert [source for source, _ in rows] == ["a", "web", "a", "web"]
    for target, (source, cells) in zip("aabb", rows, strict=True):
        packing = next(sae["packing"] for sae in saes if (sae["target"], sae["source"]) == (target, source))
        shown = [int(value) for value in re.findall(r'<data value="([^"]+)"', cells)]
        assert shown == [packing[name] for name in ("n_rows", "n_documents", "n_cut_documents", "n_bos", "n_eos")]


def test_other_rows_of_the_same_source_have_a_line_of_their_own(tmp_path):
    """SAEs of one source that were trained at two lengths did not read the same."""
    results = write_results(tmp_path, n_features=1)
    edit_metrics(results, lambda metrics: metrics["saes"][-1]["packing"].update(n_rows=5))
    assert [each["n_rows"] for each in packings(read_findings(results))] == [372, 5]


def test_the_rule_of_packing_is_that_of_the_record(tmp_path):
    """A page that tells today's rule of rows that another one made is wrong."""
    results = write_results(tmp_path, n_features=1)
    (rule,) = packing_sentences(read_findings(results))
    assert rule.startswith("Every row begins with BOS") and rule in section(results, "data")
    edit_metrics(results, lambda metrics: metrics["saes"][-1]["packing"].update(rule=1))
    assert packing_sentences(read_findings(results)) == [rule, "Packed by rule 1."]


def test_what_all_saes_are_without_is_said_once(tmp_path):
    results = write_results(tmp_path, n_features=1)
    words = ["first", "bos", "50256", "norm:10"]
    sentence = exclusion_sentence(with_excluded(results, lambda sae: words))
    assert sentence == (
        "Left out of training and of every measure, for all SAEs: the first position of every sequence, BOS wherever "
        "it stands, the token 50256, activations whose norm is above 10 times the median of their sequence. " + STAYS
    )
    assert sentence in section(results, "data")
    nothing = "No position was left out of training or of a measure."
    assert exclusion_sentence(with_excluded(results, lambda sae: [])) == nothing


def test_saes_that_differ_in_what_is_left_out_are_named(tmp_path):
    """Their FVUs are not of the same tokens, so they do not compare; and an old record does not tell of all."""
    results = write_results(tmp_path, n_features=1, n_seeds=3)
    by_layer = with_excluded(results, lambda sae: ["eos"] if sae["layer"] == 7 else [])
    assert exclusion_sentence(by_layer) == (
        "Left out of training and of every measure, not the same for all SAEs: EOS wherever it stands (layer 7); "
        "nothing (layer 15). " + STAYS
    )
    by_seed = with_excluded(results, lambda sae: ["first"] if sae["layer"] == 7 or sae["seed"] == 1 else "")
    assert exclusion_sentence(by_seed) == (
        "Left out of training and of every measure, not the same for all SAEs: the first position of every sequence "
        "(layer 7; layer 15, seed 1); not recorded (layer 15, seeds 0, 2). " + STAYS
    )


def test_how_random_tokens_were_drawn_is_said(tmp_path):
    results = write_results(tmp_path, n_features=1)
    sentence = "Random tokens drawn: 1,000,000 by numpy.random.PCG64 with seed 0."
    assert random_tokens_sentence(read_findings(results)) == sentence
    assert sentence in section(results, "fakes")


def test_tokens_that_were_left_out_are_not_counted_as_learned_from(tmp_path):
    results = write_results(tmp_path, n_features=1)
    fact = "<dt>Training tokens kept</dt><dd>47,244</dd>"
    assert fact in write_report(results).read_text()
    edit_metrics(results, lambda metrics: [sae.update(n_tokens_trained_on=47_616) for sae in metrics["saes"]])
    assert "Training tokens kept" not in write_report(results).read_text()


def test_results_from_before_these_fields_give_a_page_without_them(tmp_path):
    """Whoever opens an older results folder gets what it holds, and nothing that it does not."""
    results = write_results(tmp_path, n_features=1)

    def age(metrics):
        for sae in metrics["saes"]:
            for name in ("exclude", "packing", "n_tokens_trained_on"):
                del sae[name]
            for name in ("n_drawn", "generator", "seed", "ffr_interval", "ffr_scale_free_interval"):
                del sae["random_tokens"][name]
            for each in sae["evaluations"]:
                for name in [name for name in each if name == "by_position" or name.endswith("_interval")]:
                    del each[name]

    edit_metrics(results, age)
    findings = read_findings(results)
    assert (packings(findings), packing_sentences(findings)) == ([], [])
    assert exclusion_sentence(findings) is None and random_tokens_sentence(findings) is None
    page = write_report(results).read_text()
    for gone in (
        "packing-table",
        "figure-by_position",
        "Left out of training",
        "Training tokens kept",
        "sequences (FVU",
    ):
        assert gone not in page
    assert "latents (SFR) and no more" in page and "Nothing was measured by position" in page
