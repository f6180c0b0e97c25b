"""Runs that are ended from outside, and the same command again: what comes out is what an unbroken run gives.

SIGKILL strikes at a random moment or before a random durable write, several times one after the other. SIGTERM, SIGINT
and SIGHUP ask a run to stop: it says in one line how to go on, in time, with the exit code of that signal.
"""

import signal
import time
from collections.abc import Iterator
from functools import partial

from processes import Failure, Strike
from study import STEPS, Step, Study
from trials import Case, Trial, check_no_traceback

N_KILLS = 50
"""For each step."""

N_SIGNALS = 10
"""For each signal, over all steps."""

MOST_KILLS_IN_A_TRIAL = 3

MOST_SEC_TO_STOP = 10.0

KILLED_STEPS = ("generation", "extension", "packing", "training", "comparison")

ASKING = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}
"""Signals that ask a run to stop, and the exit code after each."""


def cases(study: Study, rounds: int, only: str = "") -> Iterator[Case]:
    """All kills and signals."""
    for name in KILLED_STEPS:
        for i in range(N_KILLS * rounds):
            at_write = i % 2 == 1
            fault = f"SIGKILL: {name}, {'before a durable write' if at_write else 'at a moment'}"
            kill_it = partial(kill, step=STEPS[name], at_write=at_write)
            yield Case(f"kills/{name}/{i}", fault, kill_it, measured=STEPS[name])
    for number in ASKING:
        for i in range(N_SIGNALS * rounds):
            step = STEPS[KILLED_STEPS[i % len(KILLED_STEPS)]]
            ask = partial(ask_to_stop, step=step, number=number)
            yield Case(f"kills/{number.name}/{i}", number.name, ask, measured=step)


def kill(trial: Trial, *, step: Step, at_write: bool) -> str:
    """SIGKILL, again and again, until a run gets through."""
    trial.start_from(step.before)
    for _ in range(trial.rng.randint(1, MOST_KILLS_IN_A_TRIAL)):
        if at_write:
            moment = trial.rng.randint(1, trial.study.measure(step).n_durable)
            ending = trial.begin_step(step, Strike(moment)).wait()
        else:
            delay = trial.rng.uniform(0, trial.study.measure(step).sec)
            running = trial.begin_step(step)
            running.wait_until(lambda: False, sec=delay)
            running.send(signal.SIGKILL)
            trial.note(f"# SIGKILL after {delay:.3f} s")
            ending = running.wait()
        if ending.code not in (0, -signal.SIGKILL):
            raise Failure(f"after a kill, the same command ended with exit code {ending.code}: {ending.last_words}")
        check_no_traceback(ending)
    return trial.check_same(step, trial.begin_step(step).wait())


def ask_to_stop(trial: Trial, *, step: Step, number: signal.Signals) -> str:
    """A signal that asks to stop, then the same command."""
    trial.start_from(step.before)
    delay = trial.rng.uniform(0.05, 0.9) * trial.study.measure(step).sec
    running = trial.begin_step(step)
    running.wait_until(lambda: running.can_be_asked)
    began = time.monotonic()
    running.wait_until(lambda: False, sec=delay)
    running.send(number)
    asked = time.monotonic()
    trial.note(f"# {number.name} {asked - began:.3f} s after it could be asked")
    ending = running.wait()
    if ending.code != 0:  # it was not over before
        check_no_traceback(ending)
        if ending.code != ASKING[number]:
            raise Failure(f"exit code {ending.code} after {number.name}, expected {ASKING[number]}: {ending.err!r}")
        if (sec := running.ended - asked) > MOST_SEC_TO_STOP:
            raise Failure(f"{sec:.1f} s from {number.name} to the end, more than {MOST_SEC_TO_STOP:.0f}")
        if ending.err.count("\n") != 1 or "same command" not in ending.err:
            raise Failure(f"{number.name} should be answered by one line that says how to go on, got {ending.err!r}")
    return trial.check_same(step, trial.begin_step(step).wait())
