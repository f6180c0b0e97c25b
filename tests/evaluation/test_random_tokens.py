import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load
from transformers import AutoModelForCausalLM

from sae_utils.evaluation import random_tokens
from sae_utils.evaluation.activations import Encoding, layer_outputs
from sae_utils.evaluation.intervals import interval_of, resample_counts
from sae_utils.evaluation.random_tokens import (
    RANDOM_DRAW,
    RandomFiring,
    known_ids,
    measure_random_firing,
    random_sequences,
)
from sae_utils.exclusion import NOTHING, Exclusion
from sae_utils.sources.packing import Chunks
from sae_utils.sparse_coders import SparseCoder, SparseCoderConfig

ROOT = Path(__file__).resolve().parent.parent.parent


def count(n_tokens: int, activations: dict[int, list[float]], n_latents: int = 4) -> RandomFiring:
    """Firing of latents whose first activations are given, on tokens that all count."""
    firing = RandomFiring(*torch.zeros(2, 1, n_latents, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    top_indices = torch.arange(n_latents).expand(n_tokens, n_latents)
    top_acts = torch.zeros(n_tokens, n_latents)
    for latent, values in activations.items():
        top_acts[: len(values), latent] = torch.tensor(values)
    firing.add(Encoding(top_acts, top_indices, torch.zeros(n_tokens, 1)), torch.ones(n_tokens, dtype=torch.bool))
    return firing


def test_ffr_by_hand():
    """20 tokens: 2 are a tenth, which is not more than a tenth; 1.0 does not exceed 1.0."""
    firing = count(20, {0: [1.5, 1.5], 1: [1.5, 9.0, 1.1], 2: [1.0, 1.0, 1.0]})
    assert firing.random_rate.tolist() == [0.1, 0.15, 0, 0]
    assert firing.is_fake.tolist() == [False, True, False, False]
    counts = {"n_tokens": 20, "ffr": 0.25, "n_fake": 1, "ffr_scale_free": 0.5, "n_fake_scale_free": 2}
    assert firing.record() == counts | {"ffr_interval": None, "ffr_scale_free_interval": None}


def test_a_tenth_is_not_more_than_a_tenth_for_any_number_of_tokens():
    for n_tenth in (1, 3, 7, 99_999, 100_000):
        firing = RandomFiring(torch.tensor([[n_tenth, n_tenth + 1]]), torch.zeros(1, 2), torch.tensor([10 * n_tenth]))
        assert firing.is_fake.tolist() == [False, True]


@pytest.mark.parametrize("kind", ["neox", "llama", "gpt2"])
@pytest.mark.parametrize("exclusion", [NOTHING, Exclusion(max_norm=1.1)])
def test_same_as_a_plain_computation(kind, exclusion, request):
    """First positions, what is beyond the budget, and what SAEs do not see are left out, in batches of any size."""
    loaded = load(request.getfixturevalue(kind))
    name = "h" if kind == "gpt2" else "layers"
    saes = make_saes(name)
    chunks = random_sequences(known_ids(loaded.tokenizer, loaded.model), bos_id=1, ctx_len=11, seed=0, n_tokens=57)
    measured = measure_random_firing(loaded.model, saes, chunks, batch_size=4, n_tokens=57, exclusion=exclusion)
    ids = torch.from_numpy(chunks.tokens).long()
    for key, (hookpoint, sae) in saes.items():
        x = layer_outputs(loaded.model, [hookpoint], ids)[hookpoint]
        kept = exclusion.keeps(ids, x)[:, 1:].flatten()[:57]
        with torch.no_grad():
            out = sae(x[:, 1:].flatten(0, 1)[:57][kept])
        n = int(kept.sum())
        assert (n < 57) == (not exclusion.is_empty)
        dense = torch.zeros(n, 40).scatter(1, out.latent_indices, out.latent_acts)
        fake, fake_scale_free = (dense > 1.0).sum(0) > n / 10, (dense > 0).sum(0) > n / 10
        record = measured[key].record()
        assert record["n_tokens"] == n
        assert measured[key].is_fake.tolist() == fake.tolist()
        assert measured[key].random_rate == pytest.approx((dense > 1.0).double().mean(0).numpy())
        assert record["n_fake"] == fake.sum()
        assert record["ffr_scale_free"] == pytest.approx(float(fake_scale_free.double().mean()))
        assert 0 < record["n_fake_scale_free"] < 10 * 4, "fewer than 10 k latents can fire on a tenth of the tokens"


def test_intervals_are_those_of_blocks_drawn_anew(neox, monkeypatch):
    """Counted block by block and drawn again, latent by latent, against the whole matrix of tokens."""
    monkeypatch.setattr(random_tokens, "N_BLOCKS", 4)
    loaded = load(neox)
    saes = make_saes("layers")
    chunks = random_sequences(known_ids(loaded.tokenizer, loaded.model), bos_id=1, ctx_len=11, seed=0, n_tokens=57)
    for batch_size in (1, 4):
        measured = measure_random_firing(loaded.model, saes, chunks, batch_size=batch_size, n_tokens=57)
        for key, (hookpoint, sae) in saes.items():
            x = layer_outputs(loaded.model, [hookpoint], torch.from_numpy(chunks.tokens).long())[hookpoint]
            with torch.no_grad():
                out = sae(x[:, 1:].flatten(0, 1)[:57])
            active = torch.zeros(57, 40).scatter(1, out.latent_indices, out.latent_acts) > 0
            blocks = [active[start:stop].numpy() for start, stop in ((0, 20), (20, 30), (30, 50), (50, 57))]
            shares = []
            for drawn in resample_counts(4):
                rows = np.concatenate([block for block, n in zip(blocks, drawn, strict=True) for _ in range(n)])
                shares.append((rows.sum(axis=0) > 0.1 * len(rows)).mean())
            assert measured[key].record()["ffr_scale_free_interval"] == interval_of(np.array(shares))


def test_sequences_start_with_bos_and_hold_the_tokens_wanted():
    ids = np.array([3, 5, 9], np.int32)
    tokens = random_sequences(ids, bos_id=7, ctx_len=6, seed=0, n_tokens=21).tokens
    assert tokens.shape == (5, 6)
    assert (tokens[:, 0] == 7).all()
    assert set(tokens[:, 1:].flatten().tolist()) == {3, 5, 9}


def test_the_same_seed_gives_the_same_sequences_and_another_others():
    ids = np.arange(100, dtype=np.int32)
    before = np.random.get_state()[1].copy()
    first, again, other = (random_sequences(ids, bos_id=0, ctx_len=50, seed=s, n_tokens=500).tokens for s in (1, 1, 2))
    assert (first == again).all()
    assert (first[:, 1:] != other[:, 1:]).mean() > 0.9
    assert (np.random.get_state()[1] == before).all()


def test_ids_are_uniform():
    """Chi-square of 10,000 draws among 20 ids: 19 degrees of freedom, above 45 in one of a thousand."""
    tokens = random_sequences(np.arange(20, dtype=np.int32), bos_id=0, ctx_len=101, seed=0, n_tokens=10_000).tokens
    counts = np.bincount(tokens[:, 1:].flatten(), minlength=20)
    assert ((counts - 500) ** 2 / 500).sum() < 45


def test_ids_without_a_meaning_are_not_drawn(neox):
    """Rows of the embedding behind the vocabulary were never trained; ids behind the embedding would be an error."""
    loaded = load(neox)
    n_known = len(loaded.tokenizer)
    assert known_ids(loaded.tokenizer, loaded.model).tolist() == list(range(n_known))
    for n_rows in (n_known + 28, n_known - 5):
        resized = AutoModelForCausalLM.from_pretrained(neox)
        resized.resize_token_embeddings(n_rows, mean_resizing=False)
        assert len(known_ids(loaded.tokenizer, resized)) == min(n_rows, n_known)


def test_one_pass_serves_all_saes(neox):
    model = load(neox).model
    seen, done = [], []
    model.base_model.embed_in.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].numel()))
    chunks = Chunks(np.full((5, 8), 7, np.int32))
    measure_random_firing(model, make_saes("layers"), chunks, batch_size=2, on_tokens=done.append)
    assert seen == done == [16, 16, 8]


def make_saes(layers_name: str) -> dict:
    """Two SAEs for each of two layers."""
    torch.manual_seed(0)
    config = SparseCoderConfig(num_latents=40, k=4)
    return {(layer, seed): (f"{layers_name}.{layer}", SparseCoder(16, config)) for layer in (0, 1) for seed in (0, 1)}


def test_sequences_are_drawn_as_the_page_says():
    """Whoever counts fake features of other SAEs on the same tokens has nothing but that line."""
    page = (ROOT / "docs/metrics.md").read_text()
    (line,) = re.findall(r"`(V\[Generator.*?\])`", page)
    names = {"Generator": np.random.Generator, "PCG64": np.random.PCG64, "V": np.arange(3, 90, dtype=np.int32)}
    tokens = eval(line, names | {"n_sequences": 4, "ctx_len": 7})
    tokens[:, 0] = 1
    drawn = random_sequences(names["V"], bos_id=1, ctx_len=7, seed=RANDOM_DRAW["seed"], n_tokens=19)
    assert drawn.tokens.tolist() == tokens.tolist()
