"""The one exception that reaches a user as a single line: wrong settings, or inputs that are not there."""


class InputError(ValueError):
    """A setting or an input that the user has to change; the scripts print the message and exit with code 2.

    The message names the rule, the value found, where it came from, and what to do.
    """


def check_positive(**values: int | None) -> None:
    """Refuse numbers below 1, each under its flag's name; None was not given.

    >>> check_positive(k=32, num_latents=None)

    Raises:
        InputError: For the first that is below 1.
    """
    for flag, value in values.items():
        if value is not None and value < 1:
            raise InputError(f"--{flag} must be at least 1, got {value}")


class MissingInputError(InputError, FileNotFoundError):
    """A file, folder, model or data set that should be there and is not; the message says how to make it."""

    def __str__(self) -> str:
        return str(self.args[0])  # FileNotFoundError would print the arguments as an errno pair
