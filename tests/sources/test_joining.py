import random

import numpy as np
import pytest

from sae_utils.sources.joining import Delimiters, RowCounts, RowMaker

BOS, EOS = 1, 2
BOTH = Delimiters(bos_id=0, eos_id=None)
"""GPT-NeoX' <|endoftext|>."""
OWN = Delimiters(BOS, EOS)


def rows_of(*documents: list[int], delimiters: Delimiters = OWN, ctx_len: int = 4, at_once: int = 100):
    """Rows and counts of documents that are taken in so many at a time."""
    maker, rows = RowMaker(delimiters, ctx_len), []
    for start in range(0, len(documents), at_once):
        rows += maker.add(np.array(each, np.int32) for each in documents[start : start + at_once])
    return [row.tolist() for row in rows], maker.finish()


def plain_rows(documents: list[list[int]], delimiters: Delimiters, ctx_len: int):
    """The rule token by token, and the counts by looking at what came out."""
    bos, eos = delimiters.bos_id, delimiters.eos_id
    rows, row, placed = [], [], {}

    def place(token: int, number: int, *, is_mark: bool) -> None:
        nonlocal row
        if len(row) == ctx_len:
            rows.append(row)
            row = []
        if not row and token == eos and is_mark:
            return
        if not row and token != bos:
            row.append((bos, None))
        row.append((token, None if is_mark else number))

    for number, document in enumerate(each for each in documents if each):
        place(bos, number, is_mark=True)
        for token in document:
            place(token, number, is_mark=False)
        if eos is not None:
            place(eos, number, is_mark=True)
        placed[number] = len(document)
    if len(row) == ctx_len:
        rows.append(row)
    held, whole = set(), set()
    for each in rows:
        for number in {of for _, of in each} - {None}:
            n_own = sum(of == number for _, of in each)
            held |= {number}
            whole |= {number} if n_own == placed[number] else set()
    ids = [[token for token, _ in each] for each in rows]
    flat = [token for each in ids for token in each]
    n_eos = 0 if eos is None else flat.count(eos)
    return ids, RowCounts(len(ids), len(held), len(held - whole), flat.count(bos), n_eos)


def test_every_row_begins_with_bos_and_what_is_carried_over_too():
    """A model never saw a text that begins in the middle without it: its first tokens would be hard to predict."""
    rows, counts = rows_of([5, 6], [7, 8, 9, 10], [11])
    assert rows == [[BOS, 5, 6, EOS], [BOS, 7, 8, 9], [BOS, 10, EOS, BOS]]
    assert counts == RowCounts(n_rows=3, n_documents=2, n_cut_documents=1, n_bos=4, n_eos=2), (
        "none of the third is there"
    )


def test_one_token_separates_documents_where_bos_is_eos():
    """Pythia never saw two <|endoftext|> in a row."""
    rows, counts = rows_of([5], [6, 7, 8], [9, 10, 11], delimiters=BOTH)
    assert rows == [[0, 5, 0, 6], [0, 7, 8, 0], [0, 9, 10, 11]]
    assert counts == RowCounts(n_rows=3, n_documents=3, n_cut_documents=1, n_bos=5, n_eos=0)


def test_an_eos_that_does_not_fit_is_left_out():
    """Alone in the next row it would end a document that is not there."""
    assert rows_of([5, 6, 7], [8, 9])[0] == [[BOS, 5, 6, 7], [BOS, 8, 9, EOS]]


def test_what_does_not_fill_the_last_row_is_dropped():
    """Padding it would put tokens in the training set that the model never said."""
    rows, counts = rows_of([5, 6, 7, 8])
    assert rows == [[BOS, 5, 6, 7]] and counts.n_cut_documents == 1
    assert rows_of([5]) == ([], RowCounts())


def test_documents_without_tokens_are_left_out():
    assert rows_of([], [5, 6], [], [7, 8]) == rows_of([5, 6], [7, 8])


@pytest.mark.parametrize("delimiters", [OWN, BOTH])
@pytest.mark.parametrize("ctx_len", [2, 3, 5, 16])
def test_rows_and_counts_are_those_of_the_rule_token_by_token(delimiters, ctx_len):
    """And do not depend on how many documents are taken in at a time."""
    rng = random.Random(ctx_len)
    for _ in range(30):
        documents = [
            [rng.choice([EOS, *range(5, 99)]) for _ in range(rng.choice([0, 1, 2, 3, 7, 20]))] for _ in range(20)
        ]
        expected = plain_rows(documents, delimiters, ctx_len)
        for at_once in (1, 3, 100):
            assert rows_of(*documents, delimiters=delimiters, ctx_len=ctx_len, at_once=at_once) == expected
