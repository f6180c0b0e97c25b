"""What the command lines share: how help looks, how a script ends, and the flags that say where and how it runs."""

import argparse
import contextlib
import os
import select
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from sae_utils.disk import describe_full_disk, is_disk_full
from sae_utils.errors import InputError
from sae_utils.stopping import Stopped, stoppable

MAX_HELP_WIDTH = 100
"""Columns of help in a wide terminal; in a narrow one, as many as there are."""


EXIT_OF_PIPES = 128 + signal.SIGPIPE
"""What a shell expects of a process whose reader has gone."""

WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
"""How PyTorch's threads wait for each other on a CPU: asleep, and with GNU's OpenMP, which PyTorch brings along on
Linux, awake for some microseconds before that, as most waits are over by then. They would turn in circles for
milliseconds; beside another job, which then waits for them as they for it, both all but stand still."""

METAVARS = {int: "N", float: "X", Path: "DIR"}
"""What stands for a flag's value in help; the flag's name has been said."""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help whose description stands as it is written, with defaults where there is one to name."""

    def __init__(self, prog: str, **options) -> None:
        super().__init__(prog, max_help_position=26, **options)
        self._width = min(self._width, MAX_HELP_WIDTH)

    def _get_help_string(self, action: argparse.Action) -> str:
        default = action.default
        if default in (None, False, [], argparse.SUPPRESS):
            return action.help
        shown = " ".join(map(str, default)) if isinstance(default, list) else default
        return f"{action.help} (default: {shown})"

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return METAVARS.get(action.type, super()._get_default_metavar_for_optional(action))

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        # `MODEL ...` for what may be repeated: argparse would write the name twice.
        if action.nargs in ("+", "*"):
            return f"{self._metavar_formatter(action, default_metavar)(1)[0]} ..."
        return super()._format_args(action, default_metavar)


def make_parser(description: str) -> argparse.ArgumentParser:
    """A parser without flags; its help begins with the description, line by line as it is."""
    return argparse.ArgumentParser(
        usage="%(prog)s [flags]", description=description.strip(), formatter_class=HelpFormatter
    )


def add_running_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that every script has: device, dtype, overwrite, dry_run, time_steps, quiet."""
    running = parser.add_argument_group("running")
    running.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:N; auto is a GPU if there is one that PyTorch can use"
    )
    running.add_argument(
        "--dtype",
        default="auto",
        metavar="FORMAT",
        help="format of the models' weights: float32, bfloat16, float16; auto is bfloat16 on a GPU that has it, else "
        "float32",
    )
    running.add_argument(
        "--overwrite",
        action="store_true",
        help="throw away what stands there, finished or not, instead of continuing it",
    )
    running.add_argument(
        "--dry_run", action="store_true", help="print what would be done and stop; --device cuda needs no GPU"
    )
    running.add_argument(
        "--time_steps",
        action="store_true",
        help="with --dry_run: time a few real steps first, so that it knows how long the rest takes",
    )
    running.add_argument("--quiet", action="store_true", help="print results, warnings and errors alone")


def check_running_flags(args: argparse.Namespace) -> None:
    """Refuse what does not go together.

    Raises:
        InputError: If steps are to be timed, and no plan is made.
    """
    if args.time_steps and not args.dry_run:
        raise InputError("--time_steps is for plans: give --dry_run with it; a run leaves its rate by itself")


def add_sharing_flags(parser: argparse.ArgumentParser, *, what: str) -> None:
    """The flags that send what is finished to a hub: push_to_hub, public.

    Args:
        parser: The script's parser.
        what: What is sent, in help.
    """
    sharing = parser.add_argument_group("sharing")
    sharing.add_argument(
        "--push_to_hub",
        default=None,
        metavar="ORG",
        help=f"organisation or account of the Hugging Face hub to which {what} is sent, last of all",
    )
    sharing.add_argument(
        "--public", action="store_true", help="let all see what is sent into new repositories; private otherwise"
    )


def run_script(
    parser: argparse.ArgumentParser,
    action: Callable[[argparse.Namespace], None],
    argv: Sequence[str] | None,
    *,
    when_stopped: Callable[[argparse.Namespace], str],
) -> None:
    """Parse the command line and act on it; what a user has to change is one line and exit code 2.

    Of several processes that torchrun started, one says it.

    Args:
        parser: The script's parser.
        action: What the script does. PyTorch is not imported before it, as it looks at `WAITING` then; what the
            environment says of it already is left.
        argv: Words of the command line; those of this process if None.
        when_stopped: What to say after Ctrl-C, SIGTERM or SIGHUP, with exit code 130, 143 or 129.
    """
    try:
        args = parser.parse_args(argv)
        if "OMP_WAIT_POLICY" not in os.environ:
            for name, value in WAITING.items():
                os.environ.setdefault(name, value)
        with stoppable():
            action(args)
        sys.stdout.flush()  # whoever reads it may be gone
    except InputError as err:
        _exit(2, f"{parser.prog}: error: {err}\n")
    except KeyboardInterrupt as stopped:
        code = stopped.exit_code if isinstance(stopped, Stopped) else 128 + signal.SIGINT
        _exit(code, f"{when_stopped(args)}\n")
    except Exception as err:
        if isinstance(err, BrokenPipeError) and _is_unread(sys.stdout):  # `| head`, which has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
            sys.exit(EXIT_OF_PIPES)
        if _has_lost_others(err):
            sys.exit(2)
        if not is_disk_full(err):
            raise
        _exit(2, f"{parser.prog}: error: {describe_full_disk(err)}\n")


def _is_unread(stream: TextIO) -> bool:
    """Whether nobody reads a stream any more."""
    poll = select.poll()
    poll.register(stream, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _exit(code: int, message: str) -> None:
    """End the process, with a last line if no other process on this machine has said it."""
    if _is_first_to_speak():
        with contextlib.suppress(OSError):  # the terminal is gone
            sys.stderr.write(message)
            sys.stderr.flush()
    sys.exit(code)


def _is_first_to_speak() -> bool:
    """Whether this process is alone, or the first of those that one torchrun started here to ask this."""
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")  # <folder of this attempt>/<rank>/error.json
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or not error_file:  # better said by all than by none
        return True
    try:
        (Path(error_file).parent.parent / "has_spoken").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _has_lost_others(err: Exception) -> bool:
    """Whether another process of this run has ended, which has said why."""
    words = ("connection closed by peer", "connection reset by peer", "broken pipe")
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and any(each in str(err).lower() for each in words)
