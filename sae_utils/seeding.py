"""One stream of uniform numbers per sample, so that chance does not depend on what a sample was decoded with."""

from collections.abc import Iterable

import numpy as np


def sample_uniforms(seed: int, sample_ids: Iterable[int], n_steps: int) -> np.ndarray:
    """Uniform numbers in [0, 1): row `i`, column `t` decides token `t + 1` of sample `sample_ids[i]`.

    A row depends on (seed, sample id) alone, and a longer row begins with the shorter one. The global random state
    is neither read nor changed.

    Args:
        seed: Seed of the data set, 0 <= seed < 2**64.
        sample_ids: Ids of the samples, each >= 0.
        n_steps: Numbers per sample.

    Returns:
        float64 array `(len(sample_ids), n_steps)`, multiples of 2**-53.

    Source: Philox 4x64 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") in NumPy, keyed by
    (seed, sample id). The raw 64-bit words are taken because NumPy keeps those the same between versions.
    """
    # As an array of this type: NumPy would bring a list with a number of 2**63 or more through float64.
    keys = [np.array([seed, sample_id], dtype=np.uint64) for sample_id in sample_ids]
    words = np.array([np.random.Philox(key=key).random_raw(n_steps) for key in keys], dtype=np.uint64)
    words = words.reshape(-1, n_steps)
    return (words >> np.uint64(11)) * 2.0**-53
