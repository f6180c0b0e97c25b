"""Agreement between sources held against agreement within them."""

import itertools
import zlib

import numpy as np
import pytest
import torch
from grid_files import METRICS, SOURCES, compare_all, metrics
from test_agreement import no_floor

from sae_utils.comparison.across import (
    AT_FLOOR,
    HIGHER,
    LOWER,
    MEASURES,
    WITHIN_SPREAD,
    Agreed,
    contrast,
    resample_pairs,
    summaries,
)
from sae_utils.comparison.agreement import Dictionary, compare_dictionaries
from sae_utils.comparison.results import keys_of_pair, pair_key
from sae_utils.evaluation.intervals import resample_counts

N_LATENTS, D_MODEL = 80, 64


def sae(source: str, seed: int, n_common: int, n_own: int) -> Dictionary:
    """Directions that all SAEs have, those that all of its source have, and others; with noise, in another order."""
    rows = [
        draw("common", N_LATENTS)[:n_common],
        draw(source, N_LATENTS)[:n_own],
        draw(f"{source} {seed} others", N_LATENTS)[n_common + n_own :],
    ]
    noisy = torch.cat(rows) + 0.3 * draw(f"{source} {seed} noise", N_LATENTS)
    mixed = noisy[torch.randperm(N_LATENTS, generator=torch.Generator().manual_seed(seed))]
    return Dictionary(mixed, mixed)


def draw(name: str, n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.nn.functional.normalize(torch.randn(n, D_MODEL, generator=generator), dim=1) * D_MODEL**0.5


def matched(n_common: int, n_own: int, *, n_seeds: int = 3, sources: str = "xy") -> tuple[list[dict], dict]:
    """Records and arrays of all pairs of such SAEs."""
    saes = {(source, seed): sae(source, seed, n_common, n_own) for source in sources for seed in range(n_seeds)}
    pairs, arrays = [], {}
    for (source, seed), (source_b, seed_b) in itertools.combinations(saes, 2):
        kind = "within" if source == source_b else "same_seed" if seed == seed_b else "between"
        agreement = compare_dictionaries(saes[source, seed], saes[source_b, seed_b], no_floor(N_LATENTS))
        about = {"target": "t", "source": source, "layer": 7, "seed": seed, "source_b": source_b, "seed_b": seed_b}
        pairs.append(about | {"kind": kind, "weights_fingerprints": ["a", "b"]} | agreement.record)
        arrays[pair_key(pairs[-1])] = {"partner": agreement.matching.partner, "cosine": agreement.matching.cosine}
    return pairs, arrays


def found_of(pairs: list[dict], arrays: dict) -> tuple[dict, dict]:
    """Agreements by sources and kind, and contrasts by number."""
    agreements, contrasts = summaries(pairs, arrays)
    by_kind = {(each["source"], each["source_b"], each["kind"]): each for each in agreements}
    return by_kind, {each["measure"]: each for each in contrasts}


def test_planted_shares_are_recovered():
    """Of 80 latents, 24 are common to all SAEs and 24 more to those of one source; the noise leaves them at 0.9."""
    agreements, contrasts = found_of(*matched(24, 24))
    assert agreements["x", "x", "within"]["sfr"] == agreements["y", "y", "within"]["sfr"] == 48 / 80
    assert agreements["x", "y", "between"]["sfr"] == agreements["x", "y", "same_seed"]["sfr"] == 24 / 80
    assert [agreements[key]["n_pairs"] for key in sorted(agreements)] == [3, 6, 3, 3]
    found = contrasts["sfr"]
    assert (found["within"], found["between"], found["ratio"]) == pytest.approx((0.6, 0.3, 0.5))
    assert found["difference"] == pytest.approx(-0.3)
    low, high = found["ratio_interval"]
    assert 0.3 < low < 0.5 < high < 0.7
    assert found["verdict"] == contrasts["mean_matched_cosine"]["verdict"] == LOWER


def test_features_that_all_have_are_as_common_between_sources_as_within():
    _, contrasts = found_of(*matched(40, 0))
    assert contrasts["sfr"]["ratio"] == 1 and contrasts["sfr"]["verdict"] == WITHIN_SPREAD
    low, high = contrasts["mean_matched_cosine"]["difference_interval"]
    assert low < contrasts["mean_matched_cosine"]["difference"] < high


def test_where_nothing_comes_back_there_is_nothing_to_compare():
    _, contrasts = found_of(*matched(0, 0))
    assert contrasts["sfr"]["within"] == 0
    assert (contrasts["sfr"]["verdict"], contrasts["sfr"]["ratio"]) == (AT_FLOOR, None)


def test_one_seed_of_each_source_has_nothing_to_be_held_against():
    pairs, arrays = matched(24, 24, n_seeds=1)
    agreements, contrasts = summaries(pairs, arrays)
    assert [each["kind"] for each in agreements] == ["same_seed"] and contrasts == []


def test_three_sources_make_three_contrasts_of_each_number():
    _, contrasts = summaries(*matched(24, 24, n_seeds=2, sources="xyz"))
    assert [(each["source"], each["source_b"], each["measure"]) for each in contrasts] == [
        (*sources, name) for sources in ("xy", "xz", "yz") for name in MEASURES
    ]


def agreed(values: list[float], spread: float, floor: float = 0.0) -> Agreed:
    values = np.array(values)
    return Agreed(values, values.mean() + np.linspace(-spread, spread, 1001), floor)


@pytest.mark.parametrize(
    ("within", "between", "spread", "verdict"),
    [
        ([0.5, 0.6], [0.3, 0.4], 0.01, LOWER),
        ([0.5, 0.6], [0.7, 0.8], 0.01, HIGHER),
        ([0.5, 0.6], [0.3, 0.51], 0.01, WITHIN_SPREAD),  # one pair between is higher than one within
        ([0.5, 0.6], [0.3, 0.4], 0.3, WITHIN_SPREAD),  # so few latents that the interval of the difference holds 0
        ([0.1, 0.2], [0.01, 0.02], 0.2, AT_FLOOR),
    ],
)
def test_what_can_be_said(within, between, spread, verdict):
    """Both the latents and the pairs must tell them apart."""
    inside = [Agreed(np.array([value]), np.full(1001, value) + shift, 0.0) for value in within for shift in [0.0]]
    lots = np.linspace(-spread, spread, 1001)
    inside = [Agreed(each.values, each.resampled + lots, 0.0) for each in inside]
    outside = agreed(between, 0.0)
    assert contrast(inside, outside)["verdict"] == verdict


def test_few_shared_latents_are_not_compared():
    """Of 80 latents 9 are shared within a source and 5 between them: that may be chance, whatever resamples say."""
    _, contrasts = found_of(*matched(5, 4))
    assert contrasts["sfr"]["within"] == pytest.approx(9 / 80)
    assert (contrasts["sfr"]["verdict"], contrasts["sfr"]["ratio"]) == (AT_FLOOR, None)
    _, contrasts = found_of(*matched(5, 6))
    assert (contrasts["sfr"]["verdict"], contrasts["sfr"]["ratio"]) == (LOWER, pytest.approx(5 / 11))


def test_ratio_is_of_what_is_above_the_floor():
    """(0.4 - 0.2) / (0.6 - 0.2): what initialisation gives for free is no agreement."""
    found = contrast([agreed([0.6], 0.01, floor=0.2)] * 2, agreed([0.4], 0.0, floor=0.2))
    assert found["ratio"] == pytest.approx(0.5)
    low, high = found["ratio_interval"]
    assert (low, high) == pytest.approx((0.2 / 0.4095, 0.2 / 0.3905))


def test_resamples_are_those_of_a_plain_computation():
    """Every SAE's latents drawn on their own, once for all its pairs; a number is the mean over both of a pair."""
    pairs, arrays = matched(24, 24, n_seeds=2)
    found = resample_pairs(pairs, arrays)
    names = sorted({key for pair in pairs for key in keys_of_pair(pair)})
    counts = {name: resample_counts(N_LATENTS, seed=number) for number, name in enumerate(names)}
    for pair in pairs:
        key, (first, second) = pair_key(pair), keys_of_pair(pair)
        partner, cosine = arrays[key]["partner"], arrays[key]["cosine"].astype(np.float64)
        for resample in (0, 17, 999):
            shares, means = [], []
            for name, own in ((first, cosine), (second, cosine[[list(partner).index(j) for j in range(N_LATENTS)]])):
                drawn = np.repeat(own, counts[name][resample])
                shares.append((drawn > 0.7).mean())
                means.append(drawn.mean())
            assert found[key]["sfr"][resample] == pytest.approx(np.mean(shares))
            assert found[key]["mean_matched_cosine"][resample] == pytest.approx(np.mean(means))


def test_summaries_are_those_of_the_pairs_in_the_results(grid):
    found = metrics()
    for each in found["agreements"]:
        names = ("layer", "source", "source_b", "kind")
        pairs = [pair for pair in found["pairs"] if [pair[n] for n in names] == [each[n] for n in names]]
        assert each["n_pairs"] == len(pairs)
        for name in MEASURES:
            values = [pair[name] for pair in pairs]
            assert each[name] == pytest.approx(np.mean(values))
            assert (each[f"{name}_lowest"], each[f"{name}_highest"]) == (min(values), max(values))
    assert len(found["agreements"]) == 2 * 4
    assert len(found["contrasts"]) == 2 * 2
    for each in found["contrasts"]:
        assert (each["source"], each["source_b"]) == SOURCES
        by_kind = {
            (other["source"], other["source_b"], other["kind"]): other[each["measure"]]
            for other in found["agreements"]
            if other["layer"] == each["layer"]
        }
        inside = [by_kind[source, source, "within"] for source in SOURCES]
        assert (each["within"], each["between"]) == pytest.approx((np.mean(inside), by_kind[*SOURCES, "between"]))


def test_what_is_known_is_not_summed_up_again(grid, monkeypatch):
    """At full size, resamples of all latents take half a minute per layer."""
    from sae_utils.comparison import across

    before = METRICS.read_bytes()
    monkeypatch.setattr(across, "summaries", None)
    compare_all()
    assert METRICS.read_bytes() == before
