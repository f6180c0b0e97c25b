"""A corpus read from its beginning, a few rows at a time, or from a place in it: no more of it is touched than is used.

Files and data sets of a hub are streamed by `datasets`; a folder made by `save_to_disk` is mapped. Either way the rows
come in the corpus' order, and a place is JSON: reading that was interrupted goes on there, with the rows that an
unbroken reading would have given.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, IterableDataset, load_dataset, load_from_disk
from huggingface_hub.errors import HTTPError

from sae_utils.errors import InputError, first_line
from sae_utils.files import checksum_text
from sae_utils.sources.corpora import READERS, TEXT_COLUMN, check_reference, explained, is_hub_id, pick_split

IDS_COLUMN = "input_ids"

REMEDY = "mend that, and the same command goes on where this one stopped"

ROWS_AT_ONCE = 256
"""Rows that are read together; a row may be a book."""


@dataclass(frozen=True)
class Stream:
    """A corpus that is open."""

    reference: str
    """File, folder or hub id."""

    rows: Dataset | IterableDataset
    """Its rows."""

    column: str
    """What is read of them: texts if it has any, else token ids."""

    def read(self, place: dict[str, Any] | None = None) -> Iterator[tuple[pa.Array, dict[str, Any]]]:
        """Rows that are not empty, and the place behind them, from the beginning or from such a place.

        Yields:
            Strings, or lists of int32; and where to go on.

        Raises:
            MissingInputError: If the corpus cannot be read.
        """
        with explained(self.reference, REMEDY):
            for column, behind in self._batches(place or {"n_rows": 0}):
                if len(kept := _cleaned(column, self.column, self.reference)):
                    yield kept, behind

    def _batches(self, place: dict[str, Any]) -> Iterator[tuple[pa.Array, dict[str, Any]]]:
        n_rows, rows = place["n_rows"], self.rows.with_format("arrow")
        if isinstance(rows, Dataset):
            rows = rows.select(range(n_rows, len(rows)))
        elif place.get("datasets") == datasets.__version__:
            rows.load_state_dict(place["state"])
        elif n_rows:
            rows = rows.skip(n_rows)  # another version may describe places otherwise: read over what is known
        for batch in rows.iter(batch_size=ROWS_AT_ONCE):
            n_rows += len(batch)
            behind = {"n_rows": n_rows}
            if not isinstance(rows, Dataset):
                behind |= {"datasets": datasets.__version__, "state": json.loads(json.dumps(rows.state_dict()))}
            yield batch.column(self.column).combine_chunks(), behind


def open_stream(reference: str, revision: str | None = None) -> Stream:
    """Open a corpus; nothing of it is read but what tells its columns.

    Args:
        reference: As for `corpora.load_texts`.
        revision: Commit of a hub's data set; None for its newest.

    Raises:
        MissingInputError: If it is not there.
        InputError: If it has neither a column `text` of strings nor one `input_ids` of lists of integers.
    """
    check_reference(reference)
    with explained(reference, REMEDY):
        rows = _open(reference, revision)
    rows = pick_split(rows, reference)
    with explained(reference, REMEDY):
        features = rows.features if rows.features is not None else rows._resolve_features().features
    return Stream(reference, rows, find_column(features.arrow_schema, reference))


def find_column(schema: pa.Schema, reference: str) -> str:
    """What is read of a corpus: its texts, which any target can read, or token ids if it has no texts.

    Raises:
        InputError: If it has neither.
    """
    kinds = {field.name: field.type for field in schema}
    text, ids = kinds.get(TEXT_COLUMN, pa.null()), kinds.get(IDS_COLUMN, pa.null())
    if pa.types.is_string(text) or pa.types.is_large_string(text):
        return TEXT_COLUMN
    is_list = pa.types.is_list(ids) or pa.types.is_large_list(ids) or pa.types.is_fixed_size_list(ids)
    if is_list and pa.types.is_integer(ids.value_type):
        return IDS_COLUMN
    raise InputError(
        f"--text_datasets {reference} must have a column `text` of strings, or `input_ids` of lists of integers, found "
        f"{', '.join(f'{name} ({kind})' for name, kind in kinds.items())}"
    )


def find_stamp(reference: str) -> str | None:
    """What tells one state of a corpus from another without reading it.

    Returns:
        Of a file or folder, a hash of sizes and times; of a hub's data set, its newest commit, or None where the hub
        does not say.
    """
    if is_hub_id(reference):
        with contextlib.suppress(OSError, ValueError, HTTPError):  # streaming itself will say what is wrong
            return huggingface_hub.HfApi().dataset_info(reference.partition(":")[0]).sha
        return None
    path = Path(reference).expanduser()
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    kept = [each for each in files if each.is_file() and not each.name.startswith("cache-")]  # of `datasets`, beside it
    found = [(each.name, each.stat().st_size, each.stat().st_mtime_ns) for each in kept]
    return checksum_text(json.dumps(found))


def _open(reference: str, revision: str | None) -> Any:
    """The rows, or splits of them, nothing read yet."""
    path = Path(reference).expanduser()
    if path.is_dir():
        return load_from_disk(str(path))
    if path.is_file():
        return load_dataset(READERS[path.suffix], data_files=str(path), split="train", streaming=True)
    name, _, configuration = reference.partition(":")
    if huggingface_hub.constants.HF_HUB_OFFLINE:  # what `datasets` has of it from before
        return load_dataset(name, configuration or None)
    return load_dataset(name, configuration or None, streaming=True, revision=revision)


def _cleaned(column: pa.Array, name: str, reference: str) -> pa.Array:
    """Rows that hold something, in one type: strings, or lists of int32.

    Raises:
        InputError: If a number is no token id.
    """
    if name == TEXT_COLUMN:
        column = column.cast(pa.string())
        return column.filter(pc.fill_null(pc.greater(pc.binary_length(column), 0), False))
    try:
        column = column.cast(pa.list_(pa.int32()))
    except pa.ArrowInvalid as err:
        raise InputError(f"--text_datasets {reference} has no token ids in `input_ids` ({first_line(err)})") from err
    column = column.filter(pc.fill_null(pc.greater(pc.list_value_length(column), 0), False))
    if column.flatten().null_count:
        raise InputError(f"--text_datasets {reference} has rows in `input_ids` with nothing where a token id should be")
    return column
