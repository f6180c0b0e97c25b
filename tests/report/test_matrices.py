"""Tables of train source x eval source."""

from report_fixture import edit_metrics, write_results

from sae_utils.report.findings import read_findings
from sae_utils.report.matrices import MATRICES, SHARED_MATRICES, agreement_matrices, source_matrices
from sae_utils.report.page import write_report

SHAPE = {"sources": ["tiny-model", "tiny-model_k_64", "prose", "prose_k_64"], "layers": [7], "n_features": 1}


def test_latents_are_looked_for_in_saes_that_were_trained_alike(tmp_path):
    """The row of a k is held against SAEs of the other source with that k; on the diagonal is the stability."""
    results = write_results(tmp_path, **SHAPE, n_seeds=3)

    def vary(metrics: dict) -> None:
        for sae in metrics["saes"]:
            sae["dataset"], _, k = sae["source"].partition("_k_")
            sae["variant"] = f"k_{k}" if k else ""
            sae["evaluations"] = [each for each in sae["evaluations"] if "_k_" not in each["eval_source"]]
            sae["stability"]["mean"] = 0.5
            for number, found in enumerate(sae["stability"]["elsewhere"]):
                sae["stability"]["elsewhere"][found] = {"mean": number / 8}

    edit_metrics(results, vary)
    (group,) = source_matrices(read_findings(results), SHARED_MATRICES)
    table = group["tables"][0]
    assert (table["title"], table["columns"], group["floor"].mean) == ("Come back", ["tiny-model", "prose"], 0.01)
    cells = {row["source"]: [cell["value"].mean for cell in row["cells"]] for row in table["rows"]}
    # of tiny-model the others are, in order, tiny-model_k_64, prose and prose_k_64
    assert cells["tiny-model"] == [0.5, 1 / 8] and cells["tiny-model_k_64"] == [0.5, 2 / 8]
    assert cells["prose"] == [0 / 8, 0.5] and cells["prose_k_64"] == [1 / 8, 0.5]
    page = write_report(results).read_text(encoding="utf-8")
    assert page.count("<caption>Come back, ") == 1 and 'Between untrained SAEs it is <data value="0.01">' in page


def test_two_seeds_show_firing_alone(tmp_path):
    results = write_results(tmp_path, **SHAPE | {"sources": ["tiny-model", "prose"]})
    (group,) = source_matrices(read_findings(results), SHARED_MATRICES)
    assert [table["title"] for table in group["tables"]] == ["Fire there, too", "Firing overlap"]
    assert "It needs three seeds." in write_report(results).read_text(encoding="utf-8")


def test_results_of_an_earlier_version_lack_what_becomes_of_latents(tmp_path):
    results = write_results(tmp_path, **SHAPE | {"sources": ["tiny-model", "prose"]})

    def forget(metrics: dict) -> None:
        for sae in metrics["saes"]:
            for each in sae["evaluations"]:
                del each["also_live_share"], each["firing_overlap"]

    edit_metrics(results, forget)
    assert source_matrices(read_findings(results), SHARED_MATRICES) == []
    assert 'id="shared"' not in write_report(results).read_text(encoding="utf-8")


def test_agreement_of_many_sources_is_seen_at_once(tmp_path):
    """Symmetric, within sources on the diagonal; a list of every two is read by nobody. Two sources are one row."""
    results = write_results(tmp_path / "3", sources=["tiny-model", "prose", "code"], layers=[7], n_features=1)
    findings = read_findings(results)
    (group,) = agreement_matrices(findings)
    table = group["tables"][0]
    assert (table["title"], table["columns"]) == ("SFR", ["tiny-model", "prose", "code"])
    values = [[cell["value"].mean for cell in row["cells"]] for row in table["rows"]]
    assert values == [list(column) for column in zip(*values, strict=True)]
    for each in findings.agreements:
        if each["kind"] != "same_seed":
            row, column = (table["columns"].index(each[end]) for end in ("source", "source_b"))
            assert values[row][column] == each["sfr"]
    assert "<details><summary>Every two sources, one by one: 3 rows" in write_report(results).read_text(
        encoding="utf-8"
    )
    two = write_results(tmp_path / "2", sources=["tiny-model", "prose"], layers=[7], n_features=1)
    assert agreement_matrices(read_findings(two)) == []


def test_where_first_positions_are_left_out_fvu_without_them_is_not_said_again(tmp_path):
    """Two columns and two matrices of the same numbers look as if there were something to compare."""
    results = write_results(tmp_path, text_sources=["corpus"], n_features=1)
    assert "w/o 1st pos." in write_report(results).read_text(encoding="utf-8")
    (titles, *_) = [[table["title"] for table in group["tables"]] for group in matrices_of(results)]

    def copy(metrics):
        for sae in metrics["saes"]:
            for each in sae["evaluations"]:
                each |= {f"fvu_without_first_position{end}": each[f"fvu{end}"] for end in ("", "_interval")}

    edit_metrics(results, copy)
    page = write_report(results).read_text(encoding="utf-8")
    assert "w/o 1st pos." not in page and "fvu_without_first_position" not in page
    for group in matrices_of(results):
        assert [table["title"] for table in group["tables"]] == [each for each in titles if "first" not in each]


def matrices_of(results):
    return source_matrices(read_findings(results), MATRICES)
