"""Data sets that are not there yet, taken for ones that are, so that training is planned before they are sampled."""

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from sae_utils.errors import MissingInputError
from sae_utils.paths import DatasetKey
from sae_utils.sources.budget import EVAL_SHARE, MAX_AUTOMATIC_EVAL_TOKENS, TokenLimits
from sae_utils.sources.joining import Delimiters, RowCounts
from sae_utils.sources.origins import Source
from sae_utils.sources.packing import Chunks
from sae_utils.sources.packs import Packed

NOT_THERE = "not there yet"
"""Fingerprint of such a data set."""


def assumed_source(datasets_dir: Path, key: DatasetKey, reason: str) -> Source:
    """A data set as it will be, of which nothing but the name is known.

    Args:
        datasets_dir: Folder of the generated data sets.
        key: Which one.
        reason: What a run would be refused with.
    """
    return Source(key.model, str(datasets_dir / key.folder), 0, None, NOT_THERE, missing=reason)


def assumed_rows(limits: TokenLimits, ctx_len: int, there: Iterable[int], missing: Iterable[Source]) -> int:
    """How many rows such a data set is taken for: as many as the budget needs, or else as the smallest that is there.

    Args:
        limits: Tokens that are asked for.
        ctx_len: Tokens per row.
        there: Rows of the sources that are there.
        missing: The sources that are not.

    Raises:
        MissingInputError: If nothing says how many.
    """
    if limits.max_tokens is not None:
        return rows_for(limits.max_tokens, limits.eval_tokens, ctx_len)
    if smallest := min(there, default=None):
        return smallest
    reason = next(source.missing for source in missing)
    raise MissingInputError(f"{reason} (a dry run goes on without it where --max_tokens says how much is trained on)")


def rows_for(max_tokens: int, eval_tokens: int | None, ctx_len: int) -> int:
    """The fewest rows of which so many tokens are left to train on, in whole rows, when some are held out.

    >>> rows_for(9_600, None, ctx_len=100), rows_for(9_600, 1_000, ctx_len=100)
    (101, 106)
    """
    n_train = max(1, max_tokens // ctx_len)
    if eval_tokens is not None:
        return n_train + max(1, eval_tokens // ctx_len)
    n_rows = math.ceil(n_train / (1 - EVAL_SHARE))
    held_out = min(int(EVAL_SHARE * n_rows * ctx_len), MAX_AUTOMATIC_EVAL_TOKENS)
    return n_train + max(1, held_out // ctx_len)


def assumed_pack(n_rows: int, ctx_len: int, delimiters: Delimiters, vocab_size: int) -> Packed:
    """Rows in the place of those that are not there: all the same one, BOS and other tokens, of which one is kept."""
    others = [i for i in range(min(vocab_size, ctx_len + 2)) if i not in (delimiters.bos_id, delimiters.eos_id)]
    row = np.resize(np.array(others, dtype=np.int32), ctx_len)
    row[0] = delimiters.bos_id
    return Packed(Chunks(np.broadcast_to(row, (n_rows, ctx_len))), RowCounts(n_rows=n_rows))
