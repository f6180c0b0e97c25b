"""Rows of a generated data set: made from sampled ids, cut to an exact number of tokens, written to disk."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, concatenate_datasets
from datasets.arrow_writer import ArrowWriter
from transformers import PreTrainedTokenizerBase

from sae_utils.generated_data import FEATURES

ROWS_PER_WRITE = 1_000
"""Rows that go to a file together."""


def make_rows(
    ids: Iterable[int], samples: list[np.ndarray], tokenizer: PreTrainedTokenizerBase, bos_id: int
) -> Dataset:
    """Rows of a generated data set from sampled token ids."""
    return Dataset.from_dict(
        {
            "id": list(ids),
            "text": [decode_text(sample, tokenizer, bos_id) for sample in samples],
            "input_ids": samples,
            "num_tokens": [len(sample) for sample in samples],
        },
        features=FEATURES,
    )


def decode_text(sample: np.ndarray, tokenizer: PreTrainedTokenizerBase, bos_id: int) -> str:
    """Text of a sample without the BOS it starts from and the EOS it ends with; other special tokens stay visible."""
    ids = sample.tolist()
    body = ids[1:] if ids and ids[0] == bos_id else ids
    if body and body[-1] == tokenizer.eos_token_id:
        body = body[:-1]
    return tokenizer.decode(body, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def cut_rows(
    rows: Dataset, n_samples: int | None, n_tokens: int | None, tokenizer: PreTrainedTokenizerBase, bos_id: int
) -> tuple[Dataset, dict | None]:
    """The first rows that make up so many samples, or tokens, the last one cut to the exact token.

    Returns:
        The rows; and what was cut off the last one, `{"id", "rest", "text"}` with the text that is left of it, or None
        if nothing was.
    """
    if n_tokens is None:
        return rows.select(range(n_samples)), None
    ends = np.cumsum(rows.data.column("num_tokens").to_numpy())
    last = int(np.searchsorted(ends, n_tokens))
    if ends[last] == n_tokens:
        return rows.select(range(last + 1)), None
    row = rows[last]
    n_left = row["num_tokens"] - int(ends[last] - n_tokens)
    head = make_rows([row["id"]], [np.array(row["input_ids"][:n_left], dtype=np.int32)], tokenizer, bos_id)
    cut = {"id": row["id"], "rest": row["input_ids"][n_left:], "text": head[0]["text"]}
    # `rows.select` of nothing loses the table, so a budget below one sample is the cut sample alone.
    return (concatenate_datasets([rows.select(range(last)), head]) if last else head), cut


def write_arrow(rows: Dataset, path: Path, features: Features) -> None:
    """Write rows as one Arrow stream."""
    with ArrowWriter(path=str(path), features=features) as writer:
        for batch in rows.with_format("arrow").iter(ROWS_PER_WRITE):
            # Copied, so that the bytes do not show how the rows were sliced out of other files.
            writer.write_table(batch.take(np.arange(len(batch))))
        writer.finalize()
