import errno
import os

import pytest

from sae_utils import disk
from sae_utils.disk import DiskFullError, check_space, check_writable, free_disk_bytes, is_disk_full, is_writable
from sae_utils.errors import InputError


def test_room_is_that_of_the_disk_that_a_folder_will_be_on(tmp_path):
    assert free_disk_bytes(tmp_path / "not" / "there") == pytest.approx(free_disk_bytes(tmp_path), rel=0.1)


def test_what_does_not_fit_is_refused_with_both_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "free_disk_bytes", lambda folder: 2_000_000_000)
    check_space(tmp_path, 2_000_000_000, "the SAEs")
    with pytest.raises(DiskFullError, match=r"is full: the SAEs needs 3\.00 GB, and 2\.00 GB are free"):
        check_space(tmp_path, 3_000_000_000, "the SAEs")


def test_a_file_in_the_way_is_named(tmp_path):
    """`--output_dir` that is a file, or lies in one."""
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=r"--output_dir .* cannot be a folder: .*/file is a file"):
            check_writable(folder, "output_dir")
    check_writable(tmp_path / "new" / "folder", "output_dir")
    assert not (tmp_path / "new").exists(), "nothing is written to find out"


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    """Tests may run as root, whom permissions do not stop; a file system that is mounted read-only does."""
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    with pytest.raises(InputError, match=r"--results_dir .*/new cannot be written: .* is read-only for this user"):
        check_writable(tmp_path / "new", "results_dir")
    assert not is_writable(tmp_path)


@pytest.mark.parametrize(
    "err",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 26432 vs 26320"),
        RuntimeError("basic_ios::clear: iostream error"),
    ],
)
def test_a_full_disk_is_known_by_number_and_by_words(err):
    assert is_disk_full(err)
    try:
        raise ValueError("while writing") from err
    except ValueError as outer:
        assert is_disk_full(outer), "also behind another error"
    assert not is_disk_full(OSError(errno.EACCES, "Permission denied"))


def test_errors_that_lead_back_to_each_other_are_looked_at_once():
    """Libraries raise the cause of an error inside its handler."""
    first, second = ValueError("a"), ValueError("b")
    first.__context__, second.__context__ = second, first
    assert not is_disk_full(first)
