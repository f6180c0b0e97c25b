"""What a language model loses when the output of one of its layers is replaced: cross-entropy and KL, streamed.

A replaced layer hides everything before it, so only the layers after it have to be computed again: the layers up to it
hand on the replacement and compute nothing. Whether that is exact for a model is tried on its first batch.
"""

import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sae_utils.errors import InputError
from sae_utils.evaluation.activations import (
    HookedSaes,
    activation_in,
    encode,
    hooked_layers,
    id_batches,
    recorded_outputs,
    with_activation,
)
from sae_utils.models import find_layers
from sae_utils.sources.packing import Chunks

logger = logging.getLogger(__name__)

LOGITS_AT_ONCE = 2**25
"""Logits that are turned into log-probabilities together: 128 MiB in float32."""


@dataclass
class Losses:
    """Sums over predicted tokens, in nats."""

    cross_entropy: float = 0.0
    """Of the tokens that follow."""

    kl: float = 0.0
    """Of the untouched model's next-token distributions from those of the model with a replaced output."""

    n_predictions: int = 0
    """Tokens predicted: every token of a sequence but the first."""

    def add(self, clean: Tensor, spliced: Tensor, ids: Tensor) -> None:
        """Take in the logits of a batch, both `(batch, seq, vocab)`, and its ids, `(batch, seq)`."""
        n_rows = max(1, LOGITS_AT_ONCE // clean.shape[-1])
        for sequence in range(len(ids)):
            targets = ids[sequence, 1:].split(n_rows)
            pieces = clean[sequence, :-1].split(n_rows), spliced[sequence, :-1].split(n_rows)
            for clean_piece, spliced_piece, target in zip(*pieces, targets, strict=True):
                log_q = log_probabilities(spliced_piece)  # (tokens, vocab)
                self.cross_entropy -= float(log_q.gather(-1, target[:, None]).double().sum())
                self.kl += float(kl_divergence(log_probabilities(clean_piece), log_q).sum())
                self.n_predictions += len(target)

    @property
    def mean_cross_entropy(self) -> float:
        """Nats per predicted token."""
        return self.cross_entropy / self.n_predictions

    @property
    def mean_kl(self) -> float:
        """Nats per predicted token."""
        return self.kl / self.n_predictions


def log_probabilities(logits: Tensor) -> Tensor:
    """Log-softmax over the last axis, in float32 or the logits' own format if that is finer."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) over the last axis, in nats, float64 `(tokens,)`; tokens with p = 0 add nothing, whatever q is."""
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(dim=-1, dtype=torch.float64)


def recovered_share(*, clean: float, spliced: float, zero: float) -> float | None:
    """Share of the cross-entropy lost to zeros that a reconstruction gives back: 1 is all, 0 is no better than zeros.

    Returns:
        `(zero - spliced) / (zero - clean)`; None if zeros cost nothing, so that there is nothing to give back.
    """
    return (zero - spliced) / (zero - clean) if zero != clean else None


@torch.no_grad()
def measure_splices(
    model: PreTrainedModel,
    saes: HookedSaes,
    chunks: Chunks,
    mean_activations: Mapping[str, Tensor],
    *,
    batch_size: int,
    on_tokens: Callable[[int], None] = lambda n_tokens: None,
) -> dict[Hashable, dict[str, float | None]]:
    """Cross-entropy and KL with a layer's output replaced at every position, the first of each sequence included.

    Args:
        model: A whole language model with its head, in evaluation mode.
        saes: The SAEs and the decoder layers that they read.
        chunks: Held-out sequences; every token but the first of a sequence is predicted.
        mean_activations: By layer, `(d_model,)`: `LayerStatistics.all.mean` over these same sequences.
        batch_size: Sequences per forward pass. Two sets of logits, `(batch, seq, vocab)`, are held at a time.
        on_tokens: Called with the number of tokens done, for progress.

    Returns:
        By the SAEs' keys, in nats per predicted token: `ce_clean_nats`, of the untouched model; `ce_sae_nats`,
        `ce_zero_nats` and `ce_mean_nats`, of the model with the output replaced by the reconstruction, by zeros and by
        the mean activation; `kl_nats`, KL(untouched || reconstruction); `ce_diff_nats`, `ce_sae_nats - ce_clean_nats`.
        And `ce_recovered`, see `recovered_share`.

    Raises:
        InputError: If an SAE reads something other than a decoder layer.
    """
    layers_to = {name: find_layers(model)[1][: layer_index(model, name) + 1] for name in hooked_layers(saes)}
    clean_losses, spliced_losses = Losses(), defaultdict(Losses)
    is_resumed: dict[str, bool] = {}
    for ids in id_batches(chunks, batch_size):
        ids = ids.to(model.device)
        with recorded_outputs(model, layers_to) as outputs:
            clean = model(ids, use_cache=False).logits  # (batch, seq, vocab)
        clean_losses.add(clean, clean, ids)
        for hookpoint, output in outputs.items():
            layers, activations = layers_to[hookpoint], activation_in(output)
            if hookpoint not in is_resumed:
                is_resumed[hookpoint] = can_resume(model, layers, ids, output, clean)
            for key, replacement in replacements(hookpoint, activations, saes, mean_activations[hookpoint]):
                new_output = with_activation(output, replacement)
                with replaced_output(layers, new_output, is_resumed=is_resumed[hookpoint]):
                    spliced = model(ids, use_cache=False).logits
                spliced_losses[key].add(clean, spliced, ids)
                del spliced  # before the next set of logits is made
        on_tokens(ids.numel())
    ce_clean = clean_losses.mean_cross_entropy
    return {key: _record(ce_clean, spliced_losses, key, hookpoint) for key, (hookpoint, _) in saes.items()}


def replacements(
    hookpoint: str, activations: Tensor, saes: HookedSaes, mean: Tensor
) -> Iterator[tuple[tuple[str, Hashable], Tensor]]:
    """What takes the place of activations `(batch, seq, d_model)`: zeros, the mean, and every SAE's reconstruction.

    Yields:
        `("zero" or "mean", hookpoint)` or `("sae", key)`, and a tensor like the activations.
    """
    yield ("zero", hookpoint), torch.zeros_like(activations)
    yield ("mean", hookpoint), mean.to(activations).expand_as(activations).clone()
    for key, (read, sae) in saes.items():
        if read == hookpoint:
            yield ("sae", key), encode(sae, activations).x_hat.to(activations.dtype).view_as(activations)


def layer_index(model: PreTrainedModel, hookpoint: str) -> int:
    """Which decoder layer a name inside `model.base_model` is, from 0.

    Raises:
        InputError: If it is none.
    """
    name, layers = find_layers(model)
    for index in range(len(layers)):
        if hookpoint == f"{name}.{index}":
            return index
    raise InputError(f"hooked module must be a decoder layer, {name}.0 .. {name}.{len(layers) - 1}, got {hookpoint!r}")


def can_resume(model: PreTrainedModel, layers: Sequence[nn.Module], ids: Tensor, output: Any, clean: Tensor) -> bool:
    """Whether a model can be computed from the output of a layer alone; where it cannot, this is said.

    Args:
        model: The language model.
        layers: Its decoder layers up to the one in question.
        ids: Sequences to try it on, `(batch, seq)`.
        output: What the last of `layers` returned for them.
        clean: Their logits.

    Returns:
        True if the untouched output, handed on by all of `layers`, gives the same logits to the last bit; False if it
        does not, as in models whose later layers look at more than the output before them.
    """
    untouched = with_activation(output, activation_in(output).clone())
    with replaced_output(layers, untouched, is_resumed=True):
        is_exact = torch.equal(model(ids, use_cache=False).logits, clean)
    if not is_exact:
        logger.warning(
            "%s: resuming after layer %d is not exact, so the whole model is run for every SAE",
            type(model).__name__,
            len(layers) - 1,
        )
    return is_exact


@contextlib.contextmanager
def replaced_output(layers: Sequence[nn.Module], output: Any, *, is_resumed: bool) -> Iterator[None]:
    """While open, the last of these layers returns `output`; afterwards all are what they were.

    Args:
        layers: Decoder layers of a model from the first on.
        output: What the last of them is to return.
        is_resumed: None of the layers computes anything: all return `output`.
    """
    idle = list(layers) if is_resumed else []
    before = [vars(layer).get("forward") for layer in idle]  # other libraries may have set one
    handle = layers[-1].register_forward_hook(lambda module, inputs, computed: output)
    try:
        for layer in idle:
            layer.forward = lambda *args, **kwargs: output
        yield
    finally:
        handle.remove()
        for layer, forward in zip(idle, before, strict=True):
            if forward is None:
                vars(layer).pop("forward", None)
            else:
                layer.forward = forward


def _record(
    ce_clean: float, losses: Mapping[tuple[str, Hashable], Losses], key: Hashable, hookpoint: str
) -> dict[str, float | None]:
    """Results of one SAE by name."""
    ce_sae = losses["sae", key].mean_cross_entropy
    ce_zero = losses["zero", hookpoint].mean_cross_entropy
    return {
        "ce_clean_nats": ce_clean,
        "ce_sae_nats": ce_sae,
        "ce_zero_nats": ce_zero,
        "ce_mean_nats": losses["mean", hookpoint].mean_cross_entropy,
        "ce_recovered": recovered_share(clean=ce_clean, spliced=ce_sae, zero=ce_zero),
        "ce_diff_nats": ce_sae - ce_clean,
        "kl_nats": losses["sae", key].mean_kl,
    }
