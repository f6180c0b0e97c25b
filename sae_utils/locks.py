"""One run at a time for a data set or a cell: locks in a hidden folder, which is gone when nothing is running."""

import contextlib
from pathlib import Path

from filelock import FileLock, Timeout

from sae_utils.errors import InputError

FOLDER = ".locks"
"""Folder of the locks, inside the folder of what is locked."""

PATIENCE_SEC = 0.5
"""How long to try: a lock that is just being given back is not held by another run."""


N_ATTEMPTS = 100
"""How often to try while other runs make the folder and take it away; if it is not that, the error is shown."""


class Lock:
    """A lock by name. It is free as soon as its holder has ended, however that came to pass."""

    def __init__(self, folder: Path, name: str, *, refusal: str) -> None:
        """Prepare a lock; nothing is written yet.

        Args:
            folder: Folder of what is locked.
            name: Name of what is locked.
            refusal: What to say if another run holds it.
        """
        self.path = folder / FOLDER / f"{name}.lock"
        self.refusal = refusal

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            InputError: If another run holds it.
        """
        for is_last in [*[False] * N_ATTEMPTS, True]:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file_lock = FileLock(self.path)
                self._file_lock.acquire(timeout=PATIENCE_SEC, poll_interval=0.05)
                return
            except Timeout:
                raise InputError(self.refusal) from None
            except (FileNotFoundError, FileExistsError):  # another run took the folder away, or made it, just now
                if is_last:
                    raise

    def release(self) -> None:
        """Give the lock back, and remove what was made for it.

        The file goes first: whoever has opened it meanwhile finds, once the lock is his, that it has no name any more,
        and tries again (`filelock` sees to that).
        """
        self.path.unlink(missing_ok=True)
        self._file_lock.release()
        with contextlib.suppress(OSError):  # not empty: other runs hold locks there; or gone already
            self.path.parent.rmdir()

    def __enter__(self) -> "Lock":
        self.acquire()
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()
