"""The beginning of a corpus, kept on disk: as much of it as was needed so far, read once, whatever its size.

    <texts>/excerpts/<corpus>_<hash of where it is>/
        excerpt.json                               what is there, and where to go on
        rows_<first>_<stop>.arrow                  texts, or token ids, in the corpus' order
        tokens_<first>_<stop>_<tokenizer>.arrow    texts in the ids of the tokenizer that they are counted in

It grows piece by piece, each complete before the record names it: what was interrupted goes on behind the last whole
piece, a smaller beginning is part of a larger one, and one that is there is not read again. An excerpt is safe to
delete: it is read again. One of a file that has changed since is thrown away; one of a hub stays with the commit that
it began with.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from datasets import concatenate_datasets

from sae_utils.errors import InputError
from sae_utils.files import DamagedFileError, checksum_text, read_record, remove_folder, write_record
from sae_utils.generated_data import fingerprint_samples
from sae_utils.locks import LONG_PATIENCE_SEC, Lock
from sae_utils.progress import PATIENCE_SEC, token_bar
from sae_utils.records import versions
from sae_utils.sources.corpora import TEXT_COLUMN, corpus_name, fingerprint_texts, is_hub_id
from sae_utils.sources.ids import find_tokenizer
from sae_utils.sources.pieces import REMEDY, Piece, Ruler, Waiting
from sae_utils.sources.streams import IDS_COLUMN, find_stamp, open_stream

logger = logging.getLogger(__name__)

FOLDER = "excerpts"
"""Folder of the excerpts, inside that of other texts."""

RECORD_FILE = "excerpt.json"
"""What there is of a corpus; files that it does not name are not complete."""

PIECE_BYTES = 32_000_000
"""Texts, or ids, of a piece: what an interruption costs."""


@dataclass(frozen=True)
class Beginning:
    """The first rows of a corpus."""

    n_rows: int
    """Texts, or rows of ids."""

    n_tokens: int
    """Their tokens, as they were measured."""

    fingerprint: str
    """Hash of them."""

    column: str
    """What they are: `text` or `input_ids`."""

    tokenizer: dict[str, str] | None = None
    """What is known of the tokenizer that ids are of, see `find_tokenizer`; None for texts."""


@dataclass(frozen=True)
class Amount:
    """How much of a corpus is wanted; all of it if neither is given."""

    n_tokens: int | None = None
    """Tokens at least."""

    n_rows: int | None = None
    """Rows at least."""

    def is_reached(self, n_rows: int, n_tokens: int) -> bool:
        """Whether so many rows with so many tokens are enough."""
        enough_tokens = self.n_tokens is not None and n_tokens >= self.n_tokens
        return enough_tokens or (self.n_rows is not None and n_rows >= self.n_rows)


@dataclass
class Excerpt:
    """What is kept of a corpus."""

    reference: str
    """File, folder or hub id of the corpus."""

    texts_folder: Path
    """Where texts are kept."""

    quiet: bool = False
    """No bars."""

    pieces: list[Piece] = field(default_factory=list)
    """What is there, in order."""

    is_whole: bool = False
    """Whether the corpus has no more."""

    stamp: str | None = None
    """State of the corpus when reading began: a file's size and time, a hub's commit."""

    tokenizer: dict[str, str] | None = None
    """What is known of the tokenizer that ids are of."""

    fingerprints: dict[str, str] = field(default_factory=dict)
    """Of beginnings that were asked for, by their number of rows."""

    @property
    def folder(self) -> Path:
        """Where it lies."""
        place = self.reference if is_hub_id(self.reference) else str(Path(self.reference).expanduser().absolute())
        return self.texts_folder / FOLDER / f"{corpus_name(self.reference)}_{checksum_text(place)}"

    @property
    def n_rows(self) -> int:
        """Rows that are there."""
        return self.pieces[-1].stop if self.pieces else 0

    def take(self, n_tokens: int | None, ruler: Ruler) -> Beginning:
        """The first rows that together have at least so many tokens; all if there are fewer, or for None.

        Raises:
            InputError: If the corpus cannot be read, or is empty.
        """
        with self._lock():
            self._open()
            self._forget_if_changed()
            ends, amount = self._ends(ruler), Amount(n_tokens=n_tokens)
            if not amount.is_reached(len(ends), _last(ends)):
                self._read_on(ruler, amount, n_tokens=_last(ends))
                ends = self._ends(ruler)
            if not len(ends):
                raise InputError(f"--text_datasets {self.reference} has no text in it")
            is_cut = amount.is_reached(len(ends), _last(ends))
            n_rows = int(np.searchsorted(ends, n_tokens)) + 1 if is_cut else len(ends)
            about = self._fingerprint(n_rows), self.pieces[0].column, self.tokenizer
            return Beginning(n_rows, int(ends[n_rows - 1]), *about)

    def documents(self, n_rows: int, fingerprint: str, ruler: Ruler) -> Iterator[list[np.ndarray]]:
        """The first rows as documents in a model's tokens; read, if they are not there any more.

        Yields:
            int32 arrays `(any,)`, many at a time.

        Raises:
            InputError: If they are others than those of the fingerprint, or cannot be read.
        """
        with self._lock():
            self._open()
            if self.n_rows < n_rows:
                self._forget_if_changed()
                self._read_on(ruler, Amount(n_rows=n_rows), n_tokens=0)
            if self.n_rows < n_rows or self._fingerprint(n_rows) != fingerprint:
                raise InputError(
                    f"--text_datasets {self.reference} does not begin with the {n_rows:,} texts of the fingerprint "
                    f"{fingerprint} that it once did, so its held-out tokens are not known any more: bring these back, "
                    f"or train again with --overwrite"
                )
        for piece in self.pieces:
            if piece.first < n_rows:
                yield from piece.documents(self.folder, ruler, min(n_rows, piece.stop) - piece.first)

    def _lock(self) -> Lock:
        """Held by the process that reads the corpus."""
        refusal = f"another run has been reading {self.reference} for {LONG_PATIENCE_SEC / 60:.0f} minutes"
        return Lock(self.folder.parent, self.folder.name, refusal=refusal, patience_sec=LONG_PATIENCE_SEC)

    def _open(self) -> None:
        """Find out what is there. What comes behind a damaged piece is left out with it, and read again."""
        self.pieces, self.is_whole, self.stamp, self.tokenizer, self.fingerprints = [], False, None, None, {}
        if not (self.folder / RECORD_FILE).exists():
            return
        try:
            kinds = {"pieces": list, "is_whole": bool, "fingerprints": dict}
            record = read_record(self.folder / RECORD_FILE, REMEDY, **kinds)
            self.stamp, self.tokenizer = record["stamp"], record["tokenizer"]
            for each in record["pieces"]:
                piece = Piece(**each)
                piece.check(self.folder)
                self.pieces.append(piece)
            self.is_whole, self.fingerprints = record["is_whole"], dict(record["fingerprints"])
        except DamagedFileError as err:
            logger.warning("%s", err)

    def _save(self) -> None:
        """Write the record."""
        about = {
            "reference": self.reference,
            "stamp": self.stamp,
            "tokenizer": self.tokenizer,
            "is_whole": self.is_whole,
            "n_rows": self.n_rows,
            "fingerprints": self.fingerprints,
            "pieces": [piece.record() for piece in self.pieces],
            "versions": versions(),
        }
        write_record(self.folder / RECORD_FILE, about)

    def _forget_if_changed(self) -> None:
        """Throw away what was read of a file that is another one now; what has no file any more is kept."""
        is_kept = is_hub_id(self.reference) or not Path(self.reference).expanduser().exists()
        if is_kept or not self.pieces or self.stamp == find_stamp(self.reference):
            return
        logger.info("%s has changed since it was read, and is read again", self.reference)
        remove_folder(self.folder)
        self._open()

    def _ends(self, ruler: Ruler) -> np.ndarray:
        """Tokens up to the end of each row that is there, int64 `(n_rows,)`; texts are tokenized if they were not."""
        for piece in self.pieces:
            if piece.tokenize(self.folder, ruler):
                self._save()
        lengths = [
            ruler.lengths(documents)
            for piece in self.pieces
            for documents in piece.documents(self.folder, ruler, piece.stop - piece.first)
        ]
        return np.cumsum(np.concatenate([np.zeros(0, np.int64), *lengths]))

    def _fingerprint(self, n_rows: int) -> str:
        """Hash of the first rows; computed once."""
        if str(n_rows) not in self.fingerprints:
            rows = concatenate_datasets([piece.rows(self.folder) for piece in self.pieces]).select(range(n_rows))
            is_text = self.pieces[0].column == TEXT_COLUMN
            self.fingerprints[str(n_rows)] = fingerprint_texts(rows) if is_text else fingerprint_samples(rows)
            self._save()
        return self.fingerprints[str(n_rows)]

    def _read_on(self, ruler: Ruler, amount: Amount, *, n_tokens: int) -> None:
        """Read the corpus from where it was left, until that is enough or it has no more.

        Args:
            ruler: What it is counted in.
            amount: What is enough.
            n_tokens: Tokens that are there already.
        """
        if self.is_whole:
            return
        if not self.pieces:
            self.stamp = find_stamp(self.reference)
        revision = self.stamp if is_hub_id(self.reference) else None
        stream = open_stream(self.reference, revision)
        if stream.column == IDS_COLUMN and not self.pieces:
            self.tokenizer = find_tokenizer(self.reference, revision)
        n_rows, start, waiting = self.n_rows, self.pieces[-1].place if self.pieces else None, Waiting()
        logger.info("%s: reading%s", self.reference, f" on behind {n_rows:,} texts" if n_rows else "")
        options = {"total": amount.n_tokens, "initial": n_tokens, "quiet": self.quiet, "patience_sec": PATIENCE_SEC}
        with token_bar(f"reading {corpus_name(self.reference)}", **options) as bar:
            for column, place in stream.read(start):
                documents = ruler.documents(column)
                n_new = int(ruler.lengths(documents).sum())
                waiting.add(column, documents, place)
                n_rows, n_tokens = n_rows + len(column), n_tokens + n_new
                bar.update(n_new)
                is_last = amount.is_reached(n_rows, n_tokens)
                if is_last or waiting.n_bytes >= PIECE_BYTES:
                    self._add(waiting, stream.column, ruler)
                    waiting = Waiting()
                if is_last:
                    return
        self.is_whole = True
        self._add(waiting, stream.column, ruler)

    def _add(self, waiting: Waiting, column: str, ruler: Ruler) -> None:
        """Write what was read as a piece, and take note of it."""
        if waiting.n_rows:
            piece = Piece(self.n_rows, self.n_rows + waiting.n_rows, column, waiting.place)
            piece.write(self.folder, waiting, ruler)
            self.pieces.append(piece)
        self._save()


def _last(ends: np.ndarray) -> int:
    """Tokens of all rows, 0 if there are none."""
    return int(ends[-1]) if len(ends) else 0
