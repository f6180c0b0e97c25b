"""Exports for SAELens, read as its documentation says; benchmarks/saelens_check.py reads them with SAELens itself."""

import json
from pathlib import Path

import pytest
import torch
from conftest import make_model
from safetensors.torch import load_file
from test_trained import D_MODEL, N_LATENTS, write_saes
from transformers import AutoModelForCausalLM

from sae_utils.comparison import saelens_export
from sae_utils.comparison.saelens_export import export_saelens
from sae_utils.comparison.trained import TrainedSae, find_all_trained
from sae_utils.errors import LockedError
from sae_utils.locks import Lock
from sae_utils.models import find_layers, load_trunk

HOOKS = {"neox": "gpt_neox.layers.7", "llama": "model.layers.7", "gpt2": "transformer.h.7"}


@pytest.fixture(params=HOOKS)
def trained(request, tmp_path) -> TrainedSae:
    """An SAE with random weights and biases on layer 7 of a model of 9 layers."""
    model = make_model(tmp_path / "tiny", request.param, n_layers=9)
    hookpoint = f"{find_layers(load_trunk(str(model), torch.device('cpu'), torch.float32))[0]}.7"
    write_saes(Path("checkpoints"), hookpoints={7: hookpoint}, reference="./tiny")
    (sae,) = find_all_trained(Path("checkpoints"))[0]
    return sae


def export(trained: TrainedSae) -> tuple[dict, dict]:
    """Configuration and weights of the export."""
    (folder,) = export_saelens([trained], Path("checkpoints"))
    assert folder == Path("checkpoints/saelens/tiny_from_tiny_seed_0/layers.7")
    assert sorted(path.name for path in folder.iterdir()) == ["cfg.json", "sae_weights.safetensors"]
    return json.loads((folder / "cfg.json").read_text()), load_file(folder / "sae_weights.safetensors")


def test_weights_are_sparsifys_unchanged(trained):
    """Rows made unit norm would change which latents are among the top k."""
    _, weights = export(trained)
    sae = trained.load(torch.device("cpu"))
    assert torch.equal(weights["W_enc"], sae.encoder.weight.T)
    assert torch.equal(weights["b_enc"], sae.encoder.bias)
    assert torch.equal(weights["W_dec"], sae.W_dec)
    assert torch.equal(weights["b_dec"], sae.b_dec)
    assert {name: (tuple(each.shape), each.dtype) for name, each in weights.items()} == {
        "W_enc": ((D_MODEL, N_LATENTS), torch.float32),
        "b_enc": ((N_LATENTS,), torch.float32),
        "W_dec": ((N_LATENTS, D_MODEL), torch.float32),
        "b_dec": ((D_MODEL,), torch.float32),
    }


def test_hook_is_the_layers_name_in_the_whole_language_model(trained, request):
    """SAELens looks there; a name inside `base_model` would not be found."""
    hook_name = export(trained)[0]["metadata"]["hook_name"]
    assert hook_name == HOOKS[request.node.callspec.params["trained"]]
    model = AutoModelForCausalLM.from_pretrained("./tiny")
    assert model.get_submodule(hook_name) is find_layers(model)[1][7]


def test_configuration_by_hand(trained, request):
    config, _ = export(trained)
    assert config == {
        "architecture": "topk",
        "d_in": 8,
        "d_sae": 24,
        "k": 4,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "rescale_acts_by_decoder_norm": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": "6.54.12",  # SAELens drops the rest if there is none
            "model_name": "./tiny",
            "model_class_name": "AutoModelForCausalLM",
            "hook_name": HOOKS[request.node.callspec.params["trained"]],
            "hook_head_index": None,
            "dataset_path": "datasets/tiny_42_1.0_0.9",
            "context_size": 32,
            "prepend_bos": False,
        },
    }


def test_formula_on_the_exported_weights_gives_sparsifys_latents_and_reconstruction(trained):
    """SAELens' topk: subtract b_dec, encode, keep the k largest, ReLU, decode."""
    config, weights = export(trained)
    x = torch.randn(200, D_MODEL, generator=torch.Generator().manual_seed(0)) * 3
    pre_acts = (x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]  # (tokens, n_latents)
    threshold = pre_acts.sort(dim=1, descending=True).values[:, config["k"] - 1 : config["k"]]
    latents = torch.where(pre_acts >= threshold, pre_acts, 0.0).clamp(min=0)
    x_hat = latents @ weights["W_dec"] + weights["b_dec"]
    with torch.no_grad():
        expected = trained.load(torch.device("cpu"))(x)
    dense = torch.zeros(200, N_LATENTS).scatter(1, expected.latent_indices, expected.latent_acts)
    assert torch.equal(latents > 0, dense > 0)
    torch.testing.assert_close(latents, dense, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x_hat, expected.sae_out, rtol=1e-5, atol=1e-5)


def test_an_export_replaces_the_one_that_is_there_and_no_other():
    make_model(Path("tiny"))
    for seed in (0, 1):
        write_saes(Path("checkpoints"), seed=seed, hookpoints={0: "layers.0", 1: "layers.1"})
    saes, _ = find_all_trained(Path("checkpoints"))
    folders = export_saelens(saes, Path("checkpoints"))
    assert len(folders) == 4
    for folder in folders:
        (folder / "old.txt").write_text("of the last export")
    export_saelens(saes[:1], Path("checkpoints"))
    assert [(folder / "old.txt").exists() for folder in folders] == [False, True, True, True]
    names = {path.name for path in Path("checkpoints/saelens").rglob("layers.*")}
    assert names == {"layers.0", "layers.1"}
    assert [sae.key for sae in find_all_trained(Path("checkpoints"))[0]] == [sae.key for sae in saes]


def test_exports_come_one_after_the_other(trained, monkeypatch):
    """Two comparisons of the same SAEs would write into one scratch folder, and both fail."""
    monkeypatch.setattr(saelens_export, "LONG_PATIENCE_SEC", 0.1)
    with Lock(Path("checkpoints"), "saelens", refusal=""):
        with pytest.raises(LockedError, match="another run has been exporting to checkpoints/saelens"):
            export(trained)
        assert not Path("checkpoints/saelens").exists()
    export(trained)
