"""Both scripts as processes of their own: forked from one that has imported everything, and struck at chosen moments.

Most of a start is imports, and a fork has them. What is forked has a working folder, a session and files for its output
of its own, and runs the script's file as `python FILE` would.
"""

import atexit
import contextlib
import gc
import importlib
import os
import pkgutil
import re
import resource
import runpy
import shlex
import signal
import sys
import threading
import time
import traceback
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent

GENERATE, TRAIN = "generate_datasets.py", "train_sae.py"

PATIENCE_SEC = 60.0
"""How long a process on a tiny model may take; one that takes longer is stuck, which is a failure."""

IMPORTED_ON_USE = (
    "wandb",
    "requests",
    "scipy.io",
    "einops._torch_specific",
    "matplotlib.pyplot",
    "matplotlib.backends.backend_svg",
    "PIL.PngImagePlugin",
    "transformers.models.gpt_neox.modeling_gpt_neox",
    "transformers.models.llama.modeling_llama",
)
"""What the scripts and libraries import inside of functions, as far as it takes time."""

MOST_MEMORY = 8 * 2**30
"""Bytes of address space, so that a run which asks for nonsense takes nobody else's memory."""

GRACE_SEC = 5.0
"""How long what a process has started may outlive it."""

DURABLE_CALLS = ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir")
"""Calls of `os` at which files on disk are half way. They are counted, ours and those of libraries."""

NOBODY = 65534
"""User and group without any rights."""

POLL_SEC = 0.002


class Failure(Exception):  # noqa: N818 - what a trial ends with, not an error of the suite
    """Something that must not happen has happened; the message says what."""


@dataclass(frozen=True)
class Ending:
    """How a process ended."""

    code: int
    """Exit code; minus the signal's number if one ended it."""

    out: str
    """Standard output."""

    err: str
    """Standard error."""

    sec: float
    """Time from fork to end."""

    n_durable: int
    """Durable writes (`DURABLE_CALLS`) that it made; 0 if it was killed."""

    command: str
    """What was run, as one would type it."""

    left_behind: bool = False
    """Whether processes that it had started went on without it, and had to be ended."""

    @property
    def last_words(self) -> str:
        """The end of standard error, for a failure's message."""
        return self.err.strip()[-1500:]


@dataclass(frozen=True)
class Strike:
    """What is done to a process from the inside."""

    at_durable_write: int | None = None
    """SIGKILL before this durable write, counted from 1; None for none."""

    of: str = ""
    """Only calls in whose arguments, joined by blanks, this regular expression is found are counted."""

    is_nobody: bool = False
    """Whether it runs as the user `nobody`; only root can ask for that."""

    free_memory: int | None = None
    """Bytes of memory that the machine is said to have left; None for what it has."""


@dataclass
class Running:
    """A process under way."""

    pid: int
    command: str
    output: Path
    """Where `.out`, `.err` and `.count` are written."""

    began: float = field(default_factory=time.monotonic)
    _status: int | None = None

    @property
    def has_ended(self) -> bool:
        """Whether it is over."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status, self.ended = status, time.monotonic()
        return self._status is not None

    @property
    def can_be_asked(self) -> bool:
        """Whether the script has come so far that it answers signals; before, SIGTERM ends it as it ends others."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        caught = int(re.search(r"^SigCgt:\s*([0-9a-f]+)", status, re.MULTILINE)[1], base=16)
        return bool(caught >> (signal.SIGTERM - 1) & 1)

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless it is over."""
        if not self.has_ended:
            os.kill(self.pid, number)

    def wait_until(self, happens: Callable[[], bool], *, sec: float = PATIENCE_SEC) -> bool:
        """Wait until something happens; whether it did before the process was over or the time was up."""
        deadline = time.monotonic() + sec
        while not (did := happens()) and not self.has_ended and time.monotonic() < deadline:
            time.sleep(POLL_SEC)
        return did

    def wait(self, *, sec: float = PATIENCE_SEC) -> Ending:
        """How it ended.

        Raises:
            Failure: If it has not after this time; it is killed then.
        """
        self.wait_until(lambda: False, sec=sec)
        if not self.has_ended:
            os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            raise Failure(f"{self.command}: not over after {sec:.0f} s")
        left_behind = self._end_what_is_left()
        texts = (self.output.with_suffix(end).read_text(errors="replace") for end in (".out", ".err"))
        count = self.output.with_suffix(".count")
        n_durable = int(count.read_text() or 0) if count.exists() else 0
        code, sec = os.waitstatus_to_exitcode(self._status), self.ended - self.began
        return Ending(code, *texts, sec, n_durable, self.command, left_behind)

    def _end_what_is_left(self) -> bool:
        """End processes of its session that are still there after a while; whether there were any."""
        deadline = time.monotonic() + GRACE_SEC
        with contextlib.suppress(ProcessLookupError):  # nobody is left, as it should be
            while time.monotonic() < deadline:
                os.killpg(self.pid, 0)
                time.sleep(POLL_SEC)
            os.killpg(self.pid, signal.SIGKILL)
            return True
        return False


def import_everything() -> None:
    """Import all that the scripts use, once, so that what is forked need not."""
    sys.path.insert(0, str(ROOT))
    import sae_utils

    for module in pkgutil.walk_packages(sae_utils.__path__, "sae_utils."):
        importlib.import_module(module.name)
    for name in IMPORTED_ON_USE:
        importlib.import_module(name)


def begin(script: str, flags: list[str], folder: Path, output: Path, strike: Strike | None = None) -> Running:
    """Start a script in a folder; its output goes to files that begin with `output`.

    Args:
        script: `generate_datasets.py` or `train_sae.py`.
        flags: Its command line.
        folder: Working folder of the process.
        output: Path without an ending.
        strike: What is done to it.
    """
    command = shlex.join(["python", script, *flags])
    for end in (".out", ".err"):  # here, as a process that is killed at once makes none
        output.with_suffix(end).write_text("")
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os._exit(_run_forked(script, flags, folder, output, strike or Strike()))
    return Running(pid, command, output)


def _run_forked(script: str, flags: list[str], folder: Path, output: Path, strike: Strike) -> int:
    """In the child: become a process of its own, run the script, and return its exit code."""
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
        gc.freeze()  # what was imported is not garbage: looking through all of it took most of a training's time
        atexit._clear()  # what the parent has to do at its end is not done here
        tqdm.set_lock(threading.RLock())  # its own is shared with all forks: who is killed holding it stops them all
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        _redirect(output)
        os.chdir(folder)
        if strike.is_nobody:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        sys.argv = [script, *flags]
        if strike.free_memory is not None:
            _pretend_memory(strike.free_memory)
        n_calls = _count_durable_writes(strike)
        code = _exit_code(lambda: runpy.run_path(str(ROOT / script), run_name="__main__"))
        output.with_suffix(".count").write_text(str(n_calls()))
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # noqa: BLE001 - nothing may return into the parent's code
        traceback.print_exc()
        return 70
    return code


def _exit_code(run: Callable[[], object]) -> int:
    """What Python would exit with."""
    try:
        run()
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return 1
    except BaseException:  # noqa: BLE001 - as Python does
        traceback.print_exc()
        return 1
    return 0


def _redirect(output: Path) -> None:
    """Standard input from nothing, standard output and error into files, below what Python and C write to."""
    for number, path in ((0, os.devnull), (1, output.with_suffix(".out")), (2, output.with_suffix(".err"))):
        descriptor = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - open until the end of the process
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115


def _pretend_memory(n_bytes: int) -> None:
    """Let the machine have this much memory left."""
    import psutil

    names = list(psutil.virtual_memory()._fields)
    values = psutil.virtual_memory()._asdict() | {"available": n_bytes, "free": n_bytes}
    memory = namedtuple("svmem", names)(**values)
    psutil.virtual_memory = lambda: memory


def _count_durable_writes(strike: Strike) -> Callable[[], int]:
    """Count calls of `os` that change what is durable, and die before the chosen one; a function that has the count."""
    n_calls = n_alike = 0

    def counted(call: Callable) -> Callable:
        def do(*args, **kwargs):
            nonlocal n_calls, n_alike
            n_calls += 1
            n_alike += re.search(strike.of, " ".join(map(str, args))) is not None
            if n_alike == strike.at_durable_write:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return do

    for name in DURABLE_CALLS:
        setattr(os, name, counted(getattr(os, name)))
    return lambda: n_calls
