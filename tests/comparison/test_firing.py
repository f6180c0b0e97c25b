"""What latents do on other sources than their own."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import load
from grid_files import (
    LEFT_OUT,
    METRICS,
    SOURCES,
    arrays,
    compare_all,
    held_out_tokens,
    sae_of,
    sae_record,
)

from sae_utils.comparison.firing import compare_firing, compare_rates
from sae_utils.comparison.results import Results, write_arrays
from sae_utils.evaluation.activations import layer_outputs
from sae_utils.files import read_record, write_record


def plain_rates(source: str, layer: int, seed: int, on: str) -> np.ndarray:
    """Every token encoded at once; the share of those that count on which each latent is above 0."""
    target, sae = load(Path("tiny")), sae_of(source, layer, seed)
    ids = torch.from_numpy(held_out_tokens(on).tokens.astype(np.int64))
    with torch.no_grad():
        x = layer_outputs(target.model, [f"layers.{layer}"], ids)[f"layers.{layer}"][LEFT_OUT.keeps_ids(ids)]
        top = sae.encode(x)
        acts = torch.zeros(len(x), 48).scatter(1, top.top_indices, top.top_acts)
    return (acts > 0).double().mean(dim=0).numpy()


@pytest.mark.parametrize(("source", "layer", "seed"), [("tiny", 0, 1), ("other", 1, 2)])
def test_firing_elsewhere_is_that_of_a_plain_computation(grid, source, layer, seed):
    (there,) = set(SOURCES) - {source}
    own, other = (plain_rates(source, layer, seed, each) for each in (source, there))
    stored = arrays(source, layer)
    assert stored[f"firing_rate_on_{there}_{seed}"] == pytest.approx(other, abs=1e-6)
    found = {each["eval_source"]: each for each in sae_record(source, layer, seed)["evaluations"]}
    assert found[there]["also_live_share"] == np.mean(other[own > 0] > 0)
    overlap = sum(min(r, s) for r, s in zip(own, other, strict=True)) / ((own.sum() + other.sum()) / 2)
    assert found[there]["firing_overlap"] == pytest.approx(overlap, rel=1e-5)
    assert (found[source]["also_live_share"], found[source]["firing_overlap"]) == (1.0, 1.0)


def test_latents_that_never_fire_share_nothing():
    silent, some = np.zeros(3), np.array([0.5, 0.0, 0.0])
    assert compare_rates(silent, silent) == {"also_live_share": None, "firing_overlap": None}
    assert compare_rates(some, silent) == {"also_live_share": 0.0, "firing_overlap": 0.0}


def test_what_an_earlier_version_measured_is_completed(grid):
    """It did not keep how often latents fire on other sources; the pairs, which take hours, stay as they are."""
    before = METRICS.read_bytes()
    record = read_record(METRICS, "")
    pairs = list(Path("results/details").rglob("*_with_*.npz"))
    times = [path.stat().st_mtime_ns for path in pairs]
    for sae in record["saes"]:
        for each in sae["evaluations"]:
            del each["also_live_share"], each["firing_overlap"]
    write_record(METRICS, {name: value for name, value in record.items() if name != "checksum"})
    compare_all()
    assert METRICS.read_bytes() == before
    assert pairs and [path.stat().st_mtime_ns for path in pairs] == times


def test_an_earlier_measurement_on_a_source_of_another_run_stays(tmp_path):
    """There are no rates of it, and its tokens may be gone."""
    key = ("tiny", "tiny", 0, 0)
    results = Results(tmp_path, saes={key: {"dataset": "tiny", "evaluations": [{"eval_source": "gone"}]}})
    write_arrays(results.arrays_path(*key[:3]), {"firing_rate_0": np.ones(3, np.float32)})
    compare_firing([SimpleNamespace(key=key, seed=0)], results)
    assert results.saes[key]["evaluations"] == [{"eval_source": "gone"}] and not results.changed
