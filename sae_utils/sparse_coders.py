"""EleutherAI's sparsify, imported without what it prints on import, and with a coder that suits its tensors' device.

sparsify takes its Triton decoder for everything as soon as `import triton` works, as it does with PyTorch's ordinary
Linux wheel. Triton computes on GPUs only, so here each call decides by where its tensors are. The environment variable
SPARSIFY_DISABLE_TRITON=1 keeps Triton out on GPUs as well, as in sparsify itself.

And its encoder makes large arrays that are read once or never: for the gradient of the weights a row `(d_model,)` for
every active latent of every token, all of them before it adds them up. On a CPU, where each goes to memory and back,
they are made and added up a few at a time, in the same order, and others are not made: every bit is the same.
"""

import contextlib
import io
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sae_utils.dependencies import check_sparsify
from sae_utils.memory import SHARES_AT_ONCE

check_sparsify()
with contextlib.redirect_stdout(io.StringIO()):
    from sparsify import SparseCoder, SparseCoderConfig, TrainConfig, Trainer, sparse_coder
    from sparsify.fused_encoder import EncoderOutput, FusedEncoder
    from sparsify.fused_encoder import fused_encoder as encode_on_gpu
    from sparsify.muon import Muon
    from sparsify.sparse_coder import ForwardOutput
    from sparsify.utils import decoder_impl as decode_on_gpu
    from sparsify.utils import eager_decode

__all__ = ["ForwardOutput", "Muon", "SparseCoder", "SparseCoderConfig", "TrainConfig", "Trainer"]


class EncoderInParts(FusedEncoder):
    """sparsify's encoder for a CPU: the same numbers from one array of `(tokens, n_latents)`, where it makes three.

    One less in the forward pass, as negative activations become 0 in place, and one less in the backward pass: zeros in
    the place of a gradient that it does not look at. Its gradient of the weights is added up a few tokens at a time.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, k: int, activation: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Active latents' activations, which latents these are, and the activations of all."""
        ctx.set_materialize_grads(False)
        if activation != "topk":
            return FusedEncoder.forward(ctx, x, weight, bias, k, activation)
        pre_acts = functional.linear(x, weight, bias).relu_()
        values, indices = pre_acts.topk(k, dim=-1, sorted=False)
        ctx.save_for_backward(x, weight, bias, indices)
        return values, indices, pre_acts

    @staticmethod
    def backward(ctx: Any, grad_values: Tensor, grad_indices: None, grad_pre_acts: None) -> tuple[Tensor | None, ...]:
        """Gradients of the arguments; those of all but the weights are sparsify's."""
        x, weight, _, indices = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        others = SimpleNamespace(saved_tensors=ctx.saved_tensors, needs_input_grad=(needs_x, False, needs_bias))
        grad_x, _, grad_bias, *rest = FusedEncoder.backward(others, grad_values, grad_indices, grad_pre_acts)
        grad_weight = encoder_gradient(grad_values, indices, x, weight) if needs_weight else None
        return grad_x, grad_weight, grad_bias, *rest


def encoder_gradient(grad_values: Tensor, indices: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Gradient of the encoder's weights: row `i` is the sum of `grad_values * x` over tokens at which `i` is active.

    Args:
        grad_values: Gradients of the active latents' activations, `(tokens, k)`.
        indices: Which latents these are, int64 `(tokens, k)`.
        x: What was encoded, `(tokens, d_model)`.
        weight: The weights, `(n_latents, d_model)`.

    Returns:
        Like `weight`.

    Source: `FusedEncoder.backward` in EleutherAI/sparsify; the same additions in the same order.
    """
    grad_weight = torch.zeros_like(weight)
    n_tokens = max(1, SHARES_AT_ONCE // (indices.shape[1] * x.shape[1]))
    for values, latents, tokens in zip(
        grad_values.split(n_tokens), indices.split(n_tokens), x.split(n_tokens), strict=True
    ):
        rows = (values[:, :, None] * tokens[:, None]).flatten(0, 1)  # (tokens * k, d_model)
        grad_weight.index_add_(0, latents.flatten(), rows.type_as(weight))
    return grad_weight


def encode_where_it_is(x: Tensor, weight: Tensor, bias: Tensor, k: int, activation: str) -> EncoderOutput:
    """Active latents, on the device of the tensors: `fused_encoder` of sparsify."""
    if weight.is_cuda:
        return encode_on_gpu(x, weight, bias, k, activation)
    return EncoderOutput(*EncoderInParts.apply(x, weight, bias, k, activation))


def decode_where_it_is(top_indices: Tensor, top_acts: Tensor, W_dec: Tensor) -> Tensor:  # noqa: N803 sparsify's name
    """Reconstructions without the decoder's bias, on the device of the tensors.

    Args:
        top_indices: Active latents, int64 `(tokens, k)`.
        top_acts: Their activations, same shape.
        W_dec: Decoder, `(d_model, n_latents)`.

    Returns:
        `(tokens, d_model)`.
    """
    decode = decode_on_gpu if W_dec.is_cuda else eager_decode
    return decode(top_indices, top_acts, W_dec)


def are_finite(sae: SparseCoder) -> bool:
    """Whether no weight of an SAE is NaN or infinite."""
    return all(bool(torch.isfinite(parameter).all()) for parameter in sae.parameters())


sparse_coder.decoder_impl = decode_where_it_is
sparse_coder.fused_encoder = encode_where_it_is
