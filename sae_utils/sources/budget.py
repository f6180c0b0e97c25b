"""The plan of a run: which SAEs are trained on what, and how many tokens each cell of the grid gets."""

from collections.abc import Sequence
from dataclasses import dataclass

from sae_utils.errors import InputError, check_positive

EVAL_SHARE = 0.05
"""Share of the smallest source that is held out when --eval_tokens is not given."""

MAX_AUTOMATIC_EVAL_TOKENS = 131_072
"""Most tokens held out when --eval_tokens is not given."""


@dataclass(frozen=True)
class TokenLimits:
    """How many tokens are asked for, of every source alike."""

    max_tokens: int | None = None
    """Most training tokens; None for all that the smallest source has."""

    eval_tokens: int | None = None
    """Tokens to hold out; None for 5 % of the smallest source, at most 131,072."""

    def __post_init__(self) -> None:
        check_positive(max_tokens=self.max_tokens, eval_tokens=self.eval_tokens)


@dataclass(frozen=True)
class Budget:
    """How many packed sequences every cell trains on and holds out; the same for all, so that cells compare."""

    n_train_chunks: int
    """Training sequences, a whole number of optimizer steps."""

    n_eval_chunks: int
    """Sequences held out from the end of each source."""

    ctx_len: int
    """Tokens per sequence."""

    is_chosen: bool = False
    """Whether training ends where it was asked to, and not where the smallest source does."""

    def cut_to(self, max_tokens: int, chunks_per_step: int) -> "Budget":
        """The same with at most so many training tokens, in whole steps."""
        n_train = min(self.n_train_chunks, max_tokens // self.ctx_len)
        return Budget(n_train - n_train % chunks_per_step, self.n_eval_chunks, self.ctx_len, is_chosen=True)

    @property
    def n_train_tokens(self) -> int:
        """Tokens each SAE is trained on."""
        return self.n_train_chunks * self.ctx_len

    @property
    def n_eval_tokens(self) -> int:
        """Tokens held out of each source."""
        return self.n_eval_chunks * self.ctx_len


def equal_budget(
    chunk_counts: Sequence[int], *, ctx_len: int, chunks_per_step: int, limits: TokenLimits = TokenLimits()
) -> Budget:
    """Split every source into training and held-out sequences, equally for all.

    Args:
        chunk_counts: Sequences in each source, at least one source.
        ctx_len: Tokens per sequence.
        chunks_per_step: Sequences per optimizer step; training uses whole steps.
        limits: Tokens to train on at most, and to hold out, rounded down to whole sequences, at least one.

    Returns:
        The budget: training sequences are what the smallest source has left, cut to `max_tokens` and to whole steps.

    Raises:
        InputError: If not one optimizer step is left.

    >>> equal_budget([195, 400], ctx_len=256, chunks_per_step=2)
    Budget(n_train_chunks=186, n_eval_chunks=9, ctx_len=256, is_chosen=False)
    """
    smallest, max_tokens, eval_tokens = min(chunk_counts), limits.max_tokens, limits.eval_tokens
    if eval_tokens is None:
        eval_tokens = min(int(EVAL_SHARE * smallest * ctx_len), MAX_AUTOMATIC_EVAL_TOKENS)
    n_eval = max(1, eval_tokens // ctx_len)
    n_train = smallest - n_eval
    is_chosen = max_tokens is not None and max_tokens // ctx_len < n_train
    if is_chosen:
        n_train = max_tokens // ctx_len
    n_train -= n_train % chunks_per_step
    if n_train <= 0:
        raise InputError(
            f"nothing is left to train on: the smallest source has {smallest} sequences of --ctx_len {ctx_len}, "
            f"{n_eval} are held out, --max_tokens is {max_tokens}, and one step takes {chunks_per_step}; generate "
            f"more, or lower --ctx_len, --eval_tokens, --batch_size or --grad_acc_steps"
        )
    return Budget(n_train, n_eval, ctx_len, is_chosen)
