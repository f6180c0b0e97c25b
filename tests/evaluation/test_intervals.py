"""Intervals: the same each time, those of a plain resampling, and holding the truth as often as they say."""

import numpy as np
import pytest

from sae_utils.errors import InputError
from sae_utils.evaluation.intervals import (
    N_RESAMPLES,
    interval_of,
    mean_interval,
    resample_counts,
    resampled_sums,
    share_interval,
)


def plain_interval(values: np.ndarray) -> list[float]:
    """Draw units by Python's own means, take the mean, and read the percentiles off the ordered means."""
    random = np.random.RandomState(7)
    n = len(values)
    means = sorted(sum(values[random.randint(n)] for _ in range(n)) / n for _ in range(2000))
    return [means[49], means[1949]]


def share_holding(truth: float, intervals: list[list[float]]) -> float:
    return float(np.mean([low <= truth <= high for low, high in intervals]))


def test_every_resample_has_as_many_units_as_there_are():
    """Fewer or more units than were measured would make intervals too wide or too narrow."""
    counts = resample_counts(7, n_resamples=50)
    assert (counts.shape, counts.dtype) == ((50, 7), np.int32)
    assert (counts.sum(axis=1) == 7).all() and counts.min() == 0 and counts.max() > 1
    assert resample_counts(3).shape == (N_RESAMPLES, 3)


def test_units_are_drawn_alike():
    """Multinomial: every unit has mean 1 and variance 1 - 1/n, and two of them a covariance of -1/n."""
    counts = resample_counts(4, n_resamples=40_000).astype(np.float64)
    assert counts.mean(axis=0) == pytest.approx(1, abs=0.02)
    assert np.cov(counts.T) == pytest.approx(np.eye(4) - 1 / 4, abs=0.02)


def test_same_seed_same_interval():
    """Results that differ from run to run would be measured, and committed, for nothing."""
    values = np.random.default_rng(0).normal(size=40)
    for interval in (lambda **seed: share_interval(30, 100, **seed), lambda **seed: mean_interval(values, **seed)):
        assert interval() == interval(seed=0) != interval(seed=1)
    assert np.array_equal(resample_counts(9), resample_counts(9, seed=0))
    assert not np.array_equal(resample_counts(9), resample_counts(9, seed=1))


def test_global_random_state_is_left_alone():
    """What is trained or sampled afterwards would depend on what was measured before."""
    np.random.seed(5)
    before = np.random.get_state()[1].tolist()
    resample_counts(5), share_interval(1, 5), mean_interval(np.arange(5.0))
    assert np.random.get_state()[1].tolist() == before


def test_order_of_units_does_not_matter():
    """The two SAEs of a pair could not be exchanged otherwise."""
    values = np.random.default_rng(1).normal(size=60)
    assert (
        mean_interval(values)
        == mean_interval(values[::-1])
        == mean_interval(np.random.default_rng(2).permutation(values))
    )
    hits = values > 0.5
    assert share_interval(hits.sum(), hits.size) == share_interval(hits[::-1].sum(), hits.size)


def test_a_share_is_the_mean_of_ones_and_zeros():
    """Two ways to one interval; only their draws differ."""
    hits = np.arange(200) < 60
    assert share_interval(60, 200) == pytest.approx(mean_interval(hits), abs=0.01)


def test_same_as_a_plain_resampling():
    """In distribution: the ends are quantiles of other draws, so they agree to a few hundredths of the width."""
    hits = (np.arange(80) < 24).astype(float)
    assert share_interval(24, 80) == pytest.approx(plain_interval(hits), abs=0.02)
    skewed = np.random.default_rng(2).exponential(size=50)
    assert mean_interval(skewed) == pytest.approx(plain_interval(skewed), abs=0.05)


def test_sums_are_those_of_the_counts():
    """A ratio of two sums is right only if both were drawn together."""
    values = np.random.default_rng(3).normal(size=(30, 2))
    assert np.allclose(resampled_sums(values), resample_counts(30) @ values)
    assert np.allclose(resampled_sums(values[:, 0]), resampled_sums(values)[:, 0])


def test_intervals_of_shares_hold_the_truth_as_often_as_they_say():
    """300 data sets of 200 units with a true share of 0.3: 95 % is 285, and chance moves that by 4."""
    n_hits = np.random.default_rng(4).binomial(200, 0.3, size=300)
    assert 0.90 <= share_holding(0.3, [share_interval(int(hits), 200) for hits in n_hits]) <= 0.98


def test_intervals_of_means_hold_the_truth_as_often_as_they_say():
    """300 data sets of 100 skewed units with a true mean of 2."""
    samples = np.random.default_rng(5).gamma(2.0, size=(300, 100))
    assert 0.90 <= share_holding(2.0, [mean_interval(sample, n_resamples=300) for sample in samples]) <= 0.98


@pytest.mark.parametrize("constant", [0.1, -3.7, 1e-9])
def test_a_constant_has_no_width(constant):
    """Not even by rounding: [0.1, 0.10000000000000002] would look like a finding."""
    assert mean_interval(np.full(7, constant)) == [constant, constant]


def test_shares_of_nothing_and_of_everything_have_no_width():
    assert share_interval(0, 50) == [0, 0]
    assert share_interval(50, 50) == [1, 1]


def test_more_units_narrow_the_interval():
    """By the root of their number: a hundred times as many, a tenth of the width."""
    few, many = (np.diff(share_interval(3 * n // 10, n))[0] for n in (400, 40_000))
    assert few / many == pytest.approx(10, rel=0.15)


def test_fewer_than_two_units_have_no_interval():
    assert share_interval(1, 1) is share_interval(0, 0) is None
    assert mean_interval(np.array([0.5])) is mean_interval(np.array([])) is None


def test_a_number_that_is_not_defined_on_every_resample_has_no_interval():
    assert interval_of(np.array([0.5, np.nan, 0.7])) is None
    assert interval_of(np.array([0.5, np.inf])) is None
    assert mean_interval(np.array([0.5, np.nan])) is None


def test_more_hits_than_units_are_refused():
    with pytest.raises(InputError, match="n_hits must be between 0 and the number of units, got 6 of 5"):
        share_interval(6, 5)
    with pytest.raises(InputError, match="got -1 of 5"):
        share_interval(-1, 5)
