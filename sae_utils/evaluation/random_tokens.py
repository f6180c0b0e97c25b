"""Fake features: latents that fire on sequences of random tokens, which mean nothing."""

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sae_utils.errors import InputError
from sae_utils.evaluation.activations import (
    Encoding,
    HookedSaes,
    each_sequence,
    encode,
    hooked_layers,
    id_batches,
    layer_outputs,
)
from sae_utils.evaluation.intervals import interval_of, resampled_sums
from sae_utils.exclusion import NOTHING, Exclusion
from sae_utils.sources.packing import Chunks
from sae_utils.sparse_coders import SparseCoder

N_TOKENS = 1_000_000
"""Random tokens counted."""

RANDOM_DRAW = {"generator": "numpy.random.PCG64", "seed": 0}
"""What draws random tokens: the same for all SAEs, so that their fake features compare. As records have it."""

FAKE_ACTIVATION = 1.0
"""A latent counts as active on a random token above this."""

FAKE_SHARE = 0.1
"""A latent that is active on more than this share of random tokens is fake."""

N_BLOCKS = 64
"""Blocks of sequences, one after the other, that are drawn anew for intervals: counts are kept of each."""


@dataclass
class RandomFiring:
    """Firing of one SAE's latents on random tokens.

    As k latents at most are active on a token, fewer than `k / FAKE_SHARE` = 10 k latents can be active on more than a
    tenth of the tokens: a fake feature ratio is below 10 k / n_latents, so the count is given with it.

    Source: fake feature ratio, Cho et al. 2025 (FaithfulSAE), section on metrics; the same threshold and share.
    """

    counts: Tensor
    """int32 `(n_blocks, n_latents)`: tokens of each block with an activation above `FAKE_ACTIVATION`."""

    counts_scale_free: Tensor
    """int32 `(n_blocks, n_latents)`: tokens of each block with an activation above 0."""

    n_by_block: Tensor
    """int64 `(n_blocks,)`: tokens counted."""

    @classmethod
    def of(cls, sae: SparseCoder, n_blocks: int) -> "RandomFiring":
        """Nothing counted yet."""
        counts = torch.zeros(2, n_blocks, sae.num_latents, dtype=torch.int32, device=sae.device)
        return cls(*counts, torch.zeros(n_blocks, dtype=torch.int64, device=sae.device))

    def add(self, encoding: Encoding, is_counted: Tensor, block: int = 0) -> None:
        """Take in encoded tokens of a block, and which of them count, bool `(tokens,)`."""
        for counts, threshold in ((self.counts, FAKE_ACTIVATION), (self.counts_scale_free, 0.0)):
            is_active = (encoding.top_acts > threshold) & is_counted[:, None]  # (tokens, k)
            counts[block] += torch.bincount(encoding.top_indices[is_active], minlength=counts.shape[1])
        self.n_by_block[block] += is_counted.sum()

    @property
    def n_tokens(self) -> int:
        """Tokens counted."""
        return int(self.n_by_block.sum())

    @property
    def random_rate(self) -> np.ndarray:
        """Share of random tokens with an activation above `FAKE_ACTIVATION`, float64 `(n_latents,)`."""
        return self.counts.sum(dim=0).cpu().numpy() / self.n_tokens

    @property
    def is_fake(self) -> np.ndarray:
        """Whether each latent is fake, bool `(n_latents,)`."""
        return self.random_rate > FAKE_SHARE

    def record(self) -> dict[str, float | int]:
        """Results by name: share (`ffr`) and number of fake latents; `scale_free` counts any activation above 0.

        With `_interval` behind the shares: theirs, over blocks of sequences.
        """
        is_fake_scale_free = self.counts_scale_free.sum(dim=0).cpu().numpy() / self.n_tokens > FAKE_SHARE
        return {
            "n_tokens": self.n_tokens,
            "ffr": float(self.is_fake.mean()),
            "ffr_interval": self._interval(self.counts),
            "n_fake": int(self.is_fake.sum()),
            "ffr_scale_free": float(is_fake_scale_free.mean()),
            "ffr_scale_free_interval": self._interval(self.counts_scale_free),
            "n_fake_scale_free": int(is_fake_scale_free.sum()),
        }

    def _interval(self, counts: Tensor) -> list[float] | None:
        """The interval of the share of fake latents; None for a single block."""
        if len(counts) < 2:
            return None
        may_be_fake = (counts > FAKE_SHARE * self.n_by_block[:, None]).any(dim=0)  # in no resample are the others
        sums = resampled_sums(counts[:, may_be_fake].cpu().numpy())
        n_tokens = resampled_sums(self.n_by_block.cpu().numpy())
        return interval_of((sums > FAKE_SHARE * n_tokens[:, None]).sum(axis=1) / counts.shape[1])


def firing_bytes(n_latents: int) -> int:
    """Memory of the counts of one SAE."""
    return 2 * N_BLOCKS * 4 * n_latents


def known_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, exclusion: Exclusion = NOTHING) -> np.ndarray:
    """Ids that mean something: those of the tokenizer, special tokens included, that the model has an embedding for.

    Embeddings are often padded to a round number of rows; the rows without a token were never trained. Ids that are
    left out anyway are none of them.

    Returns:
        int32 `(vocab,)`, ascending.
    """
    ids = np.unique(np.fromiter(tokenizer.get_vocab().values(), dtype=np.int32))
    return ids[(ids < model.get_input_embeddings().num_embeddings) & ~np.isin(ids, exclusion.ids)]


def random_sequences(
    vocab_ids: np.ndarray, *, bos_id: int, ctx_len: int, seed: int, n_tokens: int = N_TOKENS
) -> Chunks:
    """Sequences of BOS and `ctx_len - 1` ids drawn uniformly, just enough of them to hold `n_tokens` ids after BOS.

    The global random state is neither read nor changed.

    Args:
        vocab_ids: Ids to draw from, as of `known_ids`.
        bos_id: Token that every sequence starts with.
        ctx_len: Tokens per sequence, at least 2.
        seed: Seed of the draw; the same seed gives the same sequences.
        n_tokens: Random tokens wanted.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    shape = (math.ceil(n_tokens / (ctx_len - 1)), ctx_len)
    tokens = vocab_ids[generator.integers(len(vocab_ids), size=shape)].astype(np.int32)
    tokens[:, 0] = bos_id
    return Chunks(tokens)


@torch.no_grad()
def measure_random_firing(
    model: PreTrainedModel,
    saes: HookedSaes,
    chunks: Chunks,
    *,
    batch_size: int,
    n_tokens: int = N_TOKENS,
    exclusion: Exclusion = NOTHING,
    on_tokens: Callable[[int], None] = lambda n_tokens: None,
) -> dict[Hashable, RandomFiring]:
    """Run random sequences through the model once, up to the last hooked layer, and count every SAE's firing.

    Args:
        model: The target, with or without its head, at least up to the last hooked layer.
        saes: The SAEs and the layers that they read.
        chunks: Sequences of `random_sequences`.
        batch_size: Sequences per forward pass.
        n_tokens: Tokens to count at most, in order, the first of each sequence left out; the rest of the last sequence
            is not counted.
        exclusion: Positions that are not counted either, so that fewer are; `random_sequences` need not draw its ids.
        on_tokens: Called with the number of tokens done, for progress.

    Returns:
        By the SAEs' keys.
    """
    n_blocks = min(N_BLOCKS, len(chunks))
    firing = {key: RandomFiring.of(sae, n_blocks) for key, (_, sae) in saes.items()}
    n_left, n_done = n_tokens, 0
    for ids in id_batches(chunks, batch_size):
        is_counted = torch.ones(ids.shape, dtype=torch.bool)
        is_counted[:, 0] = False
        is_counted &= is_counted.flatten().cumsum(0).view_as(is_counted) <= n_left
        n_left -= int(is_counted.sum())
        outputs = layer_outputs(model, hooked_layers(saes), ids)
        kept = {name: exclusion.keeps(ids, output) for name, output in outputs.items()}
        for key, (hookpoint, sae) in saes.items():
            encoding = encode(sae, outputs[hookpoint], kept[hookpoint])
            counts = is_counted.to(sae.device) & kept[hookpoint]
            for row, of_row in enumerate(each_sequence(encoding, len(ids))):
                firing[key].add(of_row, counts[row], (n_done + row) * n_blocks // len(chunks))
        n_done += len(ids)
        on_tokens(ids.numel())
    if not all(counted.n_tokens for counted in firing.values()):
        raise InputError("no random token is left to count: what --exclude named in training is all there is")
    return firing
