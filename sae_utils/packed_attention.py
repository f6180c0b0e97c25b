"""Attention of one new token over the cached ones, with the query heads of a group packed into one block.

Where several query heads share a key-value head (grouped-query attention), PyTorch's CPU kernels either repeat keys
and values for every query head or take their slowest path. The heads of a group are independent queries over the same
keys, so they can stand as rows of one query block: `(batch, n_heads, 1, d_head)` becomes
`(batch, n_kv_heads, group, d_head)`, and nothing is repeated. The result is the same up to rounding;
`benchmarks/generation.py` measures what it saves.
"""

import torch
from torch import Tensor, nn
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
    """Attention in the form that transformers calls; all but one unmasked token over fewer key heads is left to it.

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
    if attention_mask is not None or n_new > 1 or n_heads == n_kv_heads or kwargs.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    packed = query.reshape(batch, n_kv_heads, n_heads // n_kv_heads, d_head)
    output = torch.nn.functional.scaled_dot_product_attention(packed, key, value, scale=scaling)
    return output.reshape(batch, 1, n_heads, -1), None


def use_packed_attention_(model: PreTrainedModel) -> None:
    """Switch a model, in place, from PyTorch's attention to the packed one; other kinds of attention stay."""
    AttentionInterface.register(NAME, packed_attention_forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)
