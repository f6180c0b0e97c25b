"""Files of ours: written whole or not at all, and read back as they were written, or found damaged in one line.

A record is JSON with a checksum of itself; what lies beside a record has its checksum in there. So a bit that was
flipped on the way is noticed wherever something is read, also where what was damaged can still be parsed.
"""

import contextlib
import filecmp
import hashlib
import json
import os
import pickle
import shlex
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import ArrowException
from safetensors import SafetensorError

from sae_utils.disk import DiskFullError, check_space, is_disk_full
from sae_utils.errors import InputError, first_line
from sae_utils.memory import is_out_of_memory

READING_ERRORS = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    EOFError,
    RuntimeError,  # torch.load, of a file that is no archive
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
    ArrowException,
    SafetensorError,
)
"""What libraries raise for files that are not what they should be."""

CHECKSUM = "checksum"
"""Field of a record that holds the checksum of all the others."""

SCRATCH_PREFIX = "writing_"
"""Beginning of the names of files and folders that are not complete."""


class DamagedFileError(InputError):
    """A file of ours that is not as it was written; the message names it and says what to do."""

    def __init__(self, path: Path, found: str, remedy: str) -> None:
        super().__init__(f"{path} is damaged ({found}); {remedy}")
        self.path, self.found = path, found


class Record(dict):
    """A JSON object of ours, whose missing fields are damage."""

    path: Path
    """File that it was read from."""

    remedy: str
    """What to do if it is damaged."""

    def __missing__(self, name: str) -> Any:
        raise DamagedFileError(self.path, f"no field {name!r}, so it is another version's or not ours", self.remedy)


# writing


@dataclass
class Writing:
    """A file that is being written."""

    scratch: Path
    """Where."""

    path: Path
    """What it will be called; may be changed until it is complete."""


@contextlib.contextmanager
def written_whole(path: Path, *, n_bytes: int = 0) -> Iterator[Writing]:
    """A file to write, which gets its name in one step when the block ends, and is gone if it fails.

    Args:
        path: Its name.
        n_bytes: About how large it gets; more than is free is refused before a byte is written.

    Raises:
        DiskFullError: If there is no room for it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    check_space(path.parent, n_bytes, str(path))
    writing = Writing(path.with_name(SCRATCH_PREFIX + path.name), path)
    if writing.scratch.is_dir():
        shutil.rmtree(writing.scratch)
    try:
        with _writing_explained(path, n_bytes):
            yield writing
            flush_to_disk(writing.scratch)
            os.replace(writing.scratch, writing.path)
    except BaseException:
        writing.scratch.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def written_folder(path: Path, *, scratch: Path | None = None, n_bytes: int = 0) -> Iterator[Path]:
    """A folder to fill, which replaces the one at `path` when the block ends, and is gone if it fails.

    One that holds the same already is left alone, and its files keep their times.

    Args:
        path: Its name.
        scratch: Where it is filled, on the same disk; beside `path` if None.
        n_bytes: About how large it gets.

    Raises:
        DiskFullError: If there is no room for it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    check_space(path.parent, n_bytes, str(path))
    scratch = scratch or path.with_name(SCRATCH_PREFIX + path.name)
    remove_folder(scratch)
    try:
        with _writing_explained(path, n_bytes):
            scratch.mkdir(parents=True)
            yield scratch
            files = _files_in(scratch)
            if path.is_dir() and _files_in(path) == files == filecmp.cmpfiles(path, scratch, files, shallow=False)[0]:
                remove_folder(scratch)
                return
            for each in files:
                flush_to_disk(scratch / each)
            remove_folder(path)
            os.replace(scratch, path)
    except BaseException:
        remove_folder(scratch)
        raise


def _files_in(folder: Path) -> list[str]:
    """Files of a folder, as seen from it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of a text in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file in one step: readers see the old content or the new, never a part.

    One that has this content already is left alone, and keeps its time.
    """
    if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
        return
    with written_whole(path, n_bytes=len(data)) as file:
        file.scratch.write_bytes(data)


def to_json(content: Any) -> str:
    """Indented JSON. NaN and infinity are refused (ValueError): JSON has neither."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)


def write_json(path: Path, content: Any) -> None:
    """Write JSON for other readers, in one step."""
    write_text(path, to_json(content) + "\n")


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record of ours, with its checksum, in one step."""
    content = {name: value for name, value in record.items() if name != CHECKSUM}
    write_json(path, content | {CHECKSUM: checksum_text(to_json(content))})


def remove_folder(path: Path) -> None:
    """Remove a folder of ours, whose name is gone at once; one that is not there is fine."""
    trash = being_removed(path)
    for _ in range(2):  # what a killed run was removing goes first
        if trash.exists():
            shutil.rmtree(trash)
        if path.exists():
            os.rename(path, trash)


def holds_something(folder: Path) -> bool:
    """Whether anything is in a folder, or it is a file; what a killed run was writing does not count."""
    return not folder.is_dir() or any(not path.name.startswith(SCRATCH_PREFIX) for path in folder.iterdir())


def being_removed(path: Path) -> Path:
    """What a folder is called while it is being removed; what is left of it after a kill."""
    return path.with_name(f"removing_{path.name}")


def flush_to_disk(path: Path) -> None:
    """Have a file's bytes on the disk before it is renamed: after a power cut, a name must not stand for nothing."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def _writing_explained(path: Path, n_bytes: int) -> Iterator[None]:
    """Say which file could not be written: for lack of room, libraries that write it raise all kinds of errors."""
    try:
        yield
    except InputError:
        raise
    except Exception as err:
        if is_disk_full(err):
            raise DiskFullError(path.parent, str(path), n_bytes) from err
        if isinstance(err, OSError) and err.strerror:
            raise InputError(f"{path} cannot be written ({err.strerror}); move away what stands there") from err
        raise


# reading


def removal(path: Path) -> str:
    """The command that removes what stands at a path, for a remedy; where a file should be, there may be a folder."""
    return f"rm {'-r ' if path.is_dir() else ''}{shlex.quote(str(path))}"


@contextlib.contextmanager
def reading(path: Path, remedy: str) -> Iterator[None]:
    """Turn what libraries raise while a file of ours is read into one line; running out of memory is no damage.

    Args:
        path: The file, or the folder.
        remedy: What to do if it is damaged.

    Raises:
        DamagedFileError: If it cannot be read.
    """
    try:
        yield
    except InputError:
        raise
    except READING_ERRORS as err:
        if is_out_of_memory(err):
            raise
        raise DamagedFileError(path, first_line(err), remedy) from err


def read_record(path: Path, remedy: str, **types: type) -> Record:
    """Read a record that `write_record` wrote, or an earlier version without a checksum.

    Args:
        path: Its file.
        remedy: What to do if it is damaged.
        types: Fields that must be there, and what they must be.

    Raises:
        DamagedFileError: If it is not what was written.
    """

    def make_record(content: dict[str, Any]) -> Record:
        record = Record(content)
        record.path, record.remedy = path, remedy
        return record

    with reading(path, remedy):
        record = json.loads(path.read_text(encoding="utf-8"), object_hook=make_record)
    if not isinstance(record, Record):
        raise DamagedFileError(path, f"a JSON {type(record).__name__} where an object should be", remedy)
    checksum = record.pop(CHECKSUM, None)
    if checksum is not None and checksum != checksum_text(to_json(record)):
        raise DamagedFileError(path, "its content does not fit its checksum: changed by hand, or by the disk", remedy)
    for name, kind in types.items():
        if not isinstance(record[name], kind):
            raise DamagedFileError(path, f"{name} is {record[name]!r:.40} and no {kind.__name__}", remedy)
    return record


def checksum_text(text: str) -> str:
    """Checksum of a text: the first 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def checksum_file(path: Path) -> str:
    """Checksum of a file's bytes: the first 16 hexadecimal digits of their SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def checksum_beginning(path: Path, n_bytes: int) -> str:
    """Checksum of the first bytes of a file that grows."""
    with path.open("rb") as file:
        return hashlib.sha256(file.read(n_bytes)).hexdigest()[:16]


def checksum_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Checksums of some files of a folder, by their names in it, for the record beside them."""
    return {name: checksum_file(folder / name) for name in sorted(names)}


def check_file(path: Path, checksum: str | None, remedy: str) -> None:
    """Compare a file with the checksum that a record has of it; None, from an earlier version, fits.

    Raises:
        DamagedFileError: If it is another one, or is not there.
    """
    if checksum is None:
        return
    with reading(path, remedy):
        found = checksum_file(path)
    if found != checksum:
        raise DamagedFileError(path, f"its checksum was {checksum} and is now {found}", remedy)


def check_files(folder: Path, checksums: Mapping[str, str], remedy: str) -> None:
    """`check_file` for every file that a record has a checksum of.

    Raises:
        DamagedFileError: For the first that is another one, or is not there.
    """
    for name, checksum in checksums.items():
        check_file(folder / name, checksum, remedy)
