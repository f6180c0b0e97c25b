"""What matched latents do on the same tokens, held against all activations written out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load

from sae_utils.evaluation import codes
from sae_utils.evaluation.activations import encode, layer_outputs
from sae_utils.evaluation.codes import CodeSums, SharedSums, activation_correlation, firing_jaccard, sum_codes
from sae_utils.exclusion import Exclusion
from sae_utils.sources.packing import Chunks
from sae_utils.sparse_coders import SparseCoder, SparseCoderConfig

N_LATENTS, LEFT_OUT = 24, Exclusion(has_first=True, ids=(5,))


def make_saes(n: int = 3) -> dict:
    saes = {}
    for seed in range(n):
        torch.manual_seed(seed)
        sae = SparseCoder(16, SparseCoderConfig(num_latents=N_LATENTS, k=4), dtype=torch.float32)
        saes[seed] = "layers.1", sae.requires_grad_(False)
    return saes


def make_partners(pairs: list[tuple[int, int]]) -> dict:
    return {
        pair: torch.randperm(N_LATENTS, generator=torch.Generator().manual_seed(number))
        for number, pair in enumerate(pairs)
    }


def make_chunks(n: int = 7) -> Chunks:
    return Chunks(np.random.default_rng(0).integers(3, 60, size=(n, 16)).astype(np.int32))


def written_out(model, sae: SparseCoder, chunks: Chunks) -> np.ndarray:
    """All activations of the positions that are kept, float64 `(tokens, n_latents)`."""
    ids = torch.from_numpy(chunks.tokens.astype(np.int64))
    outputs = layer_outputs(model, ["layers.1"], ids)["layers.1"]
    kept = LEFT_OUT.keeps(ids, outputs)
    encoding = encode(sae, outputs, kept)
    dense = torch.zeros(len(encoding.top_acts), N_LATENTS).scatter(1, encoding.top_indices, encoding.top_acts)
    return dense[kept.flatten()].double().numpy()


@pytest.fixture
def model(tiny):
    return load(Path("tiny")).model


@pytest.mark.parametrize("dense_entries", [2**24, 5 * N_LATENTS])
def test_same_as_with_all_activations_written_out(model, monkeypatch, dense_entries):
    """NumPy's correlation and sets of tokens, latent by latent; also where a batch is gone through in pieces."""
    monkeypatch.setattr(codes, "DENSE_ENTRIES", dense_entries)
    saes, chunks = make_saes(), make_chunks()
    partners = make_partners([(0, 1), (0, 2), (2, 1)])
    sums, shared = sum_codes(model, saes, partners, chunks, batch_size=2, exclusion=LEFT_OUT)
    dense = {key: written_out(model, sae, chunks) for key, (_, sae) in saes.items()}
    for (a, b), partner in partners.items():
        jaccard = firing_jaccard(sums[a], sums[b], shared[a, b], partner)
        correlation = activation_correlation(sums[a], sums[b], shared[a, b], partner)
        n_defined = 0
        for latent in range(N_LATENTS):
            first, second = dense[a][:, latent], dense[b][:, partner[latent]]
            either = ((first > 0) | (second > 0)).sum()
            if either:
                assert jaccard[latent] == ((first > 0) & (second > 0)).sum() / either
            else:
                assert np.isnan(jaccard[latent])
            if first.std() > 0 and second.std() > 0:
                n_defined += 1
                assert correlation[latent] == pytest.approx(np.corrcoef(first, second)[0, 1], abs=1e-9)
            else:
                assert np.isnan(correlation[latent])
        assert n_defined > 5


def test_an_sae_does_what_it_does(model):
    saes, everyone = make_saes(1), torch.arange(N_LATENTS)
    saes[1] = saes[0]
    sums, shared = sum_codes(model, saes, {(0, 1): everyone}, make_chunks(), batch_size=3)
    jaccard = firing_jaccard(sums[0], sums[1], shared[0, 1], everyone)
    correlation = activation_correlation(sums[0], sums[1], shared[0, 1], everyone)
    fires = sums[0].n_fires.numpy() > 0
    assert fires.any()
    assert set(jaccard[fires]) == {1.0} and np.isnan(jaccard[~fires]).all()
    assert correlation[fires] == pytest.approx(1)


def test_sums_over_parts_add_up_to_sums_over_all(model):
    """So the tokens of two sources are measured one after the other."""
    saes, partners, chunks = make_saes(2), make_partners([(0, 1)]), make_chunks(6)
    whole = sum_codes(model, saes, partners, chunks, batch_size=2)
    parts = [sum_codes(model, saes, partners, chunks.select(rows), batch_size=2) for rows in (range(4), range(4, 6))]
    for key in saes:
        assert_equal(parts[0][0][key] + parts[1][0][key], whole[0][key])
    assert_equal(parts[0][1][0, 1] + parts[1][1][0, 1], whole[1][0, 1])


def test_by_hand():
    """Five tokens. Latent 0: 1 2 0 0 0, its partner, latent 1 of the other: 2 0 0 0 4. Latent 1 and its partner: never.

    Jaccard 1/3. Means 0.6 and 1.2; covariance 2/5 - 0.72, variances 0.64 and 2.56.
    """
    a = CodeSums(5, torch.tensor([2, 0]), torch.tensor([3.0, 0.0]).double(), torch.tensor([5.0, 0.0]).double())
    b = CodeSums(5, torch.tensor([0, 2]), torch.tensor([0.0, 6.0]).double(), torch.tensor([0.0, 20.0]).double())
    shared, partner = SharedSums(torch.tensor([1, 0]), torch.tensor([2.0, 0.0]).double()), torch.tensor([1, 0])
    assert firing_jaccard(a, b, shared, partner) == pytest.approx([1 / 3, np.nan], nan_ok=True)
    expected = (2 / 5 - 0.72) / (0.64 * 2.56) ** 0.5
    assert activation_correlation(a, b, shared, partner) == pytest.approx([expected, np.nan], nan_ok=True)


def assert_equal(found, expected) -> None:
    for name, value in vars(found).items():
        assert torch.allclose(torch.as_tensor(value), torch.as_tensor(getattr(expected, name))), name
