"""The card of finished SAEs, as the Hugging Face hub reads it, and the code on it."""

import json
import re
from pathlib import Path

import pytest
import torch
from conftest import edit_record
from huggingface_hub import ModelCard
from test_cli import generate, train
from test_docs import commands_in, python_blocks, script_and_flags

import train_sae
from sae_utils.comparison.saelens_export import export_saelens
from sae_utils.comparison.trained import find_trained
from sae_utils.errors import InputError
from sae_utils.files import write_record
from sae_utils.sparse_coders import SparseCoder
from sae_utils.training.model_card import write_card

FOLDER = Path("checkpoints/tiny_from_prose_seed_1")
SAE = {"target": "tiny", "source": "prose", "seed": 1, "d_model": 8, "n_latents": 16, "k": 2, "fvu": 0.25}
SAE |= {"fvu_without_first_position": None, "dead_share": 0.125, "l0": 1.5, "n_tokens_trained_on": 12_345}


def a_run(*layers: int, **changes: object) -> dict:
    """A record of SAEs of these layers, of a hub's model on a hub's corpus, as far as the card reads it."""
    settings = {"source": "prose:en", "dtype": "float32", "ctx_len": 32, "n_eval_tokens": 96, "exclude": ["first"]}
    settings |= {"optimizer": "signum", "lr": None, "batch_size": 2, "grad_acc_steps": 1}
    return {
        "settings": settings,
        "seed": 1,
        "target_reference": "somebody/tiny",
        "target_from_here": None,
        "target_fingerprint": "0123",
        "dataset": "somebody/prose:en",
        "dataset_from_here": None,
        "dataset_fingerprint": "4567",
        "dataset_column": "text",
        "dataset_form": {"n_samples": 1200, "n_tokens": None, "last_text": None},
        "dataset_control": None,
        "n_train_tokens": 640,
        "hookpoints": {f"layers.{layer}": f"h.{layer}" for layer in layers},
        "saes": [SAE | {"layer": layer} for layer in layers],
    } | changes


def card_of(run: dict) -> ModelCard:
    """The card of a folder with one record, read as the hub's library reads it."""
    write_record(FOLDER / "run.json", run)
    write_card(FOLDER)
    return ModelCard.load(FOLDER / "README.md")


def test_the_hub_reads_what_was_trained_on_what():
    assert card_of(a_run(7)).data.to_dict() == {
        "library_name": "sparsify",
        "base_model": "somebody/tiny",
        "datasets": ["somebody/prose"],
        "tags": ["sparse-autoencoder", "topk", "interpretability"],
    }


def test_what_is_on_no_hub_is_not_named_and_no_licence_is_made_up():
    """A path of some disk would lead nowhere, or to somebody else's model of that name."""
    local = {"target_reference": "/home/me/tiny", "target_from_here": "../../tiny", "dataset": "/home/me/prose.txt"}
    card = card_of(a_run(7, **local, dataset_from_here="../../prose.txt"))
    assert card.data.to_dict().keys() == {"library_name", "tags"}
    assert "/home/me" not in card.content
    assert "None is named here" in card.text
    generated = card_of(a_run(7, dataset_column=None))
    assert generated.data.datasets is None and generated.data.base_model == "somebody/tiny"


def test_what_it_was_trained_on_is_said_in_words():
    settings = a_run()["settings"]
    control = {"kind": "shuffled", "seed": 0, "of": "89ab"}
    own = {"settings": settings | {"source": "tiny_4_1.0_0.9"}, "dataset_column": None}
    assert "trained on\nthe first 1,200 texts of the corpus `prose:en`." in card_of(a_run(7)).text
    assert "the corpus `prose:en`." in card_of(a_run(7, dataset_form=None)).text
    assert "text that tiny wrote when it was given nothing (`tiny_4_1.0_0.9`)." in card_of(a_run(7, **own)).text
    shuffled = card_of(a_run(7, **own, dataset_control=control))
    assert "(`tiny_4_1.0_0.9`), with the tokens of each sequence in random order." in shuffled.text
    assert "shuffled-control" in shuffled.data.tags


def test_every_layer_has_its_numbers_also_those_added_later():
    """A page that lacks an SAE of its folder hides it."""
    write_record(FOLDER / "run_layers.3.json", a_run(3, hookpoints={"layers.3": "h.three"}))
    card = card_of(a_run(7, 15))
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", card.text, flags=re.MULTILINE)
    numbers = "| 16 | 2 | 0.2500 | undefined | 12.5% | 1.5 | 12,345"
    assert rows == [(layer, f"`h.{name}` {numbers}") for layer, name in (("3", "three"), ("7", "7"), ("15", "15"))]


def test_what_sets_saes_apart_from_others_is_in_their_name():
    """It is that of the folder, and code that names another loads nothing."""
    run = a_run(7)
    run["saes"][0]["variant"] = "k_64"
    assert "# tiny_from_prose_k_64_seed_1\n" in card_of(run).text


def test_a_folder_that_has_grown_has_the_card_of_one_that_was_trained_at_once(tiny):
    """The page of a folder is not older than its SAEs."""
    generate("--num_tokens", "1500")
    for flags in (["--layers", "1"], [], ["--checkpoint_dir", "at_once"]):
        train("--num_seeds", "1", *flags)
    assert Path("checkpoints/tiny_from_tiny_seed_0/run_layers.0.json").exists()
    grown, at_once = (Path(folder) / "tiny_from_tiny_seed_0/README.md" for folder in ("checkpoints", "at_once"))
    assert grown.read_text() == at_once.read_text()


def test_a_damaged_record_is_refused():
    card_of(a_run(7))
    path = FOLDER / "run.json"
    path.write_text(path.read_text().replace("0.25", "0.15"))
    with pytest.raises(InputError, match=r"run.json is damaged"):
        write_card(FOLDER)


def test_a_finished_folder_has_its_card_and_the_code_on_it_runs(tiny, monkeypatch):
    """The folder and the model are where the code looks for them: beside each other."""
    generate("--num_tokens", "1500")
    records = train("--num_seeds", "1")
    folder = Path("checkpoints/tiny_from_tiny_seed_0")
    text = (folder / "README.md").read_text()
    for record in records:
        assert f"| {record['layer']} | `layers.{record['layer']}` | 48 | 4 | {record['fvu']:.4f} |" in text
    run = json.loads((folder / "run.json").read_text())
    assert "README.md" not in run["checksums"]
    loading, in_saelens = python_blocks(text)
    (exported, _) = export_saelens(find_trained([folder]), Path("checkpoints"))
    assert f'"{exported}"' in in_saelens
    (command,) = commands_in(text)
    asked = train_sae.build_parser().parse_args(script_and_flags(command)[1])
    assert (asked.checkpoint_dir, asked.export, asked.eval_only) == ([Path("checkpoints")], "saelens", True)

    Path("checkpoints/tiny").symlink_to(tiny.resolve())
    monkeypatch.chdir("checkpoints")
    found: dict = {}
    exec(loading, found)
    assert list(found["saes"]) == ["layers.0", "layers.1"]
    sae = SparseCoder.load_from_disk(f"{folder.name}/layers.0")
    with torch.no_grad():
        expected = sae.encode(found["activations"][0])
    assert torch.equal(found["latents"].top_indices, expected.top_indices)
    assert found["activations"].shape[2] == 16


def test_the_same_records_give_the_same_bytes_whatever_stood_there(tiny):
    """So that it is made again at any time, and an unbroken run and a resumed one end with the same folder."""
    generate("--num_tokens", "1500")
    train("--num_seeds", "1")
    folder = Path("checkpoints/tiny_from_tiny_seed_0")
    before = (folder / "README.md").read_bytes()
    (folder / "README.md").write_text("edited")
    find_trained([folder])
    write_card(folder)
    assert (folder / "README.md").read_bytes() == before
    edit_record(folder / "run.json", git_commit="another", versions={})
    write_card(folder)
    assert (folder / "README.md").read_bytes() == before
