"""One run at a time for a data set or a cell: locks in a hidden folder, which is gone when nothing is running.

A run that was killed leaves its file there, which nobody holds; it goes with the next run.
"""

import contextlib
import errno
import fcntl
import logging
import os
import tempfile
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from sae_utils.errors import InputError, LockedError

logger = logging.getLogger(__name__)

FOLDER = ".locks"
"""Folder of the locks, inside the folder of what is locked."""

PATIENCE_SEC = 0.5
"""How long to try: a lock that is just being given back is not held by another run."""

LONG_PATIENCE_SEC = 600.0
"""How long to wait where every holder is soon done: for what is written together, such as results."""

WITHOUT_FLOCK = (errno.ENOSYS, errno.EOPNOTSUPP)
"""Error numbers of file systems that know no locks."""

N_ATTEMPTS = 100
"""How often to try while other runs make the files and take them away; if it is not that, the error is shown."""


class _NamelessError(Exception):
    """The file that was locked is not the one of this name any more."""


class Lock:
    """A lock by name. It is free as soon as its holder has ended, however that came to pass."""

    def __init__(self, folder: Path, name: str, *, refusal: str, patience_sec: float = PATIENCE_SEC) -> None:
        """Prepare a lock; nothing is written yet.

        Args:
            folder: Folder of what is locked.
            name: Name of what is locked.
            refusal: What to say if another run holds it.
            patience_sec: How long to wait for it; longer for what is held for seconds, not for a whole run.
        """
        self.path = folder / FOLDER / f"{name}.lock"
        self.refusal = refusal
        self.patience_sec = patience_sec

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            LockedError: If another run holds it.
            InputError: If the file cannot be made.
        """
        for is_last in [*[False] * N_ATTEMPTS, True]:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                if has_flock(self.path.parent):
                    self._held = FileLock(self.path, on_acquired=self._check_name)
                else:
                    logger.warning("%s: no flock on this file system, so a lock is no more than its file", self.path)
                    self._held = SoftFileLock(self.path)
                self._held.acquire(timeout=self.patience_sec, poll_interval=0.05)
                return
            except Timeout:
                raise LockedError(f"{self.refusal}{self._said_of_holder()}") from None
            except (FileNotFoundError, FileExistsError, _NamelessError) as err:  # other runs come and go just now
                if is_last:
                    reason = getattr(err, "strerror", None) or "others take it away again and again"
                    raise InputError(f"{self.path} cannot be made ({reason}); give another folder") from err
            except (IsADirectoryError, NotADirectoryError, PermissionError) as err:
                raise InputError(f"{self.path} cannot be locked ({err.strerror}); move it away") from err
            except OSError as err:
                if err.errno != errno.ENOLCK:  # of NFS, without its service of locks
                    raise
                raise InputError(
                    f"{self.path} cannot be locked ({err.strerror}), so another machine could be at the same; have the "
                    f"file system mounted with locks, or give another folder"
                ) from err

    def release(self) -> None:
        """Give the lock back, and remove what was made for it.

        The file goes first: whoever has opened it meanwhile finds, once the lock is his, that it has no name any more,
        and tries again.
        """
        if isinstance(self._held, FileLock):  # the other kind is free as soon as it has no file, and removes it itself
            self.path.unlink(missing_ok=True)
        self._held.release()
        with contextlib.suppress(OSError):  # not empty: other runs hold locks there; or gone already
            self.path.parent.rmdir()

    def check_free(self) -> None:
        """Refuse what another run is at; nothing is made.

        Raises:
            LockedError: If another run holds the lock.
        """
        if self.path.exists():
            with self:
                pass

    def remove_left_over(self) -> None:
        """Remove the file of a run that was killed; one that is held stays."""
        if self.path.parent.exists():
            with contextlib.suppress(LockedError), self:
                pass

    def _said_of_holder(self) -> str:
        """Whose a lock is that is no more than its file: on another machine nobody sees that its holder has ended."""
        if isinstance(self._held, FileLock):
            return ""
        with contextlib.suppress(OSError, ValueError):  # it is just being given back
            pid, host, *_ = self.path.read_text().splitlines()
            return f"; {self.path} is of process {pid} on {host}: if that has ended, remove the file"
        return ""

    def _check_name(self, descriptor: int) -> None:
        """Give a lock back, by an exception, whose file was taken away while it was waited for.

        filelock itself looks at the number of the file's names, which on NFS is not 0 as long as somebody holds it.
        """
        try:
            named = self.path.stat()
        except FileNotFoundError as err:
            raise _NamelessError from err
        if not os.path.samestat(named, os.fstat(descriptor)):
            raise _NamelessError

    def __enter__(self) -> "Lock":
        self.acquire()
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


def has_flock(folder: Path) -> bool:
    """Whether files of a folder can be locked; some network file systems are mounted without."""
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            if err.errno not in WITHOUT_FLOCK:
                raise
            return False
    return True
