"""Bytes on the disk of a generated data set: when it is finished, and at most while it is put together.

A data set is put together from its shards: they stand there until it is complete, and it is written twice, as one
file and from this as the folder of `datasets`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc
from datasets import Dataset

from sae_utils.disk import DiskUse

TEXT_BYTES = 4.0
"""UTF-8 bytes of text a token, as long as nothing says better: of English with some 50,000 tokens to choose from."""

ID_BYTES = 4
"""A token's id."""

NLL_BYTES = 4
"""A token's likelihood, which only shards have."""

ROW_BYTES = 20
"""The rest of a row: the sample's id (8), its number of tokens (4), and where its text and its ids begin (4 each)."""

SHARD_ROW_BYTES = ROW_BYTES + 4
"""The same in a shard: where its likelihoods begin is 4 more."""

FILE_BYTES = 1_900
"""What an Arrow file of one batch has around its rows: schema, lengths of columns, gaps between them."""

RECORD_BYTES = 7_000
"""Record, data card and the small files of `datasets` beside the rows, about."""

COPIES = 2
"""Times that the whole data set stands there while it is put together."""


@dataclass(frozen=True)
class Amount:
    """Samples, as a plan counts them; some of it may be a mean."""

    n_samples: float
    """How many."""

    n_tokens: float
    """Of all together."""

    text_bytes: float = TEXT_BYTES
    """UTF-8 bytes of text a token."""


def finished_bytes(amount: Amount) -> int:
    """A finished data set.

    >>> finished_bytes(Amount(n_samples=1_000, n_tokens=1_000_000))  # 8 bytes a token, and the rows' own
    8027000
    """
    rows = ROW_BYTES * amount.n_samples + (ID_BYTES + amount.text_bytes) * amount.n_tokens
    return round(rows) + RECORD_BYTES


def shard_bytes(amount: Amount, n_together: int) -> int:
    """The shards of some samples, of which so many are in each."""
    rows = SHARD_ROW_BYTES * amount.n_samples + (ID_BYTES + NLL_BYTES + amount.text_bytes) * amount.n_tokens
    return round(rows + FILE_BYTES * amount.n_samples / n_together)


def disk_use(whole: Amount, missing: Amount, n_together: int) -> DiskUse:
    """What making a data set writes, beside what stands there already.

    Args:
        whole: All of the data set.
        missing: What is to be sampled of it.
        n_together: Samples in a shard.
    """
    finished = finished_bytes(whole)
    return DiskUse(shard_bytes(missing, n_together) + COPIES * finished, finished)


def text_bytes_of(files: Iterable[Path], n_samples: int, n_tokens: int) -> float | None:
    """UTF-8 bytes of text a token in the Arrow files of a finished data set; None if there are none."""
    sizes = [path.stat().st_size - FILE_BYTES for path in files]
    return (sum(sizes) - ROW_BYTES * n_samples) / n_tokens - ID_BYTES if sizes else None


def mean_text_bytes(dataset: Dataset) -> float:
    """UTF-8 bytes of text a token in a data set."""
    text, n_tokens = dataset.data.column("text"), pc.sum(dataset.data.column("num_tokens")).as_py()
    return pc.sum(pc.binary_length(text)).as_py() / n_tokens
