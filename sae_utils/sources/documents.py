"""The documents of a source as token ids without special tokens around them: as sampled, as given, or from texts."""

from collections.abc import Collection, Iterable, Iterator

import numpy as np
import pyarrow as pa
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from sae_utils.progress import PATIENCE_SEC, token_bar
from sae_utils.sources.corpora import TEXT_COLUMN

DOCUMENTS_AT_ONCE = 1000
"""Documents that are read, and tokenized, together."""


def sampled_documents(samples: Dataset, eos_ids: Collection[int]) -> Iterator[list[np.ndarray]]:
    """Samples of a generated data set, without the BOS that each begins with and an EOS at its end.

    Yields:
        int32 arrays `(any,)`, many at a time.
    """
    for batch in samples.with_format("arrow").iter(batch_size=DOCUMENTS_AT_ONCE):
        yield own_tokens(batch.column("input_ids").combine_chunks(), None, eos_ids)


def own_tokens(column: pa.ListArray, bos_id: int | None, eos_ids: Collection[int]) -> list[np.ndarray]:
    """Rows of ids, at least one each, without what begins and ends them.

    Args:
        column: The rows.
        bos_id: What is left out at the beginning; None for whatever stands there.
        eos_ids: What is left out at the end; what is left out at the beginning is not looked at again.

    Returns:
        int32 arrays `(any,)`.
    """
    tokens, lengths = np.asarray(column.flatten(), dtype=np.int32), np.asarray(column.value_lengths())
    stops = np.cumsum(lengths)
    starts = stops - lengths
    starts = starts + (True if bos_id is None else tokens[starts] == bos_id)
    stops = stops - (np.isin(tokens[stops - 1], np.array(sorted(eos_ids), np.int32)) & (starts < stops))
    return [tokens[start:stop] for start, stop in zip(starts, stops, strict=True)]


def split_rows(column: pa.ListArray) -> list[np.ndarray]:
    """Rows of ids as they are, also empty ones: int32 arrays `(any,)`."""
    tokens, stops = np.asarray(column.flatten(), dtype=np.int32), np.cumsum(np.asarray(column.value_lengths()))
    return np.split(tokens, stops[:-1]) if len(stops) else []


def tokenized_documents(texts: Dataset, tokenizer: PreTrainedTokenizerBase) -> Iterator[list[np.ndarray]]:
    """Texts in a model's ids, no special token added.

    Yields:
        int32 arrays `(any,)`, many at a time.
    """
    for batch in texts.iter(batch_size=DOCUMENTS_AT_ONCE):
        yield tokenize(batch[TEXT_COLUMN], tokenizer)


def tokenize(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[np.ndarray]:
    """Texts in a model's ids, no special token added: int32 arrays `(any,)`."""
    encoded = tokenizer(
        texts, add_special_tokens=False, return_attention_mask=False, verbose=False
    )  # documents longer than the model's context are cut into rows, so their length is no reason for a warning
    return [np.array(ids, np.int32) for ids in encoded["input_ids"]]


def shown(
    documents: Iterable[list[np.ndarray]], what: str, n_documents: int, *, quiet: bool
) -> Iterator[list[np.ndarray]]:
    """The documents, with a bar of their tokens if they take long; how many come is estimated from those so far."""
    n_done = 0
    with token_bar(what, total=None, quiet=quiet, patience_sec=PATIENCE_SEC) as bar:
        for some in documents:
            yield some
            n_done += len(some)
            n_tokens = sum(map(len, some))
            bar.total = round((bar.n + n_tokens) * max(1.0, n_documents / max(1, n_done)))
            bar.update(n_tokens)
