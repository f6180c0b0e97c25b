import pytest
import torch
from conftest import load
from torch.nn.functional import scaled_dot_product_attention

from sae_utils.generation.packed_attention import (
    NAME,
    attend_by_products,
    attention_kernels,
    use_packed_attention_,
    whole_buffer,
)


def cached(n_kv_heads: int, capacity: int, n_cached: int, dtype: torch.dtype) -> torch.Tensor:
    """Keys or values as a block cache holds them: the first positions of a buffer with zeros behind."""
    buffer = torch.zeros(5, n_kv_heads, capacity, 8, dtype=dtype)
    buffer[:, :, :n_cached] = torch.randn(5, n_kv_heads, n_cached, 8)
    return buffer[:, :, :n_cached]


def exact(query, key, value):
    """Attention in float64, every query head by itself."""
    group = query.shape[2]
    key, value = (x.double().repeat_interleave(group, dim=1) for x in (key, value))
    flat = query.double().reshape(len(query), -1, 1, query.shape[-1])
    return scaled_dot_product_attention(flat, key, value).reshape(query.shape)


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("n_cached", [1, 5, 32])
def test_same_as_attention_head_by_head(group, n_cached):
    """Packed heads, whole buffers and zeros behind the cached tokens must not show in the result."""
    torch.manual_seed(0)
    query = torch.randn(5, 2, group, 8)
    key, value = cached(2, 32, n_cached, torch.float32), cached(2, 32, n_cached, torch.float32)
    output = attend_by_products(query, key, value, 8**-0.5)
    torch.testing.assert_close(output.double(), exact(query, key, value), atol=1e-6, rtol=1e-5)


def test_bfloat16_errs_no_more_than_the_format_does():
    """Within a few units in the last place of the true result, which PyTorch's own kernel is, too."""
    torch.manual_seed(0)
    query = torch.randn(5, 2, 3, 8, dtype=torch.bfloat16)
    key, value = cached(2, 64, 50, torch.bfloat16), cached(2, 64, 50, torch.bfloat16)
    output = attend_by_products(query, key, value, 8**-0.5)
    assert (output.double() - exact(query, key, value)).abs().max() < 0.02


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_softmax_is_computed_in_float32_and_rounded_once(dtype):
    """As transformers' own attention does it, with an array in float32; PyTorch's kernel needs none."""
    torch.manual_seed(0)
    logits = (torch.randn(6, 3, 100) * 5).to(dtype)
    logits[..., 60:] = -torch.inf
    assert torch.equal(torch.softmax(logits, dim=-1), torch.softmax(logits.float(), dim=-1).to(dtype))


def test_only_views_of_a_buffer_are_widened():
    filled = cached(2, 32, 5, torch.float32)
    assert whole_buffer(filled).shape == (5, 2, 32, 8)
    assert whole_buffer(filled).data_ptr() == filled.data_ptr()
    for other in (filled.contiguous(), filled.transpose(1, 2).contiguous().transpose(1, 2), filled[:, 1:]):
        assert whole_buffer(other).shape[:2] == other.shape[:2]
        assert torch.equal(whole_buffer(other)[:, :, :5], other)


def test_models_with_other_attention_keep_it(neox):
    """Someone who asks for eager attention gets it."""
    model = load(neox).model
    assert model.config._attn_implementation == NAME
    model.set_attn_implementation("eager")
    use_packed_attention_(model)
    assert model.config._attn_implementation == "eager"


def test_decoding_on_a_gpu_leaves_cudnn_out():
    """It plans anew for every length, and decoding has another at every step."""
    assert torch.backends.cuda.cudnn_sdp_enabled()
    with attention_kernels(torch.device("cuda")):
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.math_sdp_enabled()
    with attention_kernels(torch.device("cpu")):
        assert torch.backends.cuda.cudnn_sdp_enabled()
