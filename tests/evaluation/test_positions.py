import torch

from sae_utils.evaluation.positions import position_bins, sums_by_bin


def test_bins_cover_every_position_once():
    for n in range(1, 40):
        bins = position_bins(n)
        assert [position for first, last in bins for position in range(first, last + 1)] == list(range(n))


def test_sums_by_hand():
    values = torch.tensor([[1.0, 2, 3, 4, 5], [10, 20, 30, 40, 50]])
    assert sums_by_bin(values).tolist() == [11, 22, 77, 55]
