"""How far a number may be off because of what it was counted on: 95 % bootstrap intervals, the same each time.

A number is computed on units: sequences of tokens, or latents. The units are drawn anew, with replacement, as many as
there are; the number is computed on each such resample; the interval holds the middle 95 % of what comes out. It tells
how the number would differ on other units of the same kind, and nothing else: not on another seed, nor other text.

Source: Efron & Tibshirani 1993, "An introduction to the bootstrap", section 13.3, percentile interval; the same, but
that quantiles are interpolated between neighbouring resamples.
"""

from collections.abc import Iterator

import numpy as np

from sae_utils.errors import InputError

N_RESAMPLES = 1000
"""Resamples per interval. Source: section 13.3 again, "B = 1000" for intervals."""

SEED = 0
"""Of the draws, the same for all intervals, so that numbers of the same units are computed on the same resamples."""

COVERAGE = 0.95


def resample_counts(n: int, *, n_resamples: int = N_RESAMPLES, seed: int = SEED) -> np.ndarray:
    """How often each unit is drawn in each resample.

    Where units are many, `resampled_sums` needs no such matrix. The global random state is not touched.

    Args:
        n: Number of units, >= 1.
        n_resamples: Number of resamples.
        seed: Of the draws.

    Returns:
        int32 `(n_resamples, n)`; every row sums to `n`.
    """
    counts = np.empty((n_resamples, n), dtype=np.int32)
    for row, drawn in zip(counts, _resamples(n, n_resamples, seed), strict=True):
        row[:] = drawn
    return counts


def resampled_sums(values: np.ndarray, *, n_resamples: int = N_RESAMPLES, seed: int = SEED) -> np.ndarray:
    """Sums of values over the units of each resample: `resample_counts(len(values)) @ values`, one row at a time.

    Sums of several values of the same units, such as a numerator and a denominator, belong together.

    Args:
        values: Of each unit, `(n, ...)`.
        n_resamples: Number of resamples.
        seed: Of the draws.

    Returns:
        float64 `(n_resamples, ...)`.
    """
    values = np.asarray(values, dtype=np.float64)
    resamples = _resamples(len(values), n_resamples, seed)
    # Not `@`, whose last digits depend on the number of threads.
    return np.stack([np.einsum("n,n...->...", drawn, values) for drawn in resamples])


def interval_of(estimates: np.ndarray) -> list[float] | None:
    """The interval from a number's values on all resamples, `(n_resamples,)`: low and high.

    None if some are not finite, so that the number is not defined on every resample.

    >>> [round(end) for end in interval_of(np.arange(1001))]
    [25, 975]
    """
    if not np.isfinite(estimates).all():
        return None
    tail = (1 - COVERAGE) / 2
    low, high = np.quantile(estimates, [tail, 1 - tail])
    return [float(low), float(high)]


def share_interval(n_hits: int, n: int, *, n_resamples: int = N_RESAMPLES, seed: int = SEED) -> list[float] | None:
    """The interval of a share of units, `n_hits / n`; None for fewer than two units.

    The number of hits in a resample is exactly Binomial(n, n_hits / n), so that is what is drawn. Of no hit, or of hits
    alone, every resample is the same: [0, 0] and [1, 1] do not tell how rare the others are.

    Raises:
        InputError: If there are more hits than units, or fewer than none.
    """
    if not 0 <= n_hits <= n:
        raise InputError(f"n_hits must be between 0 and the number of units, got {n_hits} of {n}")
    if n < 2:
        return None
    return interval_of(_generator(seed).binomial(n, n_hits / n, size=n_resamples) / n)


def mean_interval(values: np.ndarray, *, n_resamples: int = N_RESAMPLES, seed: int = SEED) -> list[float] | None:
    """The interval of the mean of values, `(n,)`; the order of the units does not matter. None for fewer than two."""
    if len(values) < 2:
        return None
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    above = ordered - ordered[0]  # equal values are then exactly 0, and their mean is exactly theirs
    sums = resampled_sums(above, n_resamples=n_resamples, seed=seed)
    return interval_of(ordered[0] + sums / len(ordered))


def _resamples(n: int, n_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each unit is drawn, `(n,)`, one resample after the other."""
    generator = _generator(seed)
    for _ in range(n_resamples):
        yield np.bincount(generator.integers(n, size=n), minlength=n)


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))
