import contextlib
import logging

import numpy as np
import pytest
import torch
from conftest import load
from torch.nn import functional

from sae_utils.errors import InputError
from sae_utils.evaluation import splicing
from sae_utils.evaluation.activations import encode, layer_outputs
from sae_utils.evaluation.intervals import interval_of, resample_counts
from sae_utils.evaluation.splicing import kl_divergence, layers_up_to, measure_splices, recovered_share, replaced_output
from sae_utils.exclusion import NOTHING, Exclusion
from sae_utils.hookpoints import layer_names
from sae_utils.models import find_layers
from sae_utils.sources.packing import Chunks
from sae_utils.sparse_coders import SparseCoder, SparseCoderConfig

D_MODEL = 16
KINDS = pytest.mark.parametrize("kind", ["neox", "llama", "gpt2"])
TOKENS = np.random.default_rng(0).integers(3, 290, (5, 12)).astype(np.int32)


def random_sae(seed: int) -> SparseCoder:
    torch.manual_seed(seed)
    return SparseCoder(D_MODEL, SparseCoderConfig(num_latents=40, k=4))


def perfect_sae() -> SparseCoder:
    """Positive and negative part of every dimension: the sum of both, and so the reconstruction, is exact."""
    sae = SparseCoder(D_MODEL, SparseCoderConfig(num_latents=2 * D_MODEL, k=2 * D_MODEL))
    eye = torch.cat([torch.eye(D_MODEL), -torch.eye(D_MODEL)])
    sae.encoder.weight.data, sae.W_dec.data = eye, eye.clone()
    return sae


def constant_sae(value: torch.Tensor) -> SparseCoder:
    """Reconstructs everything as one vector."""
    sae = random_sae(0)
    sae.W_dec.data.zero_()
    sae.b_dec.data = value
    return sae


def means_of(model, names) -> dict[str, torch.Tensor]:
    outputs = layer_outputs(model, names, torch.from_numpy(TOKENS).long())
    return {name: x.flatten(0, 1).double().mean(dim=0) for name, x in outputs.items()}


def hooked(model, make) -> dict:
    """An SAE for each of the two layers."""
    name = find_layers(model)[0]
    return {layer: (f"{name}.{layer}", make(layer)) for layer in (0, 1)}


def measure(model, saes, batch_size=2, **options):
    means = means_of(model, [name for name, _ in saes.values()])
    return measure_splices(model, saes, Chunks(TOKENS), means, batch_size=batch_size, **options)


def numbers(record) -> dict:
    """Without intervals and bins."""
    return {name: record[name] for name in splicing.NAMES}


def reference(model, layer, replace, *, exclusion=NOTHING, special_ids=()) -> tuple[float, float]:
    """Cross-entropy and KL, one sequence at a time, the whole model with a hook, PyTorch's own losses."""

    def hook(module, inputs, output):
        x = output[0] if isinstance(output, tuple) else output
        kept.append(exclusion.keeps(row[None], x)[0])
        new = torch.where(kept[-1][:, None], replace(x), x)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    entropies, divergences, kept = [], [], []
    for row in torch.from_numpy(TOKENS).long():
        clean = model(row[None]).logits[0, :-1].double()
        module = find_layers(model)[1][layer] if isinstance(layer, int) else model.base_model.get_submodule(layer)
        handle = module.register_forward_hook(hook)
        spliced = model(row[None]).logits[0, :-1].double()
        handle.remove()
        counted = [i for i in range(11) if kept[-1][i] and int(row[i + 1]) not in special_ids]
        entropies += functional.cross_entropy(spliced, row[1:], reduction="none")[counted]
        log_p, log_q = clean.log_softmax(-1), spliced.log_softmax(-1)
        divergences += functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)[counted]
    return float(torch.stack(entropies).mean()), float(torch.stack(divergences).mean())


@KINDS
def test_clean_cross_entropy_is_transformers_own_loss(kind, request):
    model = load(request.getfixturevalue(kind)).model
    ids = torch.from_numpy(TOKENS).long()
    with torch.no_grad():
        expected = float(model(ids, labels=ids).loss)
    for record in measure(model, hooked(model, random_sae)).values():
        assert record["ce_clean_nats"] == pytest.approx(expected, abs=1e-5)


@KINDS
def test_an_untouched_activation_changes_nothing(kind, request):
    model = load(request.getfixturevalue(kind)).model
    for record in measure(model, hooked(model, lambda layer: perfect_sae())).values():
        assert record["ce_sae_nats"] == record["ce_clean_nats"]
        assert record["kl_nats"] == record["ce_diff_nats"] == 0
        assert record["ce_recovered"] == 1


@KINDS
def test_reconstructions_of_zero_and_of_the_mean_are_ce_zero_and_ce_mean(kind, request):
    model = load(request.getfixturevalue(kind)).model
    means = {int(name[-1]): mean.float() for name, mean in means_of(model, hooked_names(model)).items()}
    for record in measure(model, hooked(model, lambda layer: constant_sae(torch.zeros(D_MODEL)))).values():
        assert record["ce_sae_nats"] == record["ce_zero_nats"] != record["ce_clean_nats"]
        assert record["ce_recovered"] == 0
    for record in measure(model, hooked(model, lambda layer: constant_sae(means[layer]))).values():
        assert record["ce_sae_nats"] == pytest.approx(record["ce_mean_nats"], abs=1e-6)
        assert record["ce_mean_nats"] != pytest.approx(record["ce_zero_nats"], abs=1e-3)


@KINDS
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"exclusion": Exclusion(has_first=True, ids=(int(TOKENS[1, 4]),)), "special_ids": TOKENS[2, 3:9].tolist()},
        {"exclusion": Exclusion(max_norm=1.1)},
    ],
)
@torch.no_grad()
def test_same_as_a_plain_computation(kind, options, request):
    """Every SAE in turn, the whole model each time, against layers that hand on what was computed once."""
    model = load(request.getfixturevalue(kind)).model
    saes = hooked(model, random_sae)
    means = means_of(model, hooked_names(model))
    for layer, record in measure(model, saes, **options).items():
        name, sae = saes[layer]
        ce_clean, _ = reference(model, layer, torch.clone, **options)
        ce_sae, kl = reference(model, layer, lambda x, sae=sae: sae(x.flatten(0, 1)).sae_out.view_as(x), **options)
        ce_zero, _ = reference(model, layer, torch.zeros_like, **options)
        ce_mean, _ = reference(model, layer, lambda x, name=name: means[name].float().expand_as(x), **options)
        assert record["ce_clean_nats"] == pytest.approx(ce_clean, abs=1e-5)
        assert record["ce_sae_nats"] == pytest.approx(ce_sae, abs=1e-5)
        assert record["kl_nats"] == pytest.approx(kl, abs=1e-5)
        assert record["ce_zero_nats"] == pytest.approx(ce_zero, abs=1e-5)
        assert record["ce_mean_nats"] == pytest.approx(ce_mean, abs=1e-5)
        assert record["ce_diff_nats"] == pytest.approx(ce_sae - record["ce_clean_nats"], abs=1e-5)
        assert record["ce_recovered"] == pytest.approx(
            (ce_zero - ce_sae) / (ce_zero - record["ce_clean_nats"]), abs=1e-4
        )


def test_without_a_prediction_that_counts_there_is_no_number(neox):
    """As where rows have two tokens and the first is left out; the script must not end there."""
    model = load(neox).model
    for record in measure(model, hooked(model, random_sae), special_ids=range(400)).values():
        assert numbers(record) == dict.fromkeys(splicing.NAMES)
        assert record["ce_sae_nats_interval"] is None


@torch.no_grad()
def test_intervals_are_those_of_sequences_drawn_anew(neox):
    """Means and shares of each resample, computed on its sequences one by one."""
    model = load(neox).model
    saes, means = hooked(model, random_sae), means_of(load(neox).model, hooked_names(model))
    record = measure(model, saes)[0]
    alone = [
        measure_splices(model, saes, Chunks(TOKENS[i : i + 1]), means, batch_size=1)[0] for i in range(len(TOKENS))
    ]
    resampled = {name: [] for name in splicing.NAMES}
    for drawn in resample_counts(len(TOKENS)):
        mean = {name: sum(n * each[name] for n, each in zip(drawn, alone, strict=True)) / 5 for name in splicing.NAMES}
        lost, left = mean["ce_zero_nats"] - mean["ce_clean_nats"], mean["ce_zero_nats"] - mean["ce_sae_nats"]
        for name, values in resampled.items():
            values.append(left / lost if name == "ce_recovered" else mean[name])
    for name, values in resampled.items():
        assert record[f"{name}_interval"] == pytest.approx(interval_of(np.array(values)), abs=1e-5), name
        assert alone[0][f"{name}_interval"] is None, "of a single sequence"


@torch.no_grad()
def test_bins_of_positions_add_up(neox):
    """Predictions are counted where they are made; with the first left out, its bin is empty."""
    model = load(neox).model
    for options in ({}, {"exclusion": Exclusion(has_first=True), "special_ids": [int(TOKENS[2, 3])]}):
        for record in measure(model, hooked(model, random_sae), **options).values():
            bins = record["ce_by_position"]
            n = [each["n_predictions"] for each in bins]
            assert n == ([5, 5, 10, 20, 15] if not options else [0, *n[1:]]) and len(n) == 5
            for name in ("ce_clean_nats", "ce_sae_nats"):
                total = sum(each[name] * each["n_predictions"] for each in bins if each["n_predictions"])
                assert total / sum(n) == pytest.approx(record[name])
        assert (bins[0]["ce_sae_nats"] is None) == bool(options)


def test_layers_up_to_the_replaced_one_are_computed_once(neox, caplog):
    """Not once more for every SAE: that is the point of handing on."""
    model = load(neox).model
    calls = []
    find_layers(model)[1][1].mlp.register_forward_hook(lambda *_: calls.append(1))
    find_layers(model)[1][0].mlp.register_forward_hook(lambda *_: calls.append(0))
    done = []
    saes = {seed: ("layers.0", random_sae(seed)) for seed in (0, 1)}
    measure_splices(model, saes, Chunks(TOKENS), means_of(model, ["layers.0"]), batch_size=5, on_tokens=done.append)
    calls = calls[1:]  # of the mean
    assert calls.count(0) == 1
    assert calls.count(1) == 6, "clean, trial, zeros, mean, two SAEs"
    assert done == [60]
    assert caplog.records == []


@torch.no_grad()
def test_a_model_that_looks_further_back_is_run_whole(neox, caplog):
    """Resuming it would give wrong numbers: its last layer also reads the attention of its first."""
    model = load(neox).model
    layers = find_layers(model)[1]
    kept = {}
    model.base_model.embed_in.register_forward_hook(lambda m, i, output: kept.update(skip=torch.zeros_like(output)))
    layers[0].attention.register_forward_hook(lambda m, i, output: kept.update(skip=output[0]))
    layers[1].register_forward_pre_hook(lambda m, args: (args[0] + kept["skip"], *args[1:]))
    saes = {0: ("layers.0", random_sae(0))}
    with caplog.at_level(logging.WARNING):
        record = measure(model, saes)[0]
    ce_sae, kl = reference(model, 0, lambda x: saes[0][1](x.flatten(0, 1)).sae_out.view_as(x))
    assert record["ce_sae_nats"] == pytest.approx(ce_sae, abs=1e-5)
    assert record["kl_nats"] == pytest.approx(kl, abs=1e-5)
    assert caplog.messages == [
        "GPTNeoXForCausalLM: resuming after layer 0 is not exact, so the whole model is run for every SAE"
    ]


def test_neither_batches_nor_pieces_of_logits_change_the_result(gpt2, monkeypatch):
    model = load(gpt2).model
    saes = hooked(model, random_sae)
    expected = measure(model, saes, batch_size=5)
    monkeypatch.setattr(splicing, "LOGITS_IN_CACHE", 3 * model.config.vocab_size)
    for layer, record in measure(model, saes, batch_size=2).items():
        assert numbers(record) == pytest.approx(numbers(expected[layer]), abs=1e-5)


@KINDS
def test_models_in_bfloat16(kind, request):
    model = load(request.getfixturevalue(kind)).model.bfloat16()
    for record in measure(model, hooked(model, lambda layer: perfect_sae())).values():
        assert record["kl_nats"] == 0
    for record in measure(model, hooked(model, random_sae)).values():
        assert record["kl_nats"] > 0
        assert np.isfinite(list(numbers(record).values())).all()


@KINDS
def test_the_model_is_as_before_even_after_a_failure(kind, request):
    model = load(request.getfixturevalue(kind)).model
    ids = torch.from_numpy(TOKENS).long()
    with torch.no_grad():
        expected = model(ids).logits
    state = [sorted(vars(module)) for module in model.modules()]
    saes = hooked(model, random_sae)
    means = means_of(model, hooked_names(model))
    names = list(means)
    measure_splices(model, saes, Chunks(TOKENS), means, batch_size=5)
    for wrong in [
        lambda: measure_splices(model, saes, Chunks(TOKENS + 10**6), means, batch_size=5),
        lambda: measure_splices(
            model, saes, Chunks(TOKENS), {name: torch.zeros(D_MODEL + 1) for name in names}, batch_size=5
        ),
    ]:
        with pytest.raises((IndexError, RuntimeError)):
            wrong()
    with contextlib.suppress(KeyError), replaced_output(find_layers(model)[1], None, is_resumed=True):
        raise KeyError
    assert [sorted(vars(module)) for module in model.modules()] == state
    assert not any(module._forward_hooks for module in model.modules())
    with torch.no_grad():
        assert torch.equal(model(ids).logits, expected)


def test_a_forward_set_by_another_library_is_put_back(neox):
    layer = find_layers(load(neox).model)[1][0]
    layer.forward = own = lambda *args, **kwargs: "own"
    with replaced_output([layer], "other", is_resumed=True):
        assert layer(torch.zeros(1)) == "other"
    assert layer.forward is own


def test_kl_by_hand_and_as_in_pytorch():
    log_p = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]).log()
    log_q = torch.tensor([[0.25, 0.75, 0.0], [1.0, 0.0, 0.0]]).log()
    by_hand = 0.5 * np.log(2) + 0.5 * np.log(2 / 3)
    assert kl_divergence(log_p, log_q).tolist() == pytest.approx([by_hand, 0])
    log_p, log_q = torch.randn(2, 7, 50).mul(4).log_softmax(-1)
    expected = functional.kl_div(log_q.double(), log_p.double(), log_target=True, reduction="none").sum(dim=-1)
    assert torch.allclose(kl_divergence(log_p, log_q), expected, atol=1e-5)


def test_recovered_share_by_hand():
    assert recovered_share(clean=3.0, spliced=3.5, zero=5.0) == 0.75
    assert recovered_share(clean=3.0, spliced=3.5, zero=3.0) is None


def test_only_decoder_layers_and_modules_inside_can_be_replaced(neox, gpt2):
    model = load(gpt2).model
    assert list(layers_up_to(model, "h.1")) == list(model.base_model.h[:2])
    assert layers_up_to(model, "h.1.mlp") == [model.base_model.h[1].mlp]
    with pytest.raises(InputError, match=r"layers\.0 \.\. layers\.1, or .* got 'layers\.0\.mlp\.act'"):
        layers_up_to(load(neox).model, "layers.0.mlp.act")


@KINDS
@pytest.mark.parametrize("hookpoint", ["mlp_out", "attn_out"])
@torch.no_grad()
def test_modules_inside_layers_are_replaced_like_layers(kind, hookpoint, request):
    """What goes around them, the residual stream, stays; against a plain hook on the whole model."""
    model = load(request.getfixturevalue(kind)).model
    name = layer_names(model, [1], hookpoint)[1]
    sae = random_sae(1)
    (found,) = measure(model, {1: (name, sae)}).values()
    expected = {
        "ce_sae_nats": reference(model, name, lambda x: encode(sae, x).x_hat.view_as(x)),
        "ce_zero_nats": reference(model, name, torch.zeros_like),
    }
    for number, (entropy, divergence) in expected.items():
        assert found[number] == pytest.approx(entropy, abs=1e-5)
        if number == "ce_sae_nats":
            assert found["kl_nats"] == pytest.approx(divergence, abs=1e-5) and divergence > 1e-4
    assert found["ce_zero_nats"] != pytest.approx(found["ce_clean_nats"], abs=1e-4)


def hooked_names(model) -> list[str]:
    return [f"{find_layers(model)[0]}.{layer}" for layer in (0, 1)]
