"""What layers hold at the last token of a text: that token's, whatever else is in its batch."""

import numpy as np
import pytest
import torch
from conftest import load

from sae_utils.evaluation.activations import layer_outputs
from sae_utils.evaluation.last_tokens import ENCODED_AT_ONCE, LastStates, batches_by_length, encode_states, last_states
from sae_utils.exclusion import NOTHING, Exclusion
from sae_utils.sparse_coders import SparseCoder, SparseCoderConfig


def some_texts(n: int = 40) -> list[np.ndarray]:
    """Texts of 1 to 20 tokens behind BOS, some of BOS alone."""
    rng = np.random.default_rng(0)
    return [np.array([0, *rng.integers(2, 300, rng.integers(0, 20))], np.int32) for _ in range(n)]


def an_sae(n_latents: int = 64, k: int = 4) -> SparseCoder:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return SparseCoder(16, SparseCoderConfig(num_latents=n_latents, k=k)).requires_grad_(False)


@pytest.fixture(params=["neox", "llama", "gpt2"])
def model(request):
    """A model, and the names of its layers."""
    layers = "h" if request.param == "gpt2" else "layers"
    return load(request.getfixturevalue(request.param)).model, [f"{layers}.0", f"{layers}.1"]


def slowly(model, text: np.ndarray, hookpoint: str, exclusion: Exclusion) -> tuple[torch.Tensor, bool]:
    """One text through the model alone, and its last position that is kept looked for from the end."""
    ids = torch.tensor(text[None], dtype=torch.int64)
    output = layer_outputs(model, [hookpoint], ids)[hookpoint]
    kept = exclusion.keeps(ids, output)[0].tolist()
    for position in reversed(range(len(text))):
        if kept[position]:
            return output[0, position], True
    return output[0, -1], False


@pytest.mark.parametrize(
    "exclusion",
    [NOTHING, Exclusion(has_first=True, ids=(0,)), Exclusion(True, tuple(range(150))), Exclusion(False, (7,), 1.2)],
    ids=["nothing", "first bos", "half of all ids", "norms"],
)
def test_states_are_those_of_each_text_alone(model, exclusion):
    """What fills up a batch must neither be seen, nor be counted in a median norm, nor be taken for the last token."""
    (model, hooks), texts, n_tokens = model, some_texts(), []
    options = {"exclusion": exclusion, "on_tokens": n_tokens.append}
    found = last_states(model, hooks, texts, n_tokens_at_once=64, **options)
    for hookpoint in hooks:
        for row, text in enumerate(texts):
            expected, is_kept = slowly(model, text, hookpoint, exclusion)
            assert torch.allclose(found[hookpoint].x[row], expected, rtol=1e-4, atol=1e-4)
            assert bool(found[hookpoint].is_kept[row]) == is_kept
    assert sum(n_tokens) == sum(map(len, texts)) and len(n_tokens) > 5


def test_batches_do_not_show(model):
    (model, hooks), texts = model, some_texts()
    few, many = (last_states(model, hooks, texts, n_tokens_at_once=n)[hooks[1]].x for n in (1, 10_000))
    assert torch.allclose(few, many, rtol=1e-4, atol=1e-4)


def test_every_text_is_in_one_batch_and_batches_are_small_enough():
    """Filled up to their longest text, or memory runs out."""
    lengths = np.random.default_rng(1).integers(1, 30, 200).tolist()
    batches = [rows.tolist() for rows in batches_by_length(lengths, 64)]
    assert sorted(row for rows in batches for row in rows) == list(range(200))
    assert all(len(rows) * max(lengths[row] for row in rows) <= 64 for rows in batches)
    assert [rows.tolist() for rows in batches_by_length([100, 1], 64)] == [[0], [1]], "one that is too long goes alone"


def test_latents_and_reconstructions_are_sparsifys():
    """In a form without zeros: 40,960 latents of 100,000 texts are 16 GB otherwise."""
    sae, x = an_sae(), torch.randn(2 * ENCODED_AT_ONCE + 3, 16, generator=torch.Generator().manual_seed(0))
    is_kept = torch.ones(len(x), dtype=torch.bool)
    is_kept[5] = False
    encoded = encode_states(sae, LastStates(x, is_kept))
    expected = torch.zeros(len(x), 64)
    for row, each in enumerate(x):
        acts, indices, _ = sae.encode(each[None])
        expected[row, indices[0]] = acts[0]
    out = sae(x).sae_out
    expected[5], out[5] = 0.0, x[5]
    assert torch.allclose(torch.tensor(encoded.latents.toarray()), expected, atol=1e-6)
    assert torch.allclose(torch.tensor(encoded.x_hat), out, atol=1e-5)
    assert encoded.latents.shape == (len(x), 64) and encoded.latents.nnz <= 4 * len(x)
    assert encoded.latents.dtype == encoded.x_hat.dtype == np.float32
