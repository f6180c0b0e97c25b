"""In how many passes of the target model a cell's SAEs are trained: one if they fit the device together, else more.

SAEs do not see each other, so what a pass leaves out does not change what it trains: any division gives the same
weights, bit for bit on a CPU, and on a GPU up to the order in which it adds up gradients.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sae_utils.errors import InputError
from sae_utils.memory import CPU_WORKSPACE_BYTES, DENSE_COPIES, LATENT_COPIES, SHARES_AT_ONCE, USABLE_SHARE, sae_bytes

OPTIMIZER_COPIES = {"signum": 1, "adam": 2, "muon": 1}
"""Tensors as large as the weights that an optimizer of sparsify keeps."""


RECORDS_FILE = "records.json"
"""Measurements of a pass' SAEs; written last, so that a pass that has it is complete."""


@dataclass(frozen=True)
class Pass:
    """SAEs that are trained together."""

    layers: tuple[int, ...]
    """Their layers, ascending."""

    seeds: tuple[int, ...]
    """Their seeds; there is an SAE for each layer and seed."""

    @property
    def name(self) -> str:
        """Name for folders.

        >>> Pass((7, 15), (0, 1)).name
        'layers_7_15_seeds_0_1'
        """
        return f"layers_{'_'.join(map(str, self.layers))}_seeds_{'_'.join(map(str, self.seeds))}"

    def __str__(self) -> str:
        return f"layers {' '.join(map(str, self.layers))}, seeds {' '.join(map(str, self.seeds))}"

    def halves(self) -> list["Pass"]:
        """Two passes for the same SAEs, by layers if there are several, else by seeds.

        Raises:
            InputError: If this is one SAE.
        """
        if len(self.layers) > 1:
            middle = len(self.layers) // 2
            return [Pass(self.layers[:middle], self.seeds), Pass(self.layers[middle:], self.seeds)]
        if len(self.seeds) > 1:
            middle = len(self.seeds) // 2
            return [Pass(self.layers, self.seeds[:middle]), Pass(self.layers, self.seeds[middle:])]
        raise InputError(
            f"out of memory while training a single SAE ({self}); lower --batch_size, --ctx_len or the number of "
            f"latents, or raise --micro_acc_steps"
        )


@dataclass(frozen=True)
class PassMemory:
    """Memory that training takes, in bytes; an estimate from shapes alone."""

    fixed: int
    """The target model and what one SAE needs for a batch, whatever the number of SAEs."""

    per_sae: int
    """Weights, gradients and optimizer state of one SAE."""

    def of(self, n_saes: int) -> int:
        """Memory of a pass with this many SAEs."""
        return self.fixed + n_saes * self.per_sae

    def fitting(self, free_bytes: int) -> int:
        """SAEs that fit into free memory together; 0 if not even one does."""
        return max(0, (int(free_bytes * USABLE_SHARE) - self.fixed) // self.per_sae)


def estimate_pass_memory(
    *,
    model_bytes: int,
    d_model: int,
    n_latents: int,
    k: int,
    optimizer: str,
    tokens_per_micro_batch: int,
    device: torch.device,
    is_replicated: bool = False,
) -> PassMemory:
    """Memory of training.

    SAEs take their turns, and what one needs for a batch is gone when the next begins: in its forward pass all
    latents of every token; in its backward pass, on a GPU beside those, every active latent's share of the encoder's
    gradient, `(tokens, k, d_model)`, on a CPU a few tokens' at a time; in the optimizer's step, once all are through,
    an array as large as its weights.

    Args:
        model_bytes: Weights of the target model.
        d_model: Width of its residual stream.
        n_latents: Latents of an SAE.
        k: Active latents per token.
        optimizer: signum, adam or muon.
        tokens_per_micro_batch: Tokens that an SAE encodes at a time.
        device: Where.
        is_replicated: Whether several processes hold the same SAEs and average their gradients, in buffers besides.
    """
    latents = 4 * tokens_per_micro_batch * n_latents
    dense = 4 * tokens_per_micro_batch * d_model
    one_sae = sae_bytes(d_model, n_latents)
    if device.type == "cuda":
        one_turn = max(LATENT_COPIES * latents, latents + k * dense, one_sae)
    else:  # what an SAE has of all latents is gone before its gradient comes
        shares = min(k * dense, 4 * max(k * d_model, SHARES_AT_ONCE))
        one_turn = CPU_WORKSPACE_BYTES + max(latents - one_sae, shares, one_sae)
    one_turn += DENSE_COPIES * dense
    return PassMemory(model_bytes + one_turn, one_sae * (2 + OPTIMIZER_COPIES[optimizer] + is_replicated))


def plan_passes(layers: Sequence[int], seeds: Sequence[int], n_fit: int, *, n_layers_together: int = 1) -> list[Pass]:
    """As few passes as give each process at most `n_fit` SAEs; the seeds of a layer stay together if they can.

    An estimate may be too careful, so that passes of one SAE are planned even where none seems to fit.

    Args:
        layers: Layers to train on.
        seeds: Seeds for each layer.
        n_fit: SAEs that fit a process.
        n_layers_together: Processes that the layers of a pass are distributed over, equally many each.

    >>> [str(each) for each in plan_passes([7, 15], [0, 1], n_fit=2)]
    ['layers 7, seeds 0 1', 'layers 15, seeds 0 1']
    """
    n_fit = max(1, n_fit)
    rows = [tuple(layers[i : i + n_layers_together]) for i in range(0, len(layers), n_layers_together)]
    if n_fit >= len(seeds):
        return [Pass(sum(part, ()), tuple(seeds)) for part in _parts(rows, n_fit // len(seeds))]
    return [Pass(row, tuple(part)) for row in rows for part in _parts(seeds, n_fit)]


def _parts(values: Sequence[int], longest: int) -> list[Sequence[int]]:
    """Cut into as few parts as are at most this long, as equal as they can be."""
    n_parts = -(-len(values) // longest)
    ends = [len(values) * i // n_parts for i in range(n_parts + 1)]
    return [values[start:end] for start, end in itertools.pairwise(ends)]
