import itertools

import numpy as np
import pytest
import torch
from conftest import load

from sae_utils.generation.nucleus import choose_tokens
from sae_utils.generation.quality import (
    distinct_ngram_share,
    expected_first_token_kl,
    first_token_distribution,
    first_token_kl,
    measure_quality,
)
from sae_utils.generation.rows import make_rows
from sae_utils.generation.sampling import NLL_UNIT, SamplingSettings


def test_ngrams_do_not_cross_samples():
    """[1 2 1 2] has bigrams 12 21 12, [2 3] has 23: three different of four; 22 would be one that nobody said."""
    samples = [np.array([1, 2, 1, 2]), np.array([2, 3]), np.array([9])]
    assert distinct_ngram_share(samples, 2) == 3 / 4
    assert distinct_ngram_share(samples, 1) == 4 / 7
    assert distinct_ngram_share(samples, 5) is None


def test_ngram_share_is_what_python_sets_count():
    rng = np.random.default_rng(0)
    samples = [rng.integers(0, 4, rng.integers(1, 30)).astype(np.int32) for _ in range(50)]
    for n in range(1, 5):
        grams = [tuple(ids[i : i + n]) for ids in samples for i in range(len(ids) - n + 1)]
        assert distinct_ngram_share(samples, n) == len(set(grams)) / len(grams)


def test_kl_by_hand():
    """Observed 3/4 and 1/4, model 1/2 and 1/2: 3/4 log 3/2 + 1/4 log 1/2."""
    expected = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    assert first_token_kl(np.array([0, 0, 0, 1]), np.array([0.5, 0.5])) == pytest.approx(expected)


@pytest.mark.parametrize("n_samples", [1, 2, 3, 6])
@pytest.mark.parametrize("probs", [[1.0], [0.5, 0.5], [0.0, 0.7, 0.3], [0.9, 0.06, 0.04, 0.0]])
def test_expected_kl_is_the_mean_over_everything_that_can_be_drawn(probs, n_samples):
    """Every sequence of first tokens, weighted with its probability: what a perfect sampler shows with few samples."""
    probs = np.array(probs)
    draws = itertools.product(np.flatnonzero(probs), repeat=n_samples)
    mean = sum(np.prod(probs[list(draw)]) * first_token_kl(np.array(draw), probs) for draw in draws)
    assert expected_first_token_kl(probs, n_samples) == pytest.approx(mean, abs=1e-14)


def test_expected_kl_with_many_samples_and_with_one():
    """(m - 1) / 2N is right for many samples alone: of one, the KL is -log p of its token, at most log m."""
    probs = np.random.default_rng(0).dirichlet(np.ones(1000))
    for n_samples in (10**7, 10**9):
        assert expected_first_token_kl(probs, n_samples) == pytest.approx(999 / 2 / n_samples, rel=0.02)
    assert expected_first_token_kl(probs, 1) == pytest.approx(-(probs * np.log(probs)).sum())


def test_expected_kl_is_what_draws_show():
    """As many possible tokens as there are samples, some of them hardly ever drawn, as in a small data set."""
    rng = np.random.default_rng(1)
    probs = rng.dirichlet(np.full(500, 0.2))
    shown = [first_token_kl(rng.choice(500, size=300, p=probs), probs) for _ in range(400)]
    assert expected_first_token_kl(probs, 300) == pytest.approx(np.mean(shown), abs=4 * np.std(shown) / 20)


@pytest.mark.parametrize("top_p", [0.5, 0.9, 1.0])
def test_distribution_is_the_one_that_is_drawn_from(neox, top_p):
    """Evenly spaced numbers visit every token of the nucleus in proportion to its probability."""
    source = load(neox)
    distribution = first_token_distribution(source, SamplingSettings(temperature=1.2, top_p=top_p))
    with torch.inference_mode():
        logits = source.model(torch.tensor([[source.bos_id]])).logits[0, -1]
    uniforms = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    drawn, _ = choose_tokens(logits.expand(20_000, -1), uniforms, temperature=1.2, top_p=top_p)
    assert np.bincount(drawn, minlength=len(distribution)) / 20_000 == pytest.approx(distribution, abs=1e-4)


def test_statistics_by_hand(neox):
    """Three samples, two of them equal, one ended by EOS (token 0, which is BOS too), one of BOS alone."""
    source = load(neox)
    samples = [np.array(ids, dtype=np.int32) for ids in ([0, 5, 6, 7], [0, 5, 0], [0, 5, 6, 7], [0])]
    dataset = make_rows(range(4), samples, source.tokenizer, 0)
    quality = measure_quality(dataset, source, SamplingSettings(), nll_sum_units=round(16 / NLL_UNIT))
    assert quality["mean_length_tokens"] == 3
    assert quality["length_quantiles_tokens"]["0.5"] == 3.5
    assert quality["ended_in_eos_share"] == 1 / 4
    assert quality["distinct_sample_share"] == 3 / 4
    assert quality["mean_nll_nats"] == 16 / 8
    assert quality["ngram_tokens"] == 12
    assert quality["distinct_ngram_shares"]["3"] == 3 / 5  # 056 567, 050, 056 567
    distribution = first_token_distribution(source, SamplingSettings())
    assert quality["first_token_kl_expected_nats"] == expected_first_token_kl(distribution, 3)
