"""Runs at the same time: on one data set or cell the second stops, and runs that share results lose none of them."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from folders import differences
from processes import Ending, Failure, Running
from study import ONE_TARGET, STEPS, TWO_TARGETS, Step, Study
from trials import REFUSED, SAME, Case, Trial, check_no_traceback, check_refused

N_PAIRS = 6
"""For each way of meeting."""

LOCKED = {"generation": "another run is writing", "extension": "another run is writing", "training": "another run is"}
"""Steps of which only one may be under way, and what the second says."""


def cases(study: Study, rounds: int, only: str = "") -> Iterator[Case]:
    """All meetings."""
    for name in LOCKED:
        step = STEPS[name]
        for i in range(N_PAIRS * rounds):
            play_it = partial(second_comes_later, step=step, says=LOCKED[name])
            yield Case(f"concurrency/{name} later/{i}", "at once: the second is refused", play_it, measured=step)
            race = partial(both_at_once, step=step)
            yield Case(f"concurrency/{name} race/{i}", "at once: a race on one folder", race, measured=step)
    needs = STEPS["comparison"].before, STEPS["comparison"].after
    both = ONE_TARGET.before, TWO_TARGETS.after
    for i in range(N_PAIRS * rounds):
        yield Case(f"concurrency/comparison/{i}", "at once: one comparison twice", compare_twice, needs)
        yield Case(f"concurrency/results/{i}", "at once: two targets, one results folder", share_results, both)
        yield Case(
            f"concurrency/packing/{i}", "at once: one data set packed twice", pack_twice, ("generated", "packed")
        )


def second_comes_later(trial: Trial, *, step: Step, says: str) -> str:
    """While one run holds the lock, another is refused in one line and the first does not notice.

    The second may be too late for that: it finds all finished, or takes the next cell while the first is between two.
    """
    trial.start_from(step.before)
    first = trial.begin_step(step)
    if not first.wait_until(lambda: bool(list(trial.place.glob("*/.locks/*.lock")))):
        raise Failure("the first run was over before it held a lock")
    second = trial.begin_step(step)
    ending = second.wait()
    if ending.code == 0:
        return check_ends(trial, step, [first.wait(), ending])
    if says not in check_refused(ending):
        raise Failure(f"the second should say {says!r}, said {ending.err!r}")
    trial.check_same(step, first.wait())
    return REFUSED


def both_at_once(trial: Trial, *, step: Step) -> str:
    """Two starts a moment apart: each gets through or is refused in one line, and one gets through."""
    trial.start_from(step.before)
    first = trial.begin_step(step)
    first.wait_until(lambda: False, sec=trial.rng.uniform(0, trial.study.measure(step).sec))
    second = trial.begin_step(step)
    return check_ends(trial, step, [first.wait(), second.wait()])


def compare_twice(trial: Trial) -> str:
    """Two runs measure the same SAEs into one folder: whatever one finds of the other, the numbers are the same."""
    step = STEPS["comparison"]
    trial.start_from(step.before)
    first = trial.begin_step(step)
    first.wait_until(lambda: False, sec=trial.rng.uniform(0, 1))
    endings = wait_and_read(trial, [first, trial.begin_step(step)])
    return check_ends(trial, step, endings)


def pack_twice(trial: Trial) -> str:
    """Two runs pack the same tokens; nothing is locked there."""
    step = STEPS["packing"]
    trial.start_from(step.before)
    running = [trial.begin_step(step), trial.begin_step(step)]
    return check_ends(trial, step, [each.wait() for each in running])


def share_results(trial: Trial) -> str:
    """Two targets trained and compared at once, in folders of their own but for the results: none are lost."""
    trial.start_from(ONE_TARGET.before)
    first = trial.begin_step(ONE_TARGET)
    first.wait_until(lambda: False, sec=trial.rng.uniform(0, 2))
    for ending in wait_and_read(trial, [first, trial.begin_step(TWO_TARGETS)]):
        check_no_traceback(ending)
        if ending.code != 0:
            raise Failure(f"exit code {ending.code}: {ending.last_words}")
    now, expected = trial.contents(), trial.study.contents(TWO_TARGETS.after)
    # The page and the figures are of whatever was there when they were drawn.
    drawn = {path for path in now.keys() | expected.keys() if path.endswith((".html", ".png", ".svg"))}
    if wrong := differences(now, expected, but_for=drawn):
        raise Failure(f"both exited with 0, and otherwise than one after the other: {'; '.join(wrong[:8])}")
    return SAME


def wait_and_read(trial: Trial, running: list[Running]) -> list[Ending]:
    """How runs end, while somebody reads their results all the time.

    Raises:
        Failure: If a reader ever finds half a file.
    """
    path = trial.place / "results/metrics.json"
    for each in running:
        each.wait_until(lambda: not read_whole(path))
    return [each.wait() for each in running]


def read_whole(path: Path) -> bool:
    """Read a record as another program would; always true.

    Raises:
        Failure: If it is there and cannot be parsed.
    """
    try:
        json.loads(path.read_text())
    except FileNotFoundError:
        return True
    except ValueError as err:
        raise Failure(f"a reader found half a metrics.json: {err}") from None
    return True


def check_ends(trial: Trial, step: Step, endings: list[Ending]) -> str:
    """That both ended well, or one was refused in a line, and the folder is as one run leaves it."""
    for ending in endings:
        if ending.code != 0:
            check_refused(ending)
    through = [ending for ending in endings if ending.code == 0]
    if not through:
        raise Failure(f"neither got through: {[ending.last_words for ending in endings]}")
    return trial.check_same(step, through[0])
