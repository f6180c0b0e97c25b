"""How fast a device was when it last did something, kept beside what it made, so that a plan can say how long it takes.

A rate is a hint and no result: it is in no record that is compared, and where it cannot be kept, work goes on.
"""

import contextlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sae_utils.devices import device_name, is_here
from sae_utils.errors import InputError, LockedError, first_line
from sae_utils.files import SCRATCH_PREFIX, DamagedFileError, read_record, reading, to_json, write_record
from sae_utils.locks import Lock
from sae_utils.progress import span

logger = logging.getLogger(__name__)

RATES_FILE = ".rates.json"
"""Inside the folder of what was made: the last rate of each kind of work. Safe to delete."""

UNKNOWN_DEVICE = "how long that takes is not known, as PyTorch sees no such device here"
"""What is said of a plan for a GPU that is not here."""

TIMING_REMEDY = "give --time_steps, which times a few steps now"
"""How to get a rate."""

KEPT_AGAIN = "it is not used, and made again with the next measurement"
"""What becomes of a damaged file."""


@dataclass(frozen=True)
class Rate:
    """What was measured."""

    n_tokens: int
    """Tokens that were worked through, of all processes together."""

    elapsed_sec: float
    """Time that they took."""

    more: Mapping[str, Any] = field(default_factory=dict)
    """What else is known of them, beside what decides the rate."""

    @property
    def tokens_per_sec(self) -> float:
        """The rate."""
        return self.n_tokens / self.elapsed_sec


class Stopwatch:
    """Tokens and time of what goes on, from its first report to its last; what is done once, before, is not counted."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None
        self._last: tuple[float, int] | None = None

    def note(self, n_tokens: int) -> None:
        """So many tokens are done now."""
        self._last = time.monotonic(), n_tokens
        self._first = self._first or self._last

    def rate(self) -> Rate | None:
        """What was measured; None if there were no two reports."""
        if self._first is None or self._last[1] == self._first[1]:
            return None
        return Rate(self._last[1] - self._first[1], self._last[0] - self._first[0])


def this_machine(device: torch.device) -> dict[str, Any] | None:
    """What of this machine decides a rate; None of a GPU that is not here."""
    if not is_here(device):
        return None
    return {"device": device_name(device), "n_threads": torch.get_num_threads()}


def describe_rate(rate: Rate) -> str:
    """A rate, and on how much it was measured.

    >>> describe_rate(Rate(n_tokens=120_000, elapsed_sec=60.0))
    '2,000 tok/s over 120,000 tokens'
    """
    return f"{rate.tokens_per_sec:,.0f} tok/s over {rate.n_tokens:,} tokens"


def on_machine(machine: Mapping[str, Any]) -> str:
    """Where something was measured.

    >>> on_machine({"device": "AMD EPYC", "n_threads": 2})
    'on AMD EPYC with 2 threads'
    """
    return f"on {machine['device']} with {machine['n_threads']} thread{'s' * (machine['n_threads'] > 1)}"


def describe_total(what: str, times: Sequence[float | None]) -> str:
    """How long several works take together.

    >>> describe_total("training and comparison", [60.0, 30.0]), describe_total("all", [None, 1.0])
    ('training and comparison: about 1.5 min', 'all: how long that takes is not known')
    """
    return f"{what}: " + ("how long that takes is not known" if None in times else f"about {span(sum(times))}")


def unknown_rate(folder: Path, machine: Mapping[str, Any]) -> str:
    """Why nobody knows how long something takes; the remedy is to follow."""
    return f"how long that takes is not known, as {folder / RATES_FILE} has no rate of the like {on_machine(machine)}"


def keep_rate(folder: Path, of: Mapping[str, Any], rate: Rate | None) -> None:
    """Write down how fast something was, in the place of an earlier rate of the same.

    What stands in the way is said, and costs nothing else.

    Args:
        folder: Folder of what was made.
        of: What was done, and on what: everything that decides the rate.
        rate: What was measured; None for nothing.
    """
    if rate is None:
        return
    entry = {"of": dict(of), "n_tokens": rate.n_tokens, "elapsed_sec": rate.elapsed_sec, **rate.more}
    try:
        with Lock(folder, "rates", refusal="another run is writing it"):
            others = [each for each in _read_rates(folder) if each["of"] != _as_json(of)]
            write_record(folder / RATES_FILE, {"rates": [*others, entry]})
    except (InputError, OSError) as err:
        logger.info("%s: the rate of this run is not kept (%s)", folder / RATES_FILE, first_line(err))


def tidy_rates(folder: Path) -> None:
    """Remove what a run left that was killed while it wrote down a rate, unless another run is at it."""
    scratch, lock = folder / (SCRATCH_PREFIX + RATES_FILE), Lock(folder, "rates", refusal="")
    if scratch.exists() or lock.path.exists():
        with contextlib.suppress(LockedError), lock:
            scratch.unlink(missing_ok=True)


def find_rate(folder: Path, of: Mapping[str, Any]) -> Rate | None:
    """The last rate of just this; None if it was not measured."""
    for entry in _read_rates(folder):
        if entry["of"] == _as_json(of):
            more = {name: value for name, value in entry.items() if name not in ("of", "n_tokens", "elapsed_sec")}
            return Rate(entry["n_tokens"], entry["elapsed_sec"], more)
    return None


def _read_rates(folder: Path) -> list[dict[str, Any]]:
    """Every rate of a folder; none, with a line, if the file is damaged."""
    path = folder / RATES_FILE
    if not path.exists():
        return []
    try:
        rates = read_record(path, KEPT_AGAIN, rates=list)["rates"]
        with reading(path, KEPT_AGAIN):
            if not all(entry["n_tokens"] > 0 and entry["elapsed_sec"] > 0 and dict(entry["of"]) for entry in rates):
                raise DamagedFileError(path, "a rate without tokens or time", KEPT_AGAIN)
    except DamagedFileError as err:
        logger.warning("%s", err)
        return []
    return rates


def _as_json(of: Mapping[str, Any]) -> dict[str, Any]:
    """As it is read back: lists for tuples."""
    return json.loads(to_json(dict(of)))
