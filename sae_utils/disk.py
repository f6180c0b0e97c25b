"""Places to write to: whether there may be written at all, whether there is room, and what to say where it ran out."""

import errno
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sae_utils.errors import InputError

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a full disk, and of a user's share of it."""

FULL_WORDINGS = (
    "no space left on device",
    "disk quota exceeded",
    "not enough disk space",
    "pytorchstreamwriter failed",
    "unexpected pos ",
    "iostream error",
)
"""How libraries that have no error number say it, in lower case. PyTorch's writer gives no reason at all; the last two
are its, too, where a file cannot be ended and where it cannot be begun or closed."""

GB = 1e9


@dataclass(frozen=True)
class DiskUse:
    """What some work writes."""

    n_peak: int
    """Bytes that stand there at the worst moment."""

    n_final: int
    """Bytes that stay."""

    def then(self, other: "DiskUse") -> "DiskUse":
        """Of two works, one after the other.

        >>> DiskUse(5, 2).then(DiskUse(4, 3))
        DiskUse(n_peak=6, n_final=5)
        """
        return DiskUse(max(self.n_peak, self.n_final + other.n_peak), self.n_final + other.n_final)

    def __str__(self) -> str:
        return f"{describe_bytes(self.n_final)} on disk, at most {describe_bytes(self.n_peak)} on the way"


NOTHING = DiskUse(0, 0)
"""What no work writes."""


class DiskFullError(InputError):
    """No room on the disk; the message has what was needed and what is free."""

    def __init__(self, folder: Path, what: str, n_bytes: int) -> None:
        needed = f"needs {describe_bytes(n_bytes)}" if n_bytes else "does not fit"
        super().__init__(
            f"the disk of {folder.absolute()} is full: {what} {needed}, and {describe_bytes(free_disk_bytes(folder))} "
            f"are free; free some and give the same command, or give a folder on another disk"
        )


def free_disk_bytes(folder: Path) -> int:
    """Bytes that this user can still write to the disk of a folder, which need not be there yet."""
    return shutil.disk_usage(existing_parent(folder)).free


def existing_parent(path: Path) -> Path:
    """The folder or file itself if it is there, else the nearest of those around it that is."""
    return next(each for each in [path.absolute(), *path.absolute().parents] if os.path.lexists(each))


def is_writable(folder: Path) -> bool:
    """Whether files can be made in a folder, or in the one that it would be made in; nothing is written to find out."""
    there = existing_parent(folder)
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def check_writable(folder: Path, flag: str) -> None:
    """Refuse a folder in which nothing can be written, before anything is computed.

    Raises:
        InputError: If it is a file, lies in one, or is not ours to write in.
    """
    there = existing_parent(folder)
    if not there.is_dir():
        raise InputError(f"--{flag} {folder} cannot be a folder: {there} is a file; give another folder")
    if not is_writable(folder):
        raise InputError(
            f"--{flag} {folder} cannot be written: {there} is read-only for this user; give another folder"
        )


def check_space(folder: Path, n_bytes: int, what: str) -> None:
    """Refuse to begin what the disk has no room for.

    Args:
        folder: Where it will be written.
        n_bytes: About how large it gets.
        what: What it is, for the message.

    Raises:
        DiskFullError: If less is free.
    """
    if n_bytes and n_bytes > free_disk_bytes(folder):
        raise DiskFullError(folder, what, n_bytes)


def is_disk_full(err: BaseException) -> bool:
    """Whether an error, or one that it came from, means that the disk is full."""
    return any(_says_full(each) for each in _causes(err))


def describe_full_disk(err: BaseException) -> str:
    """One line about an error that `is_disk_full`."""
    named = next((str(each.filename) for each in _causes(err) if isinstance(each, OSError) and each.filename), None)
    where = Path(named) if named else Path.cwd()
    free = describe_bytes(free_disk_bytes(where))
    return (
        f"the disk is full: {named or 'a file'} does not fit, and {free} are free; free some and give the same command"
    )


def describe_bytes(n_bytes: int) -> str:
    """Bytes as people read them.

    >>> describe_bytes(1_500_000), describe_bytes(2_000_000_000)
    ('1.5 MB', '2.00 GB')
    """
    return f"{n_bytes / GB:.2f} GB" if n_bytes >= GB / 10 else f"{n_bytes / 1e6:.1f} MB"


def _says_full(err: BaseException) -> bool:
    if isinstance(err, OSError) and err.errno in FULL:
        return True
    message = str(err).lower()
    return isinstance(err, Exception) and any(wording in message for wording in FULL_WORDINGS)


def _causes(err: BaseException | None) -> Iterator[BaseException]:
    """An error and those that led to it, each once: they may lead back to each other."""
    seen: list[BaseException] = []
    while err is not None and not any(err is each for each in seen):
        yield err
        seen.append(err)
        err = err.__cause__ or err.__context__
