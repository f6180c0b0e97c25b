"""Folders that the processes of a run write into together, on one machine or on several."""

import os
import socket
import tempfile
from pathlib import Path

from sae_utils.distributed import Workers
from sae_utils.errors import InputError
from sae_utils.files import SCRATCH_PREFIX


def check_shared(workers: Workers, **folders: Path) -> None:
    """Refuse folders that are not one on all machines: what a process writes there, the others look for.

    Args:
        workers: The processes; a process alone shares with nobody.
        folders: Under their flags' names; made if they are not there.

    Raises:
        InputError: In every process, if one of them does not see a file that the main one has just made.
    """
    for flag, folder in folders.items() if workers.n > 1 else ():
        mark = _make_mark(folder) if workers.is_main else None
        try:
            name = workers.agree(mark and mark.name)
            # A name that nobody has asked for before: no network file system answers out of its memory.
            seen = workers.gather((socket.gethostname(), (folder / name).exists()))
        finally:
            if mark is not None:
                mark.unlink()
        if blind := sorted({host for host, is_there in seen if not is_there}):
            raise InputError(
                f"--{flag} must be one folder for all processes, and what is written into {folder.absolute()} on "
                f"{seen[0][0]} is not there on {', '.join(blind)}; give a folder of a shared file system"
            )


def _make_mark(folder: Path) -> Path:
    """An empty file of a new name."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor, path = tempfile.mkstemp(prefix=SCRATCH_PREFIX, dir=folder)
    os.close(descriptor)
    return Path(path)
