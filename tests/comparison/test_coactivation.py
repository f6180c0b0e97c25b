"""What matched latents do on the held-out tokens of both sources."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load
from grid_files import LEFT_OUT, METRICS, compare_all, held_out_tokens, metrics, pair_arrays, sae_of
from test_pairs import A_PAIR_OF_EACH_KIND, key_of

from sae_utils.comparison import coactivation
from sae_utils.comparison.coactivation import codes_record
from sae_utils.comparison.floors import untrained_floor, untrained_sae
from sae_utils.evaluation.codes import activation_correlation, firing_jaccard, sum_codes
from sae_utils.evaluation.intervals import mean_interval
from sae_utils.sources.packing import Chunks


def on_tokens_of(sources: list[str], saes: dict, partner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both numbers, from the tokens of the sources as if they were one."""
    tokens = np.concatenate([held_out_tokens(source).tokens for source in dict.fromkeys(sources)])
    permutation = torch.from_numpy(partner.astype(np.int64))
    sums, shared = sum_codes(
        load(Path("tiny")).model, saes, {(0, 1): permutation}, Chunks(tokens), batch_size=4, exclusion=LEFT_OUT
    )
    about = sums[0], sums[1], shared[0, 1], permutation
    return firing_jaccard(*about), activation_correlation(*about)


@pytest.mark.parametrize(("layer", "source", "seed", "source_b", "seed_b", "kind"), A_PAIR_OF_EACH_KIND)
def test_numbers_are_those_of_the_single_functions(grid, layer, source, seed, source_b, seed_b, kind):
    """On the tokens of both sources together, measured at once; beside the untrained SAEs on the same tokens."""
    (found,) = [each for each in metrics()["pairs"] if key_of(each) == (layer, source, seed, source_b, seed_b)]
    stored, hookpoint = pair_arrays(source, layer, seed, source_b, seed_b), f"layers.{layer}"
    a, b = sae_of(source, layer, seed), sae_of(source_b, layer, seed_b)
    sources = [source, source_b]
    jaccard, correlation = on_tokens_of(sources, {0: (hookpoint, a), 1: (hookpoint, b)}, stored["partner"])
    assert np.allclose(stored["firing_jaccard"], jaccard, equal_nan=True)
    assert np.allclose(stored["activation_correlation"], correlation, atol=1e-6, equal_nan=True)
    codes = found["codes"]
    assert [name for name, _ in codes["tokens"]] == list(dict.fromkeys(sources))
    assert codes["firing_jaccard"] == pytest.approx(np.nanmean(jaccard))
    assert codes["activation_correlation"] == pytest.approx(np.nanmean(correlation))
    if kind == "same_seed":
        assert (codes["firing_jaccard_floor"], codes["activation_correlation_floor"]) == (1, 1)
    else:
        floor = untrained_floor(16, a.cfg, (seed, seed_b))
        untrained = {i: (hookpoint, untrained_sae(16, a.cfg, s)) for i, s in enumerate((seed, seed_b))}
        expected = on_tokens_of(sources, untrained, floor.partner)
        assert codes["firing_jaccard_floor"] == pytest.approx(np.nanmean(expected[0]))
        assert codes["activation_correlation_floor"] == pytest.approx(np.nanmean(expected[1]))


def test_record_by_hand():
    """Of four pairs, the second never fires, and the last two are below the threshold of a shared feature."""
    jaccard, correlation = np.array([0.5, np.nan, 0.1, 0.3]), np.array([0.8, np.nan, np.nan, -0.2])
    record = codes_record(jaccard, correlation, np.array([0.9, 0.8, 0.7, 0.1]), (np.array([0.2]), np.array([np.nan])))
    assert record == {
        "firing_jaccard": pytest.approx(0.3),
        "firing_jaccard_interval": mean_interval([0.5, 0.1, 0.3]),
        "firing_jaccard_shared": 0.5,
        "firing_jaccard_floor": pytest.approx(0.2),
        "activation_correlation": pytest.approx(0.3),
        "activation_correlation_interval": mean_interval([0.8, -0.2]),
        "activation_correlation_shared": 0.8,
        "activation_correlation_floor": None,
    }


def test_memory_for_two_saes_at_a_time_gives_the_same(grid, monkeypatch):
    before, passes = metrics(), []
    METRICS.unlink()
    for path in Path("results/details").rglob("*pairs/*.npz"):
        path.unlink()
    sum_all = coactivation.sum_codes

    def counted(model, saes, *args, **options):
        passes.append(len(saes))
        return sum_all(model, saes, *args, **options)

    monkeypatch.setattr(coactivation, "sum_codes", counted)
    monkeypatch.setattr(coactivation, "free_bytes", lambda device: 0)
    compare_all()
    assert max(passes) <= 4, "two SAEs, and the untrained ones of their seeds"
    assert [each["codes"] for each in metrics()["pairs"]] == [each["codes"] for each in before["pairs"]]


def test_what_is_known_is_not_measured_again(grid, monkeypatch):
    before = METRICS.read_bytes()
    monkeypatch.setattr(coactivation, "sum_codes", None)
    compare_all()
    assert METRICS.read_bytes() == before
