"""Curves over training tokens and over active latents, from the SAEs that differ in nothing else."""

from pathlib import Path

import pytest
from report_fixture import edit_metrics, write_results

from sae_utils.report.figures import make_charts
from sae_utils.report.findings import read_findings
from sae_utils.report.settings_figures import agreement_over_tokens, lines_over, quality_over_l0

SOURCES = ["tiny-model", "tiny-model_tokens_16000", "tiny-model_tokens_32000", "tiny-model_k_64", "prose"]


@pytest.fixture
def results(tmp_path) -> Path:
    """Two budgets beside the whole, another k, and a source that has one of each."""
    results = write_results(tmp_path, sources=SOURCES, layers=[7], n_features=2)

    def vary(metrics: dict) -> None:
        for sae in metrics["saes"]:
            sae["dataset"] = sae["source"].partition("_")[0]
            sae["evaluations"] = [each for each in sae["evaluations"] if "_" not in each["eval_source"]]
            if "tokens" in sae["source"]:
                sae["n_train_tokens"] = int(sae["source"].rpartition("_")[2])
            if "_k_" in sae["source"]:
                sae["k"] = 64
                for each in sae["evaluations"]:
                    each["l0"] = 64.0

    edit_metrics(results, vary)
    return results


def test_lines_are_of_saes_that_differ_in_one_setting(results):
    """Ascending; the whole budget has no name, and stands where its tokens are."""
    members = read_findings(results).comparisons
    over_tokens = lines_over(members, "tokens", lambda each: each.saes[0]["n_train_tokens"])
    assert [(name, [each.source for each in line]) for name, line in over_tokens] == [
        ("tiny-model", ["tiny-model_tokens_16000", "tiny-model_tokens_32000", "tiny-model"])
    ]
    over_k = lines_over(members, "k", lambda each: each.saes[0]["k"])
    assert [(name, [each.source for each in line]) for name, line in over_k] == [
        ("tiny-model", ["tiny-model", "tiny-model_k_64"])
    ]


def test_what_is_drawn_is_what_the_results_say(results):
    findings = read_findings(results)
    tokens, l0 = agreement_over_tokens(findings), quality_over_l0(findings)
    assert [panel.title for panel in tokens.panels] == ["SFR, layer 7", "PW-MCC, layer 7"]
    ((points, _),) = tokens.panels[1].draw.keywords["lines"]
    expected = {each.saes[0]["n_train_tokens"]: each.of_pairs("mean_matched_cosine") for each in findings.comparisons}
    assert [x for x, _ in points] == [16_000, 32_000, 47_616]
    assert [spread for _, spread in points][:2] == [expected[16_000], expected[32_000]]
    assert [panel.title for panel in l0.panels] == ["FVU, layer 7", "CE recovered, layer 7"]
    ((points, _),) = l0.panels[0].draw.keywords["lines"]
    assert [x for x, _ in points] == sorted([findings.comparisons[0].of_evaluations("l0").mean, 64.0])


def test_the_legend_has_what_is_drawn_and_nothing_else(results):
    findings = read_findings(results)
    assert [key.label for key in agreement_over_tokens(findings).legend] == ["tiny-model", "untrained"]
    assert [key.label for key in quality_over_l0(findings).legend] == ["tiny-model"]


def test_they_are_on_the_page_and_nowhere_without_such_saes(results, tmp_path):
    names = {chart.name for chart in make_charts(read_findings(results))}
    assert {"agreement_over_tokens", "quality_over_l0"} <= names
    plain = {chart.name for chart in make_charts(read_findings(write_results(tmp_path / "plain")))}
    assert not {"agreement_over_tokens", "quality_over_l0"} & plain
