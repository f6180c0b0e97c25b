import numpy as np
import pytest
import torch
from conftest import load
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from sae_utils.evaluation.activations import Encoding, layer_outputs
from sae_utils.evaluation.contexts import TopContexts, choose_latents, find_contexts, token_decoder
from sae_utils.exclusion import NOTHING, Exclusion
from sae_utils.sources.packing import Chunks
from sae_utils.sparse_coders import SparseCoder, SparseCoderConfig


def contexts_of(acts, *, decode=str, latents=(0,)) -> dict:
    """Contexts of a made-up SAE: `acts` is `(n_sequences, seq, n_latents)`; the tokens of a sequence count up."""
    acts = torch.as_tensor(acts, dtype=torch.float32)
    n_sequences, seq, n_latents = acts.shape
    ids = np.arange(n_sequences * seq).reshape(n_sequences, seq)
    top = TopContexts.empty(np.array(latents), n_latents=n_latents, ctx_len=seq)
    for part, part_acts in zip(np.array_split(ids, 2), torch.tensor_split(acts, 2), strict=True):
        part_acts = part_acts.flatten(0, 1)
        top.add(part, Encoding(part_acts, torch.arange(n_latents).expand_as(part_acts), part_acts))
    return top.records(decode)


def test_contexts_by_hand():
    """Three sequences of three tokens; the second never activates the latent."""
    (contexts,) = contexts_of([[[1], [2], [0]], [[0], [0], [0]], [[0], [0], [5]]]).values()
    assert contexts == [
        {"tokens": ["6", "7", "8"], "activations": [0, 0, 5], "peak": 2},
        {"tokens": ["0", "1", "2"], "activations": [1, 2, 0], "peak": 1},
    ]


def test_of_equal_activations_the_first_ones_stay():
    """Or the same command would show other examples in another batch size."""
    (contexts,) = contexts_of(np.full((9, 4, 1), 2.5)).values()
    assert [context["tokens"][0] for context in contexts] == ["0", "4", "8", "12", "16", "20"]
    assert [context["peak"] for context in contexts] == [0] * 6


def test_a_latent_that_never_fires_has_no_contexts():
    assert contexts_of(np.zeros((2, 3, 2)), latents=(1,)) == {1: []}


@pytest.mark.parametrize(("peak", "start"), [(0, 0), (10, 0), (23, 0), (24, 1), (60, 37), (91, 68), (99, 68)])
def test_windows_are_full_and_hold_the_peak(peak, start):
    acts = np.ones((1, 100, 1))
    acts[0, peak] = 3
    ((context,),) = contexts_of(acts).values()
    assert context["tokens"] == [str(token) for token in range(start, start + 32)]
    assert len(context["activations"]) == 32
    assert context["activations"][context["peak"]] == 3
    assert context["tokens"][context["peak"]] == str(peak)


@pytest.mark.parametrize("kind", ["neox", "llama", "gpt2"])
@pytest.mark.parametrize("exclusion", [NOTHING, Exclusion(has_first=True, max_norm=1.1)])
def test_same_as_a_plain_search(kind, exclusion, request):
    """Streamed against: all activations at once, every sequence's peak sorted."""
    loaded = load(request.getfixturevalue(kind))
    torch.manual_seed(0)
    name = "h" if kind == "gpt2" else "layers"
    saes = {layer: (f"{name}.{layer}", SparseCoder(16, SparseCoderConfig(num_latents=30, k=3))) for layer in (0, 1)}
    tokens = np.random.default_rng(0).integers(3, len(loaded.tokenizer), (11, 40)).astype(np.int32)
    chosen = {0: [4, 0, 29], 1: list(range(30))}
    done = []
    options = {"batch_size": 3, "exclusion": exclusion, "on_tokens": done.append}
    found = find_contexts(loaded.model, saes, chosen, Chunks(tokens), loaded.tokenizer, **options)
    assert done == [120, 120, 120, 80]
    decode = token_decoder(loaded.tokenizer)
    for key, (hookpoint, sae) in saes.items():
        x = layer_outputs(loaded.model, [hookpoint], torch.from_numpy(tokens).long())[hookpoint]
        with torch.no_grad():
            out = sae(x.flatten(0, 1))
        dense = torch.zeros(440, 30).scatter(1, out.latent_indices, out.latent_acts).view(11, 40, 30)
        dense = dense.masked_fill(~exclusion.keeps(torch.from_numpy(tokens).long(), x)[..., None], 0.0).numpy()
        assert list(found[key]) == chosen[key]
        for latent, contexts in found[key].items():
            peaks = dense[:, :, latent].max(axis=1)
            best = sorted([i for i in range(11) if peaks[i] > 0], key=lambda i: -peaks[i])[:6]
            assert len(contexts) == len(best)
            for context, sequence in zip(contexts, best, strict=True):
                position = dense[sequence, :, latent].argmax()
                start = min(max(position - 23, 0), 8)
                window = slice(start, start + 32)
                assert context["peak"] == position - start
                assert context["activations"] == pytest.approx(dense[sequence, window, latent], rel=1e-3)
                assert context["tokens"] == [decode(int(token)) for token in tokens[sequence, window]]


def test_tokens_keep_their_spaces_and_bytes_do_no_harm(neox):
    tokenizer = load(neox).tokenizer
    decode = token_decoder(tokenizer)
    ids = tokenizer("the quick fox, the sea", add_special_tokens=False)["input_ids"]
    assert "".join(map(decode, ids)) == "the quick fox, the sea"
    assert [decode(i) for i in tokenizer("ü", add_special_tokens=False)["input_ids"]] == ["�", "�"]
    assert decode(tokenizer.bos_token_id) == "<|endoftext|>"


def test_tokenizers_that_drop_the_first_space_do_not_lose_it():
    """As SentencePiece's do: a reader could not tell words from parts of words."""
    model = Tokenizer(models.WordLevel({"▁the": 0, "s": 1, "▁cat": 2, "<s>": 3}, unk_token="s"))
    model.decoder = decoders.Metaspace()
    decode = token_decoder(PreTrainedTokenizerFast(tokenizer_object=model, bos_token="<s>"))
    assert [decode(i) for i in (0, 2, 1, 3)] == [" the", " cat", "s", "<s>"]


RATE = np.array([0.0, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.04, 0.03, 0.02, 0.01, 0.0])
COSINE = np.array([1.0, 0.5, 0.5, 0.5, 0.9, 0.5, 0.5, 0.5, 0.1, 0.5, 0.5, 0.0])
IS_FAKE = np.array([False] * 11 + [True])


def test_choice_by_hand():
    """One of each kind: most often 1, fake 11, best matched 4, least matched 8; the fifth is the highest of the rest.

    Latent 0 is matched best of all, and dead.
    """
    assert choose_latents(RATE, COSINE, IS_FAKE, 5).tolist() == [1, 2, 4, 8, 11]
    assert choose_latents(RATE, COSINE, IS_FAKE, 6).tolist() == [1, 2, 4, 8, 10, 11]
    assert choose_latents(RATE, None, np.zeros(12, bool), 5).tolist() == [1, 2, 5, 7, 10]


def test_all_that_live_or_are_fake_are_chosen_when_they_fit():
    for n_max in (11, 60, 1000):
        assert choose_latents(RATE, COSINE, IS_FAKE, n_max).tolist() == list(range(1, 12))
    assert choose_latents(np.zeros(3), None, np.zeros(3, bool), 10).tolist() == []


def test_never_more_are_chosen_than_asked_for_and_none_twice():
    rng = np.random.default_rng(0)
    for n_max in (1, 4, 7, 50, 300):
        chosen = choose_latents(rng.random(1000), rng.random(1000), rng.random(1000) < 0.1, n_max)
        assert len(chosen) == len(set(chosen.tolist())) == n_max
