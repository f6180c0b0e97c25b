import errno
import fcntl
import itertools
import os
import signal
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import pytest
from filelock import FileLock

from sae_utils.errors import InputError
from sae_utils.locks import Lock

HERE = Path()
REFUSAL = "another run is at it; wait for it"


def lock(name: str = "a") -> Lock:
    return Lock(HERE, name, refusal=REFUSAL)


def started(work: Callable) -> "os.PathLike":
    process = get_context("fork").Process(target=work)
    process.start()
    return process


def hold_for_long() -> None:
    with lock():
        Path("held").touch()
        time.sleep(60)


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)


def test_nothing_is_left_when_nothing_runs():
    """Between the data sets lie data sets."""
    with lock("a"), lock("b"):
        assert sorted(path.name for path in Path(".locks").iterdir()) == ["a.lock", "b.lock"]
    lock("a").check_free()
    assert list(HERE.iterdir()) == []
    with pytest.raises(KeyError), lock():
        raise KeyError
    assert list(HERE.iterdir()) == []


def test_a_lock_that_is_held_is_refused_and_others_are_not():
    holder = started(hold_for_long)
    wait_for(Path("held"))
    for take in (lock().acquire, lock().check_free):
        with pytest.raises(InputError, match=REFUSAL):
            take()
    with lock("b"):
        pass
    assert [path.name for path in Path(".locks").iterdir()] == ["a.lock"], "another's lock was taken away"
    holder.kill()
    holder.join()


def test_a_killed_holder_holds_nothing():
    """What it left behind is cleared away by the next one."""
    holder = started(hold_for_long)
    wait_for(Path("held"))
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert Path(".locks/a.lock").exists()
    with lock():
        pass
    assert not Path(".locks").exists()


def test_the_name_goes_before_the_lock(monkeypatch):
    """The other way round, the next holder's file could be the one that is removed, and a third would make another."""
    release, seen = FileLock.release, []

    def watched(held: FileLock, *args, **options) -> None:
        seen.append(Path(".locks/a.lock").exists())
        release(held, *args, **options)

    monkeypatch.setattr(FileLock, "release", watched)
    with lock():
        pass
    assert seen and not any(seen)


def test_a_file_that_lost_its_name_is_not_the_lock(monkeypatch):
    """On NFS a file that is removed while it is open gets another name, so that it seems to be there still."""
    flock, n_calls = fcntl.flock, itertools.count()

    def after_the_name_went(descriptor, operation) -> None:
        if next(n_calls) == 1:  # the first call asks whether there are locks at all
            os.rename(".locks/a.lock", ".nfs0001")
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", after_the_name_went)
    with lock():
        assert Path(".locks/a.lock").exists()
        with pytest.raises(InputError, match=REFUSAL):
            lock().acquire()
    assert [path.name for path in HERE.iterdir()] == [".nfs0001"]


def test_without_flock_the_file_is_the_lock(monkeypatch, caplog):
    """As on some clusters' file systems; it is said."""
    monkeypatch.setattr(fcntl, "flock", failing(errno.ENOSYS))
    with lock():
        assert "no flock on this file system" in caplog.text
        with pytest.raises(InputError, match=REFUSAL):
            lock().acquire()
    assert list(HERE.iterdir()) == []


def test_without_flock_a_holder_on_another_machine_is_named(monkeypatch):
    """Its end is seen by nobody here, so a run that was killed there would be waited for for ever."""
    monkeypatch.setattr(fcntl, "flock", failing(errno.EOPNOTSUPP))
    Path(".locks").mkdir()
    Path(".locks/a.lock").write_text(f"{os.getpid()}\nelsewhere\n")
    with pytest.raises(InputError, match=rf"{REFUSAL}; .*a.lock is of process {os.getpid()} on elsewhere: if that has"):
        lock().acquire()
    Path(".locks/a.lock").unlink()
    with lock():
        pass
    assert list(HERE.iterdir()) == []


def test_locks_that_may_come_back_are_not_done_without(monkeypatch):
    """Another machine may have them all the same, and would not see the file that stands for the lock here."""
    monkeypatch.setattr(fcntl, "flock", failing(errno.ENOLCK))
    with pytest.raises(InputError, match=r"cannot be locked .* have the file system mounted with locks"):
        lock().acquire()


def failing(number: int) -> Callable:
    """A system call that fails with this error number."""

    def fail(descriptor, operation) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def take_turns(n_turns: int) -> None:
    """Fails if another is inside at the same time: a folder can be made once only."""
    done = 0
    while done < n_turns:
        try:
            with lock():
                Path("inside").mkdir()
                Path("inside").rmdir()
                done += 1
        except InputError:
            continue


def test_never_two_at_once_while_locks_come_and_go():
    """The file is removed and made again all the time; who opened the removed one must not think that he is alone."""
    processes = [started(lambda: take_turns(60)) for _ in range(4)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert list(HERE.iterdir()) == []
