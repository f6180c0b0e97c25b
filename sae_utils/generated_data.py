"""A generated data set on disk: its columns, its record, and how it is opened, whole or in a shorter form it had."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, List, Value, concatenate_datasets

from sae_utils.errors import InputError
from sae_utils.files import DamagedFileError, Record, check_files, read_record, reading

FEATURES = Features(
    {
        "id": Value("int64"),
        "text": Value("string"),
        "input_ids": List(Value("int32")),
        "num_tokens": Value("int32"),
    }
)
"""Columns of every generated data set; `input_ids` are the sampled ids, BOS first, `num_tokens` their number."""

RECORD_FILE = "generation.json"
"""The record beside the samples; a folder that has it is complete."""

CARD_FILE = "README.md"
"""The data card beside them; for people, who may edit it."""

REMEDY = "bring back a copy, or sample it anew with the generate_datasets.py command that made it and --overwrite"
"""What to do about a data set that is damaged."""


class OtherSamplesError(InputError):
    """A data set does not begin with the samples that it should."""


@dataclass(frozen=True)
class Form:
    """How much of its stream of samples a data set holds, or held before it was extended; recorded by who used it."""

    n_samples: int
    """Samples, the first of the stream."""

    n_tokens: int
    """Their tokens; the last sample may be cut."""

    fingerprint: str
    """Of the token ids."""

    last_text: str | None = None
    """Text of the last sample, if it is cut: it will be longer in a longer form."""


def read_generation_record(folder: Path) -> Record:
    """`generation.json` of a data set.

    Raises:
        DamagedFileError: If it is damaged, or not one of ours.
    """
    kinds = {"settings": dict, "n_samples": int, "n_tokens": int, "fingerprint": str}
    return read_record(folder / RECORD_FILE, REMEDY, **kinds)


def open_samples(folder: Path, record: Record) -> Dataset:
    """The samples of a finished data set, compared with the checksums in its record.

    Raises:
        DamagedFileError: If they are not the ones that were written.
    """
    check_files(folder, {name: each for name, each in record.get("checksums", {}).items() if name != CARD_FILE}, REMEDY)
    with reading(folder, REMEDY):
        samples = Dataset.load_from_disk(str(folder))
        if samples.features != FEATURES:
            raise DamagedFileError(folder, f"its columns are {', '.join(samples.column_names)}", REMEDY)
        if len(samples) != record["n_samples"] or not len(samples):
            raise DamagedFileError(folder, f"{len(samples):,} samples for {record['n_samples']:,}", REMEDY)
        if "checksums" not in record and fingerprint_samples(samples) != record["fingerprint"]:
            raise DamagedFileError(folder, "its token ids are not those that were sampled", REMEDY)
    return samples


def cut_to_form(samples: Dataset, form: Form, folder: Path) -> Dataset:
    """The beginning of a data set that was all of it once.

    Args:
        samples: The data set.
        form: What it held.
        folder: Where it is.

    Raises:
        OtherSamplesError: If it does not begin so.
    """
    rows = samples.select(range(form.n_samples)) if form.n_samples < len(samples) else samples
    n_over = int(rows.data.column("num_tokens").to_numpy().sum()) - form.n_tokens if form.n_samples == len(rows) else 0
    if n_over > 0:
        last = rows[-1]
        cut = last | {"input_ids": last["input_ids"][:-n_over], "num_tokens": last["num_tokens"] - n_over}
        head = Dataset.from_list([cut | {"text": form.last_text or last["text"]}], features=FEATURES)
        rows = concatenate_datasets([rows.select(range(len(rows) - 1)), head]) if len(rows) > 1 else head
    if fingerprint_samples(rows) != form.fingerprint:
        raise OtherSamplesError(
            f"{folder} does not begin with the {form.n_samples:,} samples that it once was; bring these back"
        )
    return rows


def fingerprint_samples(samples: Dataset) -> str:
    """Short hash of the token ids of a data set, sample by sample; texts and file layout do not matter."""
    digest = hashlib.sha256()
    for batch in samples.with_format("arrow").iter(batch_size=1000):
        column = batch.column("input_ids").combine_chunks()
        digest.update(np.asarray(column.value_lengths(), dtype=np.int32).tobytes())
        digest.update(np.asarray(column.flatten(), dtype=np.int32).tobytes())
    return digest.hexdigest()[:16]
