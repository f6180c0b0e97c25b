"""Models and data that finished SAEs name, found again: extended, moved, or measured from another directory."""

import contextlib
import json
import shutil
from pathlib import Path

import pytest
from conftest import edit_record
from grid_files import COMPARE, EVAL_ONLY, compare_all, metrics
from test_cli import refused, train

import generate_datasets
import train_sae

SAMPLE = ["--models", "./tiny", "./other", "--max_length", "40", "--quiet"]


def measured_anew() -> dict:
    """The measurements of `grid`, made again, without the folders' names."""
    shutil.rmtree("results", ignore_errors=True)
    train_sae.main(EVAL_ONLY)
    found = metrics()
    for record in found["saes"]:
        del record["path"]
    return {name: found[name] for name in ("saes", "pairs")}


@pytest.mark.parametrize("amount", [["--num_tokens", "4000"], ["--n", "100"]])
def test_saes_of_a_data_set_that_was_extended_are_measured_as_before(grid, amount):
    """Its beginning is what they were trained on, to the last token, which was in the middle of a sample."""
    before = measured_anew()
    generate_datasets.main([*SAMPLE, *amount])
    assert measured_anew() == before
    shutil.rmtree("datasets/.packed")
    assert measured_anew() == before, "also where they have to be packed again"


def test_another_data_set_of_that_name_is_not_taken_for_a_longer_form(grid, capsys):
    """One of another seed would be measured on tokens that SAEs may have been trained on."""
    shutil.rmtree("datasets/.packed")
    generate_datasets.main([*SAMPLE, "--num_tokens", "4000", "--seed", "43"])
    for name in ("tiny", "other"):
        shutil.rmtree(f"datasets/{name}_42_1.0_0.9")
        shutil.move(f"datasets/{name}_43_1.0_0.9", f"datasets/{name}_42_1.0_0.9")
    capsys.readouterr()
    assert "its held-out tokens are not known any more" in refused(capsys, train_sae.main, EVAL_ONLY)


def test_a_study_is_measured_from_another_directory(grid):
    """Records name folders as they were given: seen from elsewhere, they lie beside the SAEs."""
    before = measured_anew()
    Path("elsewhere").mkdir()
    with contextlib.chdir("elsewhere"):
        train_sae.main([*EVAL_ONLY, "--checkpoint_dir", "../checkpoints"])
        found = metrics()
    for record in found["saes"]:
        del record["path"]
    assert {name: found[name] for name in before} == before


def test_what_was_moved_is_found_through_the_flags(grid, capsys):
    before = measured_anew()
    Path("moved").mkdir()
    for name in ("datasets", "tiny"):
        shutil.move(name, "moved")
    assert "is gone" in refused(capsys, train_sae.main, EVAL_ONLY)
    flags = ["--datasets_dir", "moved/datasets", "--org_name", "moved", "--target_models", "tiny"]
    shutil.rmtree("results")
    train_sae.main([*EVAL_ONLY, *flags])
    found = metrics()
    for record in found["saes"]:
        del record["path"]
    assert {name: found[name] for name in before} == before


def test_another_model_in_the_place_of_the_target_is_refused(grid, capsys):
    """Its activations are others, and nothing in the numbers would show it."""
    shutil.rmtree("results")
    shutil.rmtree("tiny")
    shutil.copytree("other", "tiny")
    assert "was trained on the model" in refused(capsys, train_sae.main, EVAL_ONLY)


def test_runs_of_before_without_forms_are_measured(grid):
    """An earlier version recorded neither how much of a data set there was, nor where things lie from here."""
    before = measured_anew()
    for path in Path("checkpoints").glob("*/run.json"):
        run = json.loads(path.read_text())
        for name in ("dataset_form", "dataset_from_here", "target_from_here", "checksums", "checksum"):
            del run[name]
        for record in run["saes"]:
            del record["checksums"]
        path.write_text(json.dumps(run))
    assert measured_anew() == before


def test_names_in_records_never_lead_out_of_the_folders(grid, capsys):
    """They make up the paths of what is written."""
    path = Path("checkpoints/tiny_from_tiny_seed_0/run.json")
    saes = json.loads(path.read_text())["saes"]
    edit_record(path, saes=[record | {"source": "../../tiny"} for record in saes])
    before = sorted(Path().rglob("*"))
    assert "tiny_from_tiny_seed_0/run.json is damaged (it is of " in refused(capsys, train_sae.main, EVAL_ONLY)
    edit_record(Path("results/metrics.json"), saes=[metrics()["saes"][0] | {"target": "../x"}])
    said = refused(capsys, train_sae.main, ["--eval_only", *COMPARE])
    assert "'../x' is no name of a model or a corpus" in said
    assert sorted(each for each in Path().rglob("*") if ".locks" not in each.parts) == before


def test_saes_of_the_beginning_of_a_corpus_are_measured_with_what_is_on_disk(tiny):
    """And those of its control: nothing is read for it, and what was deleted is made again as it was."""
    Path("corpus.jsonl").write_text("".join(json.dumps({"text": f"fox {i} and {i * i}"}) + "\n" for i in range(2000)))
    flags = ["--text_datasets", "corpus.jsonl", "--text_tokens", "1500", "--controls", "shuffled"]
    train("--source_models", *flags, "--num_seeds", "1", "--layers", "0")
    run = json.loads(Path("checkpoints/tiny_from_corpus-shuffled_seed_0/run.json").read_text())
    assert run["dataset_form"]["n_samples"] < 1000 and run["dataset_control"]["kind"] == "shuffled"
    names = ["corpus", "corpus-shuffled"]

    def measured() -> dict:
        shutil.rmtree("results", ignore_errors=True)
        compare_all(seeds=[0], sources=names)
        return metrics()

    for gone in ("corpus.jsonl", "datasets/.packed/texts"):
        shutil.move(gone, "away")
        found = measured()
        assert [[each["eval_source"] for each in record["evaluations"]] for record in found["saes"]] == [names] * 2
        shutil.move("away", gone)
    shutil.rmtree("datasets/.packed")
    assert measured() == found
