"""The one-to-one matching of two sets of directions that makes the total cosine largest: exact, and at full size.

All cosines of 40,960 x 40,960 latents are 6.7 GB in float32, and a dense solver wants them in float64. Few of them
matter. So the problem is solved over the largest cosines of every row and column alone, and its dual solution is then
held against all the others; those that contradict it are added, until none is left (column generation).

Why the result is optimal: if numbers u_i, v_j have cos_ij <= u_i + v_j for all pairs, the total of any matching is at
most sum(u) + sum(v). The optimum over the few pairs comes with such numbers, and equality on its own pairs, so its
total is sum(u) + sum(v). Once they hold for the other pairs too, no matching of all pairs does better.

Source: Volgenant 1996, "Linear and semi-assignment problems: a core oriented approach"; the same idea.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from ortools.graph.python.linear_sum_assignment import SimpleLinearSumAssignment
from torch import Tensor

from sae_utils.errors import InputError

BLOCK_ROWS = 1024
"""Rows multiplied at a time: 168 MB of cosines at 40,960 latents."""

SCAN_ENTRIES = 2**21
"""Cosines looked through at a time: 8 MB in float32, which caches hold."""

TOLERANCE = 5e-7
"""A cosine may pass u_i + v_j by this much, which is the rounding of cosines in float32: the total found is at most
n_latents times this below the optimum."""

RESOLUTION = 2**30
"""Steps per unit that cosines are rounded to for the solver, far finer than float32's."""

SHARED_ABOVE = 0.7
"""Cosine above which two latents count as the same feature. Source: Cho et al. 2025; Paulo & Belrose 2025."""

HALF_ROUNDING = 2.0**-12
"""Largest error of a number in [-1, 1] that is kept in float16."""

LEAST_ROWS = 4
"""Rows of the problem that the solver is given, some of which may have no choice: of two rows alone, OR-Tools 9.15 says
now and then that they cannot be matched."""

N_ADDED_PER_ROW = 8
"""Most pairs that a row adds per round, where many are missing."""

DENSER_THAN = 256
"""Where more than one in so many cosines needs a second look, a product of whole rows is the faster way to it."""

GATHERED_NUMBERS = 2**20
"""Numbers in the rows whose cosines are computed pair by pair, at a time: 4 MB in float32, for which a C library finds
room between others where larger arrays leave gaps."""


@dataclass(frozen=True)
class Matching:
    """A partner for every row."""

    partner: np.ndarray
    """int64 `(n_latents,)`: the row of the second matrix matched to each row of the first; a permutation."""

    cosine: np.ndarray
    """float32 `(n_latents,)`: cosine of the two."""

    best: np.ndarray
    """float32 `(n_latents,)`: highest cosine of each row of the first matrix with any row of the second."""

    best_b: np.ndarray
    """float32 `(n_latents,)`: the same for the rows of the second."""


@torch.no_grad()
def match_rows(
    a: Tensor, b: Tensor, *, n_candidates: int = 16, on_status: Callable[[str], None] = lambda line: None
) -> Matching:
    """Match each row of `a` with one row of `b`, one to one, so that the sum of cosines is the largest possible.

    Equal to `scipy.optimize.linear_sum_assignment` on all cosines, up to ties and to float32's rounding. Products run
    on the device of the tensors, the sparse problem on the CPU. All cosines are kept in float16, 3.4 GB for 40,960
    latents, but only to find pairs worth a second look: those are computed in float32.

    Args:
        a: `(n_latents, d_model)`, any norms; a row of zeros has cosine 0 with every row.
        b: Same shape, same device.
        n_candidates: Largest cosines per row and per column to begin with; the total does not depend on it.
        on_status: Called with a line now and then.

    Raises:
        InputError: If the shapes differ, are not 2-D, or have no row; or if a number is not finite.
    """
    _check_shapes(a, b)
    a, b = _unit_rows(a), _unit_rows(b)
    on_status(f"all cosines of {len(a):,} x {len(a):,}")
    with _full_precision():
        cosines, pairs, best, best_b = _multiply(a, b, n_candidates)
    column_prices = np.zeros(pairs.n)
    while True:
        partner = _solve(pairs)
        row_prices, column_prices = _dual_prices(pairs, partner, column_prices)
        with _full_precision():
            missed = _contradictions(a, b, cosines, row_prices, column_prices)
        matched, n_before = pairs.cosine_of(partner), len(pairs.key)
        pairs.add(*missed)
        n_added = len(pairs.key) - n_before
        on_status(f"total cosine {matched.sum():,.4f} over {n_before:,} pairs, {n_added:,} to be added")
        if n_added == 0:
            return Matching(partner, matched.astype(np.float32), best, best_b)


def share_above(cosine: np.ndarray, threshold: float) -> float:
    """Share of cosines that are greater than the threshold.

    >>> share_above(np.array([0.9, 0.7, 0.2, 0.8]), 0.7)
    0.5
    """
    return float((cosine > threshold).mean())


@dataclass
class _Pairs:
    """The pairs that the sparse problem is solved over, sorted by row and then column."""

    n: int
    key: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """Row * n + column."""

    cosine: np.ndarray = field(default_factory=lambda: np.empty(0))
    """float64 multiples of 1 / `RESOLUTION`: the solver takes integers, and sums of these are exact."""

    def add(self, key: np.ndarray, cosine: np.ndarray) -> None:
        """Take in pairs; one that is already there keeps its cosine."""
        cosine = np.concatenate([self.cosine, np.round(cosine.astype(np.float64) * RESOLUTION) / RESOLUTION])
        self.key, first = np.unique(np.concatenate([self.key, key]), return_index=True)
        self.cosine = cosine[first]

    def cosine_of(self, partner: np.ndarray) -> np.ndarray:
        """Cosines `(n,)` of a matching among these pairs."""
        return self.cosine[np.searchsorted(self.key, np.arange(self.n) * self.n + partner)]

    def row_starts(self) -> np.ndarray:
        """Where each row begins, `(n + 1,)`."""
        return np.searchsorted(self.key, np.arange(self.n + 1) * self.n)


def _multiply(a: Tensor, b: Tensor, n_candidates: int) -> tuple[Tensor, _Pairs, np.ndarray, np.ndarray]:
    """All cosines `(n, n)` in float16, and the pairs to begin with: the best of every row and every column.

    Pairs (i, i) are among them, so that there is a matching at all. Then the highest cosine of every row, and of every
    column, float32 `(n,)`.
    """
    n, n_best = len(a), min(n_candidates, len(a))
    cosines = torch.empty(n, n, dtype=torch.float16, device=a.device)
    keys, values = [torch.arange(n, device=a.device)[:, None] * (n + 1)], [(a * b).sum(dim=1, keepdim=True)]
    best_of_columns = torch.full((n, n_best), -torch.inf, device=a.device)
    best_rows = torch.zeros(n, n_best, dtype=torch.int64, device=a.device)
    for start in range(0, n, BLOCK_ROWS):
        block = a[start : start + BLOCK_ROWS] @ b.T  # (rows, n)
        cosines[start : start + BLOCK_ROWS] = block
        best, columns = block.topk(n_best, dim=1)
        keys.append(_keys(n, start, columns))
        values.append(best)
        best, rows = block.T.contiguous().topk(min(n_best, len(block)), dim=1)
        best_of_columns, kept = torch.cat([best_of_columns, best], dim=1).topk(n_best, dim=1)
        best_rows = torch.cat([best_rows, rows + start], dim=1).gather(1, kept)
    keys.append(best_rows * n + torch.arange(n, device=a.device)[:, None])
    values.append(best_of_columns)
    pairs = _Pairs(n)
    pairs.add(*(torch.cat([piece.flatten() for piece in each]).cpu().numpy() for each in (keys, values)))
    best_of_rows = torch.cat([of_block[:, 0] for of_block in values[1:-1]])  # `topk` sorts
    return cosines, pairs, best_of_rows.cpu().numpy(), best_of_columns[:, 0].cpu().numpy()


def _solve(pairs: _Pairs) -> np.ndarray:
    """Best matching among the pairs: partner of every row, `(n,)`.

    Source: Goldberg & Kennedy 1995, "An efficient cost scaling algorithm for the assignment problem", as in OR-Tools;
    SciPy's sparse solver takes 100 times as long when many rows are near copies of one another.
    """
    costs = (-pairs.cosine * RESOLUTION).astype(np.int64)
    problem = SimpleLinearSumAssignment()
    problem.add_arcs_with_cost((pairs.key // pairs.n).astype(np.int32), (pairs.key % pairs.n).astype(np.int32), costs)
    for extra in range(pairs.n, LEAST_ROWS):
        problem.add_arc_with_cost(extra, extra, 0)
    status = problem.solve()
    assert status == problem.OPTIMAL, status  # there are pairs (i, i), and costs are far from overflowing
    return np.array([problem.right_mate(row) for row in range(pairs.n)])


def _dual_prices(pairs: _Pairs, partner: np.ndarray, column_prices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Prices of rows and of columns, `(n,)` each: their sum is >= the cosine of every pair, and equal if matched.

    Column prices start from those given and are raised as little as is needed. If row i would gain by exchanging its
    partner for column j, j's price rises until it does not; then the row that has j looks again. As the matching is
    optimal, no row can drive its own partner's price up by this, so it ends.

    Source: Bellman 1958, "On a routing problem", from all columns at once; only prices that rose are looked at again.
    """
    starts, columns = pairs.row_starts(), pairs.key % pairs.n
    matched = pairs.cosine_of(partner)
    gains = pairs.cosine - matched[pairs.key // pairs.n]  # of exchanging the partner, before prices
    owner = np.argsort(partner)  # the row that has each column
    prices, risen = column_prices.copy(), np.arange(pairs.n)
    while len(risen):
        before, rows = prices.copy(), owner[risen]
        at, lengths = _ranges(starts[rows], starts[rows + 1])
        wanted = np.repeat(prices[risen], lengths) + gains[at]
        is_more = wanted > prices[columns[at]]  # exact: all are multiples of 1 / RESOLUTION
        np.maximum.at(prices, columns[at][is_more], wanted[is_more])
        risen = np.flatnonzero(prices > before)
    return matched - prices[partner], prices


def _contradictions(
    a: Tensor, b: Tensor, cosines: Tensor, row_prices: np.ndarray, column_prices: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Keys and cosines of pairs whose cosine is above the sum of their prices by more than the tolerance.

    All of them, or some of each row where there are many; none only if there is none. Which, is drawn (not from global
    random state): were it the worst of each row, all rows would want the same few columns, round after round.
    """
    n, found, draw = len(a), [], torch.Generator(a.device).manual_seed(0)
    u, v = (torch.from_numpy(prices).to(a.device, torch.float32) for prices in (row_prices, column_prices))
    n_rows = max(1, SCAN_ENTRIES // n)
    for start in range(0, n, n_rows):
        rows, limit = slice(start, start + n_rows), HALF_ROUNDING + TOLERANCE
        excess = cosines[rows].float().sub_(v).sub_(u[rows, None])  # (rows, n), each up to HALF_ROUNDING off
        is_suspect, n_few = excess > -limit, N_ADDED_PER_ROW * len(excess)
        if is_suspect.count_nonzero() <= max(excess.numel() // DENSER_THAN, n_few):
            suspects = is_suspect.flatten().nonzero().flatten()
            if (excess.flatten()[suspects] > limit).count_nonzero() <= n_few:
                found.append(suspects + start * n)
                continue
        elif (excess > limit).count_nonzero() <= n_few:  # near ties, which only float32 tells from contradictions
            excess, limit = a[rows] @ b.T - v - u[rows, None], TOLERANCE
        lots = torch.rand(excess.shape, generator=draw, device=a.device) * excess * (excess > limit)
        drawn, columns = lots.topk(min(N_ADDED_PER_ROW, n), dim=1)
        found.append(_keys(n, start, columns)[drawn > 0])
    keys = torch.cat(found)
    pair_cosines = _cosines_of_pairs(a, b, keys)
    keys = keys.cpu().numpy()
    is_wrong = pair_cosines > row_prices[keys // n] + column_prices[keys % n] + TOLERANCE
    return keys[is_wrong], pair_cosines[is_wrong]


def _cosines_of_pairs(a: Tensor, b: Tensor, keys: Tensor) -> np.ndarray:
    """Cosines of some pairs."""
    pieces = keys.split(max(1, GATHERED_NUMBERS // a.shape[1]))
    cosines = [(a[piece // len(b)] * b[piece % len(b)]).sum(dim=1) for piece in pieces]
    return torch.cat(cosines).cpu().numpy()


def _keys(n: int, start: int, columns: Tensor) -> Tensor:
    """Keys of pairs from columns `(rows, m)` of the rows that begin at `start`."""
    return (torch.arange(len(columns), device=columns.device)[:, None] + start) * n + columns


def _ranges(starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ranges from starts to ends one after the other, and the length of each.

    >>> _ranges(np.array([5, 0]), np.array([7, 3]))[0].tolist()
    [5, 6, 0, 1, 2]
    """
    lengths = ends - starts
    offsets = starts - np.cumsum(lengths) + lengths
    return np.repeat(offsets, lengths) + np.arange(lengths.sum()), lengths


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Products of float32 in float32: trainers switch on faster and coarser ones for the whole process."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


def _unit_rows(x: Tensor) -> Tensor:
    """Rows divided by their norms, float32; rows of zeros stay zeros."""
    norms = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float64)
    if not norms.isfinite().all():
        raise InputError(f"rows to be matched must be finite, {int((~norms.isfinite()).sum())} of {len(x)} are not")
    return (x / norms.where(norms > 0, 1.0).to(x.dtype)).float()


def _check_shapes(a: Tensor, b: Tensor) -> None:
    """Only as many rows as columns can be matched one to one."""
    if a.ndim != 2 or a.shape != b.shape or len(a) == 0:
        raise InputError(
            "matrices to be matched must both be (n_latents, d_model) with the same number of latents, "
            f"got {tuple(a.shape)} and {tuple(b.shape)}"
        )
