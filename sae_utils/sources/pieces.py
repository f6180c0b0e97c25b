"""A piece of a corpus on disk: rows in the corpus' order, texts or token ids, and the texts' own ids beside them."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from sae_utils.files import check_files, checksum_file, reading, written_whole
from sae_utils.models import fingerprint_tokenizer
from sae_utils.sources.corpora import TEXT_COLUMN
from sae_utils.sources.documents import DOCUMENTS_AT_ONCE, own_tokens, split_rows, tokenize, tokenized_documents
from sae_utils.sources.joining import Delimiters
from sae_utils.sources.streams import IDS_COLUMN

REMEDY = "that part of the corpus is read again"
"""What becomes of a piece that is damaged."""


@dataclass(frozen=True)
class Ruler:
    """What a corpus is measured in: a model's tokens, with those that stand between documents."""

    tokenizer: PreTrainedTokenizerBase
    """The model's."""

    delimiters: Delimiters
    """What begins and ends a document for it."""

    @property
    def fingerprint(self) -> str:
        """The tokenizer's."""
        return fingerprint_tokenizer(self.tokenizer)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """What may end a row of ids."""
        return () if self.tokenizer.eos_token_id is None else (self.tokenizer.eos_token_id,)

    def documents(self, column: pa.Array) -> list[np.ndarray]:
        """Rows of a corpus, texts or ids, as the own tokens of documents: int32 arrays `(any,)`."""
        if pa.types.is_list(column.type):
            return own_tokens(column, self.delimiters.bos_id, self.eos_ids)
        return tokenize(column.to_pylist(), self.tokenizer)

    def lengths(self, documents: list[np.ndarray]) -> np.ndarray:
        """Tokens of documents with BOS, and EOS if it is another token, int64 `(n_documents,)`; 0 for an empty one."""
        own = np.array([len(document) for document in documents], np.int64)
        return np.where(own > 0, own + 1 + (self.delimiters.eos_id is not None), 0)


@dataclass
class Waiting:
    """Rows that are to become a piece."""

    columns: list[pa.Array] = field(default_factory=list)
    """As they were read."""

    documents: list[np.ndarray] = field(default_factory=list)
    """The same as own tokens."""

    place: dict[str, Any] | None = None
    """Where the corpus goes on behind them."""

    n_rows: int = 0
    """How many."""

    n_bytes: int = 0
    """How large they are."""

    def add(self, column: pa.Array, documents: list[np.ndarray], place: dict[str, Any]) -> None:
        """Let rows wait that were read up to a place."""
        self.columns.append(column)
        self.documents += documents
        self.place = place
        self.n_rows += len(column)
        self.n_bytes += column.nbytes


@dataclass
class Piece:
    """Consecutive rows of a corpus, in files."""

    first: int
    """Number of the first row."""

    stop: int
    """Number after the last."""

    column: str
    """What the rows are: `text` or `input_ids`."""

    place: dict[str, Any]
    """Where the corpus goes on behind them."""

    checksums: dict[str, str] = field(default_factory=dict)
    """Of the files that are complete."""

    @property
    def rows_file(self) -> str:
        """Name of the file of the rows."""
        return f"rows_{self.first:09d}_{self.stop:09d}.arrow"

    def tokens_file(self, ruler: Ruler) -> str:
        """Name of the file of the texts' ids."""
        return f"tokens_{self.first:09d}_{self.stop:09d}_{ruler.fingerprint}.arrow"

    def record(self) -> dict[str, Any]:
        """What the excerpt's record says of it."""
        return asdict(self)

    def check(self, folder: Path) -> None:
        """Compare its files with what was written.

        Raises:
            DamagedFileError: If one differs, or is gone.
        """
        check_files(folder, self.checksums, REMEDY)

    def rows(self, folder: Path) -> Dataset:
        """Its rows, mapped."""
        return _open(folder / self.rows_file)

    def documents(self, folder: Path, ruler: Ruler, n_rows: int) -> Iterator[list[np.ndarray]]:
        """The own tokens of its first rows, as they were tokenized before if they were: int32 arrays `(any,)`."""
        name = self.rows_file if self.column == IDS_COLUMN else self.tokens_file(ruler)
        if name not in self.checksums:
            yield from tokenized_documents(self.rows(folder).select(range(n_rows)), ruler.tokenizer)
            return
        rows = _open(folder / name).select(range(n_rows)).with_format("arrow")
        for batch in rows.iter(batch_size=DOCUMENTS_AT_ONCE):
            column = batch.column(IDS_COLUMN).combine_chunks()
            yield split_rows(column) if self.column == TEXT_COLUMN else ruler.documents(column)

    def tokenize(self, folder: Path, ruler: Ruler) -> bool:
        """Write the texts' ids beside them, unless they are there, or the rows are ids; whether any were written."""
        if self.column == IDS_COLUMN or self.tokens_file(ruler) in self.checksums:
            return False
        texts = self.rows(folder)
        documents = [each for some in tokenized_documents(texts, ruler.tokenizer) for each in some]
        self._write(folder, self.tokens_file(ruler), IDS_COLUMN, [_as_lists(documents)])
        return True

    def write(self, folder: Path, waiting: Waiting, ruler: Ruler) -> None:
        """Write its files, each complete or not at all."""
        self._write(folder, self.rows_file, self.column, waiting.columns)
        if self.column == TEXT_COLUMN:
            self._write(folder, self.tokens_file(ruler), IDS_COLUMN, [_as_lists(waiting.documents)])

    def _write(self, folder: Path, name: str, column: str, pieces: list[pa.Array]) -> None:
        """Write a column as an Arrow stream."""
        table = pa.table({column: pa.chunked_array(pieces).combine_chunks()})
        with written_whole(folder / name, n_bytes=table.nbytes) as file:
            with pa.ipc.new_stream(str(file.scratch), table.schema) as stream:
                stream.write_table(table, max_chunksize=DOCUMENTS_AT_ONCE)
            self.checksums[name] = checksum_file(file.scratch)


def _as_lists(documents: list[np.ndarray]) -> pa.ListArray:
    """Documents as one column of lists of int32."""
    ends = np.cumsum([0, *map(len, documents)], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(np.concatenate([np.zeros(0, np.int32), *documents])))


def _open(path: Path) -> Dataset:
    """Rows of a file, mapped."""
    with reading(path, f"rm {path}, and {REMEDY}"):
        return Dataset.from_file(str(path))
