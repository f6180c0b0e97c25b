"""What can go wrong when the Hugging Face hub is asked, in one line."""

import contextlib
from collections.abc import Iterator

from huggingface_hub import is_offline_mode
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HTTPError, RepositoryNotFoundError

from sae_utils.disk import is_disk_full
from sae_utils.errors import InputError, MissingInputError, first_line

NO_LOGIN_STATUS, NO_RIGHTS_STATUS = 401, 403
"""What a server answers whom it does not know, and who may not."""

BUSY_STATUS, BROKEN_STATUS = 429, 500
"""What it answers who asks too often, and the first number for what is its own trouble."""

ERRORS = (HTTPError, EntryNotFoundError, OSError, RuntimeError, ValueError)
"""What the hub's library raises: of servers and networks, of uploads that failed, of answers that make no sense."""


class UnreachableError(InputError):
    """No answer from the hub: asking for anything else would end the same way."""


class BusyError(UnreachableError):
    """The hub answers that it cannot now."""


@contextlib.contextmanager
def asking_the_hub(for_what: str) -> Iterator[None]:
    """Turn whatever the hub's library raises into one line.

    Args:
        for_what: What could not be done, with its name.

    Raises:
        UnreachableError: If there is no answer, or (BusyError) none for now.
        MissingInputError: If there is no such repository, or it is not shown to us.
        InputError: For anything else.
    """
    try:
        yield
    except InputError:
        raise
    except ERRORS as err:
        if is_disk_full(err):
            raise
        answer = next((each for each in (err, err.__cause__) if isinstance(each, HfHubHTTPError)), None)
        if answer is None:
            raise _without_answer(for_what, err) from err
        raise _with_answer(for_what, answer) from err


def _without_answer(for_what: str, err: Exception) -> InputError:
    """Nobody answered, or it made no sense."""
    if is_offline_mode():
        return UnreachableError(f"{for_what}: HF_HUB_OFFLINE says that the hub is not to be asked; unset it")
    reason = first_line(err.__cause__ or err)
    if isinstance(err, ValueError):
        return InputError(f"{for_what} ({reason})")
    return UnreachableError(f"{for_what} ({reason}); when the hub can be reached, the same command goes on")


def _with_answer(for_what: str, err: HfHubHTTPError) -> InputError:
    """The hub's answer was no."""
    status = err.response.status_code
    if isinstance(err, RepositoryNotFoundError):
        return MissingInputError(
            f"{for_what}: the hub has no such repository, or does not show it to this login; look at its name, or "
            f"run `hf auth login`"
        )
    if status == NO_LOGIN_STATUS:
        return InputError(f"{for_what}: the hub does not take the login; run `hf auth login`, or set HF_TOKEN")
    reason = first_line(err.server_message or err)
    if status == NO_RIGHTS_STATUS:
        return InputError(f"{for_what}: this login has no right to ({reason}); ask for it, or give another place")
    if status == BUSY_STATUS or status >= BROKEN_STATUS:
        return BusyError(f"{for_what} ({status}: {reason}); when the hub is well again, the same command goes on")
    return InputError(f"{for_what}: the hub does not take it ({status}: {reason})")
