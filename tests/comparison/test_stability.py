"""How often a latent comes back, and what those that do are worth."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load
from grid_files import (
    LAYERS,
    LEFT_OUT,
    METRICS,
    SEEDS,
    SOURCES,
    arrays,
    change_weights,
    compare_all,
    held_out_tokens,
    metrics,
    sae_of,
    sae_record,
)
from torch.nn.functional import normalize

from sae_utils.comparison import stability
from sae_utils.comparison.stability import elsewhere_record, stability_record
from sae_utils.evaluation.activations import layer_outputs


def plain_stability(source: str, layer: int, seed: int, source_b: str) -> np.ndarray:
    """All cosines with each other seed of a source; the share of seeds with one above 0.7."""
    rows = normalize(sae_of(source, layer, seed).W_dec.data.double(), dim=1)
    others = [normalize(sae_of(source_b, layer, other).W_dec.data.double(), dim=1) for other in SEEDS if other != seed]
    return np.mean([(rows @ other.T).max(dim=1).values.numpy() > 0.7 for other in others], axis=0)


@pytest.mark.parametrize(("source", "layer", "seed"), [("tiny", 0, 1), ("other", 1, 2)])
def test_numbers_are_those_of_a_plain_computation(grid, source, layer, seed):
    stability = plain_stability(source, layer, seed, source)
    found, stored = sae_record(source, layer, seed)["stability"], arrays(source, layer)
    assert np.array_equal(stored[f"stability_{seed}"], stability.astype(np.float32))
    assert (found["n_others"], found["mean"]) == (2, pytest.approx(stability.mean()))
    assert found["mean_live"] == pytest.approx(stability[stored[f"firing_rate_{seed}"] > 0].mean())
    assert found["stable_share"] == np.mean(stability >= 0.5)
    (elsewhere,) = set(SOURCES) - {source}
    there = plain_stability(source, layer, seed, elsewhere)
    about = {"seeds": [other for other in SEEDS if other != seed], "floor": found["floor"]}
    assert found["elsewhere"] == {elsewhere: elsewhere_record(there, stability) | about}
    assert np.array_equal(stored[f"found_in_{elsewhere}_{seed}"], there.astype(np.float32))
    assert [each for each, _ in found["of"]] == [other for other in SEEDS if other != seed]


@pytest.mark.parametrize(("source", "layer", "seed"), [("tiny", 0, 1), ("other", 1, 2)])
def test_stable_latents_reconstruct_what_they_reconstruct(grid, source, layer, seed):
    """Activations written out, those of other latents left out, decoded by a product with all rows."""
    target, sae, stable = load(Path("tiny")), sae_of(source, layer, seed), plain_stability(source, layer, seed, source)
    ids = torch.from_numpy(held_out_tokens(source).tokens.astype(np.int64))
    with torch.no_grad():
        x = layer_outputs(target.model, [f"layers.{layer}"], ids)[f"layers.{layer}"][LEFT_OUT.keeps_ids(ids)]
        top = sae.encode(x)
        acts = torch.zeros(len(x), 48).scatter(1, top.top_indices, top.top_acts)
        x_hat = (acts * torch.from_numpy(stable >= 0.5)) @ sae.W_dec + sae.b_dec
    x, x_hat = x.double(), x_hat.double()
    fvu = float((x - x_hat).pow(2).sum() / (x - x.mean(dim=0)).pow(2).sum())
    found = sae_record(source, layer, seed)
    assert found["stability"]["fvu_of_stable"] == pytest.approx(fvu, rel=1e-5)
    (own,) = [each["fvu"] for each in found["evaluations"] if each["eval_source"] == source]
    assert found["stability"]["explained_share"] == pytest.approx((1 - fvu) / (1 - own), rel=1e-5)


def test_record_by_hand():
    """Five latents and three other seeds: back in none, one, two, three and three of them; the last never fires."""
    stability = np.array([0, 1 / 3, 2 / 3, 1, 1])
    assert stability_record(stability, np.arange(5) < 4, 3) == {
        "n_others": 3,
        "mean": pytest.approx(0.6),
        "mean_live": pytest.approx(0.5),
        "shares": {"0": 0.2, "1": 0.2, "2": 0.2, "3": 0.4},
        "stable_share": 0.6,
    }
    assert stability_record(stability, np.zeros(5, dtype=bool), 3)["mean_live"] is None


def test_without_stable_latents_there_is_no_mean_of_them():
    assert elsewhere_record(np.array([0.5, 0.0]), np.array([0.0, 0.0])) == {
        "mean": 0.25,
        "mean_stable": None,
        "mean_unstable": 0.25,
    }


def test_two_seeds_are_too_few(grid):
    METRICS.unlink()
    compare_all(seeds=[0, 1])
    assert {str(each["stability"]) for each in metrics()["saes"]} == {"None"}


def test_a_run_about_fewer_seeds_keeps_what_is_known(grid):
    before = METRICS.read_bytes()
    compare_all(seeds=[0, 1])
    assert METRICS.read_bytes() == before


def test_a_run_that_was_stopped_between_two_sources_goes_on(grid, monkeypatch):
    """By then the records of both are on disk, and those of the second lack what is measured."""
    before, call = METRICS.read_bytes(), stability.measure_reconstruction
    METRICS.unlink()

    def stop(model, saes, *args, **options):
        if any(key[1] == "tiny" for key in saes):
            raise KeyboardInterrupt
        return call(model, saes, *args, **options)

    monkeypatch.setattr(stability, "measure_reconstruction", stop)
    with pytest.raises(KeyboardInterrupt):
        compare_all()
    assert sae_record("tiny", 0, 0)["stability"]["fvu_of_stable"] is None
    monkeypatch.setattr(stability, "measure_reconstruction", call)
    compare_all()
    assert METRICS.read_bytes() == before


def test_other_weights_of_one_seed_are_measured_anew_in_all(grid):
    before = {(source, layer): sae_record(source, layer, 1)["stability"] for source in SOURCES for layer in LAYERS}
    change_weights("tiny", 0, 2)
    compare_all()
    for source, layer in itertools.product(SOURCES, LAYERS):
        has_changed = sae_record(source, layer, 1)["stability"]["of"] != before[source, layer]["of"]
        assert has_changed == ((source, layer) == ("tiny", 0))
