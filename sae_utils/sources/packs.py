"""Packed sequences on disk: packed once, each with a record beside it, and mapped from then on.

They are safe to delete: what is gone, or damaged, is packed again. They lie beside the data sets, or elsewhere where
these are shared and cannot be written.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sae_utils.disk import is_writable
from sae_utils.errors import InputError
from sae_utils.files import DamagedFileError, check_files, checksum_files, read_record, write_record
from sae_utils.locks import LONG_PATIENCE_SEC, Lock
from sae_utils.sources.packing import Chunks, open_chunks, pack_tokens

logger = logging.getLogger(__name__)

FOLDER = ".packed"
"""Folder of packed sequences inside the data sets' folder."""

Packer = Callable[[], tuple[Iterator[np.ndarray], int]]
"""Gives a stream of token arrays, and the number of sequences that it fills."""


@dataclass(frozen=True)
class Packs:
    """Packed sequences, in the first of some folders that has them or that they can be written to."""

    places: tuple[Path, ...]
    """Folders that may hold a folder of packed sequences, the best first."""

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
        """Where `datasets` keeps what it makes of text files."""
        return self.folder / "texts"

    def get(self, name: str, pack: Packer, *, ctx_len: int) -> Chunks:
        """The sequences of a name, packed if they are not there.

        Args:
            name: File name without ending; says everything that the sequences depend on.
            pack: Makes them.
            ctx_len: Tokens per sequence.
        """
        if (chunks := self._find(name)) is not None:
            if is_writable(self.places[0] / FOLDER):
                Lock(self.places[0] / FOLDER, name, refusal="").remove_left_over()
            return chunks
        folder = self.folder
        path = folder / f"{name}.npy"
        refusal = f"another run has been packing {path} for {LONG_PATIENCE_SEC / 60:.0f} minutes"
        with Lock(folder, name, refusal=refusal, patience_sec=LONG_PATIENCE_SEC):
            if (chunks := self._find(name)) is not None:  # another run has packed them meanwhile
                return chunks
            rows, n_chunks = pack()
            pack_tokens(rows, ctx_len, n_chunks, path)
            write_record(path.with_suffix(".json"), {"checksums": checksum_files(folder, [path.name])})
        return open_chunks(path)

    def _find(self, name: str) -> Chunks | None:
        """The sequences of a name from the first place that has them whole."""
        for place in self.places:
            path = place / FOLDER / f"{name}.npy"
            record_path = path.with_suffix(".json")
            if not (path.exists() and record_path.exists()):  # none, or one that was not finished
                continue
            remedy = "it is packed again"
            try:
                check_files(path.parent, read_record(record_path, remedy, checksums=dict)["checksums"], remedy)
                return open_chunks(path)
            except DamagedFileError as err:
                logger.warning("%s", err)
        return None
