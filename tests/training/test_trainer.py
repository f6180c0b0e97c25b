"""The laws of training: seeds do not see each other, and an interruption does not show."""

import contextlib
import gc
import os
import signal
import sys
import types
import weakref

import numpy as np
import pytest
import torch
from host_reads import HostReads
from safetensors.torch import load_file

from sae_utils.distributed import Workers
from sae_utils.errors import InputError, NonFiniteError
from sae_utils.evaluation.activations import layer_outputs
from sae_utils.exclusion import NOTHING, Exclusion
from sae_utils.files import DamagedFileError
from sae_utils.models import cut_after_, find_layers, load_trunk
from sae_utils.sources.packing import Chunks
from sae_utils.sparse_coders import SparseCoderConfig, TrainConfig, Trainer
from sae_utils.stopping import Stopped, stoppable
from sae_utils.training.trainer import STATE_FILE, SaeTrainer

LEAVING_OUT = {
    "nothing": NOTHING,
    "first and ids": Exclusion(has_first=True, ids=(5, 77)),
    "norms": Exclusion(has_first=True, max_norm=1.1),
}
"""What may be left out, by name; the limit for norms meets about a third of a random model's activations."""


class KilledError(Exception):
    """Stands for SIGKILL: nothing of the trainer runs after it."""


def make_trainer(
    folder, work_dir, *, seeds=(0, 1), n_chunks=24, ctx_len=12, dtype=torch.float32, exclusion=NOTHING, **changes
) -> SaeTrainer:
    """A trainer on layers 0 and 1 of a tiny model, with random token ids."""
    model = load_trunk(str(folder), torch.device("cpu"), dtype)
    cut_after_(model, 1)
    name = find_layers(model)[0]
    settings = {"batch_size": 2, "save_every": 3, "hookpoints": [f"{name}.0", f"{name}.1"], "init_seeds": list(seeds)}
    tokens = np.random.default_rng(0).integers(3, 250, (n_chunks, ctx_len)).astype(np.int32)
    cfg = TrainConfig(SparseCoderConfig(num_latents=48, k=4), **(settings | changes))
    return SaeTrainer(cfg, Chunks(tokens), model, work_dir=work_dir, exclusion=exclusion)


def train(trainer) -> list:
    """Train to the end; the losses of every step."""
    losses = []
    trainer.on_step = lambda n_tokens, report: losses.append((n_tokens, report))
    trainer.fit()
    return losses


def weights(trainer) -> dict[str, torch.Tensor]:
    return {f"{name}.{key}": value for name, sae in trainer.saes.items() for key, value in sae.state_dict().items()}


def assert_equal(a: dict, b: dict):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(params=LEAVING_OUT)
def exclusion(request) -> Exclusion:
    """What holds for all positions holds for what is kept of them."""
    return LEAVING_OUT[request.param]


def test_two_seeds_in_one_pass_are_two_single_runs(neox, tmp_path, exclusion):
    """The point of sharing a pass: it may be faster, and must not be different, by a single bit."""
    together = make_trainer(neox, tmp_path, exclusion=exclusion)
    losses = train(together)
    for seed in (0, 1):
        alone = make_trainer(neox, tmp_path, seeds=[seed], exclusion=exclusion)
        losses_alone = train(alone)
        for hook in alone.cfg.hookpoints:
            mine, theirs = together.saes[together.sae_name(hook, seed)], alone.saes[alone.sae_name(hook, seed)]
            assert_equal(mine.state_dict(), theirs.state_dict())
            name = together.sae_name(hook, seed)
            assert [report[name] for _, report in losses] == [report[hook] for _, report in losses_alone]


def test_seeds_give_different_saes(neox, tmp_path):
    trainer = make_trainer(neox, tmp_path)
    train(trainer)
    hook = trainer.cfg.hookpoints[0]
    assert not torch.equal(trainer.saes[f"{hook}/seed0"].W_dec, trainer.saes[f"{hook}/seed1"].W_dec)


@pytest.mark.parametrize("optimizer", ["signum", "adam", "muon"])
@pytest.mark.parametrize("killed_at", [4, 5, 9, 12])
def test_resumed_is_unbroken(neox, tmp_path, optimizer, killed_at):
    """A run that was killed ends with the weights and losses that it would have had, bit for bit."""
    # A small threshold, so that the counters of unfired tokens show in the dead shares that are compared.
    exclusion = LEAVING_OUT[{4: "norms", 5: "first and ids"}.get(killed_at, "nothing")]
    changes = {"optimizer": optimizer, "dead_feature_threshold": 60, "exclusion": exclusion}
    unbroken = make_trainer(neox, tmp_path / "a", **changes)
    expected = train(unbroken)
    assert any(each["dead_share"] not in (0, 1) for _, report in expected for each in report.values())

    broken = make_trainer(neox, tmp_path / "b", **changes)
    with pytest.raises(KilledError):
        broken.on_step = kill_at(killed_at)
        broken.fit()
    resumed = make_trainer(neox, tmp_path / "b", **changes)
    resumed.load_state()
    assert resumed.global_step == (killed_at - 1) // 3 * 3
    losses = train(resumed)
    assert losses == expected[-len(losses) :]
    assert_equal(weights(resumed), weights(unbroken))


def kill_at(step: int):
    """Stop at the end of a step, before its checkpoint is written."""
    seen = []

    def stop(n_tokens, report):
        seen.append(n_tokens)
        if len(seen) == step:
            raise KilledError

    return stop


def test_resumed_with_gradient_accumulation(neox, tmp_path, exclusion):
    """Checkpoints fall between optimizer steps only: half-collected gradients are not saved."""
    changes = {"grad_acc_steps": 2, "micro_acc_steps": 2, "save_every": 1, "exclusion": exclusion}
    unbroken = make_trainer(neox, tmp_path / "a", **changes)
    expected = train(unbroken)
    broken = make_trainer(neox, tmp_path / "b", **changes)
    broken.on_step = kill_at(3)
    with pytest.raises(KilledError):
        broken.fit()
    resumed = make_trainer(neox, tmp_path / "b", **changes)
    resumed.load_state()
    assert resumed.global_step == 4
    assert train(resumed) == expected[2:]
    assert_equal(weights(resumed), weights(unbroken))
    for hookpoint in unbroken.cfg.hookpoints:
        assert resumed.n_tokens_trained_on(hookpoint) == unbroken.n_tokens_trained_on(hookpoint)


def test_a_kill_while_saving_leaves_the_last_state(neox, tmp_path, monkeypatch):
    trainer = make_trainer(neox, tmp_path)
    trainer.save_state()
    before = (tmp_path / STATE_FILE).read_bytes()
    monkeypatch.setattr(
        torch, "save", lambda state, path: path.write_bytes(b"half") and (_ for _ in ()).throw(KilledError())
    )
    with pytest.raises(KilledError):
        trainer.save_state()
    assert (tmp_path / STATE_FILE).read_bytes() == before


def test_reported_loss_is_the_batch_fvu(neox, tmp_path):
    """Micro-batches are a way to save memory; with more of them the reported number stays what it is."""
    one = train(make_trainer(neox, tmp_path, n_chunks=2, lr=1e-9))
    two = train(make_trainer(neox, tmp_path, n_chunks=2, lr=1e-9, micro_acc_steps=2))
    for name, each in one[0][1].items():
        assert each["fvu"] == pytest.approx(two[0][1][name]["fvu"], rel=1e-5)


def test_weights_are_saved_in_the_form_they_are_used_in(neox, tmp_path):
    """Schedule-free training has two forms of the weights; exporting the wrong one costs accuracy, unnoticed."""
    trainer = make_trainer(neox, tmp_path)
    train(trainer)
    (optimizer,) = trainer.optimizers
    assert not optimizer.train_mode
    sae = next(iter(trainer.saes.values()))
    sae.save_to_disk(tmp_path / "sae")
    assert torch.equal(load_file(tmp_path / "sae" / "sae.safetensors")["W_dec"], sae.W_dec)


def test_global_state_is_left_alone(neox, tmp_path, capsys):
    """sparsify seeds the global generator per SAE, lowers matmul precision and prints; none of it may leak."""
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    train(make_trainer(neox, tmp_path))
    assert torch.equal(torch.rand(1), expected)
    assert torch.get_float32_matmul_precision() == "highest"
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Training" not in captured.err


def test_the_models_number_format_hardly_shows_in_the_losses(neox, tmp_path):
    """In float16 the variance of a batch is infinite, and every loss was 0; bfloat16 has two digits for it."""
    shape = {"n_chunks": 64, "ctx_len": 256, "batch_size": 16, "seeds": [0], "lr": 0.01}
    losses = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        trainer = make_trainer(neox, tmp_path, dtype=dtype, **shape)
        losses[dtype] = train(trainer)
        x = model_outputs(trainer)
        assert x.float().var(dim=0, correction=0).sum() * len(x) > torch.finfo(torch.float16).max, "no room is needed"
    first, last = losses[torch.float32][0][1], losses[torch.float32][-1][1]
    for dtype in (torch.bfloat16, torch.float16):
        for expected, (_, found) in ((first, losses[dtype][0]), (last, losses[dtype][-1])):
            for name, each in expected.items():
                assert found[name]["fvu"] == pytest.approx(each["fvu"], rel=0.01)
                assert 0.1 < each["fvu"] < 1.5


def model_outputs(trainer) -> torch.Tensor:
    """Output of layer 1 for the first batch, `(tokens, d_model)`."""
    ids = torch.stack([trainer.dataset[i]["input_ids"] for i in range(trainer.cfg.batch_size)])
    with torch.no_grad():
        seen = []
        handle = trainer.model.layers[1].register_forward_hook(lambda module, args, output: seen.append(output))
        trainer.model(ids)
        handle.remove()
    return (seen[0][0] if isinstance(seen[0], tuple) else seen[0]).flatten(0, 1)


@pytest.mark.parametrize("optimizer", ["signum", "adam", "muon"])
@pytest.mark.parametrize("is_collecting", [False, True])
def test_a_finished_trainer_is_freed(neox, tmp_path, optimizer, is_collecting):
    """A grid of four cells of 40,960 latents kept 18 GB of what was finished: hooks held the trainer in a circle."""
    trainer = make_trainer(neox, tmp_path, n_chunks=4, optimizer=optimizer)
    train(trainer)
    gone = [weakref.ref(trainer)]
    if is_collecting:  # PyTorch's learning rate schedules hold their optimizer in a circle of their own
        gone += [weakref.ref(optimizer) for optimizer in trainer.optimizers]
        gone += [weakref.ref(parameter) for sae in trainer.saes.values() for parameter in sae.parameters()]
    gc.collect()
    gc.disable()
    try:
        del trainer
        if is_collecting:
            gc.collect()
        assert [each() for each in gone] == [None] * len(gone)
    finally:
        gc.enable()


# what is left out


def kept_activations(trainer, rows, layer: int) -> torch.Tensor:
    """Activations of these sequences that are kept, looked at one by one, `(tokens, d_model)`."""
    exclusion, hookpoint, kept = trainer.exclusion, trainer.cfg.hookpoints[layer], []
    for row in rows:
        ids = trainer.dataset[row]["input_ids"]
        with torch.no_grad():
            (x,) = layer_outputs(trainer.model, [hookpoint], ids[None])[hookpoint]
        named = [i for i in range(len(ids)) if (i or not exclusion.has_first) and int(ids[i]) not in exclusion.ids]
        norms = sorted(float(x[i].norm()) for i in named)
        limit = (exclusion.max_norm or float("inf")) * norms[(len(norms) - 1) // 2]
        kept += [x[i] for i in named if float(x[i].norm()) <= limit]
    return torch.stack(kept)


@pytest.mark.parametrize("grad_acc", [1, 2])
def test_saes_see_what_is_kept_and_nothing_else(neox, tmp_path, exclusion, grad_acc):
    """Their input, the mean that they begin with, the variance of their loss, and what is counted."""
    trainer = make_trainer(neox, tmp_path, exclusion=exclusion, grad_acc_steps=grad_acc, n_chunks=8, seeds=[0], lr=1e-9)
    hook = trainer.cfg.hookpoints[1]
    seen, fired, counted = [], [], []

    def note(sae, args, kwargs, output) -> None:
        seen.append(kwargs.get("x"))
        fired.append(output.latent_indices)

    handle = trainer.saes[hook].register_forward_hook(note, with_kwargs=True)
    end = trainer._end_step
    trainer._end_step = lambda: (end(), counted.append(trainer.num_tokens_since_fired[hook].clone()))
    losses = train(trainer)
    handle.remove()
    expected = [kept_activations(trainer, (2 * i, 2 * i + 1), 1) for i in range(4)]
    assert all(torch.equal(found, x) for found, x in zip(seen, expected, strict=True)), "and nothing else"
    assert all(len(x) < 24 for x in expected) == (exclusion != NOTHING)
    assert trainer.n_tokens_trained_on(hook) == sum(map(len, expected))
    assert trainer.n_tokens_seen == 8 * 12
    with torch.no_grad():
        fvus = [((x - trainer.saes[hook](x).sae_out).pow(2).sum() / (x - x.mean(0)).pow(2).sum()) for x in expected]
    for step, (_, report) in enumerate(losses):
        mean = sum(fvus[step * grad_acc : (step + 1) * grad_acc]) / grad_acc
        assert report[hook]["fvu"] == pytest.approx(float(mean), rel=1e-3)
    unfired = torch.zeros(48, dtype=torch.int64)
    for step, found in enumerate(counted):
        batches = slice(step * grad_acc, (step + 1) * grad_acc)
        unfired += sum(map(len, expected[batches]))
        unfired[torch.cat([each.flatten() for each in fired[batches]])] = 0
        assert torch.equal(found, unfired)
    assert unfired.any()


@pytest.mark.parametrize(
    ("n_tokens", "n_parts", "is_cut_alike"), [(12, 4, True), (9, 4, False), (5, 4, False), (0, 2, False)]
)
def test_too_few_tokens_for_the_parts_of_a_batch_are_refused(neox, tmp_path, n_tokens, n_parts, is_cut_alike):
    """PyTorch cuts 9 into three threes where four parts are asked for; other processes would wait for the fourth."""
    trainer = make_trainer(neox, tmp_path, micro_acc_steps=n_parts)
    assert (len(torch.zeros(n_tokens).chunk(n_parts)) == n_parts and n_tokens > 0) == is_cut_alike
    trainer._check_parts(n_tokens)  # a process alone waits for nobody
    trainer.workers = Workers(0, 2)
    if is_cut_alike:
        trainer._check_parts(n_tokens)
    else:
        with pytest.raises(InputError, match=f"{n_tokens} tokens .* too few for --micro_acc_steps {n_parts}"):
            trainer._check_parts(n_tokens)


def test_ids_left_out_are_sparsifys_excluded_tokens(neox, tmp_path):
    """Its own option does this, and no more: what comes out is the same to the last bit."""
    ours = make_trainer(neox, tmp_path, exclusion=LEAVING_OUT["first and ids"], n_chunks=8)
    for row in ours.dataset.tokens:
        row[0] = 5  # so that the first position holds one of the ids
    train(ours)
    theirs = make_trainer(neox, tmp_path, n_chunks=8)
    theirs.dataset.tokens[:, 0] = 5
    theirs.exclude_tokens = torch.tensor([5, 77])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SaeTrainer, "_hooked", lambda self: contextlib.nullcontext())
        patch.setattr(SaeTrainer, "_end_step", lambda self: None)
        patch.setattr(SaeTrainer, "maybe_all_reduce", Trainer.maybe_all_reduce)
        theirs.fit()
    assert_equal(weights(ours), weights(theirs))


@pytest.mark.parametrize("optimizer", ["signum", "adam", "muon"])
def test_steps_ask_the_device_for_nothing_but_losses_every_few(neox, tmp_path, optimizer):
    """Each question empties a GPU's queue: the host then waits for the device, and the device for the host."""
    trainer = make_trainer(neox, tmp_path, optimizer=optimizer, save_every=10**9)
    trainer.read_back_steps = 4
    counts = []

    def step_counters() -> list[torch.Tensor]:
        """Adam counts steps on the host."""
        return [s["step"] for optimizer in trainer.optimizers for s in optimizer.state.values() if "step" in s]

    with HostReads(step_counters) as reads:
        end_step = trainer._end_step

        def counted() -> None:
            end_step()
            counts.append(dict(reads.counts))
            reads.counts.clear()

        trainer._end_step = counted
        trainer.fit()
    assert counts[1:9] == 2 * [{}, {}, {"tolist": 1}, {}]  # of steps 2 to 9; the first one builds things


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_step_counters_stay_on_the_host_after_a_resumption(neox, tmp_path, monkeypatch, optimizer):
    """Adam reads them at every step: loaded to a GPU, each of its parameters would make the host wait."""
    trainer = make_trainer(neox, tmp_path, optimizer=optimizer)
    train(trainer)
    trainer.save_state()
    resumed, load, seen = make_trainer(neox, tmp_path, optimizer=optimizer), torch.load, []
    monkeypatch.setattr(
        torch, "load", lambda *args, **kwargs: (seen.append(kwargs["map_location"]), load(*args, **kwargs))[1]
    )
    resumed.load_state()
    assert seen == ["cpu"]
    steps = [state["step"] for each in resumed.optimizers for state in each.state.values() if "step" in state]
    assert steps and all(step.is_cpu for step in steps)


def test_losses_are_reported_for_every_step_whenever_they_are_read(neox, tmp_path):
    """Read a few together, they are the same numbers in the same order, and a checkpoint finds them reported."""
    expected = train(make_trainer(neox, tmp_path / "a"))
    trainer = make_trainer(neox, tmp_path / "b", save_every=5)
    trainer.read_back_steps = 4
    saved_after, save_state, seen = [], trainer.save_state, []
    trainer.save_state = lambda: (saved_after.append(len(seen)), save_state())
    trainer.on_step = lambda *report: seen.append(report)
    trainer.fit()
    assert seen == expected
    assert saved_after == [5, 10]


def test_adam_is_the_same_with_bitsandbytes_installed(neox, tmp_path, monkeypatch):
    """sparsify takes its 8-bit Adam as soon as it can be imported: other weights, and another estimate of memory."""
    bitsandbytes = types.ModuleType("bitsandbytes.optim")
    bitsandbytes.Adam8bit = lambda groups: pytest.fail("Adam of bitsandbytes was taken")
    monkeypatch.setitem(sys.modules, "bitsandbytes", types.ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", bitsandbytes)
    trainer = make_trainer(neox, tmp_path, optimizer="adam")
    assert [type(each) for each in trainer.optimizers] == [torch.optim.Adam]
    assert sys.modules["bitsandbytes.optim"] is bitsandbytes


def test_steps_are_counted_one_by_one(neox, tmp_path):
    """Everything at the end of a step hangs on this assignment; another use of it by sparsify must not go unnoticed."""
    trainer = make_trainer(neox, tmp_path)
    trainer._is_fitting = True
    with pytest.raises(AssertionError, match="step 2 after step 0"):
        trainer.global_step = 2


# numbers that are none, and signals


def break_at(trainer, step: int, value: float, *, layer: int = 1) -> None:
    """Let a layer's output hold `value` from a batch on."""
    module, n_calls = find_layers(trainer.model)[1][layer], 0

    def spoil(module, inputs, output):
        nonlocal n_calls
        n_calls += 1
        if n_calls > step:
            (output[0] if isinstance(output, tuple) else output)[0, 3, 5] = value
        return output

    module.register_forward_hook(spoil, prepend=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("read_back", "grad_acc"), [(1, 1), (10, 1), (1, 2)])
def test_training_stops_at_the_first_activation_that_is_not_finite(neox, tmp_path, value, read_back, grad_acc):
    """One NaN ends in every weight, and what is published looks finished; the last good checkpoint must stay."""
    trainer = make_trainer(neox, tmp_path, grad_acc_steps=grad_acc)
    trainer.read_back_steps = read_back
    break_at(trainer, 8, value)
    with pytest.raises(NonFiniteError) as refused:
        train(trainer)
    step = 8 // grad_acc + 1
    where = f"after {step * grad_acc * 24:,} tokens (step {step}), in float32"
    assert f"at {trainer.cfg.hookpoints[1]} are NaN or infinite {where}" in str(refused.value)
    again = make_trainer(neox, tmp_path, grad_acc_steps=grad_acc)
    again.load_state()
    assert all(bool(torch.isfinite(value).all()) for value in weights(again).values())


def test_a_loss_that_is_not_finite_names_the_sae(neox, tmp_path):
    trainer = make_trainer(neox, tmp_path, lr=1e10)
    with pytest.raises(
        NonFiniteError, match=r"the loss of \S+/seed0 is (nan|inf) after .*on finite activations.*lower --lr"
    ):
        train(trainer)


def test_weights_that_the_last_step_has_spoilt_are_not_taken_for_finished(neox, tmp_path):
    """No loss shows what comes after the last one."""
    trainer = make_trainer(neox, tmp_path)
    end = trainer._read_back

    def spoil_at_the_end() -> None:
        end()
        if trainer.global_step == 12:
            next(iter(trainer.saes.values())).b_dec.data[0] = float("inf")

    trainer._read_back = spoil_at_the_end
    with pytest.raises(NonFiniteError, match=r"the weights of \S+ are NaN or infinite after 288 tokens"):
        train(trainer)


@pytest.mark.parametrize("grad_acc", [1, 2])
def test_a_signal_ends_training_after_the_step_and_loses_none(neox, tmp_path, grad_acc):
    """SIGTERM comes at any moment of a step: it is finished and kept, and the end is that of an unbroken run."""
    options = {"grad_acc_steps": grad_acc, "save_every": 100}
    unbroken = make_trainer(neox, tmp_path / "unbroken", **options)
    losses = train(unbroken)
    stopped = make_trainer(neox, tmp_path / "stopped", **options)
    n_calls = 0

    def send_in_the_fifth(module, inputs) -> None:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    find_layers(stopped.model)[1][0].register_forward_pre_hook(send_in_the_fifth)
    with pytest.raises(Stopped) as end, stoppable():
        train(stopped)
    assert end.value.exit_code == 143
    resumed = make_trainer(neox, tmp_path / "stopped", **options)
    resumed.load_state()
    assert resumed.global_step == {1: 5, 2: 6}[grad_acc]
    losses_after = train(resumed)
    assert losses_after == losses[-len(losses_after) :]
    assert_equal(weights(resumed), weights(unbroken))


def test_a_state_that_was_damaged_is_refused_by_name(neox, tmp_path):
    trainer = make_trainer(neox, tmp_path)
    trainer.global_step = 3
    trainer.save_state()
    (path,) = tmp_path.glob("state_*.pt")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(
        DamagedFileError, match=rf"{path.name} is damaged .*; rm -r {tmp_path}, and the same command trains"
    ):
        make_trainer(neox, tmp_path).load_state()
