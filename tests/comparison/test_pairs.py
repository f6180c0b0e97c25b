"""Agreement of every two seeds of a target, source and layer."""

import numpy as np
import pytest
from grid_files import arrays, change_weights, compare_all, features, metrics, sae_of

from sae_utils.comparison.stability import compare_dictionaries, directions, untrained_floor


@pytest.mark.parametrize(("source", "layer", "seeds"), [("tiny", 0, (0, 2)), ("other", 1, (1, 2))])
def test_numbers_of_a_pair_are_those_of_the_single_functions(grid, source, layer, seeds):
    a, b = (sae_of(source, layer, seed) for seed in seeds)
    (found,) = [
        each
        for each in metrics()["pairs"]
        if (each["source"], each["layer"], each["seed"], each["seed_b"]) == (source, layer, *seeds)
    ]
    stored = arrays(source, layer)
    live_a, live_b = (stored[f"firing_rate_{seed}"] > 0 for seed in seeds)
    floor = untrained_floor(16, a.cfg, seeds)
    expected = compare_dictionaries(directions(a), directions(b), floor, live_a=live_a, live_b=live_b)
    assert {name: found[name] for name in expected.record} == expected.record
    pair = f"{seeds[0]}_{seeds[1]}"
    assert np.array_equal(stored[f"partner_{pair}"], expected.partner)
    assert np.array_equal(stored[f"cosine_{pair}"], expected.cosine)
    assert np.array_equal(stored[f"floor_cosine_{pair}"], floor.cosine)


def test_a_pair_with_weights_that_are_gone_is_dropped(grid):
    """Only one of its seeds is in the run that meets the new weights."""
    change_weights("tiny", 0, 0)
    compare_all(seeds=[0])
    pairs = [(each["source"], each["layer"], each["seed"], each["seed_b"]) for each in metrics()["pairs"]]
    assert len(pairs) == 10
    assert ("tiny", 0, 0, 1) not in pairs and ("tiny", 0, 0, 2) not in pairs
    shown = features("tiny", 0)["seeds"]
    assert list(shown) == ["0"]
    assert {each["partner"] for each in shown["0"]} == {None}, "a match of weights that are gone"
