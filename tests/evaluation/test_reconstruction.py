import numpy as np
import pytest
import torch
from conftest import load

from sae_utils.evaluation.activations import Encoding
from sae_utils.evaluation.intervals import resample_counts, resampled_sums
from sae_utils.evaluation.reconstruction import (
    LayerStatistics,
    Reconstruction,
    SquaredDeviation,
    cosine,
    evaluate_reconstruction,
    fraction_of_variance_unexplained,
    measure_reconstruction,
)
from sae_utils.exclusion import NOTHING, Exclusion
from sae_utils.models import find_layers, load_trunk
from sae_utils.sources.packing import Chunks
from sae_utils.sparse_coders import SparseCoder, SparseCoderConfig


def accumulate(pairs) -> float | None:
    error, deviation = 0.0, SquaredDeviation()
    for x, x_hat in pairs:
        error += float((x - x_hat).pow(2).sum())
        deviation.add(x)
    return fraction_of_variance_unexplained(error, deviation)


def test_fvu_by_hand():
    """Values 0 and 2 around mean 1: variance 2. Reconstructed as 0 and 1: error 1. FVU 1/2, in one batch or two."""
    x, x_hat = torch.tensor([[0.0], [2.0]]).double(), torch.tensor([[0.0], [1.0]]).double()
    assert accumulate([(x, x_hat)]) == 0.5
    assert accumulate([(x[:1], x_hat[:1]), (x[1:], x_hat[1:])]) == 0.5


def test_fvu_of_batches_is_the_fvu_of_all():
    """The mean of per-batch FVUs, which is easier to write, is another number."""
    x = torch.randn(500, 8, dtype=torch.float64) * torch.logspace(-2, 3, 8) + 1e4
    x_hat = x + 0.1 * torch.randn_like(x)
    expected = (x - x_hat).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    pieces = list(zip(x.split([1, 9, 90, 400]), x_hat.split([1, 9, 90, 400]), strict=True))
    assert accumulate(pieces) == pytest.approx(float(expected), rel=1e-10)


def test_perfect_is_0_and_the_mean_is_1_and_constants_have_none():
    x = torch.randn(50, 4, dtype=torch.float64)
    assert accumulate([(x, x)]) == 0
    assert accumulate([(x, x.mean(0).expand_as(x))]) == pytest.approx(1)
    assert accumulate([]) is None
    assert accumulate([(torch.ones(3, 2).double(), torch.zeros(3, 2).double())]) is None


def test_cosine_by_hand_and_0_for_zero_vectors():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    x_hat = torch.tensor([[4.0, 3.0], [1.0, 0.0], [0.0, 0.0], [-1.0, 0.0]])
    assert cosine(x, x_hat).tolist() == pytest.approx([24 / 25, 0, 0, -1])


def test_record_by_hand():
    """One sequence of two tokens, two dimensions, four latents, k = 2.

    Errors 2 and 1, mean activation (1.5, 2), squared deviation 2 x 6.25; cosines 24/25 and, of a zero vector, 0.
    """
    x = torch.tensor([[[3.0, 4.0], [0.0, 0.0]]]).double()
    layer = LayerStatistics()
    layer.add(x, torch.ones(1, 2, dtype=torch.bool))
    counted = Reconstruction(layer, torch.zeros(4, dtype=torch.int64), torch.zeros(4))
    top_acts = torch.tensor([[2.0, 0.0], [5.0, 1.0]])
    encoding = Encoding(top_acts, torch.tensor([[0, 1], [0, 2]]), torch.tensor([[4.0, 3.0], [1.0, 0.0]]))
    counted.add(x, torch.ones(1, 2, dtype=torch.bool), encoding)
    record = counted.record()
    quantiles = record.pop("firing_rate_quantiles")
    assert record == {
        "n_tokens": 2,
        "fvu": 3 / 12.5,
        "fvu_interval": None,
        "fvu_without_first_position": None,
        "fvu_without_first_position_interval": None,
        "fvu_by_position": [
            {"first": 0, "last": 0, "n_tokens": 1, "fvu": 2 / 6.25},
            {"first": 1, "last": 1, "n_tokens": 1, "fvu": 1 / 6.25},
        ],
        "mse": 3 / 4,
        "cosine": pytest.approx(0.48),
        "l0": 1.5,
        "dead_share": 0.5,
    }
    assert counted.firing_rate.tolist() == [1, 0, 0.5, 0]
    assert counted.max_activation.tolist() == [5, 0, 1, 0]
    assert quantiles["0.5"] == 0.25
    assert quantiles["0.9"] == pytest.approx(0.85)
    assert list(quantiles) == ["0.01", "0.1", "0.5", "0.9", "0.99"]


@pytest.mark.parametrize("kind", ["neox", "llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("exclusion", [NOTHING, Exclusion(has_first=True, ids=(5, 77), max_norm=1.1)])
def test_same_as_a_plain_computation(kind, dtype, exclusion, request):
    """One streamed pass with hooks against: all activations at once, `SparseCoder.forward`, formulas written out."""
    folder = request.getfixturevalue(kind)
    model = load_trunk(str(folder), torch.device("cpu"), dtype)
    saes = make_saes(find_layers(model)[0])
    tokens = np.random.default_rng(0).integers(3, len(load(folder).tokenizer), (7, 12)).astype(np.int32)
    tokens[2, 5] = 77
    evaluation = measure_reconstruction(model, saes, Chunks(tokens), batch_size=3, exclusion=exclusion)
    for key, (name, sae) in saes.items():
        # The same batches, as attention in bfloat16 depends on them.
        ids = torch.from_numpy(tokens).long().split(3)
        x = torch.cat([hidden_states(model, batch, key[0]) for batch in ids])
        kept = exclusion.keeps(torch.from_numpy(tokens).long(), x)
        assert kept[:, 1:].all() == exclusion.is_empty, "more is left out than the first position"
        is_later = (torch.arange(12) > 0).expand(7, 12)[kept]
        with torch.no_grad():
            out = sae(x[kept].to(sae.dtype))
        x, x_hat = x[kept].double(), out.sae_out.double()
        later = is_later.nonzero().squeeze(1)
        counted = evaluation.saes[key]
        result = counted.record()
        fired = out.latent_indices[out.latent_acts > 0]
        assert result["fvu"] == pytest.approx(plain_fvu(x, x_hat), rel=1e-5)
        assert result["fvu_without_first_position"] == pytest.approx(plain_fvu(x[later], x_hat[later]), rel=1e-5)
        assert result["mse"] == pytest.approx(float(torch.nn.functional.mse_loss(x_hat, x)), rel=1e-5)
        assert result["cosine"] == pytest.approx(float(torch.cosine_similarity(x, x_hat).mean()), rel=1e-5)
        assert result["dead_share"] == pytest.approx(1 - len(fired.unique()) / 40)
        assert result["l0"] == pytest.approx(len(fired) / len(x))
        assert result["n_tokens"] == len(x) == int(kept.sum())
        dense = torch.zeros(len(x), 40).scatter(1, out.latent_indices, out.latent_acts)
        assert counted.firing_counts.tolist() == (dense > 0).sum(dim=0).tolist()
        assert torch.allclose(counted.max_activation, dense.max(dim=0).values)
        assert torch.allclose(evaluation.layers[name].all.mean, x.mean(dim=0), rtol=1e-12)


@pytest.mark.parametrize("exclusion", [NOTHING, Exclusion(has_first=True, ids=(5, 77), max_norm=1.1)])
def test_intervals_are_those_of_sequences_drawn_anew(neox, exclusion):
    """Each resample written out: the tokens of its sequences, their own mean, and the fraction of that variance."""
    model = load_trunk(str(neox), torch.device("cpu"), torch.float32)
    saes = make_saes("layers")
    tokens = np.random.default_rng(0).integers(3, 290, (5, 12)).astype(np.int32)
    tokens[2, 5] = 77
    evaluation = measure_reconstruction(model, saes, Chunks(tokens), batch_size=2, exclusion=exclusion)
    for key, (name, sae) in saes.items():
        x = hidden_states(model, torch.from_numpy(tokens).long(), key[0])
        kept = exclusion.keeps(torch.from_numpy(tokens).long(), x)
        with torch.no_grad():
            x_hat = sae(x.flatten(0, 1)).sae_out.view_as(x).double()
        record = evaluation.saes[key].record()
        for what, start in (("fvu", 0), ("fvu_without_first_position", 1)):
            fvus = []
            for drawn in resample_counts(5)[:50]:
                rows = [i for i in range(5) for _ in range(drawn[i])]
                here = [t[rows][:, start:][kept[rows][:, start:]] for t in (x.double(), x_hat)]
                fvus.append(plain_fvu(*here))
            sums = resampled_sums(torch.cat(evaluation.saes[key].errors).numpy())[:50, start]
            assert sums / evaluation.layers[name].resampled_totals[start][:50] == pytest.approx(fvus, rel=1e-5)
            low, high = record[f"{what}_interval"]
            assert low < record[what] < high


@pytest.mark.parametrize("exclusion", [NOTHING, Exclusion(has_first=True, ids=(5, 77))])
def test_bins_of_positions_add_up(neox, exclusion):
    """Errors, and deviations from the mean of all tokens, of the bins are those of the whole."""
    model = load_trunk(str(neox), torch.device("cpu"), torch.float32)
    saes = make_saes("layers")
    tokens = np.random.default_rng(0).integers(3, 290, (5, 12)).astype(np.int32)
    evaluation = measure_reconstruction(model, saes, Chunks(tokens), batch_size=2, exclusion=exclusion)
    for key, (name, _) in saes.items():
        record, layer = evaluation.saes[key].record(), evaluation.layers[name]
        x = hidden_states(model, torch.from_numpy(tokens).long(), key[0]).double()
        kept = exclusion.keeps_ids(torch.from_numpy(tokens).long())
        mean, bins = x[kept].mean(dim=0), record["fvu_by_position"]
        assert [(each["first"], each["last"]) for each in bins] == [(0, 0), (1, 1), (2, 3), (4, 7), (8, 11)]
        assert sum(each["n_tokens"] for each in bins) == record["n_tokens"]
        assert (bins[0]["fvu"] is None) == exclusion.has_first
        places = [slice(each["first"], each["last"] + 1) for each in bins]
        totals = [float((x - mean)[:, place][kept[:, place]].pow(2).sum()) for place in places]
        assert [layer.total_about_the_mean(part) for part in layer.by_bin] == pytest.approx(totals)
        error = sum(each["fvu"] * total for each, total in zip(bins, totals, strict=True) if total)
        assert error / sum(totals) == pytest.approx(record["fvu"])


def test_one_pass_serves_all_saes(neox):
    model = load_trunk(str(neox), torch.device("cpu"), torch.float32)
    seen, done = [], []
    model.embed_in.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].numel()))
    chunks = Chunks(np.full((5, 8), 7, np.int32))
    measure_reconstruction(model, make_saes("layers"), chunks, batch_size=2, on_tokens=done.append)
    assert seen == done == [16, 16, 8]


def test_training_records_a_part_of_it(neox):
    model = load_trunk(str(neox), torch.device("cpu"), torch.float32)
    saes, chunks = make_saes("layers"), Chunks(np.random.default_rng(0).integers(0, 300, (5, 8)).astype(np.int32))
    whole = measure_reconstruction(model, saes, chunks, batch_size=2).saes
    names = ["fvu", "fvu_without_first_position", "dead_share", "l0", "n_tokens"]
    for key, record in evaluate_reconstruction(model, saes, chunks, batch_size=2).items():
        assert record == {name: whole[key].record()[name] for name in names}


def test_explained_variance_is_that_of_saelens():
    """Readers compare the numbers. SAELens averages, over all tokens, squared errors and squares of activations (each
    summed over dimensions), takes the squared mean activation from the latter, and divides.
    """
    torch.manual_seed(0)
    x = torch.randn(1000, 16) * torch.logspace(-1, 1, 16) + 3
    x_hat = x + 0.5 * torch.randn_like(x)
    n_tokens, error, squares, total = 0, 0.0, 0.0, torch.zeros(16).double()
    for part, part_hat in zip(x.double().split(128), x_hat.double().split(128), strict=True):
        n_tokens += len(part)
        error += float((part - part_hat).pow(2).sum())
        squares += float(part.pow(2).sum())
        total += part.sum(dim=0)
    theirs = 1 - (error / n_tokens) / (squares / n_tokens - float((total / n_tokens).pow(2).sum()))
    ours = 1 - accumulate(list(zip(x.double().split(128), x_hat.double().split(128), strict=True)))
    assert ours == pytest.approx(theirs, abs=1e-6)


def make_saes(layers_name: str) -> dict:
    """Two SAEs for each of two layers."""
    torch.manual_seed(0)
    config = SparseCoderConfig(num_latents=40, k=4)
    return {(layer, seed): (f"{layers_name}.{layer}", SparseCoder(16, config)) for layer in (0, 1) for seed in (0, 1)}


def hidden_states(model, ids, layer):
    """Output of a layer for all sequences at once."""
    seen = []
    handle = find_layers(model)[1][layer].register_forward_hook(
        lambda module, inputs, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.no_grad():
        model(ids)
    handle.remove()
    return seen[0]


def plain_fvu(x, x_hat) -> float:
    return float(((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum())
