"""Corpora of token ids: ids of another tokenizer are text that nobody wrote, and are refused if that is known."""

import json
from pathlib import Path

import pytest
from conftest import train_tokenizer

from sae_utils.errors import InputError
from sae_utils.models import fingerprint_tokenizer
from sae_utils.sources.ids import check_tokenizer, find_tokenizer


@pytest.mark.parametrize("reference", ["corpus", "corpus/ids.parquet"])
@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("generation.json", {"settings": {"tokenizer_fingerprint": "0123"}}, {"fingerprint": "0123"}),
        ("sae_lens.json", {"tokenizer_name": "nobody/nothing"}, {"name": "nobody/nothing"}),
        ("sae_lens.json", {"context_size": 128}, {}),
        ("sae_lens.json", ["tokenizer_name"], {}),
        ("other.json", {}, {}),
    ],
)
def test_what_lies_beside_the_ids_is_looked_at(reference, name, content, expected):
    Path("corpus").mkdir()
    Path("corpus/ids.parquet").touch()
    Path("corpus", name).write_text(json.dumps(content))
    assert find_tokenizer(reference, None) == expected


def test_a_tokenizer_that_is_named_is_compared_by_content():
    """Names differ where vocabularies do not: every Pythia has the same."""
    tokenizer = train_tokenizer(bos="<s>", eos="</s>")
    tokenizer.save_pretrained("tokenizer")
    Path("sae_lens.json").write_text(json.dumps({"tokenizer_name": "tokenizer"}))
    expected = {"name": "tokenizer", "fingerprint": fingerprint_tokenizer(tokenizer)}
    assert find_tokenizer("ids.jsonl", None) == expected


def test_ids_of_another_tokenizer_are_refused_and_what_is_not_known_is_said(caplog):
    check_tokenizer("ids.jsonl", {"fingerprint": "0123"}, "0123")
    assert not caplog.records
    with pytest.raises(InputError, match="holds ids of the tokenizer 0123, and the target's is 4567"):
        check_tokenizer("ids.jsonl", {"fingerprint": "0123"}, "4567")
    check_tokenizer("ids.jsonl", {}, "4567")
    check_tokenizer("ids.jsonl", {"name": "gpt2"}, "4567")
    unknown, named = (record.getMessage() for record in caplog.records)
    assert unknown == "ids.jsonl holds token ids and does not say of which tokenizer; they are taken for the target's"
    assert "says that its tokenizer is gpt2, which cannot be had here" in named
