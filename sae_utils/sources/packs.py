"""Packed sequences on disk: packed once, each with a record beside it, and mapped from then on.

The record says by which rule (`joining.py`), and what the rows hold.

They are safe to delete: what is gone, or damaged, is packed again. They lie beside the data sets, or elsewhere where
these are shared and cannot be written.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from sae_utils.disk import is_writable
from sae_utils.errors import InputError
from sae_utils.files import DamagedFileError, check_files, checksum_files, read_record, remove_folder, write_record
from sae_utils.locks import LONG_PATIENCE_SEC, Lock
from sae_utils.sources.joining import PACKING_RULE, Delimiters, RowCounts, RowMaker
from sae_utils.sources.packing import Chunks, open_chunks, write_chunks

logger = logging.getLogger(__name__)

FOLDER = ".packed"
"""Folder of packed sequences inside the data sets' folder."""

COUNTS = tuple(each.name for each in fields(RowCounts))
"""Names of what is counted."""

Documents = Callable[[], Iterator[Iterable[np.ndarray]]]
"""Goes through the documents of a source: their own tokens, int32 `(any,)`, many at a time."""


@dataclass(frozen=True)
class Packed:
    """A source as rows."""

    chunks: Chunks
    """The rows, in the source's order."""

    counts: RowCounts
    """What they hold."""


@dataclass(frozen=True)
class Packs:
    """Packed sequences, in the first of some folders that has them or that they can be written to."""

    places: tuple[Path, ...]
    """Folders that may hold a folder of packed sequences, the best first."""

    quiet: bool = False
    """No bars while they are made."""

    @property
    def folder(self) -> Path:
        """Where new ones go.

        Raises:
            InputError: If none of the places can be written.
        """
        folders = [place / FOLDER for place in self.places]
        if not (writable := [folder for folder in folders if is_writable(folder)]):
            raise InputError(
                f"packed sequences cannot be written: {', '.join(map(str, self.places))} are read-only for this user; "
                f"give another --checkpoint_dir or --results_dir"
            )
        if writable[0] != folders[0]:
            logger.info("%s cannot be written, so packed sequences go to %s", self.places[0], writable[0])
        return writable[0]

    @property
    def texts_folder(self) -> Path:
        """Where texts of corpora are kept."""
        return self.folder / "texts"

    def get(self, name: str, documents: Documents, delimiters: Delimiters, ctx_len: int, *, reference: str) -> Packed:
        """The rows of a name, packed if they are not there, or were packed by another rule.

        Args:
            name: File name without ending; says which documents, tokenizer and length it is of.
            documents: Gives the documents' own tokens, many at a time.
            delimiters: What stands between them.
            ctx_len: Tokens per row.
            reference: What errors call the source.

        Raises:
            InputError: If the documents do not fill a row; nothing is kept of them.
        """
        rule = {"rule": PACKING_RULE, **asdict(delimiters)}
        if (packed := self._find(name, rule)) is not None:
            if is_writable(self.places[0] / FOLDER):
                Lock(self.places[0] / FOLDER, name, refusal="").remove_left_over()
            return packed
        folder = self.folder
        path = folder / f"{name}.npy"
        refusal = f"another run has been packing {path} for {LONG_PATIENCE_SEC / 60:.0f} minutes"
        with Lock(folder, name, refusal=refusal, patience_sec=LONG_PATIENCE_SEC):
            if (packed := self._find(name, rule, says_why=False)) is not None:  # another run has packed them meanwhile
                return packed
            for each in (path, path.with_suffix(".json")):
                if each.is_dir():  # which no file can replace
                    remove_folder(each)
            maker = RowMaker(delimiters, ctx_len)
            chunks = write_chunks(_filled(maker, documents(), reference), ctx_len, path)
            counts = maker.finish()
            about = {"packing": rule | asdict(counts), "checksums": checksum_files(folder, [path.name])}
            write_record(path.with_suffix(".json"), about)
        return Packed(chunks, counts)

    def _find(self, name: str, rule: Mapping[str, int | None], *, says_why: bool = True) -> Packed | None:
        """The rows of a name from the first place that has them whole and by this rule; why others are not taken."""
        level = logging.WARNING if says_why else logging.DEBUG
        for place in self.places:
            path = place / FOLDER / f"{name}.npy"
            record_path = path.with_suffix(".json")
            if not (path.exists() and record_path.exists()):  # none, or one that was not finished
                continue
            remedy = "it is packed again"
            try:
                record = read_record(record_path, remedy, checksums=dict)
                check_files(path.parent, record["checksums"], remedy)
                packing = record.get("packing", {"rule": 1})
                if any(packing.get(what) != value for what, value in rule.items()):
                    now = f"and is packed again by rule {PACKING_RULE}"
                    logger.log(level, "%s was packed by rule %s, %s", path, packing["rule"], now)
                    continue
                return Packed(open_chunks(path), RowCounts(**{what: packing[what] for what in COUNTS}))
            except DamagedFileError as err:
                logger.log(level, "%s", err)
        return None


def _filled(maker: RowMaker, documents: Iterator[Iterable[np.ndarray]], reference: str) -> Iterator[np.ndarray]:
    """The rows of documents.

    Raises:
        InputError: If there is none.
    """
    for some in documents:
        yield from maker.add(some)
    if not maker.counts.n_rows:
        raise InputError(
            f"{reference} does not fill one sequence of --ctx_len {maker.ctx_len} in the target's tokens; lower "
            f"--ctx_len, or give more text"
        )
