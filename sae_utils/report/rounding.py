"""One way of rounding for every number that is shown, so that a sentence, a table and a figure never disagree."""

import numpy as np

SMALLEST_IN_FULL = 1e-6
"""Numbers below this are written with an exponent."""


def rounded(value: float, decimals: int, *, is_share: bool = False) -> str:
    """A number with fixed decimals and separators, a share as a percentage; only zero itself is shown as zero.

    What the decimals would show as zero has one digit that is not.

    >>> rounded(1234.5, 1), rounded(0.125, 1, is_share=True), rounded(-0.0, 2)
    ('1,234.5', '12.5%', '0.00')
    >>> rounded(0.0004, 3), rounded(-0.00004, 1, is_share=True), rounded(0.00000002, 3)
    ('0.0004', '-0.004%', '2e-08')
    """
    number = (100 * value if is_share else value) or 0.0  # without the sign of -0.0
    text = f"{number:,.{decimals}f}"
    if number and not any(digit in text for digit in "123456789"):
        text = _one_digit(number)
    return f"{text}%" if is_share else text


def _one_digit(number: float) -> str:
    """A small number to one significant digit."""
    if abs(number) < SMALLEST_IN_FULL:
        return f"{number:.0e}"
    return np.format_float_positional(number, precision=1, fractional=False, trim="-")
