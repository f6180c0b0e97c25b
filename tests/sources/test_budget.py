import pytest

from sae_utils.errors import InputError
from sae_utils.sources.budget import TokenLimits, equal_budget


def budget(counts, **changes):
    chunks_per_step = changes.pop("chunks_per_step", 4)
    return equal_budget(counts, ctx_len=100, chunks_per_step=chunks_per_step, limits=TokenLimits(**changes))


def test_every_cell_gets_what_the_smallest_source_has():
    """Otherwise a comparison of sources would be a comparison of training lengths."""
    chosen = budget([1000, 103, 500])
    assert (chosen.n_eval_chunks, chosen.n_train_chunks) == (5, 96)  # 5 % of 103; 98 left, in steps of 4
    assert (chosen.n_eval_tokens, chosen.n_train_tokens) == (500, 9600)


def test_automatic_eval_is_capped():
    assert budget([1_000_000]).n_eval_tokens == 131_000  # 131,072 in whole sequences of 100


def test_given_budgets_are_kept():
    chosen = budget([1000], max_tokens=1_050, eval_tokens=250)
    assert (chosen.n_eval_tokens, chosen.n_train_tokens) == (200, 800)
    assert budget([1000], max_tokens=10**9).n_train_tokens == 94_800  # never more than there is


def test_one_sequence_is_held_out_at_least():
    assert budget([10], chunks_per_step=1).n_eval_chunks == 1


def test_too_little_to_train_on_is_refused():
    with pytest.raises(InputError, match=r"smallest source has 4 sequences of --ctx_len 100, 1 are held out"):
        budget([1000, 4])
