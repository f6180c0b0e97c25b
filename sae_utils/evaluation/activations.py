"""Outputs of a model's layers for packed sequences, and what SAEs make of them."""

import contextlib
from collections.abc import Collection, Hashable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sae_utils.sources.packing import Chunks
from sae_utils.sparse_coders import SparseCoder

HookedSaes = Mapping[Hashable, tuple[str, SparseCoder]]
"""By any key: the name of a layer inside `model.base_model`, such as `layers.7`, and an SAE that reads its output."""


class Encoding(NamedTuple):
    """What an SAE makes of some tokens."""

    top_acts: Tensor
    """`(tokens, k)`, the SAE's dtype, >= 0."""

    top_indices: Tensor
    """int64 `(tokens, k)`: latents that `top_acts` belong to, each once per token; those at 0 do not fire."""

    x_hat: Tensor
    """Reconstruction, `(tokens, d_model)`, the SAE's dtype."""


class _PassEndedError(Exception):
    """Everything that was asked for is known."""


def id_batches(chunks: Chunks, batch_size: int) -> Iterator[Tensor]:
    """Sequences in their order, int64 `(batch, seq)`; the last batch may be smaller. No global random state is used."""
    assert len(chunks) > 0, "no sequences"
    for start in range(0, len(chunks), batch_size):
        rows = range(start, min(start + batch_size, len(chunks)))
        yield torch.stack([chunks[row]["input_ids"] for row in rows])


def hooked_layers(saes: HookedSaes) -> list[str]:
    """Names of the layers that SAEs read, each once."""
    return list(dict.fromkeys(hookpoint for hookpoint, _ in saes.values()))


@torch.no_grad()
def layer_outputs(model: PreTrainedModel, hookpoints: Collection[str], input_ids: Tensor) -> dict[str, Tensor]:
    """Outputs of layers, by name; the pass ends with the last of them, whether or not more layers and a head follow.

    Args:
        model: A language model, with or without its head.
        hookpoints: Names inside `model.base_model`.
        input_ids: `(batch, seq)`.

    Returns:
        By name, `(batch, seq, d_model)` in the model's dtype and on its device.
    """
    with contextlib.suppress(_PassEndedError), recorded_outputs(model, hookpoints, ends_pass=True) as outputs:
        model.base_model(input_ids.to(model.device), use_cache=False)
    return {name: activation_in(outputs[name]) for name in hookpoints}


@contextlib.contextmanager
def recorded_outputs(
    model: PreTrainedModel, hookpoints: Collection[str], *, ends_pass: bool = False
) -> Iterator[dict[str, Any]]:
    """While open, forward passes leave copies of the outputs of these layers, as the layers return them, in a dict.

    Args:
        model: A language model.
        hookpoints: Names inside `model.base_model`.
        ends_pass: Leave the forward pass by an exception as soon as all outputs are known.
    """
    outputs: dict[str, Any] = {}

    def record(name: str):
        def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
            # A copy, because some models add to their residual stream in place.
            outputs[name] = with_activation(output, activation_in(output).clone())
            if ends_pass and len(outputs) == len(hookpoints):
                raise _PassEndedError

        return hook

    handles = [model.base_model.get_submodule(name).register_forward_hook(record(name)) for name in hookpoints]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def activation_in(output: Any) -> Tensor:
    """The activation `(batch, seq, d_model)` in what a layer returns: a tensor, or a tuple that starts with it."""
    return output[0] if isinstance(output, tuple) else output


def with_activation(output: Any, activation: Tensor) -> Any:
    """What a layer returned, with another activation in it."""
    return (activation, *output[1:]) if isinstance(output, tuple) else activation


@torch.no_grad()
def encode(sae: SparseCoder, activations: Tensor, kept: Tensor | None = None) -> Encoding:
    """Encode and reconstruct activations, cast to the SAE's number format first.

    Args:
        sae: The SAE.
        activations: `(batch, seq, d_model)`.
        kept: Positions that the SAE is there for, bool `(batch, seq)`; None for all. At the others no latent fires, and
            what comes out is what went in.
    """
    x = activations.flatten(0, 1).to(sae.dtype)  # (tokens, d_model)
    top_acts, top_indices, _ = sae.encode(x)  # (tokens, k)
    x_hat = sae.decode(top_acts, top_indices)
    if kept is None:
        return Encoding(top_acts, top_indices, x_hat)
    is_left_out = ~kept.flatten()[:, None]  # (tokens, 1)
    return Encoding(top_acts.masked_fill(is_left_out, 0.0), top_indices, torch.where(is_left_out, x, x_hat))


def each_sequence(encoding: Encoding, n_sequences: int) -> Iterator[Encoding]:
    """The parts of an encoded batch, sequence by sequence."""
    yield from map(Encoding, *(each.chunk(n_sequences) for each in encoding))
