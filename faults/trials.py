"""Trials: one fault each, in a folder of its own, played by a few processes; what came of them, and the table."""

import os
import random
import re
import shlex
import shutil
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from folders import contents, copy, differences, half_written
from processes import Ending, Failure, Running, Strike, begin
from study import Step, Study

SAME, REFUSED, UNREAD, FAILED, SKIPPED = "same bytes", "refused", "not read", "FAILED", "skipped"
"""What comes of a trial: it ended with the bytes of an unbroken run; it was refused in one line, with nothing lost; a
damaged file stayed as it was and showed in no other; something happened that must not; it cannot be tried here."""

OUTCOMES = (SAME, REFUSED, UNREAD, FAILED, SKIPPED)

STATUS_EVERY_SEC = 20.0


class Skipped(Exception):  # noqa: N818 - not an error
    """The trial cannot be played on this machine; the message says why."""


class Trial:
    """A folder in which a fault is played, and what was done there."""

    def __init__(self, folder: Path, study: Study, rng: random.Random) -> None:
        """An empty trial.

        Args:
            folder: Its own folder, which is made; the study's state goes into `study` in it.
            study: States to start from.
            rng: Where what is chosen at random comes from.
        """
        self.folder, self.study, self.rng = folder, study, rng
        self.place = folder / "study"
        self.n_begun = 0
        folder.mkdir(parents=True)

    def start_from(self, state: str) -> None:
        """Put a copy of a state into the working folder."""
        copy(self.study.state(state), self.place)

    def start_anew(self, state: str) -> None:
        """The same, after something else was done there."""
        shutil.rmtree(self.place)
        self.start_from(state)

    def begin(self, script: str, flags: Sequence[str], strike: Strike | None = None) -> Running:
        """Start a script in the working folder."""
        flags = self.study.filled(flags)
        self.n_begun += 1
        self.note(shlex.join(["python", script, *flags]) + (f"  # {strike}" if strike else ""))
        return begin(script, flags, self.place, self.folder / str(self.n_begun), strike)

    def run(self, script: str, flags: Sequence[str], strike: Strike | None = None) -> Ending:
        """Run a script to its end."""
        return self.begin(script, flags, strike).wait()

    def begin_step(self, step: Step, strike: Strike | None = None) -> Running:
        """Start a step's command."""
        return self.begin(step.script, step.flags, strike)

    def note(self, line: str) -> None:
        """Keep a line for whoever repeats the trial."""
        with (self.folder / "commands.txt").open("a") as file:
            file.write(line + "\n")

    def contents(self) -> dict[str, str]:
        """What lies in the working folder."""
        return contents(self.place)

    def check_same(self, step: Step, ending: Ending) -> str:
        """The outcome of a run that must have ended as an unbroken one does.

        Raises:
            Failure: If it has not.
        """
        check_no_traceback(ending)
        if ending.code != 0:
            raise Failure(f"exit code {ending.code}, expected 0: {ending.last_words}")
        if wrong := differences(self.contents(), self.study.contents(step.after)):
            raise Failure(f"exit code 0 with other files: {'; '.join(wrong[:8])}")
        return SAME

    def check_nothing_half_written(self, before: Iterable[str] = ()) -> None:
        """Refuse what only a run under way may have, unless it was there before.

        Raises:
            Failure: If there is such a thing.
        """
        if found := set(half_written(self.contents())) - set(before):
            raise Failure(f"half-written files are left: {', '.join(sorted(found)[:5])}")


@dataclass(frozen=True)
class Case:
    """A trial that can be played."""

    name: str
    """Its own, with slashes: the seed of what is random in it, and what `--only` looks at."""

    fault: str
    """Row of the table."""

    play: Callable[[Trial], str]
    """What happens; returns the outcome, or raises `Failure`."""

    needs: tuple[str, ...] = ()
    """States of the study, which are made before any trial begins."""

    measured: Step | None = None
    """Step of which it must be known what an unbroken run takes."""


@dataclass(frozen=True)
class Result:
    """What came of a trial."""

    name: str
    fault: str
    outcome: str
    reason: str = ""
    """Why it failed."""


def check_no_traceback(ending: Ending) -> None:
    """Refuse a traceback, and processes that go on by themselves.

    Raises:
        Failure: If standard error has one, or there are any.
    """
    if ending.left_behind:
        raise Failure(f"exit code {ending.code}, and processes that it had started go on without it")
    if "Traceback (most recent call last)" in ending.err:
        raise Failure(f"exit code {ending.code} with a traceback{where_raised(ending.err)}: {last_line(ending.err)}")


def check_refused(ending: Ending, *, code: int = 2) -> str:
    """The one line that a process was refused with.

    Raises:
        Failure: If it ended in any other way.
    """
    check_no_traceback(ending)
    if ending.code != code:
        raise Failure(f"exit code {ending.code}, expected {code}: {ending.last_words or 'nothing said'}")
    lines = ending.err.splitlines()
    if lines and lines[0].startswith("usage: ") and len(lines) == 2:
        del lines[0]  # argparse's, of two short lines, for a flag that it does not understand
    if len(lines) != 1:
        raise Failure(f"exit code {code} with {len(lines)} lines on standard error: {ending.last_words!r}")
    return lines[0]


def where_raised(text: str) -> str:
    """The innermost lines of ours in a traceback.

    >>> where_raised('  File "/a/sae_utils/records.py", line 32, in read_json')
    ' from sae_utils/records.py read_json'
    """
    frames = re.findall(r'File "\S*/((?:sae_utils/\S+|generate_datasets|train_sae)\.py)", line \d+, in (\w+)', text)
    return f" from {' > '.join(' '.join(frame) for frame in frames[-2:])}" if frames else ""


def last_line(text: str) -> str:
    """The last line that says something; of a traceback, the exception."""
    starts = [line for line in text.splitlines() if re.match(r"[\w.]+(Error|Exception|Interrupt|Exit)\b", line)]
    lines = [line for line in text.splitlines() if line.strip()]
    return (starts or lines or [""])[-1].strip()[:300]


def play(case: Case, study: Study, folder: Path, seed: int) -> Result:
    """Play a trial; its folder goes if it did not fail."""
    here = folder / case.name.replace(" ", "_")
    try:
        shutil.rmtree(here, ignore_errors=True)
        outcome, reason = case.play(Trial(here, study, random.Random(f"{seed} {case.name}"))), ""
    except Failure as failure:
        outcome, reason = FAILED, str(failure)
    except Skipped as skipped:
        outcome, reason = SKIPPED, str(skipped)
    except Exception:  # noqa: BLE001 - a slip of the suite must not pass for a success, nor end the others
        outcome, reason = FAILED, f"the suite itself failed: {last_line(traceback.format_exc())}"
        (here / "traceback.txt").write_text(traceback.format_exc())
    if outcome == FAILED:
        (here / "reason.txt").write_text(reason)
    else:
        shutil.rmtree(here, ignore_errors=True)
    return Result(case.name, case.fault, outcome, reason)


_cases: list[Case] = []
"""Trials to be played, for the processes that are forked to play them: functions do not travel."""


def play_all(cases: Sequence[Case], study: Study, folder: Path, seed: int, *, n_workers: int) -> list[Result]:
    """Play trials, some at a time; a line for each that fails, and one now and then for all."""
    prepare(cases, study)
    _cases[:] = cases
    order = sorted(range(len(cases)), key=lambda i: random.Random(f"{seed} {i}").random())
    results: list[Result] = []
    said = began = time.monotonic()
    with ProcessPoolExecutor(n_workers, mp_context=get_context("fork")) as pool:
        waiting = [pool.submit(_play_number, i, study, folder, seed) for i in order]
        for done in as_completed(waiting):
            results.append(done.result())
            if results[-1].outcome == FAILED:
                print(f"FAILED {results[-1].name}: {shortened(results[-1].reason)}", flush=True)
            if time.monotonic() - said > STATUS_EVERY_SEC:
                said = time.monotonic()
                n_failed = sum(result.outcome == FAILED for result in results)
                print(f"{len(results)} of {len(cases)} | {n_failed} failed | {said - began:.0f} s", flush=True)
    return sorted(results, key=lambda result: result.name)


def prepare(cases: Sequence[Case], study: Study) -> None:
    """Make the states that trials start from and are compared with."""
    for state in dict.fromkeys(state for case in cases for state in case.needs):
        study.contents(state)
    for step in dict.fromkeys(case.measured for case in cases if case.measured):
        study.measure(step)


def _play_number(number: int, study: Study, folder: Path, seed: int) -> Result:
    return play(_cases[number], study, folder, seed)


def table(results: Sequence[Result]) -> str:
    """Faults, how often each was played, and what came of it."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for result in results:
        counts[result.fault][result.outcome] += 1
        counts["all"][result.outcome] += 1
    counts["all"] = counts.pop("all", Counter())  # last
    shown = [outcome for outcome in OUTCOMES if counts["all"][outcome] or outcome not in (UNREAD, SKIPPED)]
    rows = [["fault", "times", *shown]]
    for fault, count in counts.items():
        rows.append([fault, str(count.total()), *(str(count[outcome]) for outcome in shown)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(n) for cell, n in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def describe_failures(results: Sequence[Result], folder: Path, seed: int) -> str:
    """Failures that are alike together, with what repeats the first of each kind; nothing if there is none."""
    alike: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in results:
        if result.outcome == FAILED:
            alike[result.fault, signature(result.reason)].append(result)
    lines = []
    for (fault, _), group in sorted(alike.items(), key=lambda item: (item[0][0], -len(item[1]))):
        first = group[0]
        lines += [
            f"{len(group)} x {fault}: {shortened(first.reason)}",
            f"    again: {Path(sys.executable).name} faults/suite.py --seed {seed} --only {shlex.quote(first.name)}",
            f"    kept:  {folder / first.name.replace(' ', '_')}",
        ]
        lines += [f"    alike: {', '.join(result.name for result in group[1:5])}"] if len(group) > 1 else []
    return "\n".join(lines)


def describe_skipped(results: Sequence[Result]) -> str:
    """A line for every reason why something was not tried."""
    reasons = Counter((result.fault, result.reason) for result in results if result.outcome == SKIPPED)
    return "\n".join(f"skipped {n} x {fault}: {reason}" for (fault, reason), n in reasons.items())


def signature(reason: str) -> str:
    """A reason without what differs from trial to trial: paths, numbers, hashes; of a traceback, where and what.

    >>> signature("exit code 2: /a/b.json differs 17") == signature("exit code 2: c/d.json differs 4")
    True
    """
    if " with a traceback from " in reason:
        return re.sub(r": ([\w.]+).*", r": \1", reason, flags=re.DOTALL)
    return re.sub(r"[\w.]*/\S*|0x\w+|\b[0-9a-f]{8,}\b|(?<!code )\d+", "#", shortened(reason, 200))


def shortened(text: str, length: int = 240) -> str:
    r"""One line of at most so many characters.

    >>> shortened("a\n  b", 3), shortened("abcdef", 3)
    ('a b', 'abc...')
    """
    line = " ".join(text.split())
    return line if len(line) <= length else line[:length] + "..."


def exit_code(results: Sequence[Result]) -> int:
    """0 if nothing failed and something was tried."""
    return int(not results or any(result.outcome == FAILED for result in results))


def default_workers() -> int:
    """As many as there are processors for this process: what is played keeps one busy."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
