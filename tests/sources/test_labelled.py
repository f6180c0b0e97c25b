"""Labelled texts: the same texts and classes, whatever they are stored in; what no probe can learn from is refused."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from sae_utils.errors import InputError, MissingInputError
from sae_utils.sources.labelled import find_labelled, read_labelled
from sae_utils.sources.packs import Packs

TEXTS = [f"text {i}, and more" for i in range(11)]
LABELS = [3, 3, 20, 20, 3, 20, 20, 3, 3, 20, 20]
PACKS = Packs((Path("datasets"),))


def write_rows(kind: str, texts: Sequence[str | None], labels: Sequence[object]) -> str:
    """A file or folder of this kind."""
    rows, path = Dataset.from_dict({"id": list(range(len(texts))), "text": texts, "label": labels}), f"rows{kind}"
    if kind == ".jsonl":
        Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == ".csv":
        rows.to_csv(path)
    elif kind == ".parquet":
        rows.to_parquet(path)
    elif kind == "_splits":
        DatasetDict({"test": rows.select([0]), "train": rows}).save_to_disk(path)
    else:
        rows.save_to_disk(path)
    return path


@pytest.mark.parametrize("kind", [".jsonl", ".csv", ".parquet", "_folder", "_splits"])
def test_every_format_gives_the_same_texts_and_classes(kind):
    """Else a probe would have to be measured again because a file was converted."""
    (found,) = find_labelled([write_rows(kind, TEXTS, LABELS)], PACKS)
    assert found.texts["text"] == TEXTS and found.texts.column_names == ["text"]
    assert found.classes.tolist() == [int(label == 20) for label in LABELS] and found.classes.dtype == np.int64
    assert (found.n_classes, found.name) == (2, "rows" + ("" if kind.startswith(".") else kind))
    assert found.fingerprint == read_labelled(write_rows("_other", TEXTS, LABELS), PACKS).fingerprint


def test_numbers_and_words_that_spell_them_are_the_same_labels():
    as_words = read_labelled(write_rows(".jsonl", TEXTS, [f"label {i}" for i in LABELS]), PACKS)
    assert as_words.classes.tolist() == [int(label == 3) for label in LABELS], '"label 20" < "label 3"'
    spelled = read_labelled(write_rows("_spelled", TEXTS, [str(i) for i in LABELS]), PACKS)
    assert spelled.fingerprint == read_labelled(write_rows("_numbers", TEXTS, LABELS), PACKS).fingerprint


def test_named_classes_of_the_hub_are_read_by_their_numbers():
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    Dataset.from_dict({"text": TEXTS, "label": [int(i > 4) for i in range(11)]}, features).save_to_disk("named")
    assert read_labelled("named", PACKS).classes.tolist() == [0] * 5 + [1] * 6


def test_the_fingerprint_sees_texts_labels_and_their_order():
    """What is known under it is not measured again."""
    changed = [
        (TEXTS, LABELS),
        (TEXTS, LABELS[::-1]),
        (TEXTS[::-1], LABELS),
        ([TEXTS[0] + "!", *TEXTS[1:]], LABELS),
        ([f"{text}3" for text in TEXTS], LABELS),
        (TEXTS, [f"3{label}" for label in LABELS]),
    ]
    prints = [read_labelled(write_rows(f"_{i}", *each), PACKS).fingerprint for i, each in enumerate(changed)]
    assert len(set(prints)) == len(changed)


@pytest.mark.parametrize("kind", [".jsonl", ".csv"])
def test_texts_that_are_empty_or_have_no_label_are_left_out_and_counted(kind, caplog):
    texts, labels = [*TEXTS, "", "no label", None], [*map(str, LABELS), "3", None, "20"]
    found = read_labelled(write_rows(kind, texts, labels), PACKS)
    assert found.texts["text"] == TEXTS and len(found.classes) == 11
    said = [record.getMessage() for record in caplog.records]
    assert said == ["rows: 3 of 14 texts are empty or have no label, and are left out"]
    assert found.fingerprint == read_labelled(write_rows("_whole", TEXTS, LABELS), PACKS).fingerprint


def test_words_that_pandas_takes_for_nothing_are_texts_and_labels():
    texts, labels = ["None", "null", "NA", "nan", *TEXTS], ["NA"] * 5 + ["None"] * 10
    found = read_labelled(write_rows(".csv", texts, labels), PACKS)
    assert found.texts["text"] == texts and np.bincount(found.classes).tolist() == [5, 10]


COLUMNS = "must have a column `text` of strings and a column `label` of strings or integers, found"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("other.jsonl", f"--probe_datasets other.jsonl {COLUMNS} text (string), topic (string)"),
        ("numbers.jsonl", f"--probe_datasets numbers.jsonl {COLUMNS} text (int64), label (int64)"),
        ("shares.jsonl", f"--probe_datasets shares.jsonl {COLUMNS} text (string), label (float64)"),
        ("plain.txt", "plain.txt must end in .jsonl, .parquet, .csv, or be a folder or a hub id"),
        (
            "one.jsonl",
            "one.jsonl must have at least two classes in the column `label`, found 'a' alone",
        ),
        ("empty.jsonl", "must have at least two classes in the column `label`, found none, as no text is left"),
        (
            "few.jsonl",
            "--probe_datasets few.jsonl must have at least 5 texts of every class, as one in so many is held out, and "
            "has 4 of 'b'; leave the class out, or give more texts",
        ),
        ("notes.md", "--probe_datasets notes.md must end in .jsonl, .parquet, .csv, or be a folder or a hub id"),
        ("nowhere.jsonl", "--probe_datasets nowhere.jsonl does not exist; looked at"),
        ("nowhere.csv", "--probe_datasets nowhere.csv does not exist; looked at"),
        ("broken.jsonl", "--probe_datasets broken.jsonl could not be read"),
    ],
)
def test_what_cannot_be_probed_on_is_refused_in_one_line(reference, message):
    files = {
        "other.jsonl": [{"text": "x", "topic": "a"}],
        "numbers.jsonl": [{"text": 1, "label": 1}],
        "shares.jsonl": [{"text": "x", "label": 0.5}],
        "one.jsonl": [{"text": "x", "label": "a"}] * 9,
        "empty.jsonl": [{"text": "", "label": "a"}] * 9,
        "few.jsonl": [{"text": "x", "label": "a"}] * 9 + [{"text": "x", "label": "b"}] * 4,
    }
    for name, rows in files.items():
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("broken.jsonl").write_text('{"text": "x"\n')
    for name in ("plain.txt", "notes.md"):
        Path(name).write_text("x\n")
    with pytest.raises(InputError) as refusal:
        read_labelled(reference, PACKS)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)
    assert isinstance(refusal.value, MissingInputError) == (
        reference in ("nowhere.jsonl", "nowhere.csv", "broken.jsonl")
    )


def test_two_data_sets_of_one_name_are_refused():
    """Their results would be taken for each other."""
    with pytest.raises(InputError, match="--probe_datasets must have different short names, got rows rows"):
        find_labelled(["rows.jsonl", "elsewhere/rows.parquet"], PACKS)
