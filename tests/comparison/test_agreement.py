import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn.functional import normalize

from sae_utils.comparison.agreement import (
    RATE_EDGES,
    Dictionary,
    by_firing_rate,
    compare_dictionaries,
    share_in_both,
    share_of_live,
)
from sae_utils.comparison.floors import Floor
from sae_utils.comparison.matching import Matching, match_rows, share_above
from sae_utils.errors import InputError
from sae_utils.evaluation.intervals import mean_interval, share_interval


def random_dictionary(seed: int, n_latents: int = 60, d_model: int = 8) -> Dictionary:
    generator = torch.Generator().manual_seed(seed)
    return Dictionary(*(torch.randn(n_latents, d_model, generator=generator) for _ in range(2)))


def permuted(dictionary: Dictionary, order) -> Dictionary:
    return Dictionary(dictionary.encoder[order], dictionary.decoder[order])


def no_floor(n_latents: int = 60) -> Floor:
    return floor_with(np.zeros(n_latents, dtype=np.float32))


def floor_with(cosine: np.ndarray) -> Floor:
    return Floor(np.arange(len(cosine), dtype=np.int32), cosine, cosine, cosine)


def matching_with(partner: list[int], cosine: list[float] | np.ndarray) -> Matching:
    cosine = np.array(cosine, dtype=np.float32)
    return Matching(np.array(partner), cosine, cosine, cosine)


def compare(a: Dictionary, b: Dictionary, **rates) -> dict:
    return compare_dictionaries(a, b, no_floor(len(a.decoder)), **rates).record


def flat(record: dict) -> dict:
    """The numbers of a record on one level."""
    numbers = {**record, **record["sfr_at"]}
    return {name: number for name, number in numbers.items() if isinstance(number, float)}


def intervals(record: dict) -> dict:
    """The intervals of a record, but for those of `sfr_at`, by their names."""
    return {name: value for name, value in record.items() if name.endswith("_interval") and isinstance(value, list)}


def related(seed: int, noise: float = 0.35) -> tuple[Dictionary, Dictionary]:
    """Two dictionaries with features in common, as far as noise leaves them so."""
    a, b, order = random_dictionary(seed), random_dictionary(seed + 1), torch.randperm(60)
    mixed = Dictionary(a.encoder + noise * b.encoder, a.decoder + noise * b.decoder)
    return a, permuted(mixed, order)


def test_a_dictionary_agrees_with_itself():
    a = random_dictionary(0)
    agreement = compare_dictionaries(a, a, no_floor())
    assert agreement.record["sfr"] == agreement.record["sfr_both"] == 1
    assert agreement.record["sfr_at"] == dict.fromkeys(["0.5", "0.6", "0.7", "0.8", "0.9"], 1.0)
    assert agreement.record["mean_matched_cosine"] == pytest.approx(1)
    assert agreement.matching.partner.tolist() == list(range(60))


def test_order_of_latents_does_not_matter():
    a, order = random_dictionary(0), torch.randperm(60, generator=torch.Generator().manual_seed(1))
    agreement = compare_dictionaries(a, permuted(a, order), no_floor())
    assert agreement.record["sfr"] == agreement.record["sfr_both"] == 1
    assert order[agreement.matching.partner].tolist() == list(range(60))


def test_by_hand():
    """Decoder cosines 0.8, 0.6 and 1; the encoders of the first two are exchanged, so that they have other partners.

    sfr: 0.8 and 1 are above 0.7. sfr_both: the third alone.
    """
    eye = torch.eye(4)
    a = Dictionary(eye[:3], eye[:3])
    b = Dictionary(eye[[1, 0, 2]], torch.stack([0.8 * eye[0] + 0.6 * eye[3], 0.6 * eye[1] - 0.8 * eye[3], eye[2]]))
    agreement = compare_dictionaries(a, b, no_floor(3))
    assert agreement.matching.cosine == pytest.approx([0.8, 0.6, 1.0])
    assert agreement.record["sfr"] == pytest.approx(2 / 3)
    assert agreement.record["sfr_both"] == pytest.approx(1 / 3)
    assert agreement.record["mean_matched_cosine"] == pytest.approx(0.8)
    shares = [agreement.record["sfr_at"][name] for name in ("0.5", "0.6", "0.7", "0.9")]
    assert shares == pytest.approx([1, 2 / 3, 2 / 3, 1 / 3], abs=0.34)  # 0.6 and 0.8 are at rounding's mercy there
    assert agreement.record["sfr_at"]["0.5"] == 1
    assert agreement.record["sfr_at"]["0.9"] == pytest.approx(1 / 3)


def test_thresholds_are_on_the_right_side():
    """Exactly 0.7 is not > 0.7, but it is >= 0.7."""
    seven = np.array([0.7, 0.9], dtype=np.float32)
    matching = matching_with([1, 0], seven)
    assert share_above(seven, 0.7) == 0.5
    assert share_in_both(matching, matching) == 1
    assert share_in_both(matching, matching_with([0, 1], seven)) == 0
    assert share_of_live(matching, np.ones(2, dtype=bool), np.ones(2, dtype=bool)) == 0.5


@pytest.mark.parametrize("seed", range(4))
def test_same_as_a_plain_computation(seed):
    a, b = related(10 * seed)
    matches = {}
    for name in ("encoder", "decoder"):
        rows, columns = (normalize(getattr(each, name).double(), dim=1).numpy() for each in (a, b))
        cosines = rows @ columns.T
        partner = linear_sum_assignment(cosines, maximize=True)[1]
        matches[name] = partner, cosines[np.arange(60), partner]
    (partner_enc, cosine_enc), (partner_dec, cosine_dec) = matches["encoder"], matches["decoder"]
    record = compare(a, b)
    both = [partner_enc[i] == partner_dec[i] and cosine_enc[i] >= 0.7 and cosine_dec[i] >= 0.7 for i in range(60)]
    assert 0 < record["sfr"] <= 1
    assert record["sfr"] == np.mean([c > 0.7 for c in cosine_dec])
    assert record["sfr_both"] == np.mean(both)
    assert record["mean_matched_cosine"] == pytest.approx(cosine_dec.mean(), rel=1e-6)


@pytest.mark.parametrize("noise", [0.2, 0.6, 1.5])
def test_both_is_at_most_either(noise):
    a, b = related(3, noise)
    record = compare(a, b)
    encoder_only = compare(Dictionary(a.encoder, a.encoder), Dictionary(b.encoder, b.encoder))
    assert record["sfr_both"] <= min(record["sfr"], encoder_only["sfr"])
    at = list(record["sfr_at"].values())
    assert at == sorted(at, reverse=True)
    assert record["sfr_at"]["0.7"] == record["sfr"]


def exchanged(numbers: dict) -> dict:
    """What is said of the first SAE said of the second, and the other way round."""

    def other(name: str) -> str:
        stem, interval = name.removesuffix("_interval"), "_interval" * name.endswith("_interval")
        with_b = stem.removesuffix("_b") if stem.endswith("_b") else f"{stem}_b"
        return with_b + interval if with_b + interval in numbers else name

    return {other(name): number for name, number in numbers.items()}


def test_exchanging_the_two_changes_nothing():
    """But which of them is called the second."""
    a, b = related(5, noise=0.9)
    there, back = compare_dictionaries(a, b, no_floor()), compare_dictionaries(b, a, no_floor())
    assert exchanged(flat(there.record)) == pytest.approx(flat(back.record), rel=1e-6)
    for name, interval in exchanged(intervals(there.record)).items():
        assert back.record[name] == pytest.approx(interval, rel=1e-6)
    assert exchanged(there.record["unstable"]) == pytest.approx(back.record["unstable"], rel=1e-6)
    assert back.matching.partner[there.matching.partner].tolist() == list(range(60))


def test_norms_do_not_matter():
    a, b = related(6)
    scales = torch.logspace(-3, 3, 60)[:, None]
    scaled = Dictionary(b.encoder * scales, b.decoder * scales.flip(0))
    assert flat(compare(a, scaled)) == pytest.approx(flat(compare(a, b)), rel=1e-6)


def test_opposite_directions_are_not_shared():
    """A feature and its negation are two features; |cosine| would call them one."""
    a = Dictionary(torch.eye(8), torch.eye(8))
    record = compare(a, Dictionary(-a.encoder, -a.decoder))
    assert record["sfr"] == record["sfr_both"] == 0
    assert record["mean_matched_cosine"] == 0  # orthogonal partners, which beat the negated ones


def test_live_by_hand():
    """Pairs (0, 1), (1, 0), (2, 2), (3, 3) with cosines 0.9, 0.9, 0.9, 0.1; dead: 2 of a, 3 of b.

    Shared with both latents alive: the first two, of the three that could be.
    """
    matching = matching_with([1, 0, 2, 3], [0.9, 0.9, 0.9, 0.1])
    live_a, live_b = np.array([True, True, False, True]), np.array([True, True, True, False])
    assert share_of_live(matching, live_a, live_b) == pytest.approx(2 / 3)
    assert share_of_live(matching, live_a, np.array([True, False, False, False])) == 1
    assert share_of_live(matching, live_a, np.zeros(4, dtype=bool)) is None
    assert share_of_live(matching, None, live_b) is None


def test_live_reaches_the_record():
    a, b = related(7)
    everything, some, none = np.full(60, 0.1), np.where(np.arange(60) < 40, 0.1, 0.0), np.zeros(60)
    record = compare(a, b, rates_a=everything, rates_b=everything)
    assert record["sfr_live"] == record["sfr"]
    assert record["mean_matched_cosine_live"] == record["mean_matched_cosine"]
    assert (record["n_live"], record["n_live_b"]) == (60, 60)
    agreement = compare_dictionaries(a, b, no_floor(), rates_a=some, rates_b=everything)
    assert (agreement.record["n_live"], agreement.record["n_live_b"]) == (40, 60)
    cosines = agreement.matching.cosine[:40]
    assert agreement.record["mean_matched_cosine_live"] == pytest.approx(cosines.mean(), rel=1e-6)
    assert agreement.record["mean_matched_cosine_live_interval"] == mean_interval(cosines)
    for record in (compare(a, b), compare(a, b, rates_a=none, rates_b=everything)):
        assert record["sfr_live"] is record["mean_matched_cosine_live"] is None
    assert compare(a, b)["n_live"] is None


def test_best_partners_may_repeat_and_are_counted_from_either_side():
    """Both latents of `a` are nearest to the first of `b`; its second one is near none. Angles of 0, 20 and 90 degrees.

    One to one, 0.94 + 0.34 is less than 1 + 0: the latents at 0 degrees go together, and one pair is shared.
    """
    angles_a, angles_b = torch.deg2rad(torch.tensor([0.0, 20.0])), torch.deg2rad(torch.tensor([0.0, 120.0]))
    rows_a, rows_b = (torch.stack([each.cos(), each.sin()], dim=1) for each in (angles_a, angles_b))
    record = compare(Dictionary(rows_a, rows_a), Dictionary(rows_b, rows_b))
    assert (record["sfr_top1"], record["sfr_top1_b"], record["sfr"]) == (1.0, 0.5, 0.5)


@pytest.mark.parametrize("seed", range(3))
def test_top1_is_that_of_a_plain_computation(seed):
    """As FaithfulSAE's feat_match.py counts it: all cosines, the largest of each row, the share above 0.7."""
    a, b = related(10 * seed, noise=0.9)
    cosines = normalize(a.decoder.double(), dim=1) @ normalize(b.decoder.double(), dim=1).T
    record = compare(a, b)
    assert record["sfr_top1"] == float((cosines.max(dim=1).values > 0.7).double().mean())
    assert record["sfr_top1_b"] == float((cosines.max(dim=0).values > 0.7).double().mean())
    assert 0 < record["sfr_top1"] < 1


@pytest.mark.parametrize("seed", range(3))
def test_mean_matched_cosine_is_the_papers_mcc_of_nonnegative_cosines(seed):
    """PW-MCC, Song et al. 2025: the best one-to-one sum of |<a_i, b_j>| / (|a_i| |b_j|), divided by n.

    The authors' code leaves the absolute value out, as ours does; where all cosines are >= 0 both are one.
    """
    generator = torch.Generator().manual_seed(seed)
    rows_a, rows_b = (torch.rand(30, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    total = np.zeros((30, 30))
    for i, j in np.ndindex(30, 30):
        total[i, j] = abs(float(rows_a[i] @ rows_b[j])) / float(rows_a[i].norm() * rows_b[j].norm())
    rows, columns = linear_sum_assignment(total, maximize=True)
    record = compare(Dictionary(rows_a.float(), rows_a.float()), Dictionary(rows_b.float(), rows_b.float()))
    assert record["mean_matched_cosine"] == pytest.approx(total[rows, columns].sum() / 30, rel=1e-6)


def test_agreement_by_firing_rate_by_hand():
    """A latent that never fires, one at 0.0005, two at 0.02 and, exactly at an edge, two at 0.1."""
    matching = matching_with([2, 0, 1], [0.9, 0.8, 0.1])
    found = by_firing_rate(matching, np.array([0.0, 0.0005, 0.1]), np.array([0.02, 0.1, 0.02]))
    assert list(found) == ["never", "0.0001", "0.01", "0.1"]
    assert found["never"] == pytest.approx({"n_latents": 1, "sfr": 1.0, "mean_matched_cosine": 0.9})
    assert found["0.0001"] == pytest.approx({"n_latents": 1, "sfr": 1.0, "mean_matched_cosine": 0.8})
    assert found["0.01"] == pytest.approx({"n_latents": 2, "sfr": 1.0, "mean_matched_cosine": 0.85})
    assert found["0.1"] == pytest.approx({"n_latents": 2, "sfr": 0.0, "mean_matched_cosine": 0.1})
    assert by_firing_rate(matching, None, np.ones(3)) == {}


def test_bins_of_firing_rates_hold_every_latent_of_both_once():
    """A plain loop over latents, each with its own rate and the cosine of its pair."""
    a, b = related(3, noise=0.9)
    rates_a, rates_b = (10.0 ** np.random.default_rng(seed).uniform(-6, 0, 60) for seed in (0, 1))
    matching = match_rows(a.decoder, b.decoder)
    bins: dict[str, list[float]] = {}
    for i in range(60):
        for rate in (rates_a[i], rates_b[matching.partner[i]]):
            edge = max((edge for edge in RATE_EDGES if edge <= rate), default=None)
            bins.setdefault("0" if edge is None else str(edge), []).append(float(matching.cosine[i]))
    found = compare(a, b, rates_a=rates_a, rates_b=rates_b)["by_firing_rate"]
    assert {name: each["n_latents"] for name, each in found.items()} == {name: len(bins[name]) for name in found}
    assert sum(each["n_latents"] for each in found.values()) == 120
    for name, each in found.items():
        assert each["mean_matched_cosine"] == pytest.approx(np.mean(bins[name]), rel=1e-6)
        assert each["sfr"] == np.mean([cosine > 0.7 for cosine in bins[name]])


def test_unstable_latents_are_those_that_fire_and_are_not_found():
    a, b = related(3, noise=0.9)
    live = np.where(np.arange(60) < 50, 0.1, 0.0)
    matching = match_rows(a.decoder, b.decoder)
    found = compare(a, b, rates_a=live, rates_b=live)["unstable"]
    assert found["n"] == int(((matching.best <= 0.7) & (live > 0)).sum()) > 0
    assert found["n_b"] == int(((matching.best_b <= 0.7) & (live > 0)).sum()) > 0
    assert compare(a, a)["unstable"] is None


def test_intervals_are_those_of_their_units():
    """Of all latents, but `sfr_live`: of those that it is a share of. The floor's are of the floor's own cosines."""
    a, b = related(9, noise=1.0)
    floor_cosine = np.linspace(0.1, 0.9, 60, dtype=np.float32)
    rates_a, rates_b = (np.where(np.arange(60) < n, 0.1, 0.0) for n in (40, 50))
    agreement = compare_dictionaries(a, b, floor_with(floor_cosine), rates_a=rates_a, rates_b=rates_b)
    record = agreement.record
    of_live = agreement.matching.cosine[(rates_a > 0) & (rates_b > 0)[agreement.matching.partner]]
    assert intervals(record) == {
        "sfr_interval": share_interval(round(record["sfr"] * 60), 60),
        "sfr_both_interval": share_interval(round(record["sfr_both"] * 60), 60),
        "sfr_live_interval": share_interval(round(record["sfr_live"] * 40), 40),
        "sfr_top1_interval": share_interval(round(record["sfr_top1"] * 60), 60),
        "sfr_top1_b_interval": share_interval(round(record["sfr_top1_b"] * 60), 60),
        "sfr_floor_interval": share_interval(15, 60),
        "sfr_top1_floor_interval": share_interval(15, 60),
        "mean_matched_cosine_interval": mean_interval(agreement.matching.cosine),
        "mean_matched_cosine_live_interval": mean_interval(of_live),
        "mean_matched_cosine_floor_interval": mean_interval(floor_cosine),
    }
    assert record["sfr_at_interval"]["0.7"] == record["sfr_interval"] != record["sfr_at_interval"]["0.9"]
    assert list(record["sfr_at_interval"]) == list(record["sfr_at"])
    for name, (low, high) in intervals(record).items():
        assert low < record[name.removesuffix("_interval")] < high, name


def test_what_is_not_defined_has_no_interval():
    a, b = related(7)
    assert compare(a, b)["sfr_live_interval"] is None
    one = np.where(np.arange(60) == 0, 0.1, 0.0)
    assert compare(a, b, rates_a=one, rates_b=one)["sfr_live_interval"] is None, "a share of one latent"
    single = Dictionary(a.encoder[:1], a.decoder[:1])
    record = compare(single, single)
    assert record["sfr"] == 1 and record["sfr_at_interval"]["0.5"] is None
    assert intervals(record) == {}


def test_arrays_have_the_documented_types():
    matching = compare_dictionaries(*related(8), no_floor()).matching
    assert (matching.partner.dtype, matching.cosine.dtype) == (np.int64, np.float32)
    assert matching.best.dtype == matching.best_b.dtype == np.float32
    assert {array.shape for array in vars(matching).values()} == {(60,)}


def test_wrong_sizes_are_refused():
    a = random_dictionary(0)
    with pytest.raises(InputError, match=r"must both be \(n_latents, d_model\), got \(60, 8\) and \(59, 8\)"):
        Dictionary(a.encoder, a.decoder[:59])
    with pytest.raises(InputError, match=r"floor_cosine must have one value per latent, \(60,\), got \(59,\)"):
        compare_dictionaries(a, a, no_floor(59))
    with pytest.raises(InputError, match=r"rates_b must have one value per latent"):
        compare_dictionaries(a, a, no_floor(), rates_b=np.ones(3))
    with pytest.raises(InputError, match=r"got \(60, 8\) and \(59, 8\)"):
        compare_dictionaries(a, random_dictionary(1, n_latents=59), no_floor())
