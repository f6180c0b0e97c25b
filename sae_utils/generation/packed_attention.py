"""Attention of one new token over the cached ones, without masks, copies or repeated heads.

Where several query heads share a key-value head (grouped-query attention), PyTorch's CPU kernels either repeat keys
and values for every query head or take their slowest path. The heads of a group are independent queries over the same
keys, so they can stand as rows of one query block: `(batch, n_heads, 1, d_head)` becomes
`(batch, n_kv_heads, group, d_head)`, and nothing is repeated. The result is the same up to rounding.
"""

import contextlib
import math

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_packed"
"""Under which transformers knows this attention."""


def packed_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """Attention in the form that transformers calls; everything but one unmasked token is left to transformers' own.

    Args:
        module: The attention module.
        query: `(batch, n_heads, seq, d_head)`.
        key: `(batch, n_kv_heads, n_cached, d_head)`.
        value: `(batch, n_kv_heads, n_cached, d_head)`.
        attention_mask: None when every cached token may be looked at.
        scaling: Factor of the logits.
        kwargs: Handed on.

    Returns:
        `(batch, seq, n_heads, d_head)`, and None for the weights.
    """
    batch, n_heads, n_new, d_head = query.shape
    n_kv_heads = key.shape[1]
    is_plain = attention_mask is None and n_new == 1 and kwargs.get("position_bias") is None
    if not is_plain or kwargs.get("softcap") is not None or kwargs.get("dropout"):
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    packed = query.reshape(batch, n_kv_heads, n_heads // n_kv_heads, d_head)
    if query.device.type == "cpu":
        output = attend_by_products(packed, key, value, d_head**-0.5 if scaling is None else scaling)
    else:
        output = torch.nn.functional.scaled_dot_product_attention(packed, key, value, scale=scaling)
    return output.reshape(batch, 1, n_heads, -1), None


def attend_by_products(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Attention as two batched matrix products, softmax in float32.

    PyTorch's fused CPU kernel brings keys into another layout first, which for a handful of queries per key head costs
    more than the attention itself. A product would copy keys and values that fill only a part of their buffers, so it
    takes the buffers whole; what lies behind the cached tokens gets no weight.

    Args:
        query: `(batch, n_kv_heads, group, d_head)`.
        key: `(batch, n_kv_heads, n_cached, d_head)`.
        value: `(batch, n_kv_heads, n_cached, d_head)`.
        scaling: Factor of the logits.

    Returns:
        `(batch, n_kv_heads, group, d_head)`.
    """
    batch, n_kv_heads, n_cached, _ = key.shape
    query, keys, values = query.flatten(0, 1), whole_buffer(key).flatten(0, 1), whole_buffer(value).flatten(0, 1)
    logits = torch.bmm(query * scaling, keys.transpose(1, 2))  # (batch * n_kv_heads, group, capacity)
    logits[..., n_cached:] = -torch.inf
    weights = torch.softmax(logits, dim=-1)  # computed in float32 by PyTorch's kernel, whatever the format
    return torch.bmm(weights, values).unflatten(0, (batch, n_kv_heads))


def whole_buffer(filled: Tensor) -> Tensor:
    """The buffer `(batch, n_heads, capacity, d_head)` whose first positions `filled` is a view of; itself if it is
    none.

    A block cache (`kv_cache.BlockLayer`) hands out such views; its buffers hold zeros where nothing was cached yet, or
    what was cached once, so that they may enter a product with weight 0.
    """
    batch, n_heads, _, d_head = filled.shape
    capacity = filled.stride(1) // d_head
    whole = (batch, n_heads, capacity, d_head)
    is_start = filled.stride() == (n_heads * capacity * d_head, capacity * d_head, d_head, 1)
    has_room = filled.untyped_storage().nbytes() >= filled.element_size() * (filled.storage_offset() + math.prod(whole))
    return filled.as_strided(whole, filled.stride()) if is_start and has_room else filled


def attention_kernels(device: torch.device) -> contextlib.AbstractContextManager:
    """While open, attention on a GPU is computed by kernels that take any length as it comes.

    cuDNN's makes a plan for every new shape, and while decoding there is one at every step.
    """
    if device.type != "cuda":
        return contextlib.nullcontext()
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


def use_packed_attention_(model: PreTrainedModel) -> None:
    """Switch a model, in place, from PyTorch's attention to the packed one; other kinds of attention stay."""
    AttentionInterface.register(NAME, packed_attention_forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)
