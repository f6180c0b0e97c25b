"""Of several budgets, the largest stands in tables and figures."""

from pathlib import Path

from report_fixture import edit_metrics, write_results

from sae_utils.comparison.results import read_results
from sae_utils.report.budgets import at_largest_budget, smaller_budgets
from sae_utils.report.figures import make_charts
from sae_utils.report.findings import read_findings
from sae_utils.report.page import write_report
from sae_utils.report.tables import results_tables

SOURCES = ["tiny-model", "tiny-model_tokens_16000", "tiny-model_tokens_64000", "prose_tokens_16000"]


def write_budgets(folder: Path) -> Path:
    """Two budgets beside the first, one of them larger, and a source that has one alone."""
    results = write_results(folder, sources=SOURCES, layers=[7], n_features=2)

    def vary(metrics: dict) -> None:
        for sae in metrics["saes"]:
            sae["dataset"], _, n_tokens = sae["source"].partition("_tokens_")
            sae["n_train_tokens"] = int(n_tokens or 32_000)
            sae["evaluations"] = sae["evaluations"][:2]
            sae["evaluations"][0]["eval_source"], sae["evaluations"][1]["eval_source"] = "tiny-model", "prose"
        metrics["datasets"] = [each for each in metrics["datasets"] if "_tokens_" not in each["name"]]

    edit_metrics(results, vary)
    return results


def test_the_largest_budget_stands_for_the_study(tmp_path):
    """Whichever came first and has no name of its own; smaller ones beside it would be taken for other SAEs."""
    findings = read_findings(write_budgets(tmp_path))
    largest = at_largest_budget(findings)
    assert largest.sources == ["tiny-model_tokens_64000", "prose_tokens_16000"]
    assert {each["source"] for each in largest.pairs} == set(largest.sources)
    ends = [{each["source"], each["source_b"]} for each in largest.contrasts]
    assert ends == [set(largest.sources)] * 2
    assert sorted(each["kind"] for each in largest.agreements) == ["between", "same_seed", "within", "within"]
    assert smaller_budgets(findings) == [16_000, 32_000] and smaller_budgets(largest) == []


def test_smaller_budgets_are_in_the_figure_over_tokens_alone(tmp_path):
    results = write_budgets(tmp_path)
    charts = {chart.name: chart for chart in make_charts(read_findings(results))}
    ((points, _),) = charts["agreement_over_tokens"].panels[0].draw.keywords["lines"]
    assert [n_tokens for n_tokens, _ in points] == [16_000, 32_000, 64_000]
    assert [key.label for key in charts["training_fvu"].legend[:2]] == ["tiny-model_tokens_64000", "prose_tokens_16000"]
    page = write_report(results).read_text(encoding="utf-8")
    assert "tiny-model_tokens_16000" not in page and ">tiny-model_tokens_64000</th>" in page
    assert "<dt>Smaller budgets, in the figure over tokens</dt><dd>16,000, 32,000</dd>" in page
    known = read_results(results)
    table = results_tables(known, sorted(known.saes))
    assert "tiny-model_tokens_16000" not in table and table.count("tiny-model_tokens_64000  ") >= 3
