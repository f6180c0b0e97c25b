"""Text corpora as sources for training: files, saved data sets and data sets of a hub, with their texts in `text`."""

import contextlib
import hashlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from huggingface_hub.errors import HTTPError

from sae_utils.disk import is_disk_full
from sae_utils.errors import InputError, MissingInputError, first_line
from sae_utils.files import (
    READING_ERRORS,
    DamagedFileError,
    check_files,
    checksum_files,
    read_record,
    remove_folder,
    write_record,
)
from sae_utils.memory import is_out_of_memory

logger = logging.getLogger(__name__)

READERS = {".txt": "text", ".jsonl": "json", ".parquet": "parquet"}
"""File endings, and what `datasets` calls their readers."""

TABLE_READERS = READERS | {".csv": "csv"}
"""The same of texts with labels."""

READER_OPTIONS = {".csv": {"keep_default_na": False}}
"""What readers are told where it is not what they would do: the text "None" is a text."""

FLAG = "--text_datasets"
"""What a corpus is given by."""

TEXT_COLUMN = "text"

CACHE_RECORD = "checksums.json"
"""Record beside what `datasets` made of a file, which has no checksums of its own."""


def load_texts(reference: str, cache_dir: Path) -> Dataset:
    """The texts of a corpus, in its order, empty ones left out; only the column `text`.

    Args:
        reference: A .txt file (one text a line, as in the reader of `datasets`), a .jsonl or .parquet file, a folder
            made by `save_to_disk`, or a hub id, with `:` and a configuration's name where it has several. Of several
            splits, `train` is taken.
        cache_dir: Where what is made of a file is kept.

    Raises:
        MissingInputError: If there is no such file, folder or data set.
        InputError: If it cannot be read, or has no column `text` of strings.
    """
    rows = open_corpus(reference, cache_dir)
    if "string" not in (kinds := column_kinds(rows)).get(TEXT_COLUMN, ""):
        raise InputError(f"{FLAG} {reference} must have a column `text` of strings, found {listed(kinds)}")
    with uncached(), explained(reference, made_again(cache_dir)):
        return rows.select_columns([TEXT_COLUMN]).filter(
            lambda texts: [bool(text) for text in texts], input_columns=TEXT_COLUMN, batched=True
        )


def open_corpus(
    reference: str, cache_dir: Path, flag: str = FLAG, readers: Mapping[str, str] = MappingProxyType(READERS)
) -> Dataset:
    """All rows and columns of a corpus; of several splits, those of `train`.

    Args:
        reference: As in `load_texts`.
        cache_dir: Where what is made of a file is kept.
        flag: What it was given by.
        readers: Endings that a file may have.

    Raises:
        InputError: If it is not there, cannot be read, or has several splits and none of that name.
    """
    with explained(reference, made_again(cache_dir), flag):
        check_reference(reference, flag, readers)
        rows = _read(reference, cache_dir)
    return pick_split(rows, reference, flag)


def column_kinds(rows: Dataset) -> dict[str, str]:
    """Types of the columns, by name."""
    return {name: getattr(feature, "dtype", "?") for name, feature in rows.features.items()}


def listed(kinds: Mapping[str, str]) -> str:
    """The same in words, for messages."""
    return ", ".join(f"{name} ({kind})" for name, kind in kinds.items())


def pick_split(rows: Any, reference: str, flag: str = FLAG) -> Any:
    """The rows of `train`, or of the only split there is; rows without splits as they are.

    Raises:
        InputError: If there are several splits, and none is called train.
    """
    if not isinstance(rows, dict):
        return rows
    if "train" not in rows and len(rows) > 1:
        raise InputError(f"{flag} {reference} has the splits {', '.join(rows)}, and none is called train")
    return rows["train"] if "train" in rows else next(iter(rows.values()))


def check_reference(reference: str, flag: str = FLAG, readers: Mapping[str, str] = MappingProxyType(READERS)) -> None:
    """Refuse what can be neither a corpus on disk nor one of a hub.

    Raises:
        MissingInputError: If there is no such file or folder.
        InputError: If a file is of another kind.
    """
    path = Path(reference).expanduser()
    if is_hub_id(reference) or path.is_dir() or (path.is_file() and path.suffix in readers):
        return
    if path.is_file():
        raise InputError(f"{flag} {reference} must end in {', '.join(readers)}, or be a folder or a hub id")
    raise MissingInputError(f"{flag} {reference} does not exist; looked at {path.absolute()}")


def corpus_name(reference: str) -> str:
    """What files and tables call a corpus.

    >>> corpus_name("texts/shakespeare.txt"), corpus_name("Salesforce/wikitext:wikitext-103-raw-v1")
    ('shakespeare', 'wikitext-103-raw-v1')
    """
    name = Path(reference.rpartition(":")[2] if is_hub_id(reference) else reference)
    return name.stem if name.suffix in TABLE_READERS else name.name


def fingerprint_texts(rows: Dataset) -> str:
    """Short hash of the texts, one by one and in order; the file format does not matter."""
    digest = hashlib.sha256()
    for batch in rows.with_format("arrow").iter(batch_size=1000):
        for text in batch.column(TEXT_COLUMN).to_pylist():
            data = text.encode()
            digest.update(f"{len(data)} ".encode() + data)
    return digest.hexdigest()[:16]


def made_again(cache_dir: Path) -> str:
    """What to do about a corpus of which something was made before."""
    return f"if it is whole, what was made of it before is not: rm -r {cache_dir}, and the same command reads it again"


@contextlib.contextmanager
def explained(reference: str, remedy: str, flag: str = FLAG) -> Iterator[None]:
    """Turn whatever `datasets` and the hub's client raise while a corpus is read into one line.

    Args:
        reference: The corpus.
        remedy: What to do.
        flag: What it was given by.

    Raises:
        MissingInputError: If it cannot be read.
    """
    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(logging.CRITICAL)  # what it would log is in the error that it raises
    try:
        yield
    except InputError:
        raise
    except (*READING_ERRORS, HTTPError, StopIteration, datasets.exceptions.DatasetGenerationError) as err:
        if is_out_of_memory(err) or is_disk_full(err):
            raise
        reason = first_line(err.__cause__ or err)
        raise MissingInputError(f"{flag} {reference} could not be read ({reason}); {remedy}") from err
    finally:
        datasets.logging.set_verbosity(verbosity)


@contextlib.contextmanager
def uncached() -> Iterator[None]:
    """Let `datasets` keep what it computes out of the folder it reads from."""
    was_enabled = datasets.is_caching_enabled()
    datasets.disable_caching()
    try:
        yield
    finally:
        if was_enabled:
            datasets.enable_caching()


def is_hub_id(reference: str) -> bool:
    """Whether a reference can only be a hub id: it is not there, and does not look like a path."""
    path = Path(reference).expanduser()
    return not path.exists() and reference[0] not in "./~" and path.suffix not in TABLE_READERS


def _read(reference: str, cache_dir: Path) -> Dataset | DatasetDict:
    """Open a corpus with the library's reader for it."""
    path = Path(reference).expanduser()
    if path.is_dir():
        return load_from_disk(str(path))
    if path.is_file():
        return _read_file(path, cache_dir)
    name, _, configuration = reference.partition(":")
    return load_dataset(name, configuration or None)


def _read_file(path: Path, cache_dir: Path) -> Dataset:
    """A file, by way of the cache of `datasets`; what was made of it before and has changed since is made again."""

    def read() -> Dataset:
        options = READER_OPTIONS.get(path.suffix, {})
        return load_dataset(
            TABLE_READERS[path.suffix], data_files=str(path), split="train", cache_dir=str(cache_dir), **options
        )

    before = {each.resolve() for each in cache_dir.rglob("*.arrow")}
    rows = read()
    made = [Path(file["filename"]).resolve() for file in rows.cache_files]
    if not made:
        return rows
    folder, remedy = made[0].parent, "its text is read again"
    if before.issuperset(made):
        try:
            check_files(folder, read_record(folder / CACHE_RECORD, remedy, checksums=dict)["checksums"], remedy)
            return rows
        except DamagedFileError as err:
            logger.warning("%s", err)
            remove_folder(folder)
            rows = read()
    write_record(folder / CACHE_RECORD, {"checksums": checksum_files(folder, [each.name for each in made])})
    return rows
