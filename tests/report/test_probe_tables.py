"""What probes found, on the terminal and on the page: by hand, and nothing where nothing was probed."""

import re
from pathlib import Path

from report_fixture import edit_metrics, write_results
from test_page import Page

from sae_utils.comparison.results import Results
from sae_utils.report.findings import Spread, read_findings
from sae_utils.report.page import write_report
from sae_utils.report.probe_tables import TITLES, probe_table, probed_datasets

TO = "\N{EN DASH}"


def probe_record(name: str, accuracy: float, **own) -> dict:
    """A probe of which every representation is a little better than the one before."""
    scores = {
        each: {"accuracy": accuracy + 0.01 * i, "accuracy_interval": [0.1, 0.9], "macro_f1": 0.5, "n_steps": 7}
        for i, each in enumerate(TITLES)
    }
    about = {"name": name, "fingerprint": f"of {name}", "n_classes": 4, "n_train": 1600, "n_test": 400}
    return about | {"majority_share": 0.25, "scores": scores} | own


def test_table_by_hand():
    """One block a data set, of those that were asked for; SAEs without numbers have no line."""
    results = Results(Path("results"))
    probes = [[probe_record("news", 0.5), probe_record("other", 0.9)], [probe_record("news", 0.75)], []]
    results.saes = {("tiny", "tiny", 7, seed): {"probes": each} for seed, each in enumerate(probes)}
    assert probe_table(results, list(results.saes), ["news"]).splitlines() == [
        "probed on  target  source  layer  seed  majority  hidden state  best latent  best 5  best 20  all latents"
        "  reconstruction",
        "---------  ------  ------  -----  ----  --------  ------------  -----------  ------  -------  -----------"
        "  --------------",
        "news       tiny    tiny        7     0    0.2500        0.5000       0.5100  0.5200   0.5300       0.5400"
        "          0.5500",
        "news       tiny    tiny        7     1    0.2500        0.7500       0.7600  0.7700   0.7800       0.7900"
        "          0.8000",
        "news: accuracy on 400 held-out texts of 4 classes, learned from 1,600",
    ]


def with_probes(folder: Path, *, n_seeds: int = 2) -> Path:
    """Results of two layers, probed on two data sets, with accuracies that tell which SAE they are of."""
    results = write_results(folder, n_seeds=n_seeds)

    def edit(metrics: dict) -> None:
        for sae in metrics["saes"]:
            accuracy = sae["layer"] / 100 + sae["seed"] / 10
            sae["probes"] = [probe_record("<b>news", accuracy), probe_record("mail", 0.5)]

    edit_metrics(results, edit)
    return results


def test_rows_are_means_and_ranges_over_seeds(tmp_path):
    of_news, of_mail = probed_datasets(read_findings(with_probes(tmp_path)))
    assert (of_mail["about"]["name"], of_news["about"]["name"]) == ("mail", "<b>news")
    rows = [(row.comparison.layer, row.measure, row.majority_share) for row in of_news["rows"]]
    assert rows == [(7, "accuracy", 0.25), (7, "macro_f1", None), (15, "accuracy", 0.25), (15, "macro_f1", None)]
    first = of_news["rows"][0].scores
    assert list(first) == list(TITLES)
    assert first["hidden_state"] == Spread((0.07 + 0.17) / 2, 0.07, 0.07 + 0.1, 2)


def section(page: Path) -> str:
    """The section of probes, without tags and with single spaces."""
    (found,) = re.findall(r'<section id="probes".*?</section>', page.read_text(), flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", found).split())


def test_the_page_has_a_section_where_something_was_probed(tmp_path):
    """Numbers of both measures with their range over seeds; names that look like markup stay text."""
    page = write_report(with_probes(tmp_path))
    text = section(page)
    assert "&lt;b&gt;news: accuracy on 400 held-out texts of 4 classes, learned from 1,600" in text
    assert f"tiny-model 7 accuracy 0.250 0.120 0.070{TO}0.170 0.130" in text
    assert f"tiny-model 15 accuracy 0.250 0.200 0.150{TO}0.250" in text
    assert "tiny-model 7 macro F1 0.500 0.500 0.500 0.500 0.500 0.500" in text, "no floor, and no range of equal seeds"
    assert 'href="#probes"' in page.read_text()


def test_one_seed_has_no_range(tmp_path):
    text = section(write_report(with_probes(tmp_path, n_seeds=1)))
    assert "tiny-model 7 accuracy 0.250 0.070 0.080 0.090 0.100 0.110 0.120" in text and "range" not in text


def test_the_page_has_none_where_nothing_was_probed(tmp_path):
    """Nor a link to it; results of before have no field for it."""
    page = write_report(write_results(tmp_path)).read_text()
    assert 'id="probes"' not in page and "#probes" not in page


def test_the_section_is_well_formed_and_its_table_full(tmp_path):
    """A cell too few moves all numbers behind it under another title."""
    page = Page(write_report(with_probes(tmp_path)))
    assert page.mismatched == [] and page.open == []
    (found,) = re.findall(r'<section id="probes".*?</section>', page.text, flags=re.DOTALL)
    rows = re.findall(r"<tr>(.*?)</tr>", found, flags=re.DOTALL)
    assert {len(re.findall(r"<t[hd]\b", row)) for row in rows} == {4 + len(TITLES)} and len(rows) == 2 * (1 + 4)
