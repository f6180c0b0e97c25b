"""Plans of training on data sets that are not there yet."""

from pathlib import Path

import pytest
from test_cli import TRAIN, generate, refused

import train_sae
from sae_utils.sources.assumed import rows_for
from sae_utils.sources.budget import TokenLimits, equal_budget


def dry_run(capsys, *flags: str) -> str:
    """What a plan says."""
    capsys.readouterr()
    train_sae.main([*TRAIN, "--train_only", "--dry_run", *flags])
    return capsys.readouterr().out


def test_a_budget_is_enough_for_a_plan(tiny, capsys):
    """Whoever samples for days wants to know before what comes after it; and that the wrong seed was asked for."""
    said = dry_run(capsys, "--max_tokens", "6400", "--eval_tokens", "320")
    assert "per SAE 6,400 training tokens in 100 steps, 320 tokens held out" in said
    assert "assumed: 210 rows, 0.00 GB when packed; no data set datasets/tiny_42_1.0_0.9, and none of tiny" in said
    assert "0 of 4 SAEs are finished, 4 left to train" in said
    assert not Path("datasets").exists() and not Path("checkpoints").exists()


def test_what_is_there_says_how_large_the_others_are(tiny, capsys):
    generate("--num_tokens", "2000")
    there = dry_run(capsys).splitlines()[0]
    both = dry_run(capsys, "--source_models", "tiny", "./other")
    assert both.splitlines()[0].split("; ", 1)[1] == there.split("; ", 1)[1], "the same budget"
    assert both.count("assumed: ") == 1 and "tiny_from_other" in both


def test_without_a_number_of_tokens_the_data_set_is_missed(tiny, capsys):
    """Any number would be made up."""
    said = refused(capsys, train_sae.main, [*TRAIN, "--dry_run"])
    assert "no data set datasets/tiny_42_1.0_0.9" in said and "where --max_tokens says how much" in said


def test_a_run_still_needs_it(tiny, capsys):
    said = refused(capsys, train_sae.main, [*TRAIN, "--max_tokens", "6400"])
    assert "no data set datasets/tiny_42_1.0_0.9" in said


def test_what_was_trained_before_is_not_held_against_it(tiny, capsys):
    """A data set that is gone has no fingerprint, by which finished SAEs would be refused as those of another one."""
    generate("--num_tokens", "2000")
    train_sae.main([*TRAIN, "--train_only"])
    Path("datasets").rename("elsewhere")
    assert "0 of 4 SAEs are finished" in dry_run(capsys, "--max_tokens", "640")


@pytest.mark.parametrize("max_tokens", [1, 320, 9_600, 10_000_000])
@pytest.mark.parametrize("eval_tokens", [None, 1, 640])
def test_so_many_rows_give_just_that_budget(max_tokens, eval_tokens):
    """Of all numbers of rows, the smallest that trains on as much."""
    wanted = max(1, max_tokens // 32)
    n_rows = rows_for(max_tokens, eval_tokens, ctx_len=32)
    limits = TokenLimits(eval_tokens=eval_tokens)
    n_train = [
        equal_budget([n], ctx_len=32, chunks_per_step=1, limits=limits).n_train_chunks for n in (n_rows, n_rows + 2)
    ]
    assert n_train[0] == wanted <= n_train[1]
