import re

import numpy as np
from conftest import train_tokenizer
from datasets import Dataset

from sae_utils.generated_data import FEATURES
from sae_utils.sources import documents
from sae_utils.sources.documents import sampled_documents, shown, tokenized_documents


def dataset_of(*samples: list[int]) -> Dataset:
    """A generated data set with these token ids."""
    rows = {"id": range(len(samples)), "text": ["" for _ in samples], "input_ids": samples}
    return Dataset.from_dict({**rows, "num_tokens": [len(ids) for ids in samples]}, features=FEATURES)


def ids_of(batches) -> list[list[int]]:
    return [document.tolist() for batch in batches for document in batch]


def test_sampled_documents_lose_their_own_bos_and_eos_alone(monkeypatch):
    """Samples that reached the longest length, or the token budget, end without EOS."""
    monkeypatch.setattr(documents, "DOCUMENTS_AT_ONCE", 2)
    samples = dataset_of([1, 5, 6, 2], [1, 7], [1, 2], [1], [1, 1, 5, 3])
    assert ids_of(sampled_documents(samples, eos_ids=(2, 3))) == [[5, 6], [7], [], [], [1, 5]]
    assert ids_of(sampled_documents(dataset_of([0, 5, 0], [0, 0]), eos_ids=(0,))) == [[5], []]
    assert next(sampled_documents(samples, eos_ids=(2,)))[0].dtype == np.int32


def test_texts_are_tokenized_without_special_tokens(monkeypatch):
    """Where documents begin and end is the rows' to say, whatever the tokenizer would add."""
    monkeypatch.setattr(documents, "DOCUMENTS_AT_ONCE", 2)
    tokenizer = train_tokenizer(bos="<s>", eos="</s>")
    texts = ["the fox", "a sea shell", "so", ""]
    found = ids_of(tokenized_documents(Dataset.from_dict({"text": texts}), tokenizer))
    assert [tokenizer.decode(ids) for ids in found] == texts
    assert not set(tokenizer.all_special_ids) & {token for ids in found for token in ids}


def test_documents_that_take_long_are_shown_in_tokens(monkeypatch, capsys):
    """Tokenizing a corpus takes an hour; how many tokens come is estimated from the share of documents."""
    monkeypatch.setattr(documents, "PATIENCE_SEC", 0.0)
    some = [[np.arange(4), np.arange(6)], [np.arange(2), np.arange(8)]]
    assert list(shown(some, "packing tiny", 8, quiet=True)) == some
    assert capsys.readouterr().err == ""
    assert list(shown(some, "packing tiny", 8, quiet=False)) == some
    assert re.search(r"packing tiny:  50%.* 20\.0/40\.0 .*tok/s", capsys.readouterr().err)
