"""The laws of training: seeds do not see each other, and an interruption does not show."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sae_utils.models import cut_after_, find_layers, load_trunk
from sae_utils.packing import Chunks
from sae_utils.sparse_coders import SparseCoderConfig, TrainConfig
from sae_utils.trainer import STATE_FILE, SaeTrainer


class KilledError(Exception):
    """Stands for SIGKILL: nothing of the trainer runs after it."""


def make_trainer(folder, work_dir, *, seeds=(0, 1), n_chunks=24, **changes) -> SaeTrainer:
    """A trainer on layers 0 and 1 of a tiny model, with random token ids."""
    model = load_trunk(str(folder), torch.device("cpu"), torch.float32)
    cut_after_(model, 1)
    name = find_layers(model)[0]
    settings = {"batch_size": 2, "save_every": 3, "hookpoints": [f"{name}.0", f"{name}.1"], "init_seeds": list(seeds)}
    tokens = np.random.default_rng(0).integers(3, 250, (n_chunks, 12)).astype(np.int32)
    cfg = TrainConfig(SparseCoderConfig(num_latents=48, k=4), **(settings | changes))
    return SaeTrainer(cfg, Chunks(tokens), model, work_dir=work_dir)


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


def test_two_seeds_in_one_pass_are_two_single_runs(neox, tmp_path):
    """The point of sharing a pass: it may be faster, and must not be different, by a single bit."""
    together = make_trainer(neox, tmp_path)
    losses = train(together)
    for seed in (0, 1):
        alone = make_trainer(neox, tmp_path, seeds=[seed])
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
    changes = {"optimizer": optimizer, "dead_feature_threshold": 60}
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


def test_resumed_with_gradient_accumulation(neox, tmp_path):
    """Checkpoints fall between optimizer steps only: half-collected gradients are not saved."""
    changes = {"grad_acc_steps": 2, "micro_acc_steps": 2, "save_every": 1}
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


def test_a_kill_while_saving_leaves_the_last_state(neox, tmp_path, monkeypatch):
    trainer = make_trainer(neox, tmp_path)
    trainer.save_state()
    before = (tmp_path / STATE_FILE).read_bytes()
    monkeypatch.setattr(torch, "save", lambda state, file: file.write(b"half") and (_ for _ in ()).throw(KilledError()))
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
