"""How well SAEs reconstruct held-out activations: streamed, in float64, one pass of the model for all SAEs."""

import functools
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from sae_utils.errors import InputError
from sae_utils.evaluation.activations import Encoding, HookedSaes, encode, hooked_layers, id_batches, layer_outputs
from sae_utils.evaluation.intervals import interval_of, resampled_sums
from sae_utils.evaluation.positions import by_bin, position_bins, sums_by_bin
from sae_utils.exclusion import NOTHING, Exclusion
from sae_utils.sources.packing import Chunks

QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)
"""Of the firing rates of an SAE's latents."""

TRAINING_NAMES = ("fvu", "fvu_without_first_position", "dead_share", "l0", "n_tokens")
"""What is recorded when training ends."""


@dataclass
class SquaredDeviation:
    """Sum of squared deviations from the mean of vectors that arrive in batches.

    Batches are merged by the means and sums of each, so nothing large is ever subtracted from something large.

    Source: Chan, Golub & LeVeque 1983, "Algorithms for computing the sample variance", equation 2.1; the same, per
    dimension.
    """

    n_rows: int = 0
    mean: Tensor | float = 0.0
    sum_per_dim: Tensor | float = 0.0

    def add(self, x: Tensor) -> None:
        """Take in `(tokens, d_model)`, float64."""
        n_new = len(x)
        if n_new == 0:
            return
        mean_new = x.mean(dim=0)  # (d_model,)
        shift = mean_new - self.mean
        n_total = self.n_rows + n_new
        self.sum_per_dim = (
            self.sum_per_dim + (x - mean_new).pow(2).sum(dim=0) + shift.pow(2) * (self.n_rows * n_new / n_total)
        )
        self.mean = self.mean + shift * (n_new / n_total)
        self.n_rows = n_total

    @property
    def total(self) -> float:
        """Sum over all rows and dimensions."""
        return float(torch.as_tensor(self.sum_per_dim).sum())


@dataclass
class SequenceDeviations:
    """The same sums sequence by sequence, for resamples of them: `d_model` numbers are kept of each sequence."""

    n_rows: list[Tensor] = field(default_factory=list)
    """Tokens of the sequences of each batch, int64 `(batch,)`."""

    means: list[Tensor] = field(default_factory=list)
    """Their means, float64 `(batch, d_model)`; 0 of a sequence without tokens."""

    sums: list[Tensor] = field(default_factory=list)
    """Squared deviations from these, float64 `(batch,)`."""

    def add(self, x: Tensor, kept: Tensor) -> None:
        """Take in `(batch, seq, d_model)`, float64, and which of it counts, bool `(batch, seq)`."""
        n_rows, is_out = kept.sum(dim=1), ~kept[..., None]
        mean = x.masked_fill(is_out, 0.0).sum(dim=1) / n_rows.clamp(min=1)[:, None]
        deviation = (x - mean[:, None]).masked_fill(is_out, 0.0)
        for parts, part in (
            (self.n_rows, n_rows),
            (self.means, mean),
            (self.sums, deviation.pow(2).sum(dim=(1, 2))),
        ):
            parts.append(part.cpu())

    def resampled_totals(self) -> np.ndarray:
        """Squared deviation from the resample's own mean, of each resample of the sequences, `(n_resamples,)`."""
        n, means, sums = (torch.cat(parts).numpy() for parts in (self.n_rows, self.means, self.sums))
        about = means - (n @ means) / max(1, n.sum())  # a common shift changes nothing but the rounding
        within = sums + n * np.square(about).sum(axis=1)
        totals = resampled_sums(np.column_stack([n, within, n[:, None] * about]))
        n_drawn, total, shift = totals[:, 0], totals[:, 1], totals[:, 2:]
        with np.errstate(invalid="ignore"):
            return total - np.square(shift).sum(axis=1) / n_drawn


@dataclass
class LayerStatistics:
    """What the activations of one layer are like; shared by all SAEs that read it."""

    all: SquaredDeviation = field(default_factory=SquaredDeviation)
    """Over all tokens that are kept; its `mean` is the layer's mean activation, float64 `(d_model,)`."""

    later: SquaredDeviation = field(default_factory=SquaredDeviation)
    """Of these, without the first of each sequence, whose massive activations would outweigh the others."""

    n_positions: int = 0
    """Tokens per sequence."""

    by_bin: list[SquaredDeviation] = field(default_factory=list)
    """Over the tokens of each bin of positions."""

    sequences: SequenceDeviations = field(default_factory=SequenceDeviations)
    """Of `all`, by sequence."""

    sequences_later: SequenceDeviations = field(default_factory=SequenceDeviations)
    """Of `later`, by sequence."""

    def add(self, x: Tensor, kept: Tensor) -> None:
        """Take in activations, float64 `(batch, seq, d_model)`, and which of them are kept, bool `(batch, seq)`."""
        self.all.add(x[kept])
        self.later.add(x[:, 1:][kept[:, 1:]])
        self.sequences.add(x, kept)
        self.sequences_later.add(x[:, 1:], kept[:, 1:])
        self.n_positions = x.shape[1]
        self.by_bin = self.by_bin or [SquaredDeviation() for _ in position_bins(x.shape[1])]
        for deviation, part, is_in in zip(self.by_bin, by_bin(x), by_bin(kept), strict=True):
            deviation.add(part[is_in])

    @functools.cached_property
    def resampled_totals(self) -> tuple[np.ndarray, np.ndarray]:
        """Squared deviations on each resample of the sequences, of `all` and of `later`; computed once for all SAEs."""
        return self.sequences.resampled_totals(), self.sequences_later.resampled_totals()

    def total_about_the_mean(self, part: SquaredDeviation) -> float:
        """Squared deviation of some of the tokens from the mean of all."""
        if not part.n_rows:
            return 0.0
        shift = part.mean - self.all.mean
        return part.total + part.n_rows * float(shift.pow(2).sum())


@dataclass
class Reconstruction:
    """What is counted for one SAE."""

    layer: LayerStatistics
    """Of the layer that it reads."""

    firing_counts: Tensor
    """int64 `(n_latents,)`: tokens on which a latent is > 0, of those that are kept, as in all that follows."""

    max_activation: Tensor
    """`(n_latents,)`: highest activation of each latent, 0 if it never fired."""

    squared_error: float = 0.0
    """Over all tokens and dimensions."""

    squared_error_later: float = 0.0
    """The same without the first token of each sequence."""

    cosine_sum: float = 0.0
    """Cosines of activation and reconstruction, added over tokens."""

    errors: list[Tensor] = field(default_factory=list)
    """`squared_error` and `squared_error_later` by sequence, float64 `(batch, 2)` of each batch."""

    errors_by_bin: Tensor | float = 0.0
    """Squared error of each bin of positions, float64 `(n_bins,)`."""

    def add(self, x: Tensor, kept: Tensor, encoding: Encoding) -> None:
        """Take in activations, float64 `(batch, seq, d_model)`, which are kept, and what the SAE makes of them.

        What is not kept adds nothing.
        """
        x_hat = encoding.x_hat.double().view_as(x)
        error = (x - x_hat).pow(2).sum(dim=-1).masked_fill(~kept, 0.0)  # (batch, seq)
        self.squared_error += float(error.sum())
        self.squared_error_later += float(error[:, 1:].sum())
        self.errors.append(torch.stack([error.sum(dim=1), error[:, 1:].sum(dim=1)], dim=1).cpu())
        self.errors_by_bin = self.errors_by_bin + sums_by_bin(error)
        self.cosine_sum += float(cosine(x, x_hat)[kept].sum())
        is_firing = encoding.top_acts > 0
        self.firing_counts += torch.bincount(encoding.top_indices[is_firing], minlength=len(self.firing_counts))
        self.max_activation.scatter_reduce_(
            0, encoding.top_indices.flatten(), encoding.top_acts.flatten(), reduce="amax"
        )

    @property
    def n_tokens(self) -> int:
        """Tokens seen that are kept."""
        return self.layer.all.n_rows

    @property
    def firing_rate(self) -> np.ndarray:
        """Share of tokens on which each latent is > 0, float64 `(n_latents,)`."""
        return self.firing_counts.cpu().numpy() / self.n_tokens

    def record(self) -> dict[str, Any]:
        """`numbers`, and of those of variance their intervals over sequences, and their values by position."""
        intervals = dict(
            zip(("fvu_interval", "fvu_without_first_position_interval"), self.fvu_intervals(), strict=True)
        )
        return self.numbers() | intervals | {"fvu_by_position": self.fvu_by_position()}

    def numbers(self) -> dict[str, Any]:
        """Results by name.

        `fvu`, `fvu_without_first_position`: fraction of variance unexplained, see there; None if undefined.
        `mse`: mean squared error per token and dimension. `cosine`: mean over tokens, see `cosine`.
        `l0`: mean number of latents > 0 on a token. `dead_share`: share of latents that never were.
        `firing_rate_quantiles`: over latents, by quantile as text. `n_tokens`: tokens measured on.
        """
        rate = self.firing_rate
        return {
            "n_tokens": self.n_tokens,
            "fvu": fraction_of_variance_unexplained(self.squared_error, self.layer.all),
            "fvu_without_first_position": fraction_of_variance_unexplained(self.squared_error_later, self.layer.later),
            "mse": self.squared_error / (self.n_tokens * len(self.layer.all.mean)),
            "cosine": self.cosine_sum / self.n_tokens,
            "l0": float(rate.sum()),
            "dead_share": float((rate == 0).mean()),
            "firing_rate_quantiles": {str(q): float(np.quantile(rate, q)) for q in QUANTILES},
        }

    def fvu_intervals(self) -> list[list[float] | None]:
        """Of `fvu` and `fvu_without_first_position`, on resamples of the sequences."""
        errors = torch.cat(self.errors).numpy()
        if len(errors) < 2:
            return [None, None]
        sums = resampled_sums(errors)
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios = [error / total for error, total in zip(sums.T, self.layer.resampled_totals, strict=True)]
        return [interval_of(ratio) for ratio in ratios]

    def fvu_by_position(self) -> list[dict[str, float | int | None]]:
        """Squared error in each bin of positions, as a share of the squared deviation there from the mean of all."""
        bins = position_bins(self.layer.n_positions)
        totals = [self.layer.total_about_the_mean(part) for part in self.layer.by_bin]
        errors = torch.as_tensor(self.errors_by_bin).tolist()
        return [
            {"first": first, "last": last, "n_tokens": part.n_rows, "fvu": error / total if total > 0 else None}
            for (first, last), part, error, total in zip(bins, self.layer.by_bin, errors, totals, strict=True)
        ]


@dataclass(frozen=True)
class Evaluation:
    """Counts of one pass."""

    saes: dict[Hashable, Reconstruction]
    """By the SAEs' keys."""

    layers: dict[str, LayerStatistics]
    """By the layers' names."""


def fraction_of_variance_unexplained(squared_error: float, deviation: SquaredDeviation) -> float | None:
    """Squared error as a share of the squared deviation from the mean of all tokens: 0 is perfect, 1 is the mean.

    Both are sums over all tokens together; the mean of values per batch would weigh batches by how little they vary.

    Returns:
        The fraction, >= 0; None if all activations were equal, for which it is not defined.

    Source: one minus explained variance as in SAELens, `ExplainedVarianceCalculator`; the same formula.
    """
    return squared_error / deviation.total if deviation.total > 0 else None


def cosine(x: Tensor, x_hat: Tensor) -> Tensor:
    """Cosine along the last axis, in [-1, 1]; 0 where either vector is zero."""
    norms = x.norm(dim=-1) * x_hat.norm(dim=-1)
    return torch.where(norms > 0, (x * x_hat).sum(dim=-1) / norms, 0.0)


@torch.no_grad()
def measure_reconstruction(
    model: PreTrainedModel,
    saes: HookedSaes,
    chunks: Chunks,
    *,
    batch_size: int,
    exclusion: Exclusion = NOTHING,
    on_tokens: Callable[[int], None] = lambda n_tokens: None,
) -> Evaluation:
    """Run held-out sequences through the model once, up to the last hooked layer, and measure every SAE on them.

    Args:
        model: The target, with or without its head, at least up to the last hooked layer.
        saes: The SAEs and the layers that they read.
        chunks: Held-out sequences.
        batch_size: Sequences per forward pass.
        exclusion: Positions that are not measured on.
        on_tokens: Called with the number of tokens done, for progress.

    Raises:
        InputError: If no token is left to measure on.
    """
    layers = {name: LayerStatistics() for name in hooked_layers(saes)}
    counts = {
        key: Reconstruction(
            layers[hookpoint],
            firing_counts=torch.zeros(sae.num_latents, dtype=torch.int64, device=sae.device),
            max_activation=torch.zeros(sae.num_latents, dtype=sae.dtype, device=sae.device),
        )
        for key, (hookpoint, sae) in saes.items()
    }
    for ids in id_batches(chunks, batch_size):
        for hookpoint, activations in layer_outputs(model, list(layers), ids).items():
            x, kept = activations.double(), exclusion.keeps(ids, activations)
            layers[hookpoint].add(x, kept)
            for key in [key for key in saes if saes[key][0] == hookpoint]:
                counts[key].add(x, kept, encode(saes[key][1], activations, kept))
        on_tokens(ids.numel())
    if empty := [name for name, layer in layers.items() if not layer.all.n_rows]:
        raise InputError(
            f"nothing is left to measure on at {empty[0]}: what --exclude named in training is all there is"
        )
    return Evaluation(counts, layers)


def evaluate_reconstruction(
    model: PreTrainedModel, saes: HookedSaes, chunks: Chunks, *, batch_size: int, **options
) -> dict[Hashable, dict[str, float | int | None]]:
    """What is recorded when training ends: `TRAINING_NAMES` of `measure_reconstruction`, by the SAEs' keys."""
    evaluation = measure_reconstruction(model, saes, chunks, batch_size=batch_size, **options)
    records = {key: counted.numbers() for key, counted in evaluation.saes.items()}
    return {key: {name: record[name] for name in TRAINING_NAMES} for key, record in records.items()}
