"""Documents put into rows of one length, by one rule for every source and model.

A document is BOS, its own tokens, and EOS; where one token is both (GPT-2, GPT-NeoX), the BOS of the next document ends
the one before. Documents follow each other, and every row begins with BOS: what does not fit goes on in the next row
after another BOS. There is no padding, and what does not fill the last row is dropped. So a token is seen as the model
saw it in training, whether the text was sampled, tokenized again, or comes from a corpus: the same documents give the
same rows.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from sae_utils.models import find_bos_id

PACKING_RULE = 2
"""Number of the rule above. Rule 1, until November 2026, cut sampled ids anywhere and put EOS before other texts."""


@dataclass(frozen=True)
class Delimiters:
    """The tokens between which a model expects a document."""

    bos_id: int
    """Before it."""

    eos_id: int | None
    """After it; None where the next document's BOS says so."""


def find_delimiters(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> Delimiters:
    """What begins and ends a document for a model.

    Raises:
        InputError: If nothing says what begins one.
    """
    bos_id, eos_id = find_bos_id(tokenizer, config, config.name_or_path), tokenizer.eos_token_id
    return Delimiters(bos_id, None if eos_id == bos_id else eos_id)


@dataclass
class RowCounts:
    """What the rows of a source hold."""

    n_rows: int = 0
    """Rows."""

    n_documents: int = 0
    """Documents of which a row holds something."""

    n_cut_documents: int = 0
    """Of these, those that no row holds whole: they go on in another row, or were dropped with what filled none."""

    n_bos: int = 0
    """BOS tokens: at the beginning of every row, and of every document within one."""

    n_eos: int = 0
    """EOS tokens; 0 where the next document's BOS stands for them."""


@dataclass
class RowMaker:
    """Puts documents, in their order, into rows."""

    delimiters: Delimiters
    """What the target model expects."""

    ctx_len: int
    """Tokens per row, at least 2."""

    counts: RowCounts = field(default_factory=RowCounts)
    """What the rows so far hold."""

    _tokens: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    """What waits for a row, int32 `(any,)`."""

    _numbers: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Which document each of these is of, counted from 0 over the source."""

    _n_taken: int = 0
    """Documents taken in."""

    _last_number: int = -1
    """Number of the document that the last token before those that wait was of."""

    _last_cut: int = -1
    """Number of the last document that was cut."""

    _goes_on: bool = False
    """Whether the last row ended within the own tokens of a document."""

    def add(self, documents: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Take in the own tokens of documents, int32 `(any,)` each, and hand out the rows that they fill.

        Documents without any are left out.

        Yields:
            int32 `(ctx_len,)`.
        """
        self._append([document for document in documents if len(document)])
        bos_id, eos_id = self.delimiters.bos_id, self.delimiters.eos_id
        tokens, at = self._tokens, 0
        while True:
            if at < len(tokens) and eos_id is not None and tokens[at] == eos_id and self._ends_document(at):
                at += 1  # of a document that ended with its row: alone after another BOS, it would end nothing
                self._goes_on = False
            is_start = at < len(tokens) and tokens[at] == bos_id
            end = at + self.ctx_len - (not is_start)
            if end > len(tokens):
                break
            row = tokens[at:end] if is_start else np.concatenate([[bos_id], tokens[at:end]])
            self._count(row, at, end)
            at = end
            yield row.astype(np.int32)
        self._last_number = int(self._numbers[at - 1]) if at else self._last_number
        self._tokens, self._numbers = tokens[at:], self._numbers[at:]

    def finish(self) -> RowCounts:
        """What all rows hold, once no document is left: what waits is dropped."""
        if len(self._tokens) and self._goes_on and not self._begins_document(0):
            self._count_cut(int(self._numbers[0]))
        return self.counts

    def _append(self, documents: list[np.ndarray]) -> None:
        """Let documents wait, each with what begins and ends it."""
        begin = np.array([self.delimiters.bos_id], np.int32)
        end = np.array([] if self.delimiters.eos_id is None else [self.delimiters.eos_id], np.int32)
        pieces = [piece for document in documents for piece in (begin, document, end)]
        lengths = [1 + len(document) + len(end) for document in documents]
        numbers = np.repeat(np.arange(self._n_taken, self._n_taken + len(documents)), lengths)
        self._tokens = np.concatenate([self._tokens, *pieces])
        self._numbers = np.concatenate([self._numbers, numbers])
        self._n_taken += len(documents)

    def _ends_document(self, at: int) -> bool:
        """Whether a token that waits is the last of its document."""
        return at + 1 == len(self._numbers) or self._numbers[at + 1] != self._numbers[at]

    def _begins_document(self, at: int) -> bool:
        """Whether a token that waits, or has found its row, is the first of its document: its BOS."""
        before = self._last_number if at == 0 else self._numbers[at - 1]
        return self._numbers[at] != before

    def _count(self, row: np.ndarray, at: int, end: int) -> None:
        """Take note of a row, made of the tokens from one that waits to another, excluded."""
        if self._goes_on and not self._begins_document(at):
            self._count_cut(int(self._numbers[at]))
        counts, delimiters = self.counts, self.delimiters
        has_begun = self._begins_document(end - 1)  # by its BOS alone, so that nothing of it is held yet
        counts.n_rows += 1
        counts.n_documents = int(self._numbers[end - 1]) + (not has_begun)
        counts.n_bos += int((row == delimiters.bos_id).sum())
        counts.n_eos += 0 if delimiters.eos_id is None else int((row == delimiters.eos_id).sum())
        self._goes_on = not has_begun and not (delimiters.eos_id is not None and self._ends_document(end - 1))

    def _count_cut(self, number: int) -> None:
        """Count a document as cut, once."""
        self.counts.n_cut_documents += number != self._last_cut
        self._last_cut = number
