from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_utils.comparison.trained import TrainedSae, find_all_trained, find_trained
from sae_utils.errors import MissingInputError
from sae_utils.exclusion import NOTHING
from sae_utils.files import write_json
from sae_utils.sources.joining import PACKING_RULE
from sae_utils.sparse_coders import SparseCoder, SparseCoderConfig

D_MODEL, N_LATENTS = 8, 24
NOTHING_LEFT_OUT = {"exclude": [], "excluded_ids": []}


def write_saes(
    checkpoints: Path,
    *,
    source: str = "tiny",
    seed: int = 0,
    hookpoints: dict[int, str],
    reference: str = "./tiny",
    **settings: Any,
) -> Path:
    """A seed's folder as training leaves it, with random weights and biases; the folder."""
    folder = checkpoints / f"tiny_from_{source}_seed_{seed}"
    records = []
    for layer in hookpoints:
        torch.manual_seed(100 * seed + layer)
        sae = SparseCoder(D_MODEL, SparseCoderConfig(num_latents=N_LATENTS, k=4))
        for parameter in sae.parameters():
            parameter.data = torch.randn_like(parameter)
        sae.save_to_disk(folder / f"layers.{layer}")
        record = {"target": "tiny", "source": source, "layer": layer, "seed": seed, "d_model": D_MODEL}
        records.append(record | {"n_latents": N_LATENTS, "k": 4, "path": "where/it/was/trained"})
    run = {
        "settings": {
            "dtype": "float32",
            "ctx_len": 32,
            "n_eval_tokens": 96,
            "packing_rule": PACKING_RULE,
            **NOTHING_LEFT_OUT,
        }
        | settings,
        "target_reference": reference,
        "dataset": "datasets/tiny_42_1.0_0.9",
        "dataset_fingerprint": "0123",
        "hookpoints": {f"layers.{layer}": name for layer, name in hookpoints.items()},
        "saes": records,
    }
    write_json(folder / "run.json", run)
    return folder


def write_grid(checkpoints: Path) -> None:
    """Two sources, two seeds, two layers."""
    for source in ("tiny", "other"):
        for seed in (1, 0):
            write_saes(checkpoints, source=source, seed=seed, hookpoints={15: "layers.15", 7: "layers.7"})


def keys_of(saes: list[TrainedSae]) -> list[tuple]:
    return [sae.key for sae in saes]


def test_all_finished_saes_are_found_by_target_source_layer_and_seed(tmp_path):
    """Layer 15 comes after layer 7: numbers are not compared as text."""
    write_grid(tmp_path)
    expected = [("tiny", source, layer, seed) for source in ("other", "tiny") for layer in (7, 15) for seed in (0, 1)]
    saes = find_all_trained(tmp_path)[0]
    assert keys_of(saes) == expected
    assert {sae.hookpoint for sae in saes if sae.layer == 7} == {"layers.7"}
    assert {sae.eval_shape for sae in saes} == {("./tiny", "float32", 32, 96, NOTHING)}


def test_only_the_folders_asked_for_are_read_in_any_order(tmp_path):
    write_grid(tmp_path)
    saes = find_trained([tmp_path / "tiny_from_tiny_seed_1", tmp_path / "tiny_from_tiny_seed_0"])
    assert keys_of(saes) == [("tiny", "tiny", layer, seed) for layer in (7, 15) for seed in (0, 1)]


def test_unfinished_folders_and_exports_are_not_taken_for_saes(tmp_path):
    write_grid(tmp_path)
    before = keys_of(find_all_trained(tmp_path)[0])
    write_saes(tmp_path / "tiny_from_new.unfinished" / "finished", source="new", hookpoints={7: "layers.7"})
    write_saes(tmp_path / "saelens", source="new", hookpoints={7: "layers.7"})
    (tmp_path / "tiny_from_new_seed_0").mkdir()
    assert keys_of(find_all_trained(tmp_path)[0]) == before


def test_a_folder_without_finished_saes_is_refused(tmp_path):
    with pytest.raises(
        MissingInputError, match="nowhere holds no finished SAEs; train some first, without --eval_only"
    ):
        find_all_trained(tmp_path / "nowhere")


def test_path_is_where_the_sae_is_now(tmp_path):
    """Folders are moved and copied to other machines."""
    write_saes(tmp_path / "then", hookpoints={7: "layers.7"})
    (tmp_path / "then").rename(tmp_path / "now")
    (sae,) = find_all_trained(tmp_path / "now")[0]
    assert sae.path == str(sae.folder) == str(tmp_path / "now/tiny_from_tiny_seed_0/layers.7")


def test_the_fingerprint_is_that_of_the_weights_alone(tmp_path):
    folder = write_saes(tmp_path / "a", hookpoints={7: "layers.7", 15: "layers.15"})
    write_saes(tmp_path / "b", hookpoints={7: "layers.7", 15: "layers.15"}, n_eval_tokens=320)
    first, second = (find_all_trained(tmp_path / name)[0] for name in "ab")
    assert [sae.weights_fingerprint for sae in first] == [sae.weights_fingerprint for sae in second]
    assert first[0].weights_fingerprint != first[1].weights_fingerprint
    weights = load_file(folder / "layers.7/sae.safetensors")
    weights["b_dec"][0] = torch.nextafter(weights["b_dec"][0], torch.tensor(9.0))
    save_file(weights, folder / "layers.7/sae.safetensors")
    (changed, same) = find_trained([folder])
    assert changed.weights_fingerprint != first[0].weights_fingerprint, "the last bit of one number"
    assert same.weights_fingerprint == first[1].weights_fingerprint


def test_loaded_weights_are_those_on_disk_and_not_trained(tmp_path):
    folder = write_saes(tmp_path, hookpoints={7: "layers.7"})
    sae = find_trained([folder])[0].load(torch.device("cpu"))
    assert {name: tensor.tolist() for name, tensor in sae.state_dict().items()} == {
        name: tensor.tolist() for name, tensor in load_file(folder / "layers.7/sae.safetensors").items()
    }
    assert not any(parameter.requires_grad for parameter in sae.parameters())
