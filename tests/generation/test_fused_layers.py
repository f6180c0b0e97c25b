import pytest
import torch
from conftest import load
from torch import nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb

from sae_utils.generation.fused_layers import FUSED, FusedLlamaLayer, FusedNeoXLayer, fuse_layers_, rotated_by
from sae_utils.generation.kv_cache import make_cache
from sae_utils.generation.packed_attention import use_packed_attention_
from sae_utils.generation.packed_linear import can_pack
from sae_utils.generation.sampling import prepare_for_sampling_

needs_packing = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN, whose products fused layers use"
)
SMALL = {"vocab_size": 61, "num_hidden_layers": 3, "num_attention_heads": 6, "intermediate_size": 50}


class Quantized(nn.Linear):
    """Stands for a layer whose weight is not what it multiplies by."""


def neox(**config) -> PreTrainedModel:
    """Pythia's architecture with biases that are not zero; a quarter of a head turns, as Pythia's do."""
    return random_weights(GPTNeoXForCausalLM(GPTNeoXConfig(hidden_size=48, **SMALL, **config)))


def llama(**config) -> PreTrainedModel:
    """Llama's architecture, three query heads per key-value head."""
    return random_weights(LlamaForCausalLM(LlamaConfig(hidden_size=48, num_key_value_heads=2, **SMALL, **config)))


def random_weights(model: PreTrainedModel) -> PreTrainedModel:
    """All weights away from where they begin: norms' from 1, biases' from 0."""
    torch.manual_seed(0)
    for weight in model.parameters():
        weight.data = torch.randn_like(weight) * 0.3 + (weight.data.mean() == 1)
    use_packed_attention_(model)
    return model.eval()


MODELS = {
    "neox": neox,
    "neox, one after the other": lambda: neox(use_parallel_residual=False),
    "neox, no biases": lambda: neox(attention_bias=False),
    "neox, tanh": lambda: neox(hidden_act="gelu_new"),
    "llama": llama,
    "llama, biases": lambda: llama(attention_bias=True, mlp_bias=True),
    "llama, relu": lambda: llama(hidden_act="relu"),
}


def decode(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Logits of one token after the other, over a cache."""
    cache = make_cache(model.config)
    steps = [model(input_ids=step, past_key_values=cache, use_cache=True).logits for step in ids.split(1, dim=1)]
    return torch.cat(steps, dim=1)


@needs_packing
@pytest.mark.parametrize("name", MODELS)
def test_a_fused_model_computes_what_its_own_layers_do(name):
    """In float32, where nothing but rounding could hide behind rounding: whole texts and token by token."""
    model = MODELS[name]()
    ids = torch.arange(45).reshape(5, 9)
    layers = model.base_model.layers
    with torch.inference_mode():
        expected = model(ids).logits
        for i, layer in enumerate(layers):
            layers[i] = FUSED[type(layer)](layer)
        for found in (model(ids).logits, decode(model, ids)):
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_errs_no_more_than_the_model_itself(name):
    """What is rounded less often may not be further from the exact numbers."""
    exact = MODELS[name]().double()
    exact.set_attn_implementation("eager")
    own, fused = MODELS[name]().bfloat16(), MODELS[name]().bfloat16()
    if not can_pack(fused):
        pytest.skip("this processor or this PyTorch has no bfloat16 products of packed matrices")
    exact.load_state_dict(own.state_dict())  # rounded weights
    ids = torch.arange(45).reshape(5, 9)
    with torch.inference_mode():
        prepare_for_sampling_(fused)
        assert {type(layer) for layer in fused.base_model.layers} <= {FusedLlamaLayer, FusedNeoXLayer}
        errors = [(logits - exact(ids).logits).abs().mean() for logits in (decode(own, ids), decode(fused, ids))]
    assert errors[1] <= 1.1 * errors[0]


def test_rotation_is_that_of_transformers():
    """Heads, of which a part turns, by angles that differ from position to position."""
    torch.manual_seed(0)
    query, key = torch.randn(2, 4, 5, 3, 8, dtype=torch.float64)  # (batch, seq, heads, d_head)
    angles = torch.randn(1, 5, 3, dtype=torch.float64).repeat(1, 1, 2)
    expected = apply_rotary_pos_emb(query, key, angles.cos(), angles.sin(), unsqueeze_dim=2)
    for heads, turned in zip((query, key), expected, strict=True):
        found = rotated_by(heads[..., :6], angles.cos(), angles.sin())
        torch.testing.assert_close(torch.cat([found, heads[..., 6:]], dim=-1), turned, atol=1e-14, rtol=0)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.float(),
        lambda model: model.set_attn_implementation("eager"),
        lambda model: setattr(model.config, "hidden_act", "mish"),
        lambda model: [setattr(layer.mlp, "up_proj", Quantized(48, 50)) for layer in model.base_model.layers],
    ],
)
def test_layers_stay_where_they_cannot_be_fused(change):
    """Another number format, attention that was asked for, an activation that oneDNN does not know, other weights."""
    model = llama().bfloat16()
    change(model)
    fuse_layers_(model)
    assert not any(isinstance(layer, FusedLlamaLayer) for layer in model.base_model.layers)


def test_other_models_keep_their_layers(gpt2):
    model = load(gpt2).model.bfloat16()
    before = [type(module) for module in model.modules() if not isinstance(module, nn.Linear)]
    fuse_layers_(model)
    assert [type(module) for module in model.modules() if not isinstance(module, nn.Linear)] == before
