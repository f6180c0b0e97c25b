"""The one exception that reaches a user as a single line: wrong settings, or inputs that are not there."""

ROOMIER_DTYPES = {"float16": "bfloat16 or float32", "bfloat16": "float32"}
"""Number formats with more room than one; none has more than float32."""


class InputError(ValueError):
    """A setting or an input that the user has to change; the scripts print the message and exit with code 2.

    The message names the rule, the value found, where it came from, and what to do.
    """


def first_line(said: object) -> str:
    r"""What an error or a warning says, in one line without a full stop.

    >>> first_line(ValueError("Not this.\nBut that.")), first_line(EOFError())
    ('Not this', 'EOFError')
    """
    text = said.strerror if isinstance(said, OSError) and said.strerror else str(said).strip()
    return (text or type(said).__name__).splitlines()[0].rstrip(". ")


def check_positive(**values: int | None) -> None:
    """Refuse numbers below 1, each under its flag's name; None was not given.

    >>> check_positive(k=32, num_latents=None)

    Raises:
        InputError: For the first that is below 1.
    """
    for flag, value in values.items():
        if value is not None and value < 1:
            raise InputError(f"--{flag} must be at least 1, got {value}")


class LockedError(InputError):
    """Another run is at it."""


class NonFiniteError(InputError):
    """A model, or what is trained on it, gives NaN or infinity: every number from there on would be wrong."""


def remedy_for_non_finite(dtype: str) -> str:
    """What to do about a model that gives NaN or infinity in a number format.

    >>> remedy_for_non_finite("float16")
    'try another --dtype: bfloat16 or float32'
    """
    if dtype in ROOMIER_DTYPES:
        return f"try another --dtype: {ROOMIER_DTYPES[dtype]}"
    return "look for NaN in the model's weights, for instance with a copy that is known to be good"


class MissingInputError(InputError, FileNotFoundError):
    """A file, folder, model or data set that should be there and is not; the message says how to make it."""

    def __str__(self) -> str:
        return str(self.args[0])  # FileNotFoundError would print the arguments as an errno pair
