"""Agreement of every two SAEs of a target and layer."""

import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from grid_files import (
    COMPARE,
    DETAILS,
    EVAL_ONLY,
    METRICS,
    SOURCES,
    arrays,
    change_weights,
    compare_all,
    everything,
    features,
    metrics,
    pair_arrays,
    sae_of,
)
from test_cli import TRAIN

import train_sae
from sae_utils.comparison import pairs
from sae_utils.comparison.agreement import compare_dictionaries, directions
from sae_utils.comparison.floors import untrained_floor
from sae_utils.comparison.trained import find_all_trained

ROOT = Path(__file__).resolve().parents[2]

A_PAIR_OF_EACH_KIND = [
    (0, "tiny", 0, "tiny", 2, "within"),
    (1, "other", 1, "tiny", 0, "between"),
    (1, "other", 2, "tiny", 2, "same_seed"),
]


def key_of(pair: dict) -> tuple:
    return tuple(pair[name] for name in ("layer", "source", "seed", "source_b", "seed_b"))


@pytest.mark.parametrize(("layer", "source", "seed", "source_b", "seed_b", "kind"), A_PAIR_OF_EACH_KIND)
def test_numbers_of_a_pair_are_those_of_the_single_functions(grid, layer, source, seed, source_b, seed_b, kind):
    a, b = sae_of(source, layer, seed), sae_of(source_b, layer, seed_b)
    (found,) = [each for each in metrics()["pairs"] if key_of(each) == (layer, source, seed, source_b, seed_b)]
    rates_a = arrays(source, layer)[f"firing_rate_{seed}"]
    rates_b = arrays(source_b, layer)[f"firing_rate_{seed_b}"]
    floor = untrained_floor(16, a.cfg, (seed, seed_b))
    expected = compare_dictionaries(directions(a), directions(b), floor, rates_a=rates_a, rates_b=rates_b)
    assert found["kind"] == kind
    assert {name: found[name] for name in expected.record} == expected.record
    stored = pair_arrays(source, layer, seed, source_b, seed_b)
    for name in ("partner", "cosine", "best", "best_b"):
        assert np.array_equal(stored[name], getattr(expected.matching, name)), name
    assert np.array_equal(stored["floor_cosine"], floor.cosine)


def test_every_two_saes_of_a_target_and_layer_are_a_pair_once(grid):
    """Six SAEs a layer, from three seeds and two sources: 15 pairs, 3 of each source, 6 between, 3 with one seed."""
    found = metrics()["pairs"]
    ends = {frozenset([key_of(each)[:3], (each["layer"], *key_of(each)[3:])]) for each in found}
    assert len(ends) == len(found) == 30
    kinds = Counter((each["layer"], each["source"], each["source_b"], each["kind"]) for each in found)
    for layer in (0, 1):
        assert [kinds[layer, source, source, "within"] for source in SOURCES] == [3, 3]
        assert (kinds[layer, *SOURCES, "between"], kinds[layer, *SOURCES, "same_seed"]) == (6, 3)


def test_untrained_saes_of_one_seed_are_one(grid):
    """So what the same seed gives for free is all there is, at the start of training."""
    of_one_seed = [each for each in metrics()["pairs"] if each["kind"] == "same_seed"]
    assert {each["sfr_floor"] for each in of_one_seed} == {1.0}
    assert all(each["mean_matched_cosine_floor"] == pytest.approx(1) for each in of_one_seed)
    others = [each["mean_matched_cosine_floor"] for each in metrics()["pairs"] if each["kind"] != "same_seed"]
    assert max(others) < 0.6


def test_a_pair_with_weights_that_are_gone_is_dropped(grid):
    """Only one of its seeds is in the run that meets the new weights."""
    change_weights("tiny", 0, 0)
    compare_all(seeds=[0])
    left = [key_of(each) for each in metrics()["pairs"]]
    assert len(left) == 30 - 4, "with two seeds of its source, and two of the other's, which this run is not about"
    assert (0, "tiny", 0, "tiny", 1) not in left and (0, "other", 1, "tiny", 0) not in left
    assert (0, "other", 0, "tiny", 0) in left, "matched again"
    shown = features("tiny", 0)["seeds"]
    assert list(shown) == ["0"]
    assert {each["partner"] for each in shown["0"]} == {None}, "a match of weights that are gone"


def compare_with_two(*flags: str) -> str:
    """The comparison of everything by two processes; what they printed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "--"]
    flags = [*EVAL_ONLY, *flags]
    flags.remove("--quiet")
    done = subprocess.run([*command, str(ROOT / "train_sae.py"), *flags], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def test_two_processes_match_what_one_does(grid):
    """Half of the pairs each, to the last bit, and the page of both is one."""
    before = everything()
    shutil.rmtree("results")
    said = compare_with_two()
    assert everything() == before
    shown = {int(n) for n in re.findall(r"(\d+)/15 pairs", said)}
    assert shown == set(range(16)), "half of them by the one that prints"
    assert Path("results/report.html").exists()


@pytest.mark.parametrize("n_before", [0, 1, 7])
def test_a_run_that_was_killed_goes_on_with_the_next_pair(grid, monkeypatch, n_before):
    """What was matched is taken from its file; nothing else may know of it, as metrics.json is older."""
    before, match, left = everything(), pairs.compare_dictionaries, iter(range(n_before))
    METRICS.unlink()
    for path in DETAILS.rglob("*.pairs/*.npz"):
        path.unlink()

    def deadly(*args, **options):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return match(*args, **options)

    monkeypatch.setattr(pairs, "compare_dictionaries", deadly)
    with pytest.raises(KeyboardInterrupt):
        compare_all()
    assert len(list(DETAILS.rglob("*.pairs/*.npz"))) == n_before
    left = iter(range(30 - n_before))
    compare_all()
    assert next(left, None) is None, "every other pair was matched, and none of those before"
    assert everything() == before


def test_kinds_of_pairs_are_chosen_and_added_to(grid):
    """A study begins with the cheap ones."""
    before = everything()
    shutil.rmtree("results")
    train_sae.main([*EVAL_ONLY, "--pairs", "within"])
    found = metrics()
    assert {each["kind"] for each in found["pairs"]} == {"within"} and len(found["pairs"]) == 12
    assert found["contrasts"] == [] and len(found["agreements"]) == 4
    train_sae.main(EVAL_ONLY)
    assert everything() == before
    shutil.rmtree("results")
    train_sae.main([*EVAL_ONLY, "--pairs", "between", "same_seed"])
    assert {each["partner"] for each in features("tiny", 0)["seeds"]["0"]} == {None}
    train_sae.main(EVAL_ONLY)
    assert everything() == before, "the page's features have their partners now"


def test_a_dry_run_says_how_many_pairs_there_will_be(grid, capsys):
    train_sae.main([*EVAL_ONLY, "--dry_run"])
    assert "30 pairs of SAEs to be matched, about 0." in capsys.readouterr().out
    train_sae.main([*EVAL_ONLY, "--dry_run", "--pairs", "same_seed"])
    assert "6 pairs of SAEs to be matched" in capsys.readouterr().out
    flags = [*TRAIN, *COMPARE, "--source_models", *SOURCES, "--num_seeds", "2", "--dry_run"]
    train_sae.main([*flags, "--checkpoint_dir", "others"])
    assert "12 pairs of SAEs to be matched" in capsys.readouterr().out


def test_saes_of_another_size_are_no_pair(grid):
    """They have no one-to-one matching; training one source with other latents is no reason to stop."""
    saes = find_all_trained(Path("checkpoints"))[0]
    settings = saes[0].run["settings"]
    wider = [
        replace(sae, run=sae.run | {"settings": sae.run["settings"] | {"num_latents": 2 * settings["num_latents"]}})
        if sae.seed == 2
        else sae
        for sae in saes
    ]
    found = pairs.pairs_of(wider)
    assert len(found) == 2 * (6 + 1), "of two seeds and two sources: 6 pairs a layer; of the third seed: 1"
    assert all((pair.a.seed == 2) == (pair.b.seed == 2) for pair in found)
