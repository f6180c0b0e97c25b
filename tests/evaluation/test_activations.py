import numpy as np
import pytest
import torch
from conftest import load

from sae_utils.evaluation.activations import encode, id_batches, layer_outputs, recorded_outputs
from sae_utils.models import find_layers, load_trunk
from sae_utils.sources.packing import Chunks
from sae_utils.sparse_coders import SparseCoder, SparseCoderConfig

IDS = torch.randint(3, 290, (3, 10), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["neox", "llama", "gpt2"])
@pytest.mark.parametrize("has_head", [True, False])
def test_outputs_are_those_of_a_whole_pass(kind, has_head, request):
    folder = request.getfixturevalue(kind)
    model = load(folder).model if has_head else load_trunk(str(folder), torch.device("cpu"), torch.float32)
    name, layers = find_layers(model)
    seen = []
    handles = [
        layer.register_forward_hook(
            lambda m, i, output: seen.append(output[0] if isinstance(output, tuple) else output)
        )
        for layer in layers
    ]
    with torch.no_grad():
        model(IDS)
    for handle in handles:
        handle.remove()
    outputs = layer_outputs(model, [f"{name}.1", f"{name}.0"], IDS)
    assert torch.equal(outputs[f"{name}.0"], seen[0])
    assert torch.equal(outputs[f"{name}.1"], seen[1])


def test_nothing_is_computed_behind_the_last_layer_that_is_read(neox):
    """The head and the layers behind cost more than what is measured."""
    model = load(neox).model
    ran = []
    find_layers(model)[1][1].register_forward_hook(lambda *_: ran.append("layer 1"))
    model.get_output_embeddings().register_forward_hook(lambda *_: ran.append("head"))
    layer_outputs(model, ["layers.0"], IDS)
    assert ran == []


def test_hooks_are_gone_even_after_a_failure(neox):
    model = load(neox).model
    with pytest.raises(IndexError):
        layer_outputs(model, ["layers.0", "layers.1"], torch.tensor([[10**6]]))
    with pytest.raises(KeyError), recorded_outputs(model, ["layers.0"]):
        raise KeyError
    assert not any(layer._forward_hooks for layer in find_layers(model)[1])


def test_models_that_add_in_place_do_not_change_what_was_read(neox):
    model = load(neox).model
    expected = layer_outputs(model, ["layers.0"], IDS)["layers.0"]
    find_layers(model)[1][1].register_forward_pre_hook(lambda module, args: (args[0].add_(1.0),))
    with torch.no_grad(), recorded_outputs(model, ["layers.0"]) as outputs:
        model(IDS)
    assert torch.equal(outputs["layers.0"], expected)


def test_batches_hold_every_sequence_once_in_order():
    tokens = np.arange(21, dtype=np.int32).reshape(7, 3)
    before = torch.get_rng_state()
    batches = list(id_batches(Chunks(tokens), 3))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert torch.cat(batches).tolist() == tokens.tolist()
    assert torch.equal(torch.get_rng_state(), before)


def test_encoding_is_what_the_sae_says_itself():
    """And a model in bfloat16 is read by SAEs in float32."""
    torch.manual_seed(0)
    sae = SparseCoder(8, SparseCoderConfig(num_latents=20, k=3))
    x = torch.randn(2, 5, 8).bfloat16()
    encoding = encode(sae, x)
    expected = sae(x.flatten(0, 1).float())
    assert torch.equal(encoding.x_hat, expected.sae_out)
    assert torch.equal(encoding.top_acts, expected.latent_acts)
    assert torch.equal(encoding.top_indices, expected.latent_indices)
