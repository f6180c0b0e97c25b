"""One line over a comparison: what is done of how many, and a time left that holds where kinds of work differ."""

import re
import time

import pytest

from sae_utils.comparison import outlook as module
from sae_utils.comparison.outlook import MATCHING, RANDOM_TOKENS, RECONSTRUCTION, SPLICING, Count, Outlook, Pace


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand: the seconds in a list of one."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def work(
    outlook: Outlook, clock: list[float], kind: str, n_units: float, sec_per_unit: float, n_steps: int = 4
) -> None:
    """Do units of a kind, in steps."""
    with outlook.doing("a", kind, n_units, kind) as note:
        for _ in range(n_steps):
            clock[0] += n_units / n_steps * sec_per_unit
            note(n_units / n_steps)


def test_kinds_of_work_are_timed_each_by_itself(clock):
    """One rate over both says after the fast half that the slow one takes as little: half of the time left is missing,
    and after the slow one the contrary."""
    outlook = Outlook()
    outlook.part("a").left |= {RECONSTRUCTION: 300, SPLICING: 300}
    work(outlook, clock, RECONSTRUCTION, 100, 1.0)
    assert outlook.left_sec() is None, "nothing is known of splicing"
    work(outlook, clock, SPLICING, 100, 9.0)
    for n_left in (200, 100, 0):
        assert outlook.left_sec() == pytest.approx(n_left * (1.0 + 9.0))
        if n_left:
            work(outlook, clock, RECONSTRUCTION, 100, 1.0)
            assert outlook.left_sec() == pytest.approx((n_left - 100) * 1.0 + n_left * 9.0)
            work(outlook, clock, SPLICING, 100, 9.0)


def test_the_time_left_holds_from_the_first_rates_to_the_end(clock):
    """What is said at any moment, and what it then takes, are the same."""
    outlook = Outlook()
    outlook.part("a").left |= {RECONSTRUCTION: 200, SPLICING: 200, RANDOM_TOKENS: 50, MATCHING: 30}
    outlook.paces[MATCHING] = Pace(guess=4.0)
    end, said = clock[0] + 200 + 200 * 9 + 50 + 30 * 4, []
    for kind, n, pace in [(RECONSTRUCTION, 100, 1.0), (SPLICING, 100, 9.0)] * 2 + [(RANDOM_TOKENS, 50, 1.0)]:
        work(outlook, clock, kind, n, pace)
        if outlook.left_sec() is not None:
            said.append(clock[0] + outlook.left_sec())
    for _ in range(3):
        work(outlook, clock, MATCHING, 10, 4.0)
        said.append(clock[0] + outlook.left_sec())
    assert said == pytest.approx([end] * 7)


def test_while_nothing_is_reported_the_time_left_goes_down(clock):
    """A pair of large SAEs takes minutes."""
    outlook = Outlook()
    outlook.part("a").left[MATCHING] = 2
    outlook.paces[MATCHING] = Pace(guess=100.0)
    with outlook.doing("a", MATCHING, 1, "") as note:
        clock[0] += 30
        note(0)
        assert outlook.left_sec() == 170
        clock[0] += 70
        note(1)
    assert outlook.left_sec() == 100


def test_what_was_planned_and_is_not_there_takes_no_time(clock):
    """A source may have fewer tokens than were held out of others."""
    outlook = Outlook()
    outlook.part("a").left[RECONSTRUCTION] = 300
    with outlook.doing("a", RECONSTRUCTION, 100, "") as note:
        clock[0] += 50
        note(50)
    assert outlook.part("a").left[RECONSTRUCTION] == 200 and outlook.left_sec() == 200


def test_random_tokens_are_like_reconstruction_until_they_have_a_rate(clock):
    outlook = Outlook()
    outlook.part("a").left |= {RECONSTRUCTION: 10, RANDOM_TOKENS: 50}
    work(outlook, clock, RECONSTRUCTION, 10, 2.0)
    assert outlook.left_sec() == 100
    work(outlook, clock, RANDOM_TOKENS, 25, 4.0)
    assert outlook.left_sec() == 100


def test_the_line_says_what_is_done_of_how_many(clock):
    outlook = Outlook()
    for name, cells, pairs in (("a", Count(3, 8), Count(0, 6)), ("b", Count(0, 4), Count(1, 2))):
        outlook.part(name).cells, outlook.part(name).pairs = cells, pairs
    outlook.part("a").left[SPLICING] = 100
    outlook.begin("a", "pythia-1.4b")
    assert outlook.describe() == "pythia-1.4b (1/2): 3/12 SAEs x sources, 1/8 pairs, time left not known yet"
    with outlook.doing("a", SPLICING, 50, "splicing on pile") as note:
        clock[0] += 36
        note(1)
        assert outlook.describe() == (
            "pythia-1.4b (1/2): 3/12 SAEs x sources, 1/8 pairs, about 59.4 min left, splicing on pile"
        )


def test_a_bar_is_drawn_and_left_to_others_between(capsys):
    """One line that is drawn over and over; bars of other steps come behind it."""
    with Outlook(quiet=False) as outlook:
        outlook.begin("a", "tiny")
        outlook.part("a").left[SPLICING] = 2
        outlook.part("a").cells = Count(0, 1)
        for _ in range(2):
            with outlook.doing("a", SPLICING, 1, "splicing on x") as note:
                time.sleep(0.01)
                note(1)
            outlook.pause()
    lines = [line for line in re.split(r"[\r\n]+", capsys.readouterr().err) if line.strip()]
    assert lines[0].startswith("tiny: 0/1 SAEs x sources, 0/0 pairs, time left not known yet, splicing on x |")
    assert lines[-1].startswith("tiny: 0/1 SAEs x sources, 0/0 pairs, about 0 s left |")


def test_quiet_shows_nothing(capsys):
    with Outlook() as outlook, outlook.doing("a", SPLICING, 1, "splicing") as note:
        note(1)
    assert capsys.readouterr() == ("", "")
