import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn.functional import normalize

from sae_utils.comparison.matching import Matching
from sae_utils.comparison.stability import (
    Dictionary,
    Floor,
    compare_dictionaries,
    directions,
    share_above,
    share_in_both,
    share_of_live,
    summarise_pairs,
    untrained_decoder,
    untrained_floor,
)
from sae_utils.errors import InputError
from sae_utils.evaluation.intervals import mean_interval, share_interval
from sae_utils.sparse_coders import SparseCoder, SparseCoderConfig


def random_dictionary(seed: int, n_latents: int = 60, d_model: int = 8) -> Dictionary:
    generator = torch.Generator().manual_seed(seed)
    return Dictionary(*(torch.randn(n_latents, d_model, generator=generator) for _ in range(2)))


def permuted(dictionary: Dictionary, order) -> Dictionary:
    return Dictionary(dictionary.encoder[order], dictionary.decoder[order])


def no_floor(n_latents: int = 60) -> Floor:
    return Floor(0.0, 0.0, np.zeros(n_latents, dtype=np.float32))


def compare(a: Dictionary, b: Dictionary, **masks) -> dict:
    return compare_dictionaries(a, b, no_floor(len(a.decoder)), **masks).record


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
    assert agreement.partner.tolist() == list(range(60))


def test_order_of_latents_does_not_matter():
    a, order = random_dictionary(0), torch.randperm(60, generator=torch.Generator().manual_seed(1))
    agreement = compare_dictionaries(a, permuted(a, order), no_floor())
    assert agreement.record["sfr"] == agreement.record["sfr_both"] == 1
    assert order[agreement.partner].tolist() == list(range(60))


def test_by_hand():
    """Decoder cosines 0.8, 0.6 and 1; the encoders of the first two are exchanged, so that they have other partners.

    sfr: 0.8 and 1 are above 0.7. sfr_both: the third alone.
    """
    eye = torch.eye(4)
    a = Dictionary(eye[:3], eye[:3])
    b = Dictionary(eye[[1, 0, 2]], torch.stack([0.8 * eye[0] + 0.6 * eye[3], 0.6 * eye[1] - 0.8 * eye[3], eye[2]]))
    agreement = compare_dictionaries(a, b, no_floor(3))
    assert agreement.cosine == pytest.approx([0.8, 0.6, 1.0])
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
    matching = Matching(np.array([1, 0]), seven)
    assert share_above(seven, 0.7) == 0.5
    assert share_in_both(matching, matching) == 1
    assert share_in_both(matching, Matching(np.array([0, 1]), seven)) == 0
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


def test_exchanging_the_two_changes_nothing():
    a, b = related(5)
    there, back = compare_dictionaries(a, b, no_floor()), compare_dictionaries(b, a, no_floor())
    assert flat(there.record) == pytest.approx(flat(back.record), rel=1e-6)
    for name, interval in intervals(there.record).items():
        assert back.record[name] == pytest.approx(interval, rel=1e-6)
    assert back.partner[there.partner].tolist() == list(range(60))


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
    matching = Matching(np.array([1, 0, 2, 3]), np.array([0.9, 0.9, 0.9, 0.1], dtype=np.float32))
    live_a, live_b = np.array([True, True, False, True]), np.array([True, True, True, False])
    assert share_of_live(matching, live_a, live_b) == pytest.approx(2 / 3)
    assert share_of_live(matching, live_a, np.array([True, False, False, False])) == 1
    assert share_of_live(matching, live_a, np.zeros(4, dtype=bool)) is None
    assert share_of_live(matching, None, live_b) is None


def test_live_reaches_the_record():
    a, b = related(7)
    everything = np.ones(60, dtype=bool)
    some = np.arange(60) < 40
    record = compare(a, b, live_a=everything, live_b=everything)
    assert record["sfr_live"] == record["sfr"]
    assert (record["n_live"], record["n_live_b"]) == (60, 60)
    record = compare(a, b, live_a=some, live_b=everything)
    assert (record["n_live"], record["n_live_b"]) == (40, 60)
    assert compare(a, b)["sfr_live"] is None
    assert compare(a, b)["n_live"] is None


def test_intervals_are_those_of_their_units():
    """Of all latents, but `sfr_live`: of those that it is a share of. The floor's are of the floor's own cosines."""
    a, b = related(9, noise=1.0)
    floor_cosine = np.linspace(0.1, 0.9, 60, dtype=np.float32)
    floor = Floor(share_above(floor_cosine, 0.7), float(floor_cosine.mean()), floor_cosine)
    live_a, live_b = np.arange(60) < 40, np.arange(60) < 50
    agreement = compare_dictionaries(a, b, floor, live_a=live_a, live_b=live_b)
    record = agreement.record
    assert intervals(record) == {
        "sfr_interval": share_interval(round(record["sfr"] * 60), 60),
        "sfr_both_interval": share_interval(round(record["sfr_both"] * 60), 60),
        "sfr_live_interval": share_interval(round(record["sfr_live"] * 40), 40),
        "sfr_floor_interval": share_interval(15, 60),
        "mean_matched_cosine_interval": mean_interval(agreement.cosine),
        "mean_matched_cosine_floor_interval": mean_interval(floor_cosine),
    }
    assert record["sfr_at_interval"]["0.7"] == record["sfr_interval"] != record["sfr_at_interval"]["0.9"]
    assert list(record["sfr_at_interval"]) == list(record["sfr_at"])
    for name, (low, high) in intervals(record).items():
        assert low < record[name.removesuffix("_interval")] < high, name


def test_what_is_not_defined_has_no_interval():
    a, b = related(7)
    assert compare(a, b)["sfr_live_interval"] is None
    one = np.arange(60) == 0
    assert compare(a, b, live_a=one, live_b=one)["sfr_live_interval"] is None, "a share of one latent"
    single = Dictionary(a.encoder[:1], a.decoder[:1])
    record = compare(single, single)
    assert record["sfr"] == 1 and record["sfr_at_interval"]["0.5"] is None
    assert intervals(record) == {}


def test_untrained_saes_are_those_that_training_starts_from():
    """sparsify seeds globally and then builds; ours must give the same weights and leave global random state alone."""
    config = SparseCoderConfig(num_latents=24, k=4)
    torch.manual_seed(3)
    expected = SparseCoder(6, config, dtype=torch.float32)
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    assert torch.equal(untrained_decoder(6, config, 3), expected.W_dec)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_untrained_saes_are_at_the_floor():
    config = SparseCoderConfig(num_latents=64, k=4)
    floor = untrained_floor(16, config, (0, 1))
    saes = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        saes.append(directions(SparseCoder(16, config, dtype=torch.float32)))
    agreement = compare_dictionaries(*saes, floor)
    assert agreement.record["sfr"] == agreement.record["sfr_floor"] == floor.sfr
    assert agreement.record["mean_matched_cosine"] == agreement.record["mean_matched_cosine_floor"] > 0.2
    assert np.array_equal(agreement.cosine, agreement.floor_cosine)
    assert untrained_floor(16, config, (0, 2)).mean_cosine != floor.mean_cosine
    assert untrained_floor(16, config, (0, 0)).sfr == 1


def test_arrays_have_the_documented_types():
    agreement = compare_dictionaries(*related(8), no_floor())
    assert (agreement.partner.dtype, agreement.cosine.dtype) == (np.int32, np.float32)
    assert agreement.partner.shape == agreement.cosine.shape == (60,)


def test_pairs_are_summarised():
    """0.2 and 0.4: mean 0.3, sample standard deviation 0.1 * sqrt(2). `sfr_live` is defined for one pair alone."""
    rows = [
        {"n_latents": 4, "sfr": 0.2, "sfr_live": None, "sfr_at": {"0.5": 0.5}},
        {"n_latents": 4, "sfr": 0.4, "sfr_live": 0.6, "sfr_at": {"0.5": 0.5}},
    ]
    summary = summarise_pairs(rows)
    assert summary["sfr"] == pytest.approx({"mean": 0.3, "std": 0.02**0.5, "min": 0.2, "max": 0.4, "n_pairs": 2})
    assert summary["sfr_live"] == {"mean": 0.6, "std": None, "min": 0.6, "max": 0.6, "n_pairs": 1}
    assert summary["sfr_at_0.5"]["std"] == 0
    assert "n_latents" not in summary


def test_wrong_sizes_are_refused():
    a = random_dictionary(0)
    with pytest.raises(InputError, match=r"must both be \(n_latents, d_model\), got \(60, 8\) and \(59, 8\)"):
        Dictionary(a.encoder, a.decoder[:59])
    with pytest.raises(InputError, match=r"floor_cosine must have one value per latent, \(60,\), got \(59,\)"):
        compare_dictionaries(a, a, no_floor(59))
    with pytest.raises(InputError, match=r"live_b must have one value per latent"):
        compare_dictionaries(a, a, no_floor(), live_b=np.ones(3, dtype=bool))
    with pytest.raises(InputError, match=r"got \(60, 8\) and \(59, 8\)"):
        compare_dictionaries(a, random_dictionary(1, n_latents=59), no_floor())
