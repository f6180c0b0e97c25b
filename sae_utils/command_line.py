"""What the command lines share: how help looks, how a script ends, and the flags that say where and how it runs."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from sae_utils.errors import InputError

MAX_HELP_WIDTH = 100
"""Columns of help in a wide terminal; in a narrow one, as many as there are."""


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
    """The flags that every script has: device, dtype, overwrite, dry_run, quiet."""
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
    running.add_argument("--quiet", action="store_true", help="no progress bars, no status lines")


def run_script(
    parser: argparse.ArgumentParser,
    action: Callable[[argparse.Namespace], None],
    argv: Sequence[str] | None,
    *,
    when_stopped: str,
) -> None:
    """Parse the command line and act on it; what a user has to change is one line and exit code 2.

    Args:
        parser: The script's parser.
        action: What the script does.
        argv: Words of the command line; those of this process if None.
        when_stopped: What to say, with exit code 130, after Ctrl-C.
    """
    args = parser.parse_args(argv)
    try:
        action(args)
    except InputError as err:
        parser.exit(2, f"{parser.prog}: error: {err}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"{when_stopped}\n")
