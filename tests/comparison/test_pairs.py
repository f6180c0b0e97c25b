"""Agreement of every two SAEs of a target and layer."""

from collections import Counter

import numpy as np
import pytest
from grid_files import SOURCES, arrays, change_weights, compare_all, features, metrics, pair_arrays, sae_of

from sae_utils.comparison.agreement import compare_dictionaries, directions
from sae_utils.comparison.floors import untrained_floor

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
    pairs = metrics()["pairs"]
    assert (
        len({frozenset([key_of(each)[:3], (each["layer"], *key_of(each)[3:])]) for each in pairs}) == len(pairs) == 30
    )
    kinds = Counter((each["layer"], each["source"], each["source_b"], each["kind"]) for each in pairs)
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
    pairs = [key_of(each) for each in metrics()["pairs"]]
    assert len(pairs) == 30 - 2 - 2, (
        "with the two seeds of its source and two of the other's that this run is not about"
    )
    assert (0, "tiny", 0, "tiny", 1) not in pairs and (0, "other", 1, "tiny", 0) not in pairs
    assert (0, "other", 0, "tiny", 0) in pairs, "matched again"
    shown = features("tiny", 0)["seeds"]
    assert list(shown) == ["0"]
    assert {each["partner"] for each in shown["0"]} == {None}, "a match of weights that are gone"
