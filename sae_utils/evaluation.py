"""How well SAEs reconstruct held-out activations: streamed, in float64, one pass of the model for all SAEs."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from sae_utils.packing import Chunks
from sae_utils.sparse_coders import SparseCoder


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
class FvuAccumulator:
    """Fraction of variance unexplained over all tokens together: 0 is perfect, 1 is guessing the mean.

    Sum of squared errors over sum of squared deviations from the mean activation of all tokens seen; not the mean of
    batch values, which weighs batches by how little they vary.

    Source: explained variance as in SAELens, `ExplainedVarianceCalculator`; this is one minus it.
    """

    squared_error: float = 0.0
    deviation: SquaredDeviation = field(default_factory=SquaredDeviation)

    def add(self, x: Tensor, x_hat: Tensor) -> None:
        """Take in activations and their reconstructions, both float64 `(tokens, d_model)`."""
        self.squared_error += float((x - x_hat).pow(2).sum())
        self.deviation.add(x)

    @property
    def value(self) -> float | None:
        """The fraction, >= 0; None if all activations were equal, for which it is not defined."""
        return self.squared_error / self.deviation.total if self.deviation.total > 0 else None


@dataclass
class Reconstruction:
    """What is counted for one SAE."""

    fired: Tensor
    """bool `(n_latents,)`: latents that were > 0 on some token."""

    fvu: FvuAccumulator = field(default_factory=FvuAccumulator)
    """Over all tokens."""

    fvu_later: FvuAccumulator = field(default_factory=FvuAccumulator)
    """Over all tokens but the first of each sequence, whose massive activations would outweigh the others."""

    n_tokens: int = 0
    """Tokens seen."""

    n_firings: int = 0
    """Latents > 0, added over tokens."""

    def record(self) -> dict[str, float | int | None]:
        """Results by name; `dead_share` and `l0` are over all tokens."""
        return {
            "fvu": self.fvu.value,
            "fvu_without_first_position": self.fvu_later.value,
            "dead_share": float((~self.fired).double().mean()),
            "l0": self.n_firings / self.n_tokens,
            "n_tokens": self.n_tokens,
        }


@torch.no_grad()
def evaluate_reconstruction(
    model: PreTrainedModel,
    saes: Mapping[Hashable, tuple[str, SparseCoder]],
    chunks: Chunks,
    *,
    batch_size: int,
    on_tokens: Callable[[int], None] = lambda n_tokens: None,
) -> dict[Hashable, dict[str, float | int | None]]:
    """Run held-out sequences through the model once and measure every SAE on them.

    Args:
        model: The target, at least up to the last hooked layer.
        saes: By any key: the hooked module's name inside `model.base_model`, and the SAE that reads its output.
        chunks: Held-out sequences.
        batch_size: Sequences per forward pass.
        on_tokens: Called with the number of tokens done, for progress.

    Returns:
        By the same keys, `Reconstruction.record()`.
    """
    counts = {
        key: Reconstruction(torch.zeros(sae.num_latents, dtype=torch.bool, device=sae.device))
        for key, (_, sae) in saes.items()
    }
    keys_of = {hookpoint: [key for key in saes if saes[key][0] == hookpoint] for hookpoint, _ in saes.values()}

    def measure(hookpoint: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: Tensor | tuple) -> None:
            x = output[0] if isinstance(output, tuple) else output  # (batch, seq, d_model)
            for key in keys_of[hookpoint]:
                add_batch_(counts[key], saes[key][1], x)

        return hook

    handles = [model.base_model.get_submodule(name).register_forward_hook(measure(name)) for name in keys_of]
    try:
        for batch in DataLoader(chunks, batch_size=batch_size):
            model(batch["input_ids"].to(model.device))
            on_tokens(batch["input_ids"].numel())
    finally:
        for handle in handles:
            handle.remove()
    return {key: count.record() for key, count in counts.items()}


def add_batch_(count: Reconstruction, sae: SparseCoder, activations: Tensor) -> None:
    """Add activations `(batch, seq, d_model)` of one batch to the counts of one SAE."""
    x = activations.flatten(0, 1).to(sae.dtype)  # (tokens, d_model)
    top_acts, top_indices, _ = sae.encode(x)  # (tokens, k)
    x_hat = sae.decode(top_acts, top_indices)
    is_firing = top_acts > 0
    count.fired[top_indices[is_firing]] = True
    count.n_firings += int(is_firing.sum())
    count.n_tokens += len(x)
    x, x_hat = x.double(), x_hat.double()
    count.fvu.add(x, x_hat)
    is_later = torch.arange(len(x), device=x.device) % activations.shape[1] > 0
    count.fvu_later.add(x[is_later], x_hat[is_later])
