"""What matched latents of two SAEs do on the same tokens: how often both fire, and whether they rise and fall together.

Directions say what a latent writes; people read what it fires on. One pass over the tokens serves all SAEs and all
pairs of them; only sums per latent are kept, so memory does not grow with the number of tokens.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from sae_utils.evaluation.activations import HookedSaes, encode, hooked_layers, id_batches, layer_outputs
from sae_utils.exclusion import NOTHING, Exclusion
from sae_utils.sources.packing import Chunks

DENSE_ENTRIES = 2**24
"""Activations of all latents that are written out at a time, 64 MB in float32; most are 0."""

PairOfKeys = tuple[Hashable, Hashable]
"""Keys of two SAEs."""


@dataclass(frozen=True)
class CodeSums:
    """Activations of one SAE's latents, summed over tokens."""

    n_tokens: int
    """Tokens counted: those that the SAE is there for."""

    n_fires: Tensor
    """int64 `(n_latents,)`: tokens on which a latent is > 0."""

    sums: Tensor
    """float64 `(n_latents,)`: of activations."""

    squares: Tensor
    """float64 `(n_latents,)`: of squared activations."""

    def __add__(self, other: "CodeSums") -> "CodeSums":
        return CodeSums(
            self.n_tokens + other.n_tokens,
            self.n_fires + other.n_fires,
            self.sums + other.sums,
            self.squares + other.squares,
        )


@dataclass(frozen=True)
class SharedSums:
    """Activations of the latents of one SAE and of their partners in another, summed over the same tokens."""

    n_both: Tensor
    """int64 `(n_latents,)`: tokens on which a latent and its partner are > 0."""

    products: Tensor
    """float64 `(n_latents,)`: sums of the products of their activations."""

    def __add__(self, other: "SharedSums") -> "SharedSums":
        return SharedSums(self.n_both + other.n_both, self.products + other.products)


@torch.no_grad()
def sum_codes(
    model: PreTrainedModel,
    saes: HookedSaes,
    partners: Mapping[PairOfKeys, Tensor],
    chunks: Chunks,
    *,
    batch_size: int,
    exclusion: Exclusion = NOTHING,
    on_tokens: Callable[[int], None] = lambda n_tokens: None,
) -> tuple[dict[Hashable, CodeSums], dict[PairOfKeys, SharedSums]]:
    """Run packed sequences through the model once, and sum what SAEs and pairs of them make of every token.

    Args:
        model: The target, with or without its head, at least up to the last hooked layer.
        saes: The SAEs and the layers that they read.
        partners: For pairs of SAEs of one layer, the latent of the second that belongs to each latent of the first,
            int64 `(n_latents,)`, a permutation, on the device of the SAEs.
        chunks: Sequences.
        batch_size: Sequences per forward pass.
        exclusion: Positions that are not counted.
        on_tokens: Called with the number of tokens done, for progress.

    Returns:
        By the SAEs' keys, and by pairs of them.
    """
    codes = {key: _nothing_of(sae.num_latents, sae.device) for key, (_, sae) in saes.items()}
    shared = {pair: SharedSums(*_zeros(len(partner), partner.device)) for pair, partner in partners.items()}
    for ids in id_batches(chunks, batch_size):
        outputs = layer_outputs(model, hooked_layers(saes), ids)
        kept = {name: exclusion.keeps(ids, output) for name, output in outputs.items()}
        found = {key: encode(sae, outputs[name], kept[name])[:2] for key, (name, sae) in saes.items()}
        for key, (name, _) in saes.items():
            codes[key] += _sums_of(*found[key], int(kept[name].sum()), len(codes[key].sums))
        for second in dict.fromkeys(pair[1] for pair in partners):
            with_it = [pair for pair in partners if pair[1] == second]
            firsts = {pair: (*found[pair[0]], partners[pair]) for pair in with_it}
            for pair, sums in _products_with(*found[second], firsts):
                shared[pair] += sums
        on_tokens(ids.numel())
    return codes, shared


def firing_jaccard(a: CodeSums, b: CodeSums, shared: SharedSums, partner: Tensor) -> np.ndarray:
    """Tokens on which a latent and its partner fire, over tokens on which one of them does.

    Returns:
        float64 `(n_latents,)` in [0, 1]; NaN where neither ever fires.
    """
    either = a.n_fires + b.n_fires[partner] - shared.n_both
    return (shared.n_both.double() / either).cpu().numpy()


def activation_correlation(a: CodeSums, b: CodeSums, shared: SharedSums, partner: Tensor) -> np.ndarray:
    """Pearson correlation of a latent's activations with its partner's, over all tokens, those at 0 included.

    Returns:
        float64 `(n_latents,)` in [-1, 1] up to rounding; NaN where one of them is the same on all tokens.
    """
    n, sums_b, squares_b = a.n_tokens, b.sums[partner], b.squares[partner]
    covariance = n * shared.products - a.sums * sums_b
    spreads = (n * a.squares - a.sums**2) * (n * squares_b - sums_b**2)
    is_defined = (a.n_fires > 0) & (b.n_fires[partner] > 0) & (spreads > 0)
    return torch.where(is_defined, covariance / spreads.clamp(min=0).sqrt(), torch.nan).cpu().numpy()


def _products_with(
    acts: Tensor, indices: Tensor, firsts: Mapping[PairOfKeys, tuple[Tensor, Tensor, Tensor]]
) -> Iterator[tuple[PairOfKeys, SharedSums]]:
    """Sums over a batch of what one SAE makes of it together with what others do, whose partners are its latents.

    Args:
        acts: `(tokens, k)`.
        indices: `(tokens, k)`.
        firsts: The same of the others, and the partners of their latents.
    """
    if not firsts:
        return
    n_latents = len(next(iter(firsts.values()))[2])
    n_at_once = max(1, DENSE_ENTRIES // n_latents)
    for start in range(0, len(acts), n_at_once):
        rows = slice(start, start + n_at_once)
        dense = torch.zeros(len(acts[rows]), n_latents, dtype=acts.dtype, device=acts.device)
        dense.scatter_(1, indices[rows], acts[rows])
        for pair, (first_acts, first_indices, partner) in firsts.items():
            yield pair, _products(first_acts[rows], first_indices[rows], dense, partner)


def _products(acts: Tensor, indices: Tensor, dense: Tensor, partner: Tensor) -> SharedSums:
    """Of some tokens: activations of the first SAE, `(tokens, k)`, and all of the second, `(tokens, n_latents)`."""
    others = dense.gather(1, partner[indices])  # (tokens, k)
    at, products = indices.flatten(), (acts.double() * others.double()).flatten()
    is_both = ((acts > 0) & (others > 0)).flatten()
    n_latents = len(partner)
    return SharedSums(
        torch.bincount(at[is_both], minlength=n_latents),
        torch.zeros(n_latents, dtype=torch.float64, device=acts.device).index_add_(0, at, products),
    )


def _sums_of(acts: Tensor, indices: Tensor, n_tokens: int, n_latents: int) -> CodeSums:
    """Of the tokens of a batch, `(tokens, k)`."""
    at, acts = indices.flatten(), acts.double().flatten()
    zeros = torch.zeros(n_latents, dtype=torch.float64, device=acts.device)
    n_fires = torch.bincount(at[acts > 0], minlength=n_latents)
    return CodeSums(n_tokens, n_fires, zeros.index_add(0, at, acts), zeros.index_add(0, at, acts**2))


def _nothing_of(n_latents: int, device: torch.device) -> CodeSums:
    """Before the first token."""
    counts, sums = _zeros(n_latents, device)
    return CodeSums(0, counts, sums, sums)


def _zeros(n_latents: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Counts and sums of nothing."""
    return (
        torch.zeros(n_latents, dtype=torch.int64, device=device),
        torch.zeros(n_latents, dtype=torch.float64, device=device),
    )
