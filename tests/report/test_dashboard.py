"""What W&B gets of a comparison: the results' own numbers, one a cell."""

from pathlib import Path

import pytest
from report_fixture import write_results

from sae_utils.comparison.results import Results, read_results
from sae_utils.report.dashboard import comparison_config, comparison_files, comparison_tables
from sae_utils.report.feature_files import CALL


@pytest.fixture
def results(tmp_path) -> Results:
    """Of two targets and two sources."""
    targets = ("tiny-model", "small")
    return read_results(write_results(tmp_path, targets=targets, text_sources=("corpus",), n_seeds=3))


def test_a_comparison_says_what_was_compared(results):
    config = comparison_config(results, "small")
    assert list(config) == ["target", "sources", "n_latents", "k", "layers", "seeds"]
    assert (config["target"], config["sources"]) == ("small", ["corpus", "tiny-model"])
    assert (config["n_latents"], config["layers"], config["seeds"]) == (256, [7, 15], [0, 1, 2])


def test_what_saes_differ_in_is_a_list(results):
    """One of several numbers alone would be wrong of the others."""
    results.saes["small", "corpus", 7, 0] |= {"n_latents": 512}
    assert comparison_config(results, "small")["n_latents"] == [256, 512]


def test_files_are_the_numbers_and_the_page_with_what_lies_beside_it(results):
    """A page that was downloaded without its features could not show them."""
    beside = results.folder / "features" / "small_seed_0_layers.7.0123.js"
    beside.parent.mkdir()
    beside.write_text(f'{CALL}"{beside.name}",{{}});')
    beside.with_name("notes.js").touch()
    files = comparison_files(results)
    assert list(files) == ["report.html", "metrics.json", "metrics.csv", f"features/{beside.name}"]
    assert all(path == results.folder / name for name, path in files.items())


def test_there_is_a_row_for_each_sae_and_source_and_for_each_record_of_the_target(results):
    tables = comparison_tables(results, "small")
    assert list(tables) == ["saes", "pairs", "agreements", "contrasts"]
    assert len(tables["saes"]) == 2 * 2 * 3 * 2, "layers, sources, seeds, sources measured on"
    assert len(tables["pairs"]) == sum(key[0] == "small" for key in results.pairs) > 0
    for name in ("agreements", "contrasts"):
        records = [each for each in getattr(results, name) if each["target"] == "small"]
        assert len(tables[name]) == len(records) > 0
    for rows in tables.values():
        assert {row["target"] for row in rows} == {"small"}
        assert len({tuple(row) for row in rows}) == 1, "a table has one list of columns"
        assert all(value is None or isinstance(value, str | int | float) for row in rows for value in row.values())


def test_cells_are_the_numbers_of_the_results(results):
    tables = comparison_tables(results, "small")
    for row in tables["saes"]:
        record = results.saes["small", row["source"], row["layer"], row["seed"]]
        (there,) = [each for each in record["evaluations"] if each["eval_source"] == row["eval_source"]]
        assert (row["fvu"], [row["fvu_low"], row["fvu_high"]]) == (there["fvu"], there["fvu_interval"])
        assert row["random_tokens.ffr"] == record["random_tokens"]["ffr"]
        assert row["n_latents"] == record["n_latents"]
    for row in tables["pairs"]:
        record = results.pairs[tuple(row[n] for n in ("target", "source", "layer", "seed", "source_b", "seed_b"))]
        assert (row["sfr"], row["kind"]) == (record["sfr"], record["kind"])
        assert [row["sfr_low"], row["sfr_high"]] == record["sfr_interval"]


def test_an_sae_that_has_diverged_has_a_row_without_numbers(results):
    """It was trained: a table without it says otherwise."""
    diverged = {"is_diverged": True, "evaluations": [], "random_tokens": None, "stability": None}
    results.saes["small", "corpus", 7, 0] |= diverged
    rows = comparison_tables(results, "small")["saes"]
    (row,) = [row for row in rows if (row["source"], row["layer"], row["seed"]) == ("corpus", 7, 0)]
    assert row["is_diverged"] and row["fvu"] is row["eval_source"] is row["random_tokens.ffr"] is None


def test_results_of_one_seed_have_no_pairs(tmp_path):
    tables = comparison_tables(read_results(write_results(tmp_path / "one", n_seeds=1)), "tiny-model")
    assert tables["pairs"] == tables["agreements"] == tables["contrasts"] == [] and tables["saes"]
    assert not Path("results").exists()
