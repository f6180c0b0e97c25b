"""What a user sees while waiting: token bars with rate and ETA, our log lines, and nobody else's chatter."""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

LOG_FILE_INTERVAL_SEC = 20.0
"""Time between updates of a bar that goes to a file and not to a terminal."""


PATIENCE_SEC = 5.0
"""Waits that are over sooner need no bar, where most of them are."""


def token_bar(
    description: str, *, total: int | None, initial: int = 0, quiet: bool = False, patience_sec: float = 0.0
) -> tqdm:
    """A progress bar that counts tokens.

    Args:
        description: What is going on.
        total: Tokens when done, if known.
        initial: Tokens done before this run; not counted in the rate.
        quiet: Show nothing.
        patience_sec: Show nothing of what is done sooner.
    """
    return tqdm(
        desc=description,
        total=total,
        initial=initial,
        unit="tok",
        unit_scale=True,
        disable=quiet,
        dynamic_ncols=True,
        delay=patience_sec,
        mininterval=0.2 if sys.stderr.isatty() else LOG_FILE_INTERVAL_SEC,
    )


def status_bar() -> tqdm:
    """A bar behind a line of its own, for waits of several kinds of work; whoever has it sets `n` and `total`."""
    return tqdm(
        bar_format="{desc} |{bar:20}| {elapsed}",
        delay=1e-9,  # nothing is drawn before there is a line
        dynamic_ncols=True,
        mininterval=0.2 if sys.stderr.isatty() else LOG_FILE_INTERVAL_SEC,
    )


def span(sec: float) -> str:
    """A length of time as people say it, about.

    >>> span(50), span(700), span(5400), span(400000)
    ('50 s', '11.7 min', '1.5 h', '111.1 h')
    """
    if sec < 60:
        return f"{sec:.0f} s"
    return f"{sec / 3600:.1f} h" if sec >= 3600 else f"{sec / 60:.1f} min"


@contextlib.contextmanager
def script_output(*, quiet: bool = False) -> Iterator[None]:
    """Set up what a script shows: our log lines above the bars, other libraries' only when something is wrong."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    logging.getLogger("sae_utils").setLevel(logging.WARNING if quiet else logging.INFO)
    quiet_libraries()
    with logging_redirect_tqdm():
        yield


def quiet_libraries() -> None:
    """Turn off the progress bars and advice of transformers and datasets, which a user of ours cannot act on."""
    import datasets
    import transformers

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
