"""What is called a difference between the target's own text and another source, and what is not."""

import re
from pathlib import Path

import pytest
from report_fixture import edit_metrics, write_results

from sae_utils.report.differences import difference_rows, differences_sentence
from sae_utils.report.findings import Findings, read_findings
from sae_utils.report.page import write_report


def findings_with(
    folder: Path, ratios: dict[str, list[float]], *, width: float = 0.0, n_seeds: int = 3, kind: str = "generated"
) -> Findings:
    """Findings of one target and layer, with these SFRs of the pairs of each source, and intervals of this width."""
    results = write_results(folder, targets=["m"], sources=list(ratios), layers=[7], n_features=1, n_seeds=n_seeds)

    def edit(metrics: dict) -> None:
        for source, values in ratios.items():
            pairs = [each for each in metrics["pairs"] if each["source"] == each["source_b"] == source]
            for pair, value in zip(pairs, values, strict=True):
                pair |= {"sfr": value, "sfr_interval": [value - width / 2, value + width / 2]}
        metrics["datasets"][-1]["kind"] = kind

    edit_metrics(results, edit)
    return read_findings(results)


def sfr_verdict(findings: Findings) -> str:
    (row,) = difference_rows(findings)
    return row.differences["sfr"].verdict


@pytest.mark.parametrize(
    ("own", "other", "width", "verdict"),
    [
        ([0.5, 0.6, 0.7], [0.2, 0.3, 0.4], 0.1, "more"),
        ([0.2, 0.3, 0.4], [0.5, 0.6, 0.7], 0.1, "less"),
        ([0.5, 0.6, 0.7], [0.2, 0.3, 0.55], 0.1, "no difference"),  # one pair of the other is among the own
        ([0.5, 0.6, 0.7], [0.2, 0.3, 0.4], 0.7, "no difference"),  # other latents would change as much
        ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5], 0.0, "no difference"),
    ],
)
def test_a_difference_is_beyond_the_spread_of_pairs_and_of_latents(tmp_path, own, other, width, verdict):
    """A mean that is higher by less than another seed would change is no finding."""
    findings = findings_with(tmp_path, {"m": own, "web": other}, width=width)
    assert sfr_verdict(findings) == verdict
    page = write_report(tmp_path / "results").read_text(encoding="utf-8")
    cell = page.partition('<td class="text" data-difference="sfr">')[2].partition("</td>")[0]
    shown = re.sub(r"<[^>]+>", " ", cell).split()
    assert " ".join(shown).endswith({"no difference": "not told apart"}.get(verdict, verdict))


def test_without_intervals_nothing_is_called_a_difference(tmp_path):
    """They were measured by an earlier version; how far latents alone may put them off is not known."""
    findings = findings_with(tmp_path, {"m": [0.5, 0.6, 0.7], "web": [0.2, 0.3, 0.4]})
    for each in findings.comparisons:
        for pair in each.pairs:
            pair["sfr_interval"] = None
    assert sfr_verdict(findings) == "no difference"


def test_one_pair_has_no_spread(tmp_path):
    findings = findings_with(tmp_path, {"m": [0.9], "web": [0.1]}, n_seeds=2)
    assert sfr_verdict(findings) == "one value"
    assert "needs three seeds" in differences_sentence(findings)
    (row,) = difference_rows(findings)
    assert row.differences["fvu"].verdict != "one value", "of which there are two"


def test_the_sentence_counts_what_can_be_told(tmp_path):
    ratios = {"m": [0.5, 0.6, 0.7], "web": [0.2, 0.3, 0.4], "book": [0.4, 0.6, 0.8]}
    assert differences_sentence(findings_with(tmp_path, ratios)) == (
        "The target's own text or another? Of 2 comparisons with a text on one layer, more features come back from the "
        "own text in 1 and fewer in 0; in 1 the difference is within the spread of pairs or latents (mean SFR 0.600; "
        "other texts 0.450)."
    )


def test_controls_are_in_the_table_and_not_in_the_sentence(tmp_path):
    findings = findings_with(tmp_path, {"m": [0.5, 0.6, 0.7], "m-shuffled": [0.2, 0.3, 0.4]}, kind="shuffled")
    assert sfr_verdict(findings) == "more" and differences_sentence(findings) is None


def test_only_saes_that_differ_in_their_source_alone_are_compared(tmp_path):
    """Half as many latents would be half of the difference."""
    findings = findings_with(tmp_path, {"m": [0.5, 0.6, 0.7], "web": [0.2, 0.3, 0.4]})
    for sae in findings.comparisons[1].saes:
        sae["n_latents"] = 128
    assert difference_rows(findings) == []


def test_without_the_own_text_there_is_nothing_to_hold_others_against(tmp_path):
    findings = read_findings(write_results(tmp_path, targets=["m"], sources=["web", "book"], n_features=1))
    assert difference_rows(findings) == [] and differences_sentence(findings) is None
    assert 'id="difference-table"' not in write_report(tmp_path / "results").read_text(encoding="utf-8")
