"""EleutherAI's sparsify, imported without what it prints on import, and with a decoder that suits its tensors' device.

sparsify takes its Triton decoder for everything as soon as `import triton` works, as it does with PyTorch's ordinary
Linux wheel. Triton computes on GPUs only, so here each call decides by where its tensors are. The environment variable
SPARSIFY_DISABLE_TRITON=1 keeps Triton out on GPUs as well, as in sparsify itself.
"""

import contextlib
import io

import torch
from torch import Tensor

from sae_utils.dependencies import check_sparsify

check_sparsify()
with contextlib.redirect_stdout(io.StringIO()):
    from sparsify import SparseCoder, SparseCoderConfig, TrainConfig, Trainer, sparse_coder
    from sparsify.muon import Muon
    from sparsify.sparse_coder import ForwardOutput
    from sparsify.utils import decoder_impl as decode_on_gpu
    from sparsify.utils import eager_decode

__all__ = ["ForwardOutput", "Muon", "SparseCoder", "SparseCoderConfig", "TrainConfig", "Trainer"]


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
