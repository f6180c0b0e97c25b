"""Examples of what latents fire on: which latents to show, and the held-out contexts that activate them most."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sae_utils.evaluation.activations import Encoding, HookedSaes, encode, hooked_layers, id_batches, layer_outputs
from sae_utils.exclusion import NOTHING, Exclusion
from sae_utils.sources.packing import Chunks

N_CONTEXTS = 6
"""Contexts per latent, at most."""

N_BEFORE = 23
"""Tokens shown before the one with the highest activation, where the sequence has them."""

N_WINDOW = 32
"""Tokens per context, at most."""

HOW_CHOSEN = (
    "A fifth each: the latents that fire most often, those best and those least matched among the latents that fire, "
    "and fake latents, all of them in the order of firing rate; the rest evenly spread over the ranks of firing rate."
)
"""What `choose_latents` does, for readers of the results."""


@dataclass
class TopContexts:
    """The contexts with the highest activations of some latents of one SAE, so far; a sequence gives one at most."""

    latents: np.ndarray
    """int64 `(n_chosen,)`."""

    columns: np.ndarray
    """int64 `(n_latents,)`: place of each latent in `latents`, -1 if it was not chosen."""

    peaks: np.ndarray
    """Highest activation of each context, float32 `(n_chosen, N_CONTEXTS)`, descending; 0 where there is none yet."""

    positions: np.ndarray
    """Where in the window the peak is, int64, same shape."""

    ids: np.ndarray
    """Tokens of each window, int64 `(n_chosen, N_CONTEXTS, window)`."""

    activations: np.ndarray
    """Activations of the latent on them, float32, same shape."""

    @classmethod
    def empty(cls, latents: np.ndarray, *, n_latents: int, ctx_len: int) -> "TopContexts":
        """No contexts yet, for these latents of an SAE with `n_latents`."""
        columns = np.full(n_latents, -1)
        columns[latents] = np.arange(len(latents))
        shape = (len(latents), N_CONTEXTS)
        window = (*shape, min(N_WINDOW, ctx_len))
        return cls(
            np.asarray(latents, dtype=np.int64),
            columns,
            np.zeros(shape, np.float32),
            np.zeros(shape, np.int64),
            np.zeros(window, np.int64),
            np.zeros(window, np.float32),
        )

    def add(self, ids: np.ndarray, encoding: Encoding) -> None:
        """Take in sequences, int64 `(batch, seq)`, and their encoding.

        Of equal activations the earlier sequence stays, and the earlier position within it.
        """
        acts = self._chosen_activations(encoding).reshape(*ids.shape, len(self.latents))
        for sequence, sequence_acts in zip(ids, acts, strict=True):
            position = sequence_acts.argmax(axis=0)  # (n_chosen,), the first of equals
            peak = sequence_acts.max(axis=0, initial=0.0)
            start = np.clip(position - N_BEFORE, 0, len(sequence) - self.ids.shape[-1])
            is_better = peak > self.peaks[:, -1]
            for row in np.flatnonzero(is_better):
                window = slice(start[row], start[row] + self.ids.shape[-1])
                place = np.searchsorted(-self.peaks[row], -peak[row], side="right")
                self._insert(self.peaks, row, place, peak[row])
                self._insert(self.positions, row, place, position[row] - start[row])
                self._insert(self.ids, row, place, sequence[window])
                self._insert(self.activations, row, place, sequence_acts[window, row])

    def records(self, decode: Callable[[int], str]) -> dict[int, list[dict[str, Any]]]:
        """By latent, its contexts, highest first: `tokens` as text, their `activations` to four digits, and `peak`, the
        index of the highest. Latents that never fired have none.
        """
        return {
            int(latent): [
                {
                    "tokens": [decode(int(token_id)) for token_id in self.ids[row, place]],
                    "activations": [float(f"{act:.4g}") for act in self.activations[row, place]],
                    "peak": int(self.positions[row, place]),
                }
                for place in np.flatnonzero(self.peaks[row] > 0)
            ]
            for row, latent in enumerate(self.latents)
        }

    def _chosen_activations(self, encoding: Encoding) -> np.ndarray:
        """Activations of the chosen latents, float32 `(tokens, n_chosen)`, 0 where a latent is not among the top k."""
        columns = self.columns[encoding.top_indices.cpu().numpy()]  # (tokens, k)
        acts = encoding.top_acts.float().cpu().numpy()
        dense = np.zeros((len(acts), len(self.latents)), np.float32)
        token, place = np.nonzero(columns >= 0)
        dense[token, columns[token, place]] = acts[token, place]
        return dense

    @staticmethod
    def _insert(kept: np.ndarray, row: int, place: int, value: Any) -> None:
        """Put a value at its place in a row; what stands behind it moves on, the last falls out."""
        kept[row, place + 1 :] = kept[row, place:-1].copy()
        kept[row, place] = value


def choose_latents(
    firing_rate: np.ndarray, best_cosine: np.ndarray | None, is_fake: np.ndarray, n_max: int
) -> np.ndarray:
    """Latents worth a look, as `HOW_CHOSEN` says; the same numbers give the same latents.

    Ties go to the higher firing rate, then to the lower id.

    Args:
        firing_rate: `(n_latents,)`; latents at 0 are chosen only if they are fake.
        best_cosine: How well each latent is matched in another SAE, `(n_latents,)`; None if there is no other.
        is_fake: bool `(n_latents,)`.
        n_max: Latents to choose at most.

    Returns:
        int64 ids, ascending.
    """
    by_rate = np.argsort(-firing_rate, kind="stable")
    live = by_rate[firing_rate[by_rate] > 0]
    groups = [live, by_rate[is_fake[by_rate]]]
    if best_cosine is not None:
        groups += [live[np.argsort(sign * best_cosine[live], kind="stable")] for sign in (-1, 1)]
    chosen = np.unique(np.concatenate([group[: n_max // 5] for group in groups]))
    rest = live[~np.isin(live, chosen)]
    n_spread = min(n_max - len(chosen), len(rest))
    spread = rest[np.linspace(0, len(rest) - 1, n_spread).round().astype(np.int64)] if n_spread else rest[:0]
    return np.unique(np.concatenate([chosen, spread]))


@torch.no_grad()
def find_contexts(
    model: PreTrainedModel,
    saes: HookedSaes,
    chosen: Mapping[Hashable, Sequence[int] | np.ndarray],
    chunks: Chunks,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int,
    exclusion: Exclusion = NOTHING,
    on_tokens: Callable[[int], None] = lambda n_tokens: None,
) -> dict[Hashable, dict[int, list[dict[str, Any]]]]:
    """Run held-out sequences through the model once, up to the last hooked layer, and keep the top contexts.

    Args:
        model: The target, with or without its head, at least up to the last hooked layer.
        saes: The SAEs and the layers that they read.
        chosen: By the SAEs' keys, the latents to find contexts of.
        chunks: Held-out sequences.
        tokenizer: The target's.
        batch_size: Sequences per forward pass.
        exclusion: Positions on which nothing fires.
        on_tokens: Called with the number of tokens done, for progress.

    Returns:
        By the SAEs' keys and latents, at most `N_CONTEXTS` contexts from different sequences: `TopContexts.records`.
    """
    tops = {
        key: TopContexts.empty(np.asarray(chosen[key]), n_latents=sae.num_latents, ctx_len=chunks.ctx_len)
        for key, (_, sae) in saes.items()
    }
    for ids in id_batches(chunks, batch_size):
        outputs = layer_outputs(model, hooked_layers(saes), ids)
        kept = {name: exclusion.keeps(ids, output) for name, output in outputs.items()}
        for key, (hookpoint, sae) in saes.items():
            tops[key].add(ids.numpy(), encode(sae, outputs[hookpoint], kept[hookpoint]))
        on_tokens(ids.numel())
    decode = token_decoder(tokenizer)
    return {key: top.records(decode) for key, top in tops.items()}


def token_decoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[int], str]:
    """Text of single tokens, with the spaces they begin with; parts of characters are replacement characters (U+FFFD).

    Some tokenizers leave out the first space of whatever they decode, so a token is decoded behind another copy of
    itself.
    """
    known: dict[int, str] = {}

    def decode(token_id: int) -> str:
        if token_id not in known:
            once, twice = (
                tokenizer.decode([token_id] * n, clean_up_tokenization_spaces=False, skip_special_tokens=False)
                for n in (1, 2)
            )
            known[token_id] = twice[len(once) :] or once
        return known[token_id]

    return decode
