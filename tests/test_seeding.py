import numpy as np
import pytest

from sae_utils.seeding import sample_uniforms


def test_a_sample_has_its_own_stream():
    """Otherwise sample 7 would change with the batch it is decoded in."""
    together = sample_uniforms(42, range(5, 10), 20)
    alone = sample_uniforms(42, [7], 20)
    assert np.array_equal(together[2], alone[0])


def test_longer_streams_begin_with_shorter_ones():
    assert np.array_equal(sample_uniforms(1, [3], 100)[:, :10], sample_uniforms(1, [3], 10))


def test_seeds_and_samples_give_different_numbers():
    rows = np.concatenate([sample_uniforms(seed, range(50), 4) for seed in range(4)])
    assert len(np.unique(rows)) == rows.size


@pytest.mark.parametrize(
    ("seed", "sample_id", "expected"),
    [
        (42, 0, [0.8201981478608876, 0.18924562408645496, 0.8676608148821462]),
        (2**53 + 1, 7, [0.998055209295105, 0.7518978950531673, 0.374949727553464]),  # no float64 is this number
        (2**63 - 1, 7, [0.9489854270082138, 0.6432234133977515, 0.06932594247854118]),
    ],
)
def test_first_numbers_never_change(seed, sample_id, expected):
    """A data set begun with one NumPy must be continued with the next; literals recorded with 2.4.6."""
    assert sample_uniforms(seed, [sample_id], 3)[0].tolist() == expected


def test_every_seed_has_numbers_of_its_own():
    """In float64, 2**64 - 1 would be 2**64, for which there is no room: it sampled what 0 does."""
    seeds = [0, 1, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 2, 2**64 - 1]
    assert len({tuple(sample_uniforms(seed, [7], 4)[0]) for seed in seeds}) == len(seeds)
    assert np.array_equal(sample_uniforms(2**64 - 1, range(3, 6), 4)[1], sample_uniforms(2**64 - 1, [4], 4)[0])


def test_numbers_are_uniform_and_below_one():
    numbers = sample_uniforms(0, range(100), 1000)
    assert numbers.min() >= 0 and numbers.max() < 1
    counts, _ = np.histogram(numbers, bins=100, range=(0, 1))
    expected = numbers.size / 100
    assert ((counts - expected) ** 2 / expected).sum() < 150  # chi-square, 99 degrees: 0.1 % above 148


def test_global_random_state_is_left_alone():
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    sample_uniforms(0, [1], 5)
    assert np.array_equal(before, np.random.get_state()[1])
