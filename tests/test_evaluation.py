import numpy as np
import pytest
import torch
from conftest import load

from sae_utils.evaluation import FvuAccumulator, evaluate_reconstruction
from sae_utils.models import find_layers, load_trunk
from sae_utils.packing import Chunks
from sae_utils.sparse_coders import SparseCoder, SparseCoderConfig


def accumulate(pairs) -> float:
    fvu = FvuAccumulator()
    for x, x_hat in pairs:
        fvu.add(x, x_hat)
    return fvu.value


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


def test_perfect_is_0_and_the_mean_is_1():
    x = torch.randn(50, 4, dtype=torch.float64)
    assert accumulate([(x, x)]) == 0
    assert accumulate([(x, x.mean(0).expand_as(x))]) == pytest.approx(1)
    assert FvuAccumulator().value is None


@pytest.mark.parametrize("kind", ["neox", "llama", "gpt2"])
def test_same_as_a_plain_computation(kind, request):
    """One streamed pass with hooks against: all activations at once, `SparseCoder.forward`, formulas written out."""
    folder = request.getfixturevalue(kind)
    model = load_trunk(str(folder), torch.device("cpu"), torch.float32)
    name = find_layers(model)[0]
    torch.manual_seed(0)
    saes = {
        (layer, seed): (f"{name}.{layer}", SparseCoder(16, SparseCoderConfig(num_latents=40, k=4)))
        for layer in (0, 1)
        for seed in (0, 1)
    }
    tokens = np.random.default_rng(0).integers(3, len(load(folder).tokenizer), (7, 12)).astype(np.int32)
    measured = evaluate_reconstruction(model, saes, Chunks(tokens), batch_size=3)
    for (layer, seed), (_, sae) in saes.items():
        x = hidden_states(model, torch.from_numpy(tokens).long(), layer)
        with torch.no_grad():
            out = sae(x.flatten(0, 1))
        x, x_hat = x.flatten(0, 1).double(), out.sae_out.double()
        later = [i for i in range(len(x)) if i % 12]
        result = measured[layer, seed]
        fired = out.latent_indices[out.latent_acts > 0]
        assert result["fvu"] == pytest.approx(plain_fvu(x, x_hat), rel=1e-5)
        assert result["fvu_without_first_position"] == pytest.approx(plain_fvu(x[later], x_hat[later]), rel=1e-5)
        assert result["dead_share"] == pytest.approx(1 - len(fired.unique()) / 40)
        assert result["l0"] == pytest.approx(len(fired) / len(x))
        assert result["n_tokens"] == 84


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
