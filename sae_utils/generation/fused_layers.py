"""Decoder layers with fewer operations between the matrix products, for bfloat16 on a CPU.

A step of sampling multiplies a handful of rows, so that every operation between two products costs more for being
called than for what it computes. Here queries, keys and values are one product, both rotations are one, and the
activation, the gate and both sums are done within the products (`packed_linear`). What is rounded less often is closer
to the exact numbers than transformers' own layers are; otherwise the results are the same.

For the layers of Llama (with SmolLM2 and all that has its shape) and GPT-NeoX (Pythia); others stay transformers' own.
"""

from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from sae_utils.generation.packed_attention import NAME, packed_attention_forward
from sae_utils.generation.packed_linear import ACTIVATIONS, PackedLinear, can_pack


class FusedLlamaLayer(nn.Module):
    """A `LlamaDecoderLayer` for inference; it is called as that one is."""

    def __init__(self, layer: LlamaDecoderLayer) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.attention = Attention(attention.layer_idx, attention.scaling, attention.num_key_value_groups)
        self.d_head = attention.head_dim
        self.n_kv_heads = attention.k_proj.out_features // self.d_head
        self.input_norm, self.mlp_norm = layer.input_layernorm, layer.post_attention_layernorm
        self.query_key_value = PackedLinear(attention.q_proj, attention.k_proj, attention.v_proj)
        self.output = PackedLinear(attention.o_proj)
        self.gate = PackedLinear(mlp.gate_proj, activation=attention.config.hidden_act)
        self.up, self.down = PackedLinear(mlp.up_proj), PackedLinear(mlp.down_proj)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs,
    ) -> Tensor:
        """`(batch, seq, d_model)` to the same."""
        heads = self.query_key_value(self.input_norm(hidden_states))
        heads = heads.unflatten(-1, (-1, self.d_head))  # (batch, seq, n_heads + 2 * n_kv_heads, d_head)
        value = heads[:, :, -self.n_kv_heads :]
        rotated = rotated_by(heads[:, :, : -self.n_kv_heads], *position_embeddings)
        query, key = rotated[:, :, : -self.n_kv_heads], rotated[:, :, -self.n_kv_heads :]
        attended = self.attention(query, key, value, attention_mask, past_key_values)
        hidden_states = self.output(attended, summand=hidden_states)
        normed = self.mlp_norm(hidden_states)
        return self.down(self.up(normed, factor=self.gate(normed)), summand=hidden_states)


class FusedNeoXLayer(nn.Module):
    """A `GPTNeoXLayer` for inference; it is called as that one is."""

    def __init__(self, layer: GPTNeoXLayer) -> None:
        super().__init__()
        attention, mlp = layer.attention, layer.mlp
        self.attention = Attention(attention.layer_idx, attention.scaling, n_groups=1)
        self.d_head, self.n_rotated = attention.head_size, attention.rotary_ndims
        self.is_parallel = layer.use_parallel_residual
        self.input_norm, self.mlp_norm = layer.input_layernorm, layer.post_attention_layernorm
        self.query_key_value, self.output = PackedLinear(attention.query_key_value), PackedLinear(attention.dense)
        self.up = PackedLinear(mlp.dense_h_to_4h, activation=attention.config.hidden_act)
        self.down = PackedLinear(mlp.dense_4h_to_h)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        layer_past: Cache | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs,
    ) -> Tensor:
        """`(batch, seq, d_model)` to the same."""
        heads = self.query_key_value(self.input_norm(hidden_states))
        heads = heads.unflatten(-1, (-1, 3, self.d_head))  # (batch, seq, n_heads, 3, d_head)
        turning = heads[..., :2, : self.n_rotated]  # of queries and keys
        turning.copy_(rotated_by(turning, *(each[:, :, None] for each in position_embeddings)))
        attended = self.attention(*heads.unbind(-2), attention_mask, layer_past)
        after = self.output(attended, summand=hidden_states)
        return self.down(self.up(self.mlp_norm(hidden_states if self.is_parallel else after)), summand=after)


FUSED = {LlamaDecoderLayer: FusedLlamaLayer, GPTNeoXLayer: FusedNeoXLayer}
"""transformers' layers, and what stands for them."""


class Attention(nn.Module):
    """What is left of attention without its weights: the cache, and the new tokens over it."""

    is_causal = True  # as transformers' own attention wants to know

    def __init__(self, layer: int, scaling: float, n_groups: int) -> None:
        """Attention of one layer.

        Args:
            layer: Its place in the model, and in the cache.
            scaling: Factor of the logits.
            n_groups: Query heads per key-value head.
        """
        super().__init__()
        self.layer, self.scaling, self.num_key_value_groups = layer, scaling, n_groups

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        """All `(batch, seq, heads of their kind, d_head)`; to `(batch, seq, n_heads * d_head)`."""
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        if cache is not None:
            key, value = cache.update(key, value, self.layer)
        return packed_attention_forward(self, query, key, value, mask, scaling=self.scaling)[0].flatten(2)


def fuse_layers_(model: PreTrainedModel) -> None:
    """Put fused layers in the place of a model's own, where there are such and the processor can pack weights.

    The model then computes what it did up to rounding, and only without gradients; as with packed weights, it can no
    longer be saved.
    """
    if not can_pack(model) or model.config._attn_implementation != NAME:
        return
    for name, module in list(model.named_modules()):
        if can_fuse(module):
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, FUSED[type(module)](module))


def can_fuse(module: nn.Module) -> bool:
    """Whether it is a layer that has a fused form, with weights as they come and an activation that oneDNN knows."""
    if type(module) not in FUSED:
        return False
    attention = module.self_attn if isinstance(module, LlamaDecoderLayer) else module.attention
    linears = [each for each in module.modules() if isinstance(each, nn.Linear)]  # quantized ones are of a class of it
    return attention.config.hidden_act in ACTIVATIONS and all(type(linear) is nn.Linear for linear in linears)


def rotated_by(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of heads `(batch, seq, heads, ..., d_rotated)`: the first half of a head turns with the second.

    Args:
        heads: Of queries and keys.
        cos: Cosines, `(batch or 1, seq, ..., d_rotated)`, the same in both halves.
        sin: Sines, likewise.

    Returns:
        A new tensor of the shape of `heads`.

    Source: Su et al. 2021, arXiv:2104.09864; `apply_rotary_pos_emb` in transformers, where products are rounded before
    they are summed.
    """
    cos, sin, n = cos[:, :, None], sin[:, :, None], heads.shape[-1] // 2
    rotated = heads * cos
    rotated[..., :n].addcmul_(heads[..., n:], sin[..., :n], value=-1)
    rotated[..., n:].addcmul_(heads[..., :n], sin[..., n:])
    return rotated
