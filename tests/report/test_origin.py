"""The model or the data: no stronger words than the numbers allow."""

from pathlib import Path

import pytest
from report_fixture import edit_metrics, write_results

from sae_utils.report.findings import Findings, read_findings
from sae_utils.report.origin import origin_rows, origin_sentence

VERDICTS = ("lower", "higher", "within_spread", "at_floor")


def findings_with(tmp_path: Path, verdicts: list[str], **options) -> Findings:
    """Contrasts of SFR with these verdicts, in their order, and a ratio of 0.5; those of the mean cosine are lower."""
    results = write_results(tmp_path, text_sources=["corpus"], n_features=2, **options)

    def change(metrics: dict) -> None:
        of_sfr = [each for each in metrics["contrasts"] if each["measure"] == "sfr"]
        of_cosine = [each for each in metrics["contrasts"] if each["measure"] != "sfr"]
        said = [*zip(of_sfr, verdicts, strict=True), *((each, "lower") for each in of_cosine)]
        for each, verdict in said:
            numbers = {"within": 0.5, "between": 0.25, "ratio": 0.5, "ratio_interval": [0.42, 0.58], "verdict": verdict}
            gone = {"ratio": None, "ratio_interval": None} if verdict == "at_floor" else {}
            each.update(numbers | gone)

    edit_metrics(results, change)
    return read_findings(results)


@pytest.mark.parametrize(
    ("verdict", "sentence"),
    [
        (
            "lower",
            "The model's features or the data's? Features depend on the text: from another one fewer come back than "
            "from the same (SFR 0.250 between the two texts, 0.500 within one; above their floors 0.50 times as much "
            "[0.42, 0.58]).",
        ),
        (
            "higher",
            "The model's features or the data's? From another text more features come back than from the same (SFR "
            "0.250 between the two texts, 0.500 within one; above their floors 0.50 times as much [0.42, 0.58]).",
        ),
        (
            "within_spread",
            "The model's features or the data's? Features come back from another text as often as from the same, as "
            "far as these SAEs can tell: the difference is within the spread of latents or pairs (SFR 0.250 between "
            "the two texts, 0.500 within one; above their floors 0.50 times as much [0.42, 0.58]).",
        ),
        (
            "at_floor",
            "The model's features or the data's? By SFR that cannot be told: even SAEs of one text share hardly any. "
            "By mean cosine, features depend on the text: from another one fewer come back than from the same (PW-MCC "
            "0.250 between the two texts, 0.500 within one; above their floors 0.50 times as much [0.42, 0.58]).",
        ),
    ],
)
def test_a_single_contrast_is_said_with_its_numbers(tmp_path, verdict, sentence):
    assert origin_sentence(findings_with(tmp_path, [verdict], layers=[7])) == sentence


def test_several_are_counted_by_what_they_say(tmp_path):
    findings = findings_with(tmp_path, ["lower", "lower", "within_spread", "at_floor"], layers=[3, 7, 11, 15])
    assert origin_sentence(findings) == (
        "The model's features or the data's? Of 4 comparisons of two sources, in 2, SAEs of two texts agree less than "
        "SAEs of one (ratio 0.50); in 1, the difference is within the spread (ratio 0.50); in 1, nothing is above the "
        "floor."
    )


def test_controls_are_in_the_table_and_not_in_the_sentence(tmp_path):
    """A model's own text beside the same tokens in random order: what that says is not about texts."""
    results = write_results(tmp_path, text_sources=["own-shuffled"], n_features=2)
    edit_metrics(results, lambda metrics: metrics["datasets"][-1].update(kind="shuffled"))
    findings = read_findings(results)
    assert origin_sentence(findings) is None and len(origin_rows(findings, "sfr")) == 2


def test_one_source_has_nothing_to_be_said(tmp_path):
    findings = read_findings(write_results(tmp_path, n_features=2))
    assert origin_sentence(findings) is None and origin_rows(findings, "sfr") == []


def test_rows_hold_what_the_agreements_say(tmp_path):
    findings = read_findings(write_results(tmp_path, sources=["a", "b", "c"], n_features=2, layers=[7]))
    rows = origin_rows(findings, "sfr")
    assert [(row.contrast["source"], row.contrast["source_b"]) for row in rows] == [("a", "b"), ("a", "c"), ("b", "c")]
    for row in rows:
        for end, within in zip(("source", "source_b"), row.within, strict=True):
            assert within["source"] == within["source_b"] == row.contrast[end]
        assert (row.between["kind"], row.same_seed["kind"]) == ("between", "same_seed")
        assert row.contrast["between"] == pytest.approx(row.between["sfr"])
