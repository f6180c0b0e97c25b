"""Directions that come back as a subspace, though none of them comes back alone."""

import numpy as np
import pytest
import torch

from sae_utils.comparison.subspaces import Subspace, overlap, overlap_both_ways, principal_subspace


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_two_bases_of_one_plane_overlap_fully():
    """At 45 degrees to each other, none of the directions is the same."""
    a = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0]])
    b = torch.tensor([[1.0, 1, 0, 0], [1, -1, 0, 0]])
    found = overlap_both_ways(a, b)
    assert (found["rank"], found["rank_b"]) == (2, 2)
    assert (found["overlap"], found["overlap_b"]) == pytest.approx((1, 1))
    assert found["overlap_random"] == found["overlap_random_b"] == 0.5


def test_overlap_by_hand():
    """`b` is a plane and a half of `a`'s lengths squared lies in it: one row in full, one with 0.36, one not at all."""
    a = torch.tensor([[2.0, 0, 0], [0.6, 0, 0.8], [0, 0, 5.0]])
    b = torch.tensor([[1.0, 0, 0], [0, 3.0, 0]])
    assert overlap_both_ways(a, b)["overlap"] == pytest.approx((1 + 0.36 + 0) / 3)


def test_the_subspace_is_the_smallest_that_carries_the_share():
    """Squared lengths 8, 1 and 1 of ten: one direction carries 0.8, two 0.9, three all."""
    rows = torch.eye(3)[[0] * 8 + [1, 2]] * torch.linspace(0.5, 9, 10)[:, None]
    assert [principal_subspace(rows, share).rank for share in (0.8, 0.81, 0.9, 0.91, 1.0)] == [1, 2, 2, 3, 3]


@pytest.mark.parametrize("seed", range(3))
def test_same_as_a_plain_computation(seed):
    """NumPy's singular vectors, and every row projected on each of them in turn."""
    a, b = draw(seed, 7, 12), draw(seed + 10, 9, 12) * torch.linspace(1, 3, 9)[:, None]
    unit_a, unit_b = (
        (rows / rows.norm(dim=1, keepdim=True)).numpy().astype(np.float64) for rows in (a.double(), b.double())
    )
    _, strengths, directions = np.linalg.svd(unit_b)
    rank = next(r for r in range(1, 10) if (strengths[:r] ** 2).sum() >= 0.9 * (strengths**2).sum())
    expected = np.mean([sum(float(row @ directions[r]) ** 2 for r in range(rank)) for row in unit_a])
    found = overlap_both_ways(a, b)
    assert found["rank_b"] == rank
    assert found["overlap"] == pytest.approx(expected, rel=1e-9)


def test_random_directions_have_the_overlap_that_is_expected_of_them():
    subspace = principal_subspace(draw(0, 6, 40))
    assert overlap(draw(1, 4000, 40), subspace) == pytest.approx(subspace.expected_overlap, rel=0.05)
    assert subspace.expected_overlap == subspace.rank / 40


def test_nothing_overlaps_with_nothing():
    assert overlap_both_ways(draw(0, 3, 4), draw(0, 0, 4)) is None
    assert overlap_both_ways(draw(0, 0, 4), draw(0, 3, 4)) is None


def test_a_subspace_of_everything_holds_everything():
    everything = Subspace(torch.eye(4, dtype=torch.float64))
    assert overlap(draw(3, 5, 4), everything) == pytest.approx(1)
