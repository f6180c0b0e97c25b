"""Ctrl-C, SIGTERM and SIGHUP: work that can be kept is kept, then the script ends, within ten seconds.

A signal raises `Stopped` where the program is: whatever is on disk is whole at any moment. Only where a little patience
keeps work (an optimizer step, and the checkpoint after it) it is put off, for `GRACE_SEC` at most.
"""

import contextlib
import functools
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

GRACE_SEC = 7.0
"""Longest that a stop is put off; schedulers give some ten seconds before they kill."""


class Stopped(KeyboardInterrupt):
    """The script was asked to end, by a signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that a signal ended: 130, 143, 129."""
        return 128 + self.signum


class StopRequest:
    """A stop that was asked for and put off."""

    signum: int = 0
    """The signal; 0 if none has come."""


_stopping: set[int] = set()
"""The signals that end the block by `Stopped`; empty outside of one."""

_deferred: list[StopRequest] = []
"""The innermost block that puts stops off is the last."""


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Let signals end the block by `Stopped`. What is ignored stays ignored, such as SIGHUP under `nohup`.

    Python hands signals to its main thread only: in another one this does nothing, and within itself, too.
    """
    if _stopping or threading.current_thread() is not threading.main_thread():
        yield
        return
    _let_forked_processes_be()
    before = {signum: signal.getsignal(signum) for signum in (*SIGNALS, signal.SIGALRM)}
    _stopping.update(signum for signum in before if before[signum] is not signal.SIG_IGN)
    for signum in _stopping:
        signal.signal(signum, _stop)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for signum, handler in before.items():
            signal.signal(signum, handler)
        _stopping.clear()


@contextlib.contextmanager
def stops_deferred() -> Iterator[StopRequest]:
    """While open, a first signal is only noted, for whoever looks; a second one, or `GRACE_SEC`, ends the block.

    A stop that nobody has seen to ends the program where the block ends.
    """
    request = StopRequest()
    _deferred.append(request)
    try:
        yield request
    finally:
        _deferred.remove(request)
    if request.signum:
        raise Stopped(request.signum)


def _stop(signum: int, frame: FrameType | None) -> None:
    """The handler of all signals, and of the alarm that follows one which was put off."""
    if signum == signal.SIGHUP:
        _leave_terminal()
    request = _deferred[-1] if _deferred else None
    if request is not None and not request.signum and signum != signal.SIGALRM:
        request.signum = signum
        signal.setitimer(signal.ITIMER_REAL, GRACE_SEC)
        return
    raise Stopped(request.signum if request is not None and request.signum else signum)


@functools.cache
def _let_forked_processes_be() -> None:
    """Let signals end processes that libraries fork, as without us, but for Ctrl-C's traceback: they do not mean us.

    Signals wait meanwhile: Python forgets in a new process those that came before it was ready, and whoever ends that
    process by one, and waits for it, would wait for good.
    """

    def wait() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, _stopping)

    def go_on() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _stopping)

    def hand_over() -> None:
        for signum in _stopping:
            signal.signal(signum, signal.SIG_DFL)
        go_on()
        _stopping.clear()

    os.register_at_fork(before=wait, after_in_parent=go_on, after_in_child=hand_over)


def _leave_terminal() -> None:
    """Write nowhere from now on where the terminal has been closed: every line would be an error."""
    with open(os.devnull, "w") as nowhere:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):  # not a file, such as in tests
                if os.isatty(stream.fileno()):
                    os.dup2(nowhere.fileno(), stream.fileno())
