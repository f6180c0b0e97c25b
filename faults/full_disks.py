"""Disks that fill up at a random moment: refused in one line, nothing half-written, and with room the same bytes.

Each trial has a small file system of its own in memory, as large as what lies in it and a random share of what an
unbroken run adds at its most.
"""

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

from folders import copy
from processes import Failure, Running
from study import STEPS, Step, Study
from trials import REFUSED, Case, Skipped, Trial, check_refused

N_DISKS = 12
"""For each step."""

STEPS_ON_DISKS = ("generation", "extension", "packing", "packing much", "training", "comparison")

ROOMY = 256 * 2**20
"""Bytes of a file system on which nothing is short."""

AMOUNT = re.compile(r"\d[\d,.]* ?(?:bytes|[kKMGT]i?B)\b")
"""How a message names an amount of disk."""


OF_A_LIBRARY = "the disk is full: a file does not fit"
"""What is said where a library was writing, so that nobody knows how much it would have been; then, what is free."""


def cases(study: Study, rounds: int, only: str = "") -> Iterator[Case]:
    """All full disks."""
    for name in STEPS_ON_DISKS:
        for i in range(N_DISKS * rounds):
            needs = STEPS[name].before, STEPS[name].after
            yield Case(f"full_disks/{name}/{i}", f"full disk: {name}", partial(fill, step=STEPS[name]), needs)


def fill(trial: Trial, *, step: Step) -> str:
    """A run on a disk that is too small, then the same command on a larger one."""
    if reason := why_no_disks():
        raise Skipped(reason)
    with small_disk(trial.folder / "disk", ROOMY) as disk, kept_if_failed(disk / "study", trial.folder / "study"):
        trial.place = disk / "study"
        trial.start_from(step.before)
        n_used = used_bytes(disk)
        growth = max(most_used(trial, step, disk) - n_used, 0)
        trial.start_anew(step.before)
        n_used = used_bytes(disk)
        size = n_used + int(trial.rng.uniform(0, growth))
        before = trial.contents()
        resize(disk, size)
        trial.note(f"# disk of {size} bytes, {n_used} used before, {growth} more at the most by an unbroken run")
        ending = trial.begin_step(step).wait()
        outcome = REFUSED
        if ending.code == 0:
            outcome = trial.check_same(step, ending)
        else:
            check_full_disk(trial, check_refused(ending), before, step)
        resize(disk, ROOMY)
        trial.check_same(step, trial.begin_step(step).wait())
        return outcome


def check_full_disk(trial: Trial, line: str, before: dict[str, str], step: Step) -> None:
    """Refuse a message without numbers, half-written files, and finished work that is gone.

    Raises:
        Failure: If there is any of them.
    """
    n_amounts = 1 if OF_A_LIBRARY in line else 2
    if len(AMOUNT.findall(line)) < n_amounts:
        raise Failure(f"the line should name what was needed and what was free, got {line!r}")
    trial.check_nothing_half_written()
    now, after = trial.contents(), trial.study.contents(step.after)
    changed = [path for path in before if now.get(path) not in (before[path], after.get(path))]
    if changed:
        raise Failure(f"finished files are gone or changed: {', '.join(changed[:5])}")


@cache
def why_no_disks() -> str | None:
    """Why no file system can be mounted here; None if one can."""
    place = Path(f"/tmp/disk_{os.getpid()}")
    place.mkdir()
    try:
        done = subprocess.run(mount_words(place, 2**20), capture_output=True, text=True, check=False)
        if done.returncode:
            return f"no tmpfs can be mounted ({done.stderr.strip()}); run as root, or with `unshare -rm` before `make`"
        subprocess.run(["umount", str(place)], check=True)
    except FileNotFoundError:
        return "there is no `mount`"
    finally:
        place.rmdir()
    return None


@contextlib.contextmanager
def small_disk(place: Path, size: int) -> Iterator[Path]:
    """A file system of so many bytes, in memory; gone afterwards."""
    place.mkdir()
    subprocess.run(mount_words(place, size), check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
        place.rmdir()


@contextlib.contextmanager
def kept_if_failed(place: Path, kept: Path) -> Iterator[None]:
    """Copy a folder off the disk that will be gone, if the trial fails."""
    try:
        yield
    except Failure:
        copy(place, kept)
        raise


def mount_words(place: Path, size: int) -> list[str]:
    """The command that mounts one."""
    return ["mount", "-t", "tmpfs", "-o", f"size={size}", "faults", str(place)]


def resize(disk: Path, size: int) -> None:
    """Give a mounted file system another size."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


def used_bytes(disk: Path) -> int:
    """Bytes that are taken."""
    status = os.statvfs(disk)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


_growth: dict[str, int] = {}
"""Most bytes in use while an unbroken run of each step is under way, found once in each process."""


def most_used(trial: Trial, step: Step, disk: Path) -> int:
    """Most bytes in use on the trial's disk while an unbroken run is under way there."""
    if step.name not in _growth:
        peak = 0

        def look(running: Running) -> bool:
            nonlocal peak
            peak = max(peak, used_bytes(disk))
            return running.has_ended

        running = trial.begin_step(step)
        running.wait_until(lambda: look(running))
        running.wait()
        _growth[step.name] = peak
    return _growth[step.name]
