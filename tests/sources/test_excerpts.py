"""The beginning of a corpus: no more is read than is needed, once, and it does not show how it came there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import CORPUS, run_killed, train_tokenizer
from datasets import Dataset
from hub_server import COMMIT, NAME, running_hub

from sae_utils.errors import InputError
from sae_utils.generated_data import fingerprint_samples
from sae_utils.sources import excerpts
from sae_utils.sources.corpora import fingerprint_texts
from sae_utils.sources.excerpts import Excerpt
from sae_utils.sources.joining import Delimiters
from sae_utils.sources.pieces import Ruler

ROOT = Path(__file__).resolve().parent.parent.parent
TEXTS = [f"{i} {CORPUS[i % 4][: 5 + 13 * i % 70]}" if i % 7 else "" for i in range(1500)]
KEPT = [text for text in TEXTS if text]


@pytest.fixture(scope="module")
def ruler() -> Ruler:
    """A model with one token between documents."""
    return Ruler(train_tokenizer(bos="<|endoftext|>", eos="<|endoftext|>"), Delimiters(0, None))


@pytest.fixture
def small(monkeypatch) -> None:
    """Pieces of a few rows."""
    monkeypatch.setattr(excerpts, "PIECE_BYTES", 10_000)


def write_texts(texts: list[str] = TEXTS, path: str = "texts.jsonl") -> str:
    Path(path).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def n_first(n_tokens: int, ruler: Ruler, texts: list[str] = KEPT) -> int:
    """Texts that together have so many tokens, counted one by one."""
    total = 0
    for n, text in enumerate(texts, 1):
        total += len(ruler.tokenizer(text, add_special_tokens=False)["input_ids"]) + 1
        total += ruler.delimiters.eos_id is not None
        if total >= n_tokens:
            return n
    return len(texts)


def files(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).rglob("*.arrow")}


def fingerprint(texts: list[str]) -> str:
    return fingerprint_texts(Dataset.from_dict({"text": texts}))


@pytest.mark.parametrize("delimiters", [Delimiters(0, None), Delimiters(1, 2)])
@pytest.mark.parametrize("n_tokens", [1, 2000, 20_000, 10**9, None])
def test_as_few_texts_are_taken_as_have_so_many_tokens(ruler, delimiters, n_tokens):
    """Whatever else is there: a control with other tokens than were asked for is another control."""
    ruler = Ruler(ruler.tokenizer, delimiters)
    beginning = Excerpt(write_texts(), Path("kept"), quiet=True).take(n_tokens, ruler)
    expected = n_first(n_tokens or 10**9, ruler)
    assert beginning.n_rows == expected and beginning.column == "text"
    assert beginning.fingerprint == fingerprint(KEPT[:expected])


def test_smaller_and_larger_amounts_are_beginnings_of_one_another(ruler, small):
    """They are read once, and nothing shows in which order they were asked for."""
    excerpt = Excerpt(write_texts(), Path("kept"), quiet=True)
    for n_tokens in (5000, 1000, 12_000, 5000, 30_000):
        beginning = excerpt.take(n_tokens, ruler)
        fresh = Excerpt("texts.jsonl", Path(f"fresh_{n_tokens}"), quiet=True).take(n_tokens, ruler)
        assert beginning == fresh
        assert beginning.fingerprint == fingerprint(KEPT[: n_first(n_tokens, ruler)])


def test_what_is_there_is_not_read_again(ruler, small):
    """Also not by another process, days later, on a machine without network: here the file is gone."""
    reference = write_texts()
    first = Excerpt(reference, Path("kept"), quiet=True).take(12_000, ruler)
    smaller = Excerpt(reference, Path("kept"), quiet=True).take(5000, ruler)
    before = files("kept")
    Path(reference).unlink()
    assert Excerpt(reference, Path("kept"), quiet=True).take(12_000, ruler) == first
    assert Excerpt(reference, Path("kept"), quiet=True).take(5000, ruler) == smaller
    assert files("kept") == before
    found = list(Excerpt(reference, Path("kept"), quiet=True).documents(smaller.n_rows, smaller.fingerprint, ruler))
    ids = ruler.tokenizer(KEPT[: smaller.n_rows], add_special_tokens=False)["input_ids"]
    assert [document.tolist() for some in found for document in some] == ids


@pytest.mark.parametrize("kind", [".jsonl", ".parquet", ".txt", "_folder"])
def test_killed_reading_goes_on_and_ends_with_the_same_bytes(ruler, small, kind):
    """SIGKILL again and again: no text is lost, none is there twice, and no whole piece is read again."""
    reference = f"texts{kind}"
    rows = Dataset.from_dict({"text": TEXTS})
    if kind == "_folder":
        rows.save_to_disk(reference)
    elif kind == ".parquet":
        rows.to_parquet(reference, batch_size=170)
    elif kind == ".txt":
        Path(reference).write_text("\n".join(TEXTS) + "\n")
    else:
        write_texts()
    Excerpt(reference, Path("unbroken"), quiet=True).take(10**9, ruler)
    take = lambda _: Excerpt(reference, Path("killed"), quiet=True).take(10**9, ruler)  # noqa: E731
    n_rows = 0
    for moment in (1, 2, 5, 14, 9):
        assert run_killed(take, [], moment), "killed too late to test anything"
        there = list(Path("killed").rglob("rows_*.arrow"))
        assert len(there) >= n_rows
        n_rows = len(there)
    assert n_rows > 2
    take(None)
    assert files("killed") == files("unbroken")
    whole = Excerpt(reference, Path("killed"), quiet=True).take(None, ruler)
    assert (whole.n_rows, whole.fingerprint) == (len(KEPT), fingerprint(KEPT))


def test_a_damaged_piece_is_read_again(ruler, small, caplog):
    reference = write_texts()
    expected = Excerpt(reference, Path("kept"), quiet=True).take(20_000, ruler)
    before = files("kept")
    for path in sorted(Path("kept").rglob("*_*.arrow"))[1::3]:
        data = path.read_bytes()
        path.write_bytes(data[:-40] + bytes(40))
        assert Excerpt(reference, Path("kept"), quiet=True).take(20_000, ruler) == expected
        assert str(path) in caplog.text and "that part of the corpus is read again" in caplog.text
    assert files("kept") == before
    (record,) = Path("kept").rglob("excerpt.json")
    record.write_text(record.read_text().replace("text", "test", 1))
    assert Excerpt(reference, Path("kept"), quiet=True).take(20_000, ruler) == expected


def test_a_file_that_changed_is_read_anew(ruler, small):
    """Else its old text would be trained on, without a word."""
    excerpt = Excerpt(write_texts(), Path("kept"), quiet=True)
    excerpt.take(5000, ruler)
    other = [text.upper() for text in KEPT]
    write_texts(other)
    beginning = excerpt.take(5000, ruler)
    assert beginning.fingerprint == fingerprint(other[: n_first(5000, ruler, other)])


def test_what_was_deleted_is_read_again_and_held_against_the_fingerprint(ruler, small):
    """What packed sequences are made of is safe to delete; other text in its place is not taken for it."""
    excerpt = Excerpt(write_texts(), Path("kept"), quiet=True)
    beginning = excerpt.take(5000, ruler)
    again = Excerpt("texts.jsonl", Path("other"), quiet=True)
    found = [len(some) for some in again.documents(beginning.n_rows, beginning.fingerprint, ruler)]
    assert sum(found) == beginning.n_rows
    write_texts([text.upper() for text in KEPT])
    changed = Excerpt("texts.jsonl", Path("changed"), quiet=True)
    with pytest.raises(InputError, match=r"does not begin with the .* texts of the fingerprint"):
        list(changed.documents(beginning.n_rows, beginning.fingerprint, ruler))


def test_another_tokenizer_counts_its_own_tokens_of_the_same_texts(ruler, small):
    """Texts are not read again for it."""
    excerpt = Excerpt(write_texts(), Path("kept"), quiet=True)
    excerpt.take(20_000, ruler)
    Path("texts.jsonl").unlink()
    other = Ruler(train_tokenizer(bos="<s>", eos="</s>", vocab_size=264), Delimiters(1, 2))
    assert excerpt.take(20_000, other).n_rows == n_first(20_000, other) < n_first(20_000, ruler)


def test_an_empty_corpus_is_refused(ruler):
    Path("empty.txt").write_text("\n\n")
    with pytest.raises(InputError, match=r"empty.txt has no text in it"):
        Excerpt("empty.txt", Path("kept"), quiet=True).take(100, ruler)


# token ids


def write_ids(rows: list[list[int] | None], path: str = "ids.jsonl", **others: list) -> str:
    columns = {"input_ids": rows} | others
    lines = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    Path(path).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_rows_of_ids_are_documents_without_what_begins_and_ends_them(ruler):
    """Packing puts both around every document; twice would be a text that nobody wrote."""
    rows = [[1, 5, 6, 2], [7, 8], [1, 2], [1], [], None, [9, 2, 1, 9], [1, 1, 4, 2, 2]]
    own = [[5, 6], [7, 8], [], [], [9, 2, 1, 9], [1, 4, 2]]
    llama = Ruler(train_tokenizer(bos="<s>", eos="</s>"), Delimiters(1, 2))
    excerpt = Excerpt(write_ids(rows), Path("kept"), quiet=True)
    beginning = excerpt.take(None, llama)
    assert (beginning.n_rows, beginning.n_tokens, beginning.column) == (6, 11 + 2 * 4, "input_ids")
    found = excerpt.documents(beginning.n_rows, beginning.fingerprint, llama)
    assert [document.tolist() for some in found for document in some] == own
    kept = Dataset.from_dict({"input_ids": [row for row in rows if row]})
    assert beginning.fingerprint == fingerprint_samples(kept)
    assert excerpt.take(9, llama).n_rows == 5, "documents of nothing but delimiters fill no row"


@pytest.mark.parametrize("kind", ["int64", "uint16", "fixed"])
def test_ids_are_read_whatever_type_they_have(ruler, kind):
    """Pre-tokenised corpora come as lists of any integers, and of fixed length."""
    rows = np.arange(600).reshape(50, 12) % 300
    dtype = pa.int64() if kind == "fixed" else pa.type_for_alias(kind)
    flat = pa.array(rows.reshape(-1), dtype)
    column = (
        pa.FixedSizeListArray.from_arrays(flat, 12) if kind == "fixed" else pa.array(rows.tolist(), pa.list_(dtype))
    )
    pq.write_table(pa.table({"input_ids": column}), "ids.parquet")
    beginning = Excerpt("ids.parquet", Path("kept"), quiet=True).take(None, ruler)
    assert beginning.fingerprint == fingerprint_samples(Dataset.from_dict({"input_ids": rows.tolist()}))


@pytest.mark.parametrize("rows", [[[1, 2**31]], [[1, None, 2]]])
def test_what_is_no_token_id_is_refused(ruler, rows):
    """Cut to 32 bits it would be another token."""
    with pytest.raises(InputError, match=r"ids.jsonl has (no token ids|rows) in `input_ids`"):
        Excerpt(write_ids(rows), Path("kept"), quiet=True).take(None, ruler)


def test_texts_are_read_where_a_corpus_has_both(ruler):
    """Any target can read texts."""
    reference = write_ids([[1, 5], [6]], text=["a sparse", "fox"])
    assert Excerpt(reference, Path("kept"), quiet=True).take(None, ruler).column == "text"


# a hub

CLIENT = """
import json, sys
from pathlib import Path
from transformers import AutoTokenizer
from sae_utils.errors import InputError
from sae_utils.sources import excerpts
from sae_utils.sources.excerpts import Excerpt
from sae_utils.sources.joining import Delimiters
from sae_utils.sources.pieces import Ruler
excerpts.PIECE_BYTES = 100_000
ruler = Ruler(AutoTokenizer.from_pretrained("tokenizer"), Delimiters(0, None))
for line in sys.stdin:
    folder, n_tokens = line.split()
    try:
        found = Excerpt(sys.argv[1], Path(folder), quiet=True).take(int(n_tokens), ruler)
        print(json.dumps([found.n_rows, found.fingerprint]), flush=True)
    except InputError as err:
        print(json.dumps(str(err)), flush=True)
"""
"""Excerpts of a hub, in a process of its own: where the hub is, is read when its client is imported."""


def test_of_a_hub_only_what_is_needed_is_fetched(ruler, tmp_path):
    """Bytes are counted by the server; what breaks off goes on, and a second run does not even ask."""
    texts = [f"{i} {CORPUS[i % 4]}" * 3 for i in range(24_000)]
    for number in range(24):
        Path("hub/data").mkdir(parents=True, exist_ok=True)
        write_texts(texts[1000 * number : 1000 * (number + 1)], f"hub/data/train-{number:05d}.jsonl")
    n_all = sum(path.stat().st_size for path in Path("hub").rglob("*.jsonl"))
    ruler.tokenizer.save_pretrained("tokenizer")
    with running_hub(Path("hub")) as hub:
        environment = os.environ | {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}
        client = subprocess.Popen(
            [sys.executable, "-c", CLIENT, NAME],
            env=environment | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

        def take(folder: str, n_tokens: int) -> tuple[list | str, int, int]:
            """What the client finds; bytes of files and requests that it took."""
            before = hub.n_bytes, hub.n_requests
            client.stdin.write(f"{folder} {n_tokens}\n")
            client.stdin.flush()
            found = json.loads(client.stdout.readline())
            return found, hub.n_bytes - before[0], hub.n_requests - before[1]

        found, n_bytes, _ = take("kept", 300_000)
        n_rows = n_first(300_000, ruler, texts)
        assert found == [n_rows, fingerprint(texts[:n_rows])] and 2000 < n_rows < 5000
        assert n_bytes < n_all / 4
        assert take("kept", 300_000) == (found, 0, 0), "a second run"
        assert take("kept", 100_000)[1:] == (0, 0), "less than is there"
        hub.breaks_after_bytes = hub.n_bytes + 1
        message, _, _ = take("kept", 700_000)
        assert "could not be read" in message and "the same command goes on where this one stopped" in message
        hub.breaks_after_bytes = None
        found, n_bytes, _ = take("kept", 700_000)
        fresh, n_fresh_bytes, _ = take("fresh", 700_000)
        assert found == fresh and found[1] == fingerprint(texts[: found[0]])
        assert n_bytes < n_fresh_bytes < n_all
        client.stdin.close()
        assert client.wait() == 0
    (record,) = Path("kept").rglob("excerpt.json")
    assert json.loads(record.read_text())["stamp"] == COMMIT
