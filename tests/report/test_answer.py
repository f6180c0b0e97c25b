"""The sentences of the short answer: computed from the numbers, and no stronger than they are."""

import html
from pathlib import Path

from report_fixture import edit_metrics, write_results

from sae_utils.report.answer import (
    agreement_sentence,
    caution_sentence,
    tokenized_again_sentence,
    unequal_sentence,
)
from sae_utils.report.findings import Findings, read_findings
from sae_utils.report.page import write_report


def findings_with(tmp_path: Path, ratios: dict[tuple[str, int], float], **shape) -> Findings:
    """Findings of one target, with these SFRs by source and layer."""
    sources = list(dict.fromkeys(source for source, _ in ratios))
    layers = list(dict.fromkeys(layer for _, layer in ratios))
    results = write_results(tmp_path, targets=["m"], sources=sources, layers=layers, n_features=1, **shape)

    def set_ratios(metrics):
        for pair in metrics["pairs"]:
            pair |= {"sfr": ratios[pair["source"], pair["layer"]], "sfr_floor": 0.015625}
            pair |= {"sfr_interval": [0.25, 0.375]}

    edit_metrics(results, set_ratios)
    return read_findings(results)


def test_one_comparison_is_told_with_its_count(tmp_path):
    findings = findings_with(tmp_path, {("m", 7): 0.3125})
    assert agreement_sentence(findings) == (
        "80 of 256 features are found again from one seed to another (SFR 0.312 [0.250, 0.375], floor 0.016)."
    )


def test_several_comparisons_are_told_by_their_extremes(tmp_path):
    findings = findings_with(tmp_path, {("m", 7): 0.25, ("web", 7): 0.125, ("m", 15): 0.0, ("web", 15): 0.5})
    assert agreement_sentence(findings) == (
        "Found again from one seed to another: at worst 0 of 256 features (SFR 0.000; layer 15, trained on m), at best "
        "128 of 256 (SFR 0.500; layer 15, trained on web). Floor of untrained SAEs: at most 0.016."
    )


def test_equal_comparisons_have_no_best_and_worst(tmp_path):
    findings = findings_with(tmp_path, {("m", 7): 0.25, ("m", 15): 0.25})
    assert agreement_sentence(findings) == (
        "Found again from one seed to another, everywhere: 64 of 256 features (SFR 0.250). Floor of untrained SAEs: "
        "at most 0.016."
    )


SMALL = {"sfr": 1 / 2304, "sfr_interval": [0.0, 3 / 2304], "sfr_floor": 0.0, "n_latents": 2304}


def test_a_small_ratio_is_not_told_as_zero(tmp_path):
    """One feature of 2,304 is found again; the table beside the sentence shows the same digits."""
    results = write_results(tmp_path, layers=[7], n_features=1)
    edit_metrics(results, lambda metrics: metrics["pairs"][0].update(SMALL))
    assert agreement_sentence(read_findings(results)) == (
        "1 of 2,304 features are found again from one seed to another (SFR 0.0004 [0.000, 0.001], floor 0.000)."
    )
    assert ">0.0004</data>" in write_report(results).read_text()


def test_sources_that_were_tokenized_again_are_named_with_the_target(tmp_path):
    """Their token counts, and what an SAE saw of them, are not those of the data set that is listed."""
    results = write_results(tmp_path, targets=["a", "b"], sources=["a", "b"], layers=[7], n_features=1)
    assert tokenized_again_sentence(read_findings(results)) is None  # measured before it was recorded

    def record(metrics):
        for sae in metrics["saes"]:
            for each in sae["evaluations"]:
                each["is_tokenized_again"] = (sae["target"], each["eval_source"]) == ("b", "a")

    edit_metrics(results, record)
    sentence = tokenized_again_sentence(read_findings(results))
    assert sentence.startswith("Tokenized again, as source and target have different tokenizers: a for b. There,")
    data = write_report(results).read_text().split('<section id="data"')[1].split("</section>")[0]
    assert sentence in html.unescape(data)


def test_few_training_tokens_come_with_a_caution_and_many_without(tmp_path):
    """0.07 after 0.8 B tokens became 0.61 after 80 B: a low ratio of a short run is no finding."""
    few = findings_with(tmp_path / "few", {("m", 7): 0.1}, n_train_tokens=100_000_000)
    many = findings_with(tmp_path / "many", {("m", 7): 0.1}, n_train_tokens=80_000_000_000)
    assert "trained on 100,000,000 tokens each" in caution_sentence(few)
    assert "0.07 after 0.8B training tokens, 0.42 after 8B and 0.61 after 80B" in caution_sentence(few)
    assert caution_sentence(many) is None


def test_different_amounts_of_training_are_told_as_a_range(tmp_path):
    results = write_results(tmp_path, n_features=1)
    edit_metrics(results, lambda metrics: metrics["saes"][0].update(n_train_tokens=1_000))
    assert "trained on 1,000 to 47,616 tokens each" in caution_sentence(read_findings(results))


def test_one_seed_is_told_what_is_needed_and_not_cautioned(tmp_path):
    findings = read_findings(write_results(tmp_path, n_seeds=1, n_features=1))
    assert "needs two seeds" in agreement_sentence(findings)
    assert caution_sentence(findings) is None


def test_sources_with_unequal_amounts_are_named(tmp_path):
    """Results of several runs may stand together, and more training alone makes SAEs agree more."""
    results = write_results(tmp_path, text_sources=["corpus"], n_features=1)
    assert unequal_sentence(read_findings(results)) is None

    def train_on_more(metrics):
        for sae in metrics["saes"]:
            sae["n_train_tokens"] *= 1 + ((sae["source"], sae["layer"]) == ("corpus", 15))

    edit_metrics(results, train_on_more)
    sentence = unequal_sentence(read_findings(results))
    assert sentence == (
        "Trained on different numbers of tokens, so that what differs between sources may be due to that: layer 15."
    )
    assert sentence in write_report(results).read_text(encoding="utf-8")
