"""What a language model loses when the output of one of its layers is replaced: cross-entropy and KL, streamed.

A replaced layer hides everything before it, so only the layers after it have to be computed again: the layers up to it
hand on the replacement and compute nothing. Whether that is exact for a model is tried on its first batch.
"""

import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
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
from sae_utils.evaluation.intervals import interval_of, resampled_sums
from sae_utils.evaluation.positions import sums_by_bin
from sae_utils.exclusion import NOTHING, Exclusion
from sae_utils.models import find_layers
from sae_utils.sources.packing import Chunks

logger = logging.getLogger(__name__)

NAMES = ("ce_clean_nats", "ce_sae_nats", "ce_zero_nats", "ce_mean_nats", "ce_recovered", "ce_diff_nats", "kl_nats")
"""What is measured of an SAE."""

LOGITS_AT_ONCE = 2**25
"""Logits that are turned into log-probabilities together on a GPU, whose calls have to be few: 128 MiB in float32."""

LOGITS_IN_CACHE = 2**19
"""The same on a CPU: 2 MiB in float32, so that what is made of them need not be written to memory and read back."""


@dataclass
class Losses:
    """Sums over predictions that count (`counted_predictions`), in nats."""

    by_sequence: list[tuple[float, float, int]] = field(default_factory=list)
    """Of each sequence: cross-entropy of the tokens that follow; KL of the untouched model's next-token distributions
    from those of the model with a replaced output, 0 where it is not asked for; number of predictions."""

    by_bin: Tensor | float = 0.0
    """The same three of each bin of positions at which predictions are made, float64 `(3, n_bins)`."""

    def add(self, spliced: Tensor, ids: Tensor, is_counted: Tensor, log_p: Tensor | None = None) -> None:
        """Take in a batch.

        Args:
            spliced: Logits, `(batch, seq, vocab)`.
            ids: `(batch, seq)`.
            is_counted: Which predictions count, bool `(batch, seq - 1)`.
            log_p: Log-probabilities of the untouched model, `(batch, seq - 1, vocab)`; None if no KL is asked for.
        """
        n_rows = max(1, logits_at_once(spliced.device) // spliced.shape[-1])
        for sequence in range(len(ids)):
            targets, pieces = ids[sequence, 1:].split(n_rows), spliced[sequence, :-1].split(n_rows)
            untouched = [None] * len(pieces) if log_p is None else log_p[sequence].split(n_rows)
            found = []
            for piece, target, log_p_piece in zip(pieces, targets, untouched, strict=True):
                log_q = log_probabilities(piece)  # (tokens, vocab)
                cross_entropy = -log_q.gather(-1, target[:, None]).squeeze(-1).double()
                has_kl = log_p_piece is not None
                kl = kl_divergence(log_p_piece, log_q) if has_kl else torch.zeros_like(cross_entropy)
                found.append(torch.stack([cross_entropy, kl]))
            counts = is_counted[sequence]
            found = torch.cat(found, dim=1).masked_fill(~counts, 0.0)  # (2, seq - 1)
            found = functional.pad(torch.cat([found, counts[None].double()]), (0, 1))  # nothing follows the last token
            cross_entropy, kl, n = found.sum(dim=1).tolist()
            self.by_sequence.append((cross_entropy, kl, int(n)))
            self.by_bin = self.by_bin + torch.stack([sums_by_bin(each[None]) for each in found]).cpu()

    @property
    def n_predictions(self) -> int:
        """Predictions that count."""
        return sum(n for _, _, n in self.by_sequence)

    @property
    def mean_cross_entropy(self) -> float | None:
        """Nats per prediction that counts; None if none does."""
        return sum(each for each, _, _ in self.by_sequence) / self.n_predictions if self.n_predictions else None

    @property
    def mean_kl(self) -> float | None:
        """Nats per prediction that counts; None if none does."""
        return sum(each for _, each, _ in self.by_sequence) / self.n_predictions if self.n_predictions else None


def logits_at_once(device: torch.device) -> int:
    """How many logits are turned into log-probabilities together."""
    return LOGITS_IN_CACHE if device.type == "cpu" else LOGITS_AT_ONCE


def counted_predictions(ids: Tensor, kept: Tensor, special_ids: Collection[int]) -> Tensor:
    """Which next-token predictions count: those made at positions that are kept, of tokens that are not special.

    Where a document begins and ends is the packing's doing as much as the text's.

    Args:
        ids: `(batch, seq)`.
        kept: bool `(batch, seq)`.
        special_ids: BOS, EOS and the like.

    Returns:
        bool `(batch, seq - 1)`: of the prediction of each token but the first.
    """
    special = torch.tensor(sorted(special_ids), dtype=ids.dtype, device=ids.device)
    return kept[:, :-1] & torch.isin(ids[:, 1:], special, invert=True)


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
    exclusion: Exclusion = NOTHING,
    special_ids: Collection[int] = (),
    on_tokens: Callable[[int], None] = lambda n_tokens: None,
) -> dict[Hashable, dict[str, Any]]:
    """Cross-entropy and KL with a layer's output replaced at every position that is kept; the others stay as they are.

    Args:
        model: A whole language model with its head, in evaluation mode.
        saes: The SAEs and the decoder layers that they read.
        chunks: Held-out sequences.
        mean_activations: By layer, `(d_model,)`: `LayerStatistics.all.mean` over these same sequences.
        batch_size: Sequences per forward pass. Two sets of logits, `(batch, seq, vocab)`, and one of log-probabilities
            in float32 are held at a time.
        exclusion: Positions whose activations are not replaced, and at which no prediction counts.
        special_ids: Tokens whose prediction does not count.
        on_tokens: Called with the number of tokens done, for progress.

    Returns:
        By the SAEs' keys, in nats per prediction that counts (`counted_predictions`): `ce_clean_nats`, of the untouched
        model; `ce_sae_nats`, `ce_zero_nats` and `ce_mean_nats`, of the model with the output replaced by the
        reconstruction, by zeros and by the mean activation; `kl_nats`, KL(untouched || reconstruction); `ce_diff_nats`,
        `ce_sae_nats - ce_clean_nats`. And `ce_recovered`, see `recovered_share`. All None if no prediction counts. With
        `_interval` behind them: theirs, over sequences. `ce_by_position`: by bin of positions, see there.

    Raises:
        InputError: If an SAE reads something other than a decoder layer or a module right inside one.
    """
    layers_to = {name: layers_up_to(model, name) for name in hooked_layers(saes)}
    losses: dict[tuple[str, Hashable], Losses] = defaultdict(Losses)
    is_resumed: dict[str, bool] = {}
    clean_of: dict[str, str] = {}
    for ids in id_batches(chunks, batch_size):
        ids = ids.to(model.device)
        with recorded_outputs(model, layers_to) as outputs:
            clean = model(ids, use_cache=False).logits  # (batch, seq, vocab)
        log_p = log_probabilities(clean[:, :-1])  # once for all SAEs
        for hookpoint, output in outputs.items():
            layers, activations = layers_to[hookpoint], activation_in(output)
            kept = exclusion.keeps(ids, activations)
            is_counted = counted_predictions(ids, kept, special_ids)
            if hookpoint not in clean_of:  # what counts is the same for all layers, but for a limit for norms
                clean_of[hookpoint] = hookpoint if exclusion.max_norm else next(iter(outputs))
            if clean_of[hookpoint] == hookpoint:
                losses["clean", hookpoint].add(clean, ids, is_counted)
            if hookpoint not in is_resumed:
                is_layer = len(layers) > 1 or layers[0] in find_layers(model)[1]
                is_resumed[hookpoint] = is_layer and can_resume(model, layers, ids, output, clean)
            for key, replacement in replacements(hookpoint, activations, saes, mean_activations[hookpoint], kept):
                new_output = with_activation(output, replacement)
                with replaced_output(layers, new_output, is_resumed=is_resumed[hookpoint]):
                    spliced = model(ids, use_cache=False).logits
                losses[key].add(spliced, ids, is_counted, log_p if key[0] == "sae" else None)
                del spliced  # before the next set of logits is made
        on_tokens(ids.numel())
    return {
        key: SpliceLosses(
            losses["clean", clean_of[hookpoint]],
            losses["sae", key],
            losses["zero", hookpoint],
            losses["mean", hookpoint],
        ).record()
        for key, (hookpoint, _) in saes.items()
    }


def replacements(
    hookpoint: str, activations: Tensor, saes: HookedSaes, mean: Tensor, kept: Tensor
) -> Iterator[tuple[tuple[str, Hashable], Tensor]]:
    """What takes the place of activations `(batch, seq, d_model)`: zeros, the mean, and every SAE's reconstruction.

    Activations that are not kept, bool `(batch, seq)`, stay as they are.

    Yields:
        `("zero" or "mean", hookpoint)` or `("sae", key)`, and a tensor like the activations.
    """
    yield ("zero", hookpoint), activations.masked_fill(kept[..., None], 0.0)
    yield ("mean", hookpoint), torch.where(kept[..., None], mean.to(activations), activations)
    for key, (read, sae) in saes.items():
        if read == hookpoint:
            yield ("sae", key), encode(sae, activations, kept).x_hat.to(activations.dtype).view_as(activations)


def layers_up_to(model: PreTrainedModel, hookpoint: str) -> Sequence[nn.Module]:
    """The decoder layers up to one, by its name inside `model.base_model`; of a module inside a layer, that alone.

    What comes after a layer can be computed from its output. What comes after a module inside needs the residual stream
    beside it, so the whole model is run.

    Raises:
        InputError: If it is neither.
    """
    name, layers = find_layers(model)
    for index, layer in enumerate(layers):
        if hookpoint == f"{name}.{index}":
            return layers[: index + 1]
        for part, module in layer.named_children():
            if hookpoint == f"{name}.{index}.{part}":
                return [module]
    raise InputError(
        f"hooked module must be a decoder layer, {name}.0 .. {name}.{len(layers) - 1}, or a module right inside one, "
        f"got {hookpoint!r}"
    )


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


@dataclass(frozen=True)
class SpliceLosses:
    """What is counted for one SAE."""

    clean: Losses
    """Of the untouched model."""

    sae: Losses
    """With the reconstruction in place."""

    zero: Losses
    """With zeros in place."""

    mean: Losses
    """With the mean in place."""

    def record(self) -> dict[str, Any]:
        """Results by name, as `measure_splices` has them."""
        if not self.sae.n_predictions:
            numbers = dict.fromkeys(NAMES)
        else:
            means = [each.mean_cross_entropy for each in (self.clean, self.sae, self.zero, self.mean)]
            numbers = self._numbers(*means, self.sae.mean_kl)
        ends = {f"{name}_interval": ends for name, ends in self._intervals().items()}
        return numbers | ends | {"ce_by_position": self._by_position()}

    @staticmethod
    def _numbers(clean: Any, sae: Any, zero: Any, mean: Any, kl: Any) -> dict[str, Any]:
        """The numbers of `NAMES` from means in nats: of all sequences, or of each resample."""
        if isinstance(zero, float):
            recovered = recovered_share(clean=clean, spliced=sae, zero=zero)
        else:
            recovered = (zero - sae) / (zero - clean)
        return dict(zip(NAMES, (clean, sae, zero, mean, recovered, sae - clean, kl), strict=True))

    def _intervals(self) -> dict[str, list[float] | None]:
        """Of `NAMES`, on resamples of the sequences; None for a single one."""
        sae = np.array(self.sae.by_sequence)
        if len(sae) < 2:
            return dict.fromkeys(NAMES)
        entropies = [np.array(each.by_sequence)[:, 0] for each in (self.clean, self.sae, self.zero, self.mean)]
        sums = resampled_sums(np.column_stack([*entropies, sae[:, 1], sae[:, 2]]))
        with np.errstate(invalid="ignore", divide="ignore"):
            resampled = self._numbers(*(sums[:, :5] / sums[:, 5:]).T)
        return {name: interval_of(values) for name, values in resampled.items()}

    def _by_position(self) -> list[dict[str, float | int | None]]:
        """Cross-entropies of the predictions that are made in each bin of positions."""
        (clean, _, n), (sae, _, _) = (torch.as_tensor(each.by_bin).tolist() for each in (self.clean, self.sae))
        return [
            {
                "n_predictions": int(n_here),
                "ce_clean_nats": ce_clean / n_here if n_here else None,
                "ce_sae_nats": ce_sae / n_here if n_here else None,
            }
            for n_here, ce_clean, ce_sae in zip(n, clean, sae, strict=True)
        ]
