"""What is known of a data set before it is sampled: how long samples are, how long a token's text is, how fast it goes.

Of the data set itself if it is there in part, else of the last one of the like, else of none.
"""

from dataclasses import dataclass

from sae_utils.disk import DiskUse
from sae_utils.generation.dataset_size import TEXT_BYTES, Amount, disk_use, text_bytes_of
from sae_utils.generation.shards import Goal, GrowingDataset
from sae_utils.rates import Rate


@dataclass(frozen=True)
class Expected:
    """A data set as a plan sees it."""

    goal: Goal
    """What is asked for."""

    max_length: int
    """Longest sample in tokens."""

    n_samples: int
    """Samples that are there already."""

    n_tokens: int
    """Their tokens."""

    rate: Rate | None
    """How fast samples of the like were made last; None if that is not known."""

    known_text_bytes: float | None = None
    """UTF-8 bytes of text a token by the size of what is there, if nobody has counted; None if nothing is."""

    @property
    def mean_length(self) -> float | None:
        """Tokens of a sample; None if that is not known."""
        if self.n_samples:
            return self.n_tokens / self.n_samples
        return None if self.rate is None else self.rate.n_tokens / self.rate.more["n_samples"]

    @property
    def text_bytes(self) -> float | None:
        """UTF-8 bytes of text a token; None if that is not known."""
        measured = None if self.rate is None else self.rate.more.get("text_bytes")
        return self.known_text_bytes if measured is None else measured

    @property
    def n_samples_left(self) -> float:
        """Samples that are to be made yet, at most if their length is not known."""
        if self.goal.n_tokens is None:
            return max(0, self.goal.n_samples - self.n_samples)
        return self.n_tokens_left / (self.mean_length or self.max_length)

    @property
    def n_tokens_left(self) -> float:
        """Tokens that are to be sampled yet, at most if it is not known how long samples are."""
        if self.goal.n_tokens is not None:
            return max(0, self.goal.n_tokens - self.n_tokens)
        return self.n_samples_left * (self.mean_length or self.max_length)

    @property
    def is_bound(self) -> bool:
        """Whether as many tokens as that are the most there may be."""
        return self.goal.n_tokens is None and self.mean_length is None

    @property
    def left_sec(self) -> float | None:
        """How long they take; None if that is not known."""
        return None if self.rate is None else self.n_tokens_left / self.rate.tokens_per_sec

    def disk(self, n_together: int) -> DiskUse:
        """What is written for them, in shards of so many samples."""
        text_bytes = self.text_bytes if self.text_bytes is not None else TEXT_BYTES
        missing = Amount(self.n_samples_left, self.n_tokens_left, text_bytes)
        whole = Amount(self.n_samples + missing.n_samples, self.n_tokens + missing.n_tokens, text_bytes)
        return disk_use(whole, missing, n_together)


def expect(growing: GrowingDataset, goal: Goal, max_length: int, rate: Rate | None) -> Expected:
    """What is known of a data set that is to grow; of one that is overwritten, nothing of what is there.

    Args:
        growing: The data set.
        goal: What is asked for.
        max_length: Longest sample in tokens.
        rate: How fast samples of the like were made last.
    """
    finished = growing.finished
    text_bytes = None
    if finished is not None:
        files = growing.final.glob("data-*.arrow")
        text_bytes = text_bytes_of(files, finished["n_samples"], finished["n_tokens"])
    n_samples, n_tokens = (0, 0) if growing.overwrite else growing.progress()
    return Expected(goal, max_length, n_samples, n_tokens, rate, text_bytes)
