"""A cell grows by seeds and layers, and what is finished is left as it is."""

import json
import os
from pathlib import Path

import pytest
from conftest import run_killed
from test_cli import TRAIN, all_bytes, generate, refused, times, train

import train_sae
from sae_utils.comparison.trained import find_all_trained
from sae_utils.errors import InputError
from sae_utils.files import DamagedFileError, write_json
from sae_utils.report.findings import read_findings
from sae_utils.training.folders import CellFolders
from sae_utils.training.passes import Pass
from sae_utils.training.remaining import Job, jobs_from_nothing, next_job, write_plan

CELL = CellFolders(Path("checkpoints"), "tiny", "prose")
IDENTITY = {"source_fingerprint": "one", "k": 4, "lr": None, "layers": [7, 15]}


def write_finished(seed: int, name: str = "run.json", **changes) -> None:
    CELL.seed_dir(seed).mkdir(parents=True, exist_ok=True)
    write_json(CELL.seed_dir(seed) / name, {"settings": IDENTITY | changes})


def compare(*flags: str) -> None:
    train_sae.main([*TRAIN, "--random_tokens", "500", *flags])


def begin(layers: tuple[int, ...], seeds: tuple[int, ...], **changes) -> None:
    identity = IDENTITY | {"layers": list(layers)} | changes
    write_plan(CELL.settings_path, identity, seeds, [Pass(layers, seeds)])


def test_seeds_without_a_finished_folder_are_left_to_do():
    write_finished(1)
    assert next_job(CELL, IDENTITY, range(3)) == Job((7, 15), (0, 2))


def test_layers_that_a_folder_lacks_are_left_to_do():
    """Seeds that lack the same layers are trained together, and a record of layers that were added counts."""
    write_finished(0)
    write_finished(1)
    write_finished(1, "run_layers.11.json", layers=[11])
    wanted = IDENTITY | {"layers": [3, 7, 11]}
    assert jobs_from_nothing(CELL, wanted, range(4)) == [Job((3, 11), (0,)), Job((3,), (1,)), Job((3, 7, 11), (2, 3))]
    assert next_job(CELL, IDENTITY | {"layers": [7]}, range(2)) is None


def test_what_was_begun_together_goes_on_together():
    """It shares a state; what else is asked for comes after it."""
    begin((7, 15), (0, 1))
    assert next_job(CELL, IDENTITY, range(1)) == Job((7, 15), (0, 1))
    assert next_job(CELL, IDENTITY | {"layers": [3, 7]}, range(3)) == Job((7, 15), (0, 1))
    message = r"begun with --layers 7 15 and seeds \[0, 1\], of which nothing is asked for; finish it with these layers"
    with pytest.raises(InputError, match=message):
        next_job(CELL, IDENTITY | {"layers": [3]}, range(2))


def test_other_settings_on_disk_are_refused():
    begin((7, 15), (0,))
    with pytest.raises(InputError, match=r"prose.unfinished was made with other settings: k was 4 and is now 5"):
        next_job(CELL, IDENTITY | {"k": 5}, range(1))
    write_finished(0, k=6)
    with pytest.raises(InputError, match=r"prose_seed_0 was made with other settings: k was 6 and is now 4; give"):
        next_job(CELL, IDENTITY, range(1))


@pytest.mark.parametrize("make", [lambda: begin((7, 15), (0,)), lambda: write_finished(0)])
def test_another_data_set_is_refused_with_what_may_have_changed(make):
    """Of the hash of a corpus nobody sees that a smaller data set beside it made it shorter."""
    make()
    wanted = (
        r"source_fingerprint was 'one' and is now 'two'; the data set is not the one .*--text_tokens.*; give --over"
    )
    with pytest.raises(InputError, match=wanted):
        next_job(CELL, IDENTITY | {"source_fingerprint": "two"}, range(1))


def test_a_folder_that_is_not_ours_is_refused():
    CELL.seed_dir(0).mkdir(parents=True)
    with pytest.raises(InputError, match=r"exists and has no run.json; if you do not need it, move it away"):
        next_job(CELL, IDENTITY, range(1))


def test_a_plan_without_layers_is_damaged():
    write_plan(CELL.settings_path, IDENTITY | {"layers": ["seven"]}, [0], [Pass((7,), (0,))])
    with pytest.raises(DamagedFileError, match="its layers, seeds or passes are not lists of numbers"):
        next_job(CELL, IDENTITY, range(1))


def test_a_layer_that_is_added_is_that_of_one_run(tiny):
    """Layers and seeds in any order; nothing that is there changes by a byte or a time, and results have them all.

    Nothing but the card, which is of the folder.
    """
    generate("--num_tokens", "2000")
    compare("--checkpoint_dir", "at_once", "--results_dir", "results_at_once")
    compare("--layers", "1", "--num_seeds", "1")
    before, dates = all_bytes(Path("checkpoints")), times("checkpoints/tiny_from_tiny_seed_0")
    for each in (before, dates):
        (card,) = (name for name in each if Path(name).name == "README.md")
        del each[card]
    compare()
    grown = all_bytes(Path("checkpoints"))
    assert {name: grown[name] for name in before} == before
    assert {name: times("checkpoints")[name] for name in dates if Path(name).is_file()} == {
        name: date for name, date in dates.items() if Path(name).is_file()
    }
    weights = {name: content for name, content in all_bytes(Path("at_once")).items() if name.endswith(".safetensors")}
    assert {name: content for name, content in grown.items() if name.endswith(".safetensors")} == weights
    folder = Path("checkpoints/tiny_from_tiny_seed_0")
    assert json.loads((folder / "run.json").read_text())["settings"]["layers"] == [1]
    added = json.loads((folder / "run_layers.0.json").read_text())
    assert added["settings"]["layers"] == [0] and [sae["layer"] for sae in added["saes"]] == [0]
    assert (folder / "metrics_layers.0.jsonl").exists() and (folder / "wandb_layers.0.json").exists()
    found = {where: read_findings(Path(where)) for where in ("results", "results_at_once")}
    seeds = [[sorted(each.curves) for each in findings.comparisons] for findings in found.values()]
    assert seeds[0] == seeds[1] == [[0, 1], [0, 1]]
    numbers = [
        [sae["evaluations"] for each in findings.comparisons for sae in each.saes] for findings in found.values()
    ]
    assert numbers[0] == numbers[1]
    dates = times("checkpoints", "results")
    compare()
    assert times("checkpoints", "results") == dates


@pytest.mark.parametrize("moments", [(2, 8, 3), (10, 5, 2), (12, 1, 2)])
def test_a_killed_addition_goes_on_and_ends_the_same(tiny, moments):
    """SIGKILL while a layer is trained and moved to the others: these stay whole, and the end is the same."""
    generate("--num_tokens", "2000")
    add = [*TRAIN, "--train_only", "--save_every", "15", "--layers", "0", "1"]
    for folder in ("unbroken", "killed"):
        train_sae.main([*TRAIN, "--train_only", "--layers", "1", "--checkpoint_dir", folder])
    train_sae.main([*add, "--checkpoint_dir", "unbroken"])
    for moment in moments:
        assert run_killed(train_sae.main, [*add, "--checkpoint_dir", "killed"], moment), "killed too late"
        saes, damaged = find_all_trained(Path("killed"))
        assert {sae.key[2:] for sae in saes} >= {(1, 0), (1, 1)} and not damaged
    train_sae.main([*add, "--checkpoint_dir", "killed"])
    found, expected = (weights_and_losses(Path(folder)) for folder in ("killed", "unbroken"))
    assert found == expected and len(found) == 2 * (2 + 2)


def weights_and_losses(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in all_bytes(folder).items() if name.endswith((".safetensors", ".jsonl"))}


def test_an_interrupted_cell_is_finished_before_what_is_added_to_it(tiny):
    """Asked for with more layers and seeds than it was begun with."""
    generate("--num_tokens", "2000")
    begun = [*TRAIN, "--train_only", "--save_every", "5", "--layers", "1", "--num_seeds", "1"]
    assert run_killed(train_sae.main, begun, 6) and Path("checkpoints/tiny_from_tiny.unfinished").exists()
    train("--save_every", "5", "--layers", "0", "1", "--num_seeds", "2")
    train("--checkpoint_dir", "at_once", "--results_dir", "at_once_results")
    found, expected = (
        {name: content for name, content in all_bytes(Path(folder)).items() if name.endswith(".safetensors")}
        for folder in ("checkpoints", "at_once")
    )
    assert found == expected and len(found) == 4


def test_a_damaged_record_of_added_layers_is_named(tiny, capsys):
    generate("--num_tokens", "2000")
    train("--layers", "1")
    train("--layers", "0", "1")
    path = Path("checkpoints/tiny_from_tiny_seed_1/run_layers.0.json")
    os.truncate(path, 50)
    capsys.readouterr()
    assert str(path) in refused(capsys, train_sae.main, [*TRAIN, "--layers", "0", "1"])
