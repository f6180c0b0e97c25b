"""The documents of a source as token ids without special tokens around them: as sampled, or from texts."""

from collections.abc import Collection, Iterator

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from sae_utils.sources.corpora import TEXT_COLUMN

DOCUMENTS_AT_ONCE = 1000
"""Documents that are read, and tokenized, together."""


def sampled_documents(samples: Dataset, eos_ids: Collection[int]) -> Iterator[list[np.ndarray]]:
    """Samples of a generated data set, without the BOS that each begins with and an EOS at its end.

    Yields:
        int32 arrays `(any,)`, many at a time.
    """
    ends = np.array(sorted(eos_ids), np.int32)
    for batch in samples.with_format("arrow").iter(batch_size=DOCUMENTS_AT_ONCE):
        column = batch.column("input_ids").combine_chunks()
        tokens, lengths = np.asarray(column.flatten(), dtype=np.int32), np.asarray(column.value_lengths())
        stops = np.cumsum(lengths)
        starts = stops - lengths + 1  # behind BOS
        stops = stops - (np.isin(tokens[stops - 1], ends) & (lengths > 1))
        yield [tokens[start:stop] for start, stop in zip(starts, stops, strict=True)]


def tokenized_documents(texts: Dataset, tokenizer: PreTrainedTokenizerBase) -> Iterator[list[np.ndarray]]:
    """Texts in a model's ids, no special token added.

    Yields:
        int32 arrays `(any,)`, many at a time.
    """
    for batch in texts.iter(batch_size=DOCUMENTS_AT_ONCE):
        encoded = tokenizer(
            batch[TEXT_COLUMN], add_special_tokens=False, return_attention_mask=False, verbose=False
        )  # documents longer than the model's context are cut into rows, so their length is no reason for a warning
        yield [np.array(ids, np.int32) for ids in encoded["input_ids"]]
