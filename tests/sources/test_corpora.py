"""Text corpora: the same texts, whatever they are stored in, and none of them lost."""

import json
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from sae_utils.errors import InputError, MissingInputError
from sae_utils.sources.corpora import corpus_name, fingerprint_texts, load_texts

TEXTS = ["the quick brown fox", "jumps over the lazy dog", "and runs away"]


def write_corpus(kind: str) -> str:
    """The three texts, and an empty one, in a file or folder of this kind."""
    rows = Dataset.from_dict({"text": [*TEXTS[:2], "", TEXTS[2]], "url": list("abcd")})
    path = Path(f"corpus{kind}")
    if kind == ".txt":
        path.write_text("\n".join(rows["text"]) + "\n")
    elif kind == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == ".parquet":
        rows.to_parquet(path)
    elif kind == "_splits":
        DatasetDict({"test": rows.select([0]), "train": rows}).save_to_disk(path)
    else:
        rows.save_to_disk(path)
    return str(path)


@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".parquet", "_folder", "_splits"])
def test_every_format_gives_the_same_texts(kind, tmp_path):
    reference = write_corpus(kind)
    before = sorted(Path().rglob("*"))
    rows = load_texts(reference, tmp_path / "cache")
    assert rows["text"] == TEXTS and rows.column_names == ["text"]
    assert fingerprint_texts(rows) == fingerprint_texts(Dataset.from_dict({"text": TEXTS}))
    assert [path for path in sorted(Path().rglob("*")) if "cache" not in str(path)] == before, "left beside the corpus"
    assert corpus_name(reference) == "corpus" + kind.replace(".txt", "").replace(".jsonl", "").replace(".parquet", "")


def test_fingerprint_sees_where_a_text_ends():
    one, other = Dataset.from_dict({"text": ["ab", "c"]}), Dataset.from_dict({"text": ["a", "bc"]})
    assert fingerprint_texts(one) != fingerprint_texts(other)


@pytest.mark.parametrize(
    ("reference", "error", "message"),
    [
        ("nowhere.txt", MissingInputError, "nowhere.txt does not exist"),
        ("./nowhere", MissingInputError, "nowhere does not exist"),
        ("nobody/nothing", MissingInputError, "nobody/nothing could not be read"),
        ("notes.md", InputError, r"notes.md must end in .txt, .jsonl, .parquet"),
        ("empty_folder", MissingInputError, "empty_folder could not be read"),
        ("other.jsonl", InputError, r"must have a column `text` of strings, found body \(string\)"),
        ("numbers.jsonl", InputError, r"found text \(int64\)"),
        ("broken.jsonl", MissingInputError, "broken.jsonl could not be read"),
    ],
)
def test_what_is_no_corpus_is_refused(reference, error, message, tmp_path):
    Path("notes.md").write_text("# notes")
    Path("empty_folder").mkdir()
    Path("other.jsonl").write_text('{"body": "x"}\n')
    Path("numbers.jsonl").write_text('{"text": 1}\n')
    Path("broken.jsonl").write_text('{"text": "x"\n')
    with pytest.raises(error, match=message):
        load_texts(reference, tmp_path / "cache")


def test_a_text_that_changed_in_the_cache_is_read_again(tmp_path, caplog):
    """`datasets` keeps what it makes of a file, without checksums: other text would be trained on, without a word."""
    Path("texts.txt").write_text("\n".join(TEXTS))
    cache = tmp_path / "cache"
    assert load_texts("texts.txt", cache)["text"] == TEXTS
    (made,) = cache.rglob("*.arrow")
    data = made.read_bytes()
    assert data.count(b"fox") == 1
    made.write_bytes(data.replace(b"fox", b"box"))
    assert load_texts("texts.txt", cache)["text"] == TEXTS
    (line,) = [record.getMessage() for record in caplog.records]
    assert str(made) in line and "its text is read again" in line
    assert load_texts("texts.txt", cache)["text"] == TEXTS and len(caplog.records) == 1
