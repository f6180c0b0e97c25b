"""A larger budget that goes on from a kept state ends as one that was there from the beginning."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from conftest import run_killed
from test_cli import TRAIN, all_bytes, generate, refused, train
from test_kept import same_saes

import train_sae
from sae_utils.training.trainer import SaeTrainer

FLAGS = ["--lr", "0.01", "--save_every", "9"]


def steps_taken(monkeypatch) -> list[int]:
    """Fills with the steps that are trained from here on."""
    steps, end = [], SaeTrainer._end_step

    def watched(self):
        steps.append(self.global_step)
        end(self)

    monkeypatch.setattr(SaeTrainer, "_end_step", watched)
    return steps


@pytest.mark.parametrize("more", [[], ["--grad_acc_steps", "2"], ["--exclude", "first", "norm:1.1"]])
def test_extended_is_trained_at_once(tiny, monkeypatch, more):
    """In weights, losses and numbers; what was finished stays, and the steps that are taken are the new ones."""
    generate("--num_tokens", "2000")
    train(*FLAGS, *more, "--max_tokens", "1280", "--keep_state")
    before = {name: content for name, content in all_bytes(Path("checkpoints")).items() if "_seed_" in name}
    steps = steps_taken(monkeypatch)
    train(*FLAGS, *more, "--max_tokens", "1920")
    assert steps and min(steps) > 20
    train(*FLAGS, *more, "--max_tokens", "1920", "--checkpoint_dir", "at_once")
    for seed in (0, 1):
        extended = f"tiny_from_tiny_tokens_1920_seed_{seed}"
        same_saes("checkpoints", "at_once", extended, f"tiny_from_tiny_seed_{seed}")
    after = all_bytes(Path("checkpoints"))
    assert {name: after[name] for name in before} == before
    assert {path.name for path in Path("checkpoints").iterdir() if "_seed_" not in path.name} <= {
        "tiny_from_tiny_layers_0_1_seeds_0_1.resumable",
        ".locks",
        ".rates.json",
    }


@pytest.mark.parametrize("moment", [1, 3, 5, 8])
def test_an_extension_that_is_killed_goes_on(tiny, moment):
    """Also while the state is copied: the one that was kept is still there."""
    generate("--num_tokens", "2000")
    small = [*FLAGS, "--num_seeds", "1", "--layers", "1", "--max_tokens", "1280", "--keep_state"]
    large = [*FLAGS, "--num_seeds", "1", "--layers", "1", "--max_tokens", "1920"]
    train(*small)
    assert run_killed(train_sae.main, [*TRAIN, *large, "--train_only"], moment), "killed too late"
    train(*large)
    train(*large, "--checkpoint_dir", "at_once")
    same_saes("checkpoints", "at_once", "tiny_from_tiny_tokens_1920_seed_0", "tiny_from_tiny_seed_0")


def test_a_cell_that_has_grown_goes_on_from_all_of_its_states(tiny, monkeypatch):
    """A state for each time it grew: none is lost to the next, and no step is taken twice."""
    generate("--num_tokens", "2000")
    train(*FLAGS, "--max_tokens", "1280", "--keep_state", "--layers", "1", "--num_seeds", "1")
    train(*FLAGS, "--max_tokens", "1280", "--keep_state", "--layers", "0", "1", "--num_seeds", "2")
    assert len(list(Path("checkpoints").glob("*.resumable"))) == 3
    steps = steps_taken(monkeypatch)
    train(*FLAGS, "--max_tokens", "1920")
    assert min(steps) > 20
    train(*FLAGS, "--max_tokens", "1920", "--checkpoint_dir", "at_once")
    for seed, layer in itertools.product((0, 1), (0, 1)):
        name = f"layers.{layer}/sae.safetensors"
        extended = Path(f"checkpoints/tiny_from_tiny_tokens_1920_seed_{seed}", name).read_bytes()
        assert extended == Path(f"at_once/tiny_from_tiny_seed_{seed}", name).read_bytes()


def test_only_a_state_of_the_same_is_gone_on_from(tiny, monkeypatch):
    """Another learning rate, fewer seeds than share the state, or all thrown away: from the beginning."""
    generate("--num_tokens", "2000")
    train(*FLAGS, "--max_tokens", "1280", "--keep_state")
    steps = steps_taken(monkeypatch)
    train("--lr", "0.02", "--save_every", "9", "--max_tokens", "1920")
    assert min(steps) == 1
    for flags in (["--num_seeds", "1"], ["--overwrite"]):
        steps.clear()
        train(*FLAGS, *flags, "--max_tokens", "1920")
        assert min(steps) == 1


def test_a_damaged_state_is_named(tiny, capsys):
    generate("--num_tokens", "2000")
    train(*FLAGS, "--max_tokens", "1280", "--keep_state")
    (path,) = Path("checkpoints").glob("*.resumable/*/state_*.pt")
    state = torch.load(path, weights_only=True)
    assert state["n_tokens_trained_on"]
    path.write_bytes(path.read_bytes()[:-100])
    capsys.readouterr()
    error = refused(capsys, train_sae.main, [*TRAIN, *FLAGS, "--max_tokens", "1920"])
    assert path.name in error and "trains this pass anew" in error


def test_without_being_asked_no_state_is_kept(tiny):
    generate("--num_tokens", "2000")
    train("--num_seeds", "1")
    assert not list(Path("checkpoints").glob("*.resumable"))
    assert json.loads(Path("checkpoints/tiny_from_tiny_seed_0/run.json").read_text())["n_train_tokens"] == 1920
