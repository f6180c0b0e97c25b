import math

import numpy as np
import pytest

from sae_utils.report.rounding import rounded


@pytest.mark.parametrize("is_share", [False, True])
def test_only_zero_is_shown_as_zero_and_what_is_shown_is_near(is_share):
    """A ratio of one latent in 40,960 is a finding, however few decimals a table has."""
    rng = np.random.default_rng(0)
    values = [*(rng.choice([-1, 1], 500) * 10 ** rng.uniform(-12, 2, 500)), 0.0004999, 0.00095, 0.5, 9.5e-7, 1e-6]
    for value in map(float, values):
        for decimals in range(5):
            shown = float(rounded(value, decimals, is_share=is_share).rstrip("%").replace(",", ""))
            number = 100 * value if is_share else value
            assert shown and math.copysign(1, shown) == math.copysign(1, value)
            assert shown == pytest.approx(number, rel=0.51, abs=0.5000001 * 10**-decimals)
    assert {rounded(zero, 3) for zero in (0.0, -0.0, 0)} == {"0.000"}
