"""What a generated data set is like, in numbers: lengths, repetition, likelihood, and how well it follows the model."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from scipy.stats import binom

from sae_utils.generation.nucleus import truncated_distribution
from sae_utils.generation.sampling import NLL_UNIT, SamplingSettings
from sae_utils.models import LoadedModel

NGRAM_TOKENS = 1_000_000
"""Tokens from the beginning of a data set in which n-grams are counted: the share of distinct ones falls with the
amount of text, so that only equal amounts compare; and the memory for counting stays bounded."""

TOKENS_PER_TABLE = 64
"""Possible first tokens whose binomial probabilities are in memory together."""

LENGTH_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def measure_quality(
    dataset: Dataset, source: LoadedModel, settings: SamplingSettings, nll_sum_units: int
) -> dict[str, Any]:
    """Statistics of a generated data set.

    Args:
        dataset: The data set, at least one sample.
        source: The model that it was sampled from.
        settings: How it was sampled.
        nll_sum_units: Summed negative log-likelihood of its tokens, in units of `sampling.NLL_UNIT` nats.

    Returns:
        By name: `mean_length_tokens` and `length_quantiles_tokens`; `ended_in_eos_share` of samples;
        `distinct_sample_share` (different token sequences over samples); `distinct_ngram_shares` for n = 1 .. 4 (see
        `distinct_ngram_share`) over the first `ngram_tokens` tokens; `mean_nll_nats` per token after BOS, under the
        model at temperature 1 with nothing cut off; `first_token_kl_nats` (see `first_token_kl`) and
        `first_token_kl_expected_nats` (see `expected_first_token_kl`), what exactly that distribution shows on average;
        `first_token_outside_share`, samples whose first token is outside the nucleus as computed here, 0 but for
        rounding that differs between batch sizes. Entries that are not defined, such as the likelihood of BOS alone,
        are None.
    """
    lengths = dataset.data.column("num_tokens").to_numpy()
    ids = _Columns(dataset)
    firsts = ids.second_tokens()
    n_predicted = int(lengths.sum()) - len(lengths)
    distribution = first_token_distribution(source, settings)
    has_first = len(firsts) > 0
    head = ids.first_tokens(NGRAM_TOKENS)
    return {
        "mean_length_tokens": float(lengths.mean()),
        "length_quantiles_tokens": dict(
            zip(map(str, LENGTH_QUANTILES), np.quantile(lengths, LENGTH_QUANTILES).tolist(), strict=True)
        ),
        "ended_in_eos_share": float(np.isin(ids.last_tokens(), source.eos_ids)[lengths > 1].sum() / len(lengths)),
        "distinct_sample_share": ids.n_distinct() / len(lengths),
        "distinct_ngram_shares": {str(n): distinct_ngram_share(head, n) for n in range(1, 5)},
        "ngram_tokens": sum(map(len, head)),
        "mean_nll_nats": nll_sum_units * NLL_UNIT / n_predicted if n_predicted else None,
        "first_token_kl_nats": first_token_kl(firsts, distribution) if has_first else None,
        "first_token_kl_expected_nats": expected_first_token_kl(distribution, len(firsts)) if has_first else None,
        "first_token_outside_share": float((distribution[firsts] == 0).mean()) if has_first else None,
    }


def distinct_ngram_share(samples: Sequence[np.ndarray], n: int) -> float | None:
    """Different n-grams over all n-grams, none of which crosses from one sample into the next; None without any.

    Source: Li et al. 2016, "A diversity-promoting objective function for neural conversation models", section 5
    (distinct-n).

    >>> distinct_ngram_share([np.array([1, 2, 1, 2])], 2)  # 1 2, 2 1, 1 2
    0.6666666666666666
    """
    windows = [np.lib.stride_tricks.sliding_window_view(ids, n) for ids in samples if len(ids) >= n]
    if not windows:
        return None
    grams = np.ascontiguousarray(np.concatenate(windows))
    as_items = grams.view([("", grams.dtype)] * n)
    return len(np.unique(as_items)) / len(grams)


def first_token_kl(first_tokens: np.ndarray, distribution: np.ndarray) -> float:
    """KL divergence in nats of the observed frequencies of first tokens from the distribution they were drawn from.

    It is above 0 for a perfect sampler, too: see `expected_first_token_kl`. Tokens of probability 0 are left out: see
    `first_token_outside_share`.

    >>> first_token_kl(np.array([0, 0, 1, 1]), np.array([0.5, 0.5, 0.0]))
    0.0
    """
    counts = np.bincount(first_tokens, minlength=len(distribution)) * (distribution > 0)
    seen = counts > 0
    observed = counts[seen] / counts.sum()
    return float((observed * np.log(observed / distribution[seen])).sum())


def expected_first_token_kl(distribution: np.ndarray, n_samples: int) -> float:
    """Mean of `first_token_kl` over all draws of so many tokens from exactly this distribution, in nats.

    A token of probability p is drawn C times, binomial of N draws, and adds E[C/N log(C/Np)] = p (E[log(1 + D)] -
    log Np), D binomial of N - 1 draws. For N much larger than the number m of possible tokens that is (m - 1) / 2N in
    all, which says nothing where many tokens are expected less than a few times.

    Args:
        distribution: Probabilities, `(vocab,)`.
        n_samples: N, at least 1.

    >>> round(expected_first_token_kl(np.array([0.5, 0.5, 0.0]), 2), 4)  # log 2 for two equal tokens, else 0
    0.3466
    """
    probs = np.sort(distribution[distribution > 0])  # neighbours need equally wide tables
    tables = np.array_split(probs, -(-len(probs) // TOKENS_PER_TABLE))
    mean_logs = np.concatenate([_mean_log_of_one_more(part, n_samples - 1) for part in tables])
    return float((probs * (mean_logs - np.log(n_samples * probs))).sum())


def _mean_log_of_one_more(probs: np.ndarray, n: int) -> np.ndarray:
    """E[log(1 + D)] of D ~ binomial(n, p) for each p; counts whose probabilities add up to less than 1e-20 left out."""
    reach = np.ceil(10 * np.sqrt(n * probs.max()) + 40)
    lowest = np.maximum(np.floor(n * probs - reach), 0)[:, None]
    counts = lowest + np.arange(2 * reach + 1)  # (tokens, counts)
    return (binom.pmf(counts, n, probs[:, None]) * np.log1p(counts)).sum(axis=1)


@torch.inference_mode()
def first_token_distribution(source: LoadedModel, settings: SamplingSettings) -> np.ndarray:
    """The model's own distribution of the token after BOS, after temperature and top_p; float64 `(vocab,)`."""
    logits = source.model(input_ids=torch.tensor([[source.bos_id]], device=source.model.device)).logits[0, -1]
    return truncated_distribution(logits, temperature=settings.temperature, top_p=settings.top_p).cpu().numpy()


class _Columns:
    """Token ids of a data set, read in pieces so that memory does not grow with it."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset.with_format("arrow")

    def pieces(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Flat ids and the lengths of the samples in them, 1,000 samples at a time."""
        for batch in self.dataset.iter(batch_size=1000):
            column = batch.column("input_ids").combine_chunks()
            yield column.flatten().to_numpy(), column.value_lengths().to_numpy()

    def last_tokens(self) -> np.ndarray:
        """Last token of every sample."""
        return np.concatenate([flat[np.cumsum(lengths) - 1] for flat, lengths in self.pieces()])

    def second_tokens(self) -> np.ndarray:
        """Token after BOS, of every sample that has one."""
        return np.concatenate(
            [flat[(np.cumsum(lengths) - lengths)[lengths > 1] + 1] for flat, lengths in self.pieces()]
        )

    def n_distinct(self) -> int:
        """Number of different samples, by a hash of 8 bytes each."""
        hashes = [
            int.from_bytes(hashlib.blake2b(ids.tobytes(), digest_size=8).digest())
            for flat, lengths in self.pieces()
            for ids in np.split(flat, np.cumsum(lengths)[:-1])
        ]
        return len(np.unique(np.array(hashes, dtype=np.uint64)))

    def first_tokens(self, n_tokens: int) -> list[np.ndarray]:
        """Samples from the beginning that hold `n_tokens` tokens, the last one cut."""
        head = []
        for flat, lengths in self.pieces():
            for ids in np.split(flat, np.cumsum(lengths)[:-1]):
                head.append(ids[:n_tokens])
                n_tokens -= len(head[-1])
                if n_tokens == 0:
                    return head
        return head
