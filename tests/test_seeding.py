import numpy as np

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


def test_first_numbers_never_change():
    """A data set begun with one NumPy must be continued with the next; literals recorded with 2.4.6."""
    assert sample_uniforms(42, [0], 3)[0].tolist() == [0.8201981478608876, 0.18924562408645496, 0.8676608148821462]


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
