"""What layers hold at the last token of each text, and what SAEs make of that."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor
from transformers import PreTrainedModel

from sae_utils.evaluation.activations import encode, layer_outputs
from sae_utils.exclusion import NOTHING, Exclusion
from sae_utils.sparse_coders import SparseCoder

ENCODED_AT_ONCE = 512
"""Texts whose states an SAE encodes together, whatever the batch size."""


class LastStates(NamedTuple):
    """Outputs of a layer, one of each text."""

    x: Tensor
    """`(texts, d_model)`, the model's dtype, on the CPU."""

    is_kept: Tensor
    """Whether SAEs are there for that position, bool `(texts,)`, on the CPU."""


class Encoded(NamedTuple):
    """What an SAE makes of them."""

    latents: csr_array
    """Activations > 0, float32 `(texts, n_latents)`."""

    x_hat: np.ndarray
    """Reconstructions, float32 `(texts, d_model)`."""


def last_states(
    model: PreTrainedModel,
    hookpoints: Collection[str],
    texts: Sequence[np.ndarray],
    *,
    n_tokens_at_once: int,
    exclusion: Exclusion = NOTHING,
    on_tokens: Callable[[int], object] = lambda n: None,
) -> dict[str, LastStates]:
    """Outputs of layers at the last position of each text that is kept; at its very last if none is.

    Texts of about one length go through the model together, the longest first, filled up on the right, where a causal
    model does not look.

    Args:
        model: A causal language model, with or without its head.
        hookpoints: Names of layers inside `model.base_model`.
        texts: Token ids, BOS first, int `(any,)` each and at least one.
        n_tokens_at_once: Tokens per forward pass, at most; a longer text goes alone.
        exclusion: Positions that SAEs do not see.
        on_tokens: Called after each pass with its number of tokens.

    Returns:
        By name of the layer, in the order of the texts.
    """
    x: dict[str, Tensor] = {}
    is_kept = {name: torch.empty(len(texts), dtype=torch.bool) for name in hookpoints}
    for rows in batches_by_length([len(text) for text in texts], n_tokens_at_once):
        ids, is_text = filled_up([texts[row] for row in rows])
        outputs = layer_outputs(model, hookpoints, ids)
        for name, output in outputs.items():
            kept = exclusion.keeps_ids(ids) & is_text
            kept = exclusion.keeps_norms(kept.to(output.device), output)
            last, is_kept[name][rows] = last_kept(kept.cpu(), is_text)
            found = output[torch.arange(len(rows)), last.to(output.device)].cpu()  # (batch, d_model)
            x.setdefault(name, torch.empty(len(texts), found.shape[1], dtype=found.dtype))[rows] = found
        on_tokens(int(is_text.sum()))
    return {name: LastStates(x[name], is_kept[name]) for name in hookpoints}


def batches_by_length(lengths: Sequence[int], n_tokens_at_once: int) -> Iterator[Tensor]:
    """Rows put together by length, the longest first, so that each batch with what fills it up has so many tokens.

    >>> [rows.tolist() for rows in batches_by_length([1, 4, 2, 2, 9], 4)]
    [[4], [1], [2, 3], [0]]
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])  # stable: of one length, the first first
    while order:
        n = max(1, n_tokens_at_once // lengths[order[0]])
        yield torch.tensor(order[:n])
        order = order[n:]


def filled_up(texts: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Texts as rows of one length, filled up on the right with their first token; and where they stand, bool.

    >>> ids, is_text = filled_up([np.array([7, 1, 2]), np.array([7])])
    >>> ids.tolist(), is_text.tolist()
    ([[7, 1, 2], [7, 7, 7]], [[True, True, True], [True, False, False]])
    """
    lengths = torch.tensor([len(text) for text in texts])
    is_text = torch.arange(int(lengths.max())) < lengths[:, None]  # (batch, seq)
    ids = torch.tensor([int(text[0]) for text in texts])[:, None].repeat(1, is_text.shape[1])
    ids[is_text] = torch.from_numpy(np.concatenate(texts).astype(np.int64))
    return ids, is_text


def last_kept(kept: Tensor, is_text: Tensor) -> tuple[Tensor, Tensor]:
    """The last position of each row that is kept, and whether there is one; else the last of the text.

    Args:
        kept: What is kept, bool `(batch, seq)`; nothing beyond the text.
        is_text: Where the text stands, bool `(batch, seq)`.

    Returns:
        int64 `(batch,)` and bool `(batch,)`.
    """
    positions = torch.arange(kept.shape[1])
    has_kept = kept.any(dim=1)
    last = torch.where(kept | ~has_kept[:, None] & is_text, positions, -1).max(dim=1).values
    return last, has_kept


def encode_states(sae: SparseCoder, states: LastStates) -> Encoded:
    """Latents and reconstructions; where a position is not kept no latent fires, and what comes out is what went in."""
    device = sae.encoder.weight.device
    values, columns, counts, x_hat = [], [], [], []
    for x, kept in zip(states.x.split(ENCODED_AT_ONCE), states.is_kept.split(ENCODED_AT_ONCE), strict=True):
        encoding = encode(sae, x[None].to(device), kept[None].to(device))
        fires = encoding.top_acts > 0  # (texts, k)
        values.append(encoding.top_acts[fires].float().cpu().numpy())
        columns.append(encoding.top_indices[fires].cpu().numpy())
        counts.append(fires.sum(dim=1).cpu().numpy())
        x_hat.append(encoding.x_hat.float().cpu().numpy())
    starts = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
    latents = csr_array(
        (np.concatenate(values), np.concatenate(columns), starts), shape=(len(states.x), sae.num_latents)
    )
    latents.sort_indices()
    return Encoded(latents, np.concatenate(x_hat))
