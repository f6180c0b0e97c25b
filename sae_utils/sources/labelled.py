"""Labelled texts, for probes: files, saved data sets and data sets of a hub with the columns `text` and `label`."""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from sae_utils.errors import InputError
from sae_utils.sources.catalog import check_distinct
from sae_utils.sources.corpora import (
    TABLE_READERS,
    TEXT_COLUMN,
    column_kinds,
    corpus_name,
    explained,
    listed,
    made_again,
    open_corpus,
    uncached,
)
from sae_utils.sources.packs import Packs

logger = logging.getLogger(__name__)

FLAG = "--probe_datasets"
"""What labelled texts are given by."""

LABELLED_READERS = {ending: reader for ending, reader in TABLE_READERS.items() if ending != ".txt"}
"""Endings of files that have a place for labels."""

LABEL_COLUMN = "label"

LABEL_KINDS = ("string", "int", "bool")
"""What the names of the types of labels have in them; numbers with fractions are no classes."""

HELD_OUT_ONE_IN = 5
"""Of so many texts of a class one is held out, so that each class must have as many."""


@dataclass(frozen=True)
class LabelledTexts:
    """A data set to probe on."""

    name: str
    """What files and tables call it."""

    texts: Dataset
    """The texts, in their order; only the column `text`."""

    classes: np.ndarray
    """Class of each text, int64 `(texts,)`, counted from 0 in the order of the labels."""

    fingerprint: str
    """Short hash of the texts and their labels, one by one and in order."""

    @property
    def n_classes(self) -> int:
        """Different labels."""
        return int(self.classes.max()) + 1


def find_labelled(references: Sequence[str], packs: Packs) -> list[LabelledTexts]:
    """The data sets to probe on, in the order in which they were given.

    Raises:
        InputError: If one cannot be read or probed on, or two have one name.
    """
    check_distinct([corpus_name(each) for each in references], FLAG)
    return [read_labelled(each, packs) for each in references]


def read_labelled(reference: str, packs: Packs) -> LabelledTexts:
    """One data set to probe on; texts that are empty or have no label are left out, which is said.

    Args:
        reference: A .jsonl, .parquet or .csv file, a folder made by `save_to_disk`, or a hub id, with `:` and a
            configuration's name where it has several. Of several splits, `train` is taken.
        packs: Where what is made of a file is kept.

    Raises:
        InputError: If it is not there or cannot be read; if it has no column `text` of strings or no column `label` of
            strings or integers; if it has one class only, or a class of fewer than `HELD_OUT_ONE_IN` texts.
    """
    rows = open_corpus(reference, packs.texts_folder, FLAG, LABELLED_READERS)
    kinds = column_kinds(rows)
    is_label = any(kind in kinds.get(LABEL_COLUMN, "") for kind in LABEL_KINDS)
    if "string" not in kinds.get(TEXT_COLUMN, "") or not is_label:
        raise InputError(
            f"{FLAG} {reference} must have a column `text` of strings and a column `label` of strings or integers, "
            f"found {listed(kinds)}"
        )
    with uncached(), explained(reference, made_again(packs.texts_folder), FLAG):
        rows = rows.select_columns([TEXT_COLUMN, LABEL_COLUMN])
        usable = [i for i, (text, label) in enumerate(_pairs(rows)) if text and label not in (None, "")]
        if len(usable) < len(rows):
            logger.warning(
                "%s: %s of %s texts are empty or have no label, and are left out",
                corpus_name(reference),
                f"{len(rows) - len(usable):,}",
                f"{len(rows):,}",
            )
            rows = rows.select(usable)
        labels, fingerprint = _labels_of(rows)
    check_classes(labels, reference)
    numbers = {label: number for number, label in enumerate(sorted(set(labels)))}
    classes = np.array([numbers[label] for label in labels])
    return LabelledTexts(corpus_name(reference), rows.select_columns([TEXT_COLUMN]), classes, fingerprint)


def check_classes(labels: Sequence[str | int], reference: str) -> None:
    """Refuse labels on which nothing can be learned, or nothing held out.

    Raises:
        InputError: If there are fewer than two classes, or one has fewer than `HELD_OUT_ONE_IN` texts.
    """
    counts = Counter(labels)
    if len(counts) < 2:
        found = f"{next(iter(counts))!r} alone" if counts else "none, as no text is left"
        raise InputError(f"{FLAG} {reference} must have at least two classes in the column `label`, found {found}")
    label, n_texts = min(counts.items(), key=lambda item: item[1])
    if n_texts < HELD_OUT_ONE_IN:
        raise InputError(
            f"{FLAG} {reference} must have at least {HELD_OUT_ONE_IN} texts of every class, as one in so many is held "
            f"out, and has {n_texts} of {label!r}; leave the class out, or give more texts"
        )


def _pairs(rows: Dataset) -> Iterator[tuple[str | None, str | int | None]]:
    """Texts with their labels; of named classes, the numbers."""
    for batch in rows.with_format("arrow").iter(batch_size=1000):
        yield from zip(batch.column(TEXT_COLUMN).to_pylist(), batch.column(LABEL_COLUMN).to_pylist(), strict=True)


def _labels_of(rows: Dataset) -> tuple[list[str | int], str]:
    """The labels, and the fingerprint of texts and labels; whether a label is a number or spells it does not matter."""
    labels, digest = [], hashlib.sha256()
    for text, label in _pairs(rows):
        labels.append(label)
        for data in (text.encode(), str(label).encode()):
            digest.update(f"{len(data)} ".encode() + data)
    return labels, digest.hexdigest()[:16]
