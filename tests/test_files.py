import errno
import json
import os
import pickle
import shlex
import subprocess
from pathlib import Path

import pytest
import torch

from sae_utils.disk import DiskFullError
from sae_utils.errors import InputError
from sae_utils.files import (
    DamagedFileError,
    check_files,
    checksum_beginning,
    checksum_files,
    read_record,
    reading,
    removal,
    remove_folder,
    write_record,
    write_text,
    written_folder,
    written_whole,
)

RECORD = {"name": "prose", "n_tokens": 2505, "nested": {"lr": 0.1}, "list": [{"seed": 0}], "none": None}


@pytest.fixture
def path(tmp_path) -> Path:
    """A record on disk."""
    write_record(tmp_path / "record.json", RECORD)
    return tmp_path / "record.json"


# records


def test_a_record_comes_back_as_it_was_written(path):
    assert read_record(path, "write it again", name=str, n_tokens=int) == RECORD
    assert len(json.loads(path.read_text())["checksum"]) == 16


def test_every_flipped_bit_of_a_record_is_noticed_or_of_no_consequence(path):
    """A digit that became another digit still parses, and is a wrong number in a paper."""
    whole = path.read_bytes()
    n_unnoticed = 0
    for position in range(len(whole)):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[position] ^= 1 << bit
            path.write_bytes(flipped)
            try:
                found = read_record(path, "write it again")
            except DamagedFileError as err:
                assert str(path) in str(err) and str(err).endswith("; write it again")
                continue
            n_unnoticed += 1  # in the name of the checksum, or white space
            assert {name: found[name] for name in RECORD} == RECORD
    assert n_unnoticed < 0.2 * 8 * len(whole)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "Expecting value"),
        (b"[]", "a JSON list where an object should be"),
        (b"null", "a JSON NoneType where an object should be"),
        (b'{"name": "prose"}', "no field 'n_tokens'"),
        (b'{"name": "prose", "n_tokens": "many"}', "n_tokens is 'many' and no int"),
        (b'{"name": "pro', "Unterminated string"),
        (b"\xff\xfe\x00", "can't decode"),
        (b"version https://git-lfs.github.com/spec/v1", "Expecting value"),
    ],
)
def test_what_is_no_record_is_one_line_with_file_and_remedy(path, content, found):
    path.write_bytes(content)
    with pytest.raises(DamagedFileError) as refused:
        read_record(path, "write it again", n_tokens=int)
    message = str(refused.value)
    assert found in message and str(path) in message and message.endswith("write it again")
    assert "\n" not in message


def test_a_missing_field_is_damage_wherever_it_is_looked_for(path):
    """Or a file of another version ends in a traceback far from where it was read."""
    record = read_record(path, "write it again")
    for part in (record, record["nested"], record["list"][0]):
        with pytest.raises(DamagedFileError, match=r"no field 'git_commit'"):
            part["git_commit"]
    assert record.get("git_commit") is None


def test_a_record_without_a_checksum_is_read(path):
    """Those of earlier versions have none."""
    path.write_text(json.dumps(RECORD))
    assert read_record(path, "") == RECORD


def test_a_folder_and_nothing_in_place_of_a_file_are_damage(tmp_path):
    (tmp_path / "folder").mkdir()
    for name, found in (("folder", "Is a directory"), ("nothing", "No such file or directory")):
        with pytest.raises(DamagedFileError, match=found):
            read_record(tmp_path / name, "")


def test_what_is_advised_removes_what_stands_there(tmp_path):
    """`rm` refuses folders, and a path with a space is two."""
    folder, file = tmp_path / "a folder" / "b", tmp_path / "a folder" / "c.json"
    folder.mkdir(parents=True)
    file.touch()
    for path in (folder, file):
        subprocess.run(shlex.split(removal(path)), check=True)
    assert not list((tmp_path / "a folder").iterdir())
    assert removal(tmp_path / "c.json") == f"rm {tmp_path}/c.json"


# other files


def test_files_are_held_against_their_checksums(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    checksums = checksum_files(tmp_path, ["b", "a"])
    check_files(tmp_path, checksums, "")
    (tmp_path / "b").write_text("c")
    with pytest.raises(
        DamagedFileError, match=r"b is damaged \(its checksum was \w{16} and is now \w{16}\); sample again"
    ):
        check_files(tmp_path, checksums, "sample again")


def test_the_beginning_of_a_file_does_not_change_when_it_grows(tmp_path):
    path = tmp_path / "losses"
    path.write_text("one\n")
    before = checksum_beginning(path, 4)
    path.write_text("one\ntwo\n")
    assert checksum_beginning(path, 4) == before != checksum_beginning(path, 8)


@pytest.mark.parametrize(
    "err", [ValueError("x\ny"), KeyError("x"), EOFError(), pickle.UnpicklingError("x"), RuntimeError("not an archive")]
)
def test_whatever_a_library_raises_on_reading_is_one_line(tmp_path, err):
    with pytest.raises(DamagedFileError) as refused, reading(tmp_path / "state.pt", "begin anew"):
        raise err
    assert "\n" not in str(refused.value) and "state.pt is damaged" in str(refused.value)


@pytest.mark.parametrize("err", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), AssertionError()])
def test_what_is_no_damage_is_not_called_so(tmp_path, err):
    """A user would throw away a good checkpoint for want of memory."""
    with pytest.raises(type(err)), reading(tmp_path / "state.pt", ""):
        raise err


# writing


def test_a_file_that_fails_to_be_written_leaves_the_old_one_and_nothing_else(tmp_path):
    write_text(tmp_path / "a", "old")
    with pytest.raises(ZeroDivisionError), written_whole(tmp_path / "a") as file:
        file.scratch.write_text("half")
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_a_full_disk_is_named_with_what_was_needed_and_is_free(tmp_path):
    with (
        pytest.raises(DiskFullError, match=r"state.pt needs 5.00 GB, and .* free; free some and give the same command"),
        written_whole(tmp_path / "state.pt", n_bytes=5) as file,
    ):
        file.scratch.write_text("half")
        raise DiskFullError(tmp_path, "state.pt", 5_000_000_000)
    for err in (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), RuntimeError("I/O error: No space left on device")):
        with pytest.raises(DiskFullError, match=r"a needs 0\.0 MB"), written_whole(tmp_path / "a", n_bytes=5):
            raise err
    assert list(tmp_path.iterdir()) == []


def test_more_than_is_free_is_refused_before_a_byte_is_written(tmp_path):
    with pytest.raises(DiskFullError, match=r"needs 1000000000\.00 GB"), written_whole(tmp_path / "a", n_bytes=10**18):
        pytest.fail("begun all the same")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match=r"a cannot be written \(Is a directory\); move away what stands there"):
        write_text(tmp_path / "a", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_is_the_same_keeps_its_time(tmp_path):
    """A second run over everything finished must not look like work to backups and build tools."""
    write_text(tmp_path / "a", "text")
    with written_folder(tmp_path / "b") as scratch:
        (scratch / "c").write_text("text")
    for path in (tmp_path / "a", tmp_path / "b" / "c"):
        os.utime(path, (1, 1))
    write_text(tmp_path / "a", "text")
    with written_folder(tmp_path / "b") as scratch:
        (scratch / "c").write_text("text")
    assert (tmp_path / "a").stat().st_mtime == (tmp_path / "b" / "c").stat().st_mtime == 1
    write_text(tmp_path / "a", "TEXT")
    with written_folder(tmp_path / "b") as scratch:
        (scratch / "c").write_text("TEXT")
    assert (tmp_path / "a").read_text() == (tmp_path / "b" / "c").read_text() == "TEXT"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_folder_is_gone_at_once_and_what_a_kill_left_of_it_goes_next_time(tmp_path):
    """Removed file by file under its own name, half of it would be taken for a folder of somebody else."""
    for name in ("a", "removing_a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("")
    remove_folder(tmp_path / "a")
    remove_folder(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
