from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import CONFIGS, load, make_model, train_tokenizer
from host_reads import HostReads
from scipy import stats
from transformers import AutoConfig, AutoModelForCausalLM

from sae_utils.errors import InputError, NonFiniteError
from sae_utils.generation import kv_cache, sampling
from sae_utils.generation.nucleus import choose_tokens
from sae_utils.generation.packed_attention import use_packed_attention_
from sae_utils.generation.sampling import (
    NLL_UNIT,
    Batch,
    Pace,
    SamplingSettings,
    pace_of,
    prepare_for_sampling_,
    sample_tokens,
)
from sae_utils.models import LoadedModel, load_causal_lm
from sae_utils.seeding import sample_uniforms


def slow_sample(source, sample_id, settings) -> list[int]:
    """One sample by running the whole model on the whole prefix at every step: no cache, no batch."""
    uniforms = sample_uniforms(settings.seed, [sample_id], settings.max_length)[0]
    ids = [source.bos_id]
    while len(ids) < settings.max_length:
        with torch.inference_mode():
            logits = source.model(torch.tensor([ids])).logits[:, -1]
        u = torch.tensor(uniforms[len(ids) - 1 : len(ids)])
        ids.append(choose_tokens(logits, u, temperature=settings.temperature, top_p=settings.top_p)[0].item())
        if ids[-1] in source.eos_ids:
            break
    return ids


@pytest.mark.parametrize("kind", ["neox", "llama", "gpt2"])
def test_same_as_running_the_whole_prefix_every_step(kind, request, monkeypatch):
    """The cache, the batch and the dropped rows are ways to be fast, and must not show in the tokens."""
    monkeypatch.setattr(kv_cache, "BLOCK_TOKENS", 16)  # so that the cache grows several times
    source = load(request.getfixturevalue(kind), torch.float64)
    settings = SamplingSettings(seed=3, temperature=1.3, top_p=0.95, max_length=60)
    fast = sample_tokens(source, range(40), settings)
    assert [row.ids.tolist() for row in fast[:8]] == [slow_sample(source, i, settings) for i in range(8)]
    assert len({len(row.ids) for row in fast}) > 1, "the test needs rows that end at different steps"


@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batch_size_does_not_change_samples(neox, batch_size, dtype):
    """On a CPU, to the last bit; in bfloat16 with packed weights, as the script samples."""
    source, settings = load_causal_lm(str(neox), torch.device("cpu"), dtype), SamplingSettings(seed=5, max_length=24)
    prepare_for_sampling_(source.model)
    together = sample_tokens(source, range(64), settings)
    pieces = [
        row
        for first in range(0, 64, batch_size)
        for row in sample_tokens(source, range(first, min(64, first + batch_size)), settings)
    ]
    assert all(np.array_equal(a.ids, b.ids) for a, b in zip(together, pieces, strict=True))


@pytest.mark.parametrize(("n_short", "is_fixed"), [(0, False), (0, True), (1, False), (4, False)])
def test_a_row_is_never_decoded_alone_on_a_cpu(llama, n_short, is_fixed):
    """Some round a product with one row otherwise in bfloat16, and the last text of a batch would be another."""
    source = load(llama, torch.float64)
    settings = SamplingSettings(seed=3, temperature=1.3, top_p=0.95, max_length=60)
    together = sample_tokens(source, range(40), settings)
    by_length = sorted(range(40), key=lambda sample_id: len(together[sample_id].ids))
    sample_ids = [*by_length[:n_short], by_length[-1]]
    n_rows, counted, forward = [], [], source.model.forward
    source.model.forward = lambda **inputs: n_rows.append(len(inputs["input_ids"])) or forward(**inputs)
    samples = sample_tokens(source, sample_ids, settings, is_fixed=is_fixed, on_tokens=counted.append)
    assert n_rows[0] == max(2, n_short + 1) and n_rows[-1] == min(n_rows) == 2
    assert sum(counted) == sum(len(sample.ids) for sample in samples)
    expected = [together[sample_id].ids.tolist() for sample_id in sample_ids]
    assert [sample.ids.tolist() for sample in samples] == expected
    assert n_short == 0 or len(expected[n_short - 1]) < len(expected[-1]), "the test needs a row that is left"


GPU_PACE = pace_of(torch.device("cuda"))


@pytest.mark.parametrize(
    "pace",
    [
        GPU_PACE,
        Pace(look_every=7, n_candidates=4, is_cache_whole=False),  # so few that positions are decoded again
        Pace(look_every=1, n_candidates=1, is_cache_whole=False),
    ],
)
@pytest.mark.parametrize("top_p", [0.5, 0.95, 1.0])
@pytest.mark.parametrize("is_fixed", [False, True])
def test_the_pace_does_not_show_in_what_is_sampled(llama, pace, top_p, is_fixed):
    """Looking rarely, going back, keeping ended rows: ways to be fast on some device, and nothing else."""
    source, settings = load(llama, torch.float64), SamplingSettings(seed=3, top_p=top_p, max_length=40)
    pace, counted, seen = replace(pace), [], []
    expected = sample_tokens(source, range(60), settings, on_tokens=counted.append)
    found = sample_tokens(source, range(60), settings, pace=pace, is_fixed=is_fixed, on_tokens=seen.append)
    assert len({len(sample.ids) for sample in expected}) > 2, "the test needs rows that end at different steps"
    for a, b in zip(expected, found, strict=True):
        assert np.array_equal(a.ids, b.ids)
        # Likelihoods are computed from logits in float32, and rounded.
        assert np.abs(a.nll - b.nll).max() <= 1
    assert sum(seen) == sum(counted) == sum(len(sample.ids) for sample in expected)


def test_positions_are_decoded_again_only_when_candidates_were_too_few(llama):
    """Else every block of a GPU would be paid for twice; and a wider search stays wide for the batches to come."""
    source, settings = load(llama), SamplingSettings(seed=3, top_p=0.95, max_length=33)
    assert [n_advances(source, settings, Pace(8, 4096, True)) for _ in range(2)] == [1 + 4, 1 + 4]
    narrow = Pace(8, 2, True)
    assert n_advances(source, settings, narrow) == 1 + 4 + 3
    assert narrow.n_candidates == 2 * 4**3
    assert n_advances(source, settings, narrow) == 1 + 4


def n_advances(source, settings, pace) -> int:
    """How often a batch has to be decoded a few positions further."""
    batch, n = Batch(source, range(20), settings, pace, is_fixed=True), 0
    while batch.n_live and batch.position < settings.max_length:
        batch.advance()
        n += 1
    return n


def test_what_comes_behind_an_eos_is_not_decoded_again(llama, monkeypatch):
    """There another text would begin, whose first tokens have wide nuclei: every block in which a row ends would be."""
    source, settings = load(llama), SamplingSettings(seed=3, max_length=33)
    (eos_id,), real, last = source.eos_ids, sampling.choose_among, []

    def wide_behind_eos(logits, uniforms, **how):
        chosen, nll, is_whole = real(logits, uniforms, **how)
        is_whole = is_whole & (last[-1] != eos_id) if last else is_whole
        last.append(torch.where(last[-1] == eos_id, eos_id, chosen) if last else chosen)
        return chosen, nll, is_whole

    monkeypatch.setattr(sampling, "choose_among", wide_behind_eos)
    batch = Batch(source, range(60), settings, Pace(8, 10**6, False), is_fixed=True)
    n_calls = 0
    while batch.n_live and batch.position < settings.max_length and n_calls < 10:
        batch.advance()
        n_calls += 1
    assert (batch.lengths < 33).any(), "the test needs rows that end"
    assert n_calls == 1 + 4


@pytest.mark.parametrize("kind", ["neox", "llama", "gpt2"])
def test_a_step_asks_the_device_for_nothing(kind, request):
    """Between two looks a GPU is given work without waiting for it; at a look there is one question."""
    source = load(request.getfixturevalue(kind))
    batch = Batch(source, range(6), SamplingSettings(max_length=40), replace(GPU_PACE), is_fixed=True)
    batch.advance()
    with torch.inference_mode(), HostReads() as reads:
        batch.decode(batch.position + 8, n_candidates=64)
    assert not reads.counts
    batch = Batch(source, range(6), SamplingSettings(max_length=40), replace(GPU_PACE), is_fixed=True)
    batch.advance()
    with torch.inference_mode(), HostReads() as reads:
        batch.advance()
    assert reads.counts == {"tolist": 1}


@pytest.mark.parametrize("kind", ["neox", "llama", "gpt2"])
def test_steps_run_on_a_device_that_holds_no_data(kind):
    """It stands for a GPU: what a step computes with is there, and whatever asks for a value fails."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIGS[kind](300)).eval()
    use_packed_attention_(model)
    source = LoadedModel(kind, model, None, 1, (2,))
    batch = Batch(source, range(6), SamplingSettings(max_length=40), replace(GPU_PACE), is_fixed=True)
    with torch.inference_mode():
        has_found = batch.decode(9, n_candidates=64)
    assert (has_found.device.type, has_found.dtype, has_found.shape) == ("meta", torch.bool, ())
    assert batch.cache.layers[0].key_buffer.shape[2] == 40
    with pytest.raises((RuntimeError, NotImplementedError)), torch.inference_mode():
        batch.advance()


def test_fixed_batches_pass_the_model_in_one_shape(llama):
    """What a GPU rounds depends on the shape: a sample's must not depend on when its neighbours end."""
    source, shapes = load(llama), []
    forward = source.model.forward
    source.model.forward = lambda **inputs: (shapes.append(tuple(inputs["input_ids"].shape)), forward(**inputs))[1]
    samples = sample_tokens(source, range(60), SamplingSettings(seed=3, max_length=40), is_fixed=True)
    assert len({len(sample.ids) for sample in samples}) > 2
    assert set(shapes) == {(60, 1)}


def test_samples_start_with_bos_and_end_with_eos_or_at_the_limit(llama):
    source = load(llama)
    rows = [s.ids for s in sample_tokens(source, range(200), SamplingSettings(max_length=30, top_p=1.0))]
    assert {row[0] for row in rows} == {source.bos_id}
    assert all(len(row) == 30 or row[-1] in source.eos_ids for row in rows)
    assert all(not np.isin(row[1:-1], source.eos_ids).any() for row in rows)
    assert any(len(row) < 30 for row in rows) and max(map(len, rows)) == 30


def test_progress_counts_the_tokens_that_are_kept(llama):
    seen = []
    rows = sample_tokens(load(llama), range(50), SamplingSettings(max_length=20), on_tokens=seen.append)
    assert sum(seen) == sum(len(row.ids) for row in rows)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
@pytest.mark.parametrize("top_p", [0.5, 0.9, 1.0])
def test_first_two_tokens_follow_the_model(tmp_path, temperature, top_p):
    """A subtle error in the nucleus or the streams would bias every SAE, and nothing would look odd."""
    folder = make_model(tmp_path / "m", "neox", seed=1)
    source = load(folder)
    rows = [s.ids for s in sample_tokens(source, range(20_000), SamplingSettings(1, temperature, top_p, max_length=3))]
    first = exact_probabilities(source, [source.bos_id], temperature, top_p)
    assert_follows([row[1] for row in rows], first)
    commonest = int(np.argmax(np.where(np.arange(len(first)) == source.bos_id, 0, first)))
    second = exact_probabilities(source, [source.bos_id, commonest], temperature, top_p)
    assert_follows([row[2] for row in rows if row[1] == commonest], second)


def exact_probabilities(source, prefix, temperature, top_p):
    """Truncated softmax after a prefix, float64, by a full sort."""
    with torch.inference_mode():
        logits = source.model(torch.tensor([prefix])).logits[0, -1].double() / temperature
    probs = torch.softmax(logits, -1).numpy()
    order = np.argsort(-probs, kind="stable")
    n_kept = int((np.cumsum(probs[order]) < top_p).sum()) + 1 if top_p < 1 else len(probs)
    kept = np.zeros_like(probs)
    kept[order[:n_kept]] = probs[order[:n_kept]]
    return kept / kept.sum()


def assert_follows(tokens, probs):
    """Chi-square test at 0.1 %; rare tokens are pooled so that each cell expects at least five."""
    counts = np.bincount(tokens, minlength=len(probs))
    assert counts[probs == 0].sum() == 0, "a token outside the nucleus was drawn"
    order = np.argsort(-probs)
    expected, observed = probs[order] * len(tokens), counts[order]
    n_common = int((expected >= 5).sum())
    assert n_common > 3, "the test needs a spread-out distribution"
    pooled = expected[n_common:].sum() >= 5
    cells = slice(0, n_common)
    expected_cells = [*expected[cells], *([expected[n_common:].sum()] if pooled else [])]
    observed_cells = [*observed[cells], *([observed[n_common:].sum()] if pooled else [])]
    scale = sum(observed_cells) / sum(expected_cells)
    assert stats.chisquare(observed_cells, np.array(expected_cells) * scale).pvalue > 1e-3


@pytest.mark.parametrize("temperature", [1.0, 1.4])
def test_likelihoods_are_the_models_own(llama, temperature):
    """At temperature 1 and without a nucleus, whatever was sampled with: that is what data sets are compared by."""
    source = load(llama)
    for sample in sample_tokens(source, range(5), SamplingSettings(temperature=temperature, top_p=0.7, max_length=20)):
        ids = torch.from_numpy(sample.ids).long()[None]
        with torch.inference_mode():
            log_probs = torch.log_softmax(source.model(ids).logits[0].double(), -1)
        expected = -log_probs[:-1].gather(1, ids[0, 1:, None]).squeeze(1).numpy()
        assert sample.nll[0] == 0
        assert sample.nll[1:] * NLL_UNIT == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", ["mistral", "gemma2", "qwen2"])
def test_other_caches_are_correct_too(tmp_path, kind, caplog):
    """Sliding windows need transformers' own cache layers: slower, said once, and just as right."""
    shape = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 4}
    shape |= {"num_key_value_heads": 2, "intermediate_size": 32, "initializer_range": 0.6, "bos_token_id": 1}
    window = {} if kind == "qwen2" else {"sliding_window": 8}
    config = AutoConfig.for_model(kind, **shape, **window, eos_token_id=2, pad_token_id=0)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    train_tokenizer(bos="<s>", eos="</s>", vocab_size=300).save_pretrained(tmp_path / kind)
    model.save_pretrained(tmp_path / kind)
    source, settings = load(tmp_path / kind), SamplingSettings(seed=2, max_length=24)
    with caplog.at_level("WARNING", logger="sae_utils"):
        fast = sample_tokens(source, range(6), settings)
    assert [row.ids.tolist() for row in fast] == [slow_sample(source, i, settings) for i in range(6)]
    assert ("transformers' own path" in caplog.text) == (kind != "qwen2")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": 0.0}, "--temperature must be > 0 and finite, got 0.0"),
        ({"temperature": float("inf")}, "--temperature must be > 0 and finite, got inf"),
        ({"top_p": 0.0}, r"--top_p must be in \(0, 1\], got 0.0"),
        ({"top_p": 1.1}, r"--top_p must be in \(0, 1\], got 1.1"),
        ({"max_length": 1}, "--max_length must be at least 2 tokens"),
        ({"seed": -1}, r"--seed must be in 0 .. 2\*\*64 - 1, got -1"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        SamplingSettings(**wrong)


@pytest.mark.parametrize("top_p", [0.9, 1.0])
@pytest.mark.parametrize("look_every", [1, 16])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampling_stops_at_the_first_logits_that_are_not_finite(neox, look_every, top_p, temperature):
    """NaN gives a data set of one repeated token, which looks finished."""
    source = load(neox)
    pace = Pace(look_every, None if look_every == 1 else sampling.EVERY_TOKEN, is_cache_whole=look_every > 1)
    settings = SamplingSettings(max_length=24, top_p=top_p, temperature=temperature)
    expected = sample_tokens(source, range(8), settings, pace=replace(pace))
    head, n_calls = source.model.get_output_embeddings().forward, 0

    def broken(hidden):
        nonlocal n_calls
        n_calls += 1
        logits = head(hidden)
        if n_calls >= 5:
            logits[3] = float("nan") if top_p < 1 else float("inf")
        return logits

    source.model.get_output_embeddings().forward = broken
    assert all(len(sample.ids) > 5 for sample in expected[:4]), "or row 3 would be another sample"
    with pytest.raises(NonFiniteError) as refused:
        sample_tokens(source, range(8), settings, pace=pace)
    said = str(refused.value)
    assert "NaN or infinite for the token at position 5 of sample 3 in float32; nothing of it is kept" in said
    assert "\n" not in said


def test_logits_of_rows_that_have_ended_may_be_anything(neox):
    """They are decoded along on a GPU, and cut off."""
    source, settings = load(neox), SamplingSettings(max_length=40, seed=1)
    expected = sample_tokens(source, range(6), settings)
    first = min(range(6), key=lambda i: len(expected[i].ids))
    end, head, n_calls = len(expected[first].ids), source.model.get_output_embeddings().forward, 0
    assert end < 40

    def broken_after_its_end(hidden):
        nonlocal n_calls
        n_calls += 1
        logits = head(hidden)
        if n_calls >= end:
            logits[first] = float("nan")
        return logits

    source.model.get_output_embeddings().forward = broken_after_its_end
    found = sample_tokens(source, range(6), settings, is_fixed=True)
    assert [sample.ids.tolist() for sample in found] == [sample.ids.tolist() for sample in expected]


def test_minus_infinity_is_a_token_that_cannot_come(neox):
    """Some models mask the tokens that fill up their vocabulary."""
    source = load(neox)
    head = source.model.get_output_embeddings().forward
    source.model.get_output_embeddings().forward = lambda hidden: head(hidden).index_fill(
        -1, torch.arange(200, 300), -torch.inf
    )
    samples = sample_tokens(source, range(4), SamplingSettings(max_length=24, top_p=1.0))
    assert all(
        np.isfinite(sample.nll).all() and not ((sample.ids >= 200) & (sample.ids < 300)).any() for sample in samples
    )
