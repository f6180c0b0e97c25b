"""What a comparison has before it, counted before it begins."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from grid_files import EVAL_ONLY, METRICS, change_weights, compare_all, settings

import train_sae
from sae_utils.comparison.groups import group_saes
from sae_utils.comparison.lookahead import look_ahead
from sae_utils.comparison.measuring import measure, read_known
from sae_utils.comparison.outlook import MATCHING, RANDOM_TOKENS, RECONSTRUCTION, SPLICING, Count, Outlook
from sae_utils.comparison.pairs import KINDS, match_pairs
from sae_utils.comparison.trained import find_all_trained
from sae_utils.comparison.whereabouts import find_sources_of
from sae_utils.distributed import Workers

N_EVAL_TOKENS, N_RANDOM_TOKENS, N_LATENTS = 128, 2000, 48


def ahead(n_workers: int = 1) -> tuple[Outlook, list, object]:
    """The outlook, the groups and the results, as a run has them when it begins."""
    how, saes = replace(settings(), quiet=False), find_all_trained(Path("checkpoints"))[0]
    sources = find_sources_of(saes, how.where)
    results = read_known(Path("results"), saes, sources)
    workers = Workers(0, n_workers)
    outlook = look_ahead(saes, sources, results, how, workers, kinds=list(KINDS))
    return outlook, list(group_saes(saes, sources, how)), results


def left(outlook: Outlook) -> list[float]:
    (part,) = outlook.parts.values()
    return [part.left[kind] for kind in (RECONSTRUCTION, SPLICING, RANDOM_TOKENS, MATCHING)]


def counts(outlook: Outlook) -> tuple[Count, Count]:
    (part,) = outlook.parts.values()
    return part.cells, part.pairs


def test_everything_is_before_the_first_run_and_nothing_before_the_second(grid):
    """12 SAEs on 2 sources, and every two of 6 in each of 2 layers."""
    outlook, _, _ = ahead()
    assert (counts(outlook), left(outlook)) == ((Count(24, 24), Count(30, 30)), [0, 0, 0, 0])
    shutil.rmtree("results")
    outlook, _, _ = ahead()
    n_tokens = 24 * N_EVAL_TOKENS
    assert counts(outlook) == (Count(0, 24), Count(0, 30))
    assert left(outlook) == [n_tokens, n_tokens, 12 * N_RANDOM_TOKENS, 30 * N_LATENTS**2]
    assert outlook.paces[MATCHING].guess > 0, "a small matching was timed"


def test_several_processes_share_the_pairs(grid):
    shutil.rmtree("results")
    outlook, _, _ = ahead(n_workers=4)
    assert counts(outlook)[1] == Count(0, 8) and left(outlook)[-1] == 30 * N_LATENTS**2 / 4


def test_what_is_known_is_done(grid):
    """Weights of one SAE have changed: it is measured on both sources, and matched with five others of its layer."""
    change_weights("tiny", 0, 1)
    outlook, _, _ = ahead()
    assert counts(outlook) == (Count(22, 24), Count(25, 30))
    assert left(outlook) == [2 * N_EVAL_TOKENS] * 2 + [N_RANDOM_TOKENS, 5 * N_LATENTS**2]


@pytest.mark.parametrize("was_stopped", [False, True])
def test_everything_is_done_in_the_end(grid, was_stopped, capsys):
    """Counted up step by step, also where a part was on disk already."""
    shutil.rmtree("results")
    if was_stopped:
        compare_all(sources=["tiny"])
        METRICS.unlink()  # pairs and arrays are there
    outlook, (group,), results = ahead()
    with outlook:
        outlook.begin(group.key, group.name)
        measure(group, results, outlook)
        assert counts(outlook)[0] == Count(24, 24) and left(outlook)[:3] == [0, 0, 0]
        match_pairs(group.saes, results, torch.device("cpu"), outlook=outlook)
    assert counts(outlook)[1] == Count(30, 30) and left(outlook) == [0, 0, 0, 0]
    assert outlook.left_sec() == 0
    assert "tiny: 24/24 SAEs x sources, 30/30 pairs, about 0 s left" in capsys.readouterr().err


def test_the_line_is_there_and_not_under_quiet(grid, capsys):
    shutil.rmtree("results")
    train_sae.main(EVAL_ONLY)
    assert "SAEs x sources" not in capsys.readouterr().err
    shutil.rmtree("results")
    train_sae.main([flag for flag in EVAL_ONLY if flag != "--quiet"])
    error = capsys.readouterr().err
    assert "splicing on other |" in error and "tiny: 24/24 SAEs x sources, 30/30 pairs, about 0 s left |" in error
