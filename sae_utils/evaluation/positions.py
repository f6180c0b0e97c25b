"""Numbers by position in the sequence, in bins that double in width: 0, 1, 2-3, 4-7, 8-15, ..."""

from collections.abc import Iterator

import torch
from torch import Tensor


def position_bins(n_positions: int) -> list[tuple[int, int]]:
    """First and last position of each bin, both included; the last bin ends with the sequence.

    >>> position_bins(11)
    [(0, 0), (1, 1), (2, 3), (4, 7), (8, 10)]
    """
    bins, first = [], 0
    while first < n_positions:
        bins.append((first, min(max(2 * first, 1), n_positions) - 1))
        first = bins[-1][1] + 1
    return bins


def by_bin(values: Tensor) -> Iterator[Tensor]:
    """The part of each bin of values by position, `(batch, seq, ...)`."""
    for first, last in position_bins(values.shape[1]):
        yield values[:, first : last + 1]


def sums_by_bin(values: Tensor) -> Tensor:
    """Sums over the sequences and positions of each bin of `(batch, seq)`: `(n_bins,)`."""
    return torch.stack([part.sum() for part in by_bin(values)])
