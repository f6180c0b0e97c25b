"""How far a comparison has got, in one line: which target, SAEs on sources, pairs, and about how long the rest takes.

The kinds of work take different times a unit, so each has a rate of its own: what is left of each is counted in its own
units, and only the times are added up.
"""

import contextlib
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field

from sae_utils.progress import span, status_bar

RECONSTRUCTION, SPLICING, RANDOM_TOKENS, MATCHING = "reconstruction", "splicing", "random tokens", "matching"
"""Kinds of work. Units of the first three are tokens times SAEs; of matching, squares of latents."""

LIKE = {RANDOM_TOKENS: RECONSTRUCTION}
"""Until there is a rate of a kind, that of another, which does about the same: a pass up to the last layer."""


@dataclass
class Count:
    """Things that are done, of how many."""

    n_done: int = 0
    n_all: int = 0

    def __str__(self) -> str:
        return f"{self.n_done:,}/{self.n_all:,}"


@dataclass
class Part:
    """SAEs that are measured and matched together."""

    cells: Count = field(default_factory=Count)
    """SAEs on sources, those that this process measures."""

    pairs: Count = field(default_factory=Count)
    """Pairs of SAEs: those that are known, and those that this process matches."""

    left: dict[str, float] = field(default_factory=dict)
    """Units that are left, by kind of work."""


@dataclass
class Pace:
    """How fast a kind of work goes."""

    n_units: float = 0.0
    """Units that were done and timed."""

    elapsed_sec: float = 0.0
    """Time that they took."""

    guess: float | None = None
    """Seconds a unit, as long as none is done."""

    @property
    def sec_per_unit(self) -> float | None:
        """The rate so far, or the guess; None without either."""
        return self.elapsed_sec / self.n_units if self.n_units else self.guess


@dataclass
class Outlook:
    """What is done and what is left of a comparison. Use as a context manager around all of it."""

    quiet: bool = True
    """Show nothing."""

    parts: dict[Hashable, Part] = field(default_factory=dict)
    """All parts, by their keys, in their order."""

    paces: dict[str, Pace] = field(default_factory=dict)
    """By kind."""

    def __post_init__(self) -> None:
        self._target, self._place, self._doing = "", 0, None
        self._noted_sec = self._shown_sec = time.monotonic()
        self._bar, self._began = None, time.time()

    def __enter__(self) -> "Outlook":
        return self

    def __exit__(self, *exception: object) -> None:
        self.pause()

    def pause(self) -> None:
        """Leave the line as it is, and the terminal to others; what is done next begins another one."""
        if self._bar is not None:
            self.show(at_once=True)
            self._bar.close()
            self._bar = None

    def part(self, key: Hashable) -> Part:
        """A part, new if there is none of that key."""
        return self.parts.setdefault(key, Part())

    def begin(self, key: Hashable, target: str) -> None:
        """A part is worked on from now on."""
        self.part(key)
        self._target, self._place = target, list(self.parts).index(key) + 1

    @contextlib.contextmanager
    def doing(self, key: Hashable, kind: str, n_units: float, what: str) -> Iterator[Callable[[float], None]]:
        """While open, units of a kind of work are done.

        Args:
            key: Of the part that they are of.
            kind: Their kind.
            n_units: How many they are, as they were planned; all of these are done in the end.
            what: What is shown of it.

        Yields:
            A function to be called with the number of units that were done just now; with 0 if nothing is known but
            that time goes by.
        """
        pace, left = self.paces.setdefault(kind, Pace()), self.part(key).left
        after = max(0.0, left.get(kind, 0.0) - n_units)
        self._doing, self._noted_sec = what, time.monotonic()

        def note(n_done: float) -> None:
            if n_done:
                now = time.monotonic()
                pace.n_units, pace.elapsed_sec = pace.n_units + n_done, pace.elapsed_sec + now - self._noted_sec
                left[kind] = max(after, left.get(kind, 0.0) - n_done)
                self._noted_sec = now
            self.show()

        self.show(at_once=True)
        try:
            yield note
        finally:
            self._doing = None
        left[kind] = after
        self.show()

    def left_sec(self) -> float | None:
        """About how long the rest takes; None if there is no rate yet of something that is left."""
        units: dict[str, float] = {}
        for part in self.parts.values():
            for kind, n in part.left.items():
                units[kind] = units.get(kind, 0.0) + n
        times = {kind: self._time_of(kind, n) for kind, n in units.items() if n}
        if None in times.values():
            return None
        since = time.monotonic() - self._noted_sec if self._doing is not None else 0.0
        return max(0.0, sum(times.values()) - since)

    def _time_of(self, kind: str, n_units: float) -> float | None:
        """How long units of a kind take."""
        for each in (kind, LIKE.get(kind)):
            if (pace := self.paces.get(each)) is not None and pace.sec_per_unit is not None:
                return n_units * pace.sec_per_unit
        return None

    def show(self, *, at_once: bool = False) -> None:
        """Draw the line anew, but not more often than its bar may be."""
        if self.quiet:
            return
        if self._bar is None:
            self._bar = status_bar()
            self._bar.start_t = self._began  # of all of it
        now = time.monotonic()
        if now - self._shown_sec < self._bar.mininterval and not at_once:
            return
        self._shown_sec = now
        self._bar.set_description_str(self.describe(), refresh=False)
        if (left_sec := self.left_sec()) is not None:
            done_sec = sum(pace.elapsed_sec for pace in self.paces.values())
            self._bar.n, self._bar.total = done_sec, max(done_sec + left_sec, 1e-9)
        self._bar.refresh()

    def describe(self) -> str:
        """The line, without its bar."""
        left_sec = self.left_sec()
        left = "time left not known yet" if left_sec is None else f"about {span(left_sec)} left"
        where = f" ({self._place}/{len(self.parts)})" if len(self.parts) > 1 else ""
        cells, pairs = (_sum(getattr(part, name) for part in self.parts.values()) for name in ("cells", "pairs"))
        doing = f", {self._doing}" if self._doing else ""
        return f"{self._target}{where}: {cells} SAEs x sources, {pairs} pairs, {left}{doing}"


def _sum(counts: Iterable[Count]) -> Count:
    """Of several counts."""
    total = Count()
    for each in counts:
        total = Count(total.n_done + each.n_done, total.n_all + each.n_all)
    return total
