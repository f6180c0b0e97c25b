import os
import signal
import time

import pytest

from sae_utils import stopping
from sae_utils.stopping import Stopped, stoppable, stops_deferred


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_block_and_says_which(signum, code):
    before = signal.getsignal(signum)
    with pytest.raises(Stopped) as stopped, stoppable():
        os.kill(os.getpid(), signum)
        pytest.fail("went on")
    assert stopped.value.exit_code == code
    assert signal.getsignal(signum) is before


def test_a_stop_that_is_put_off_is_noted_and_the_second_one_is_not():
    with pytest.raises(Stopped) as ended, stoppable(), stops_deferred() as request:
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.signum == signal.SIGTERM
        with pytest.raises(Stopped) as stopped:
            os.kill(os.getpid(), signal.SIGINT)
        assert stopped.value.exit_code == 143, "the first one counts"
    assert ended.value.exit_code == 143, "nobody saw to it within the block"


def test_patience_ends(monkeypatch):
    """A step may take longer than a scheduler waits before it kills."""
    monkeypatch.setattr(stopping, "GRACE_SEC", 0.05)
    with pytest.raises(Stopped) as stopped, stoppable(), stops_deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()  # the alarm comes
    assert stopped.value.exit_code == 143


def test_a_stop_that_nobody_saw_to_ends_what_follows():
    """One that comes in the last steps; seven seconds later it would be an alarm, and exit code 142."""
    with pytest.raises(Stopped) as stopped, stoppable():
        with stops_deferred():
            os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("it went on")
    assert stopped.value.exit_code == 143


def test_what_is_ignored_stays_ignored():
    """`nohup` means that closing the terminal is to end nothing."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_processes_that_libraries_fork_end_as_they_would_without(capfd):
    """`datasets` and others end theirs by SIGTERM, which is no message of the user's; some have hardly begun then."""
    with stoppable():
        for _ in range(60):
            child = os.fork()
            if child == 0:
                signal.pause()
                os._exit(0)
            os.kill(child, signal.SIGTERM)
            assert ending_of(child, sec=20) == -signal.SIGTERM
    assert capfd.readouterr().err == ""


def ending_of(child: int, *, sec: float) -> int | None:
    """How a process ended; None if it had to be killed after so long."""
    deadline = time.monotonic() + sec
    while time.monotonic() < deadline:
        if (ended := os.waitpid(child, os.WNOHANG))[0]:
            return os.waitstatus_to_exitcode(ended[1])
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None
