"""How a cell is divided, among passes and among processes, does not show in what it trains."""

import gc
import json
import os
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from conftest import make_model
from safetensors.torch import load_file
from test_cli import ROOT, TRAIN, all_bytes, compared, generate, parsed, refused, train

import train_sae
from sae_utils.distributed import Workers
from sae_utils.sparse_coders import SparseCoder
from sae_utils.training import machines, single_pass
from sae_utils.training.cells import Cell
from sae_utils.training.grid import plan_grid
from sae_utils.training.trainer import SaeTrainer

FOLDERS = ["tiny_from_tiny_seed_0", "tiny_from_tiny_seed_1"]


def assert_same_folders(expected: str, found: str) -> None:
    """Everything that was trained, byte for byte."""
    for folder in FOLDERS:
        assert compared(Path(found) / folder) == compared(Path(expected) / folder)


@pytest.mark.parametrize("n_passes", [2, 4])
def test_several_passes_train_what_one_does(tiny, monkeypatch, capsys, n_passes):
    """A small device must cost time only."""
    generate("--num_tokens", "2000")
    train()
    memory = planned()[0].memory(torch.device("cpu"), is_replicated=False)
    monkeypatch.setattr(machines, "free_bytes", lambda device: int(memory.of(4 // n_passes) / 0.85) + 1)
    argv = [*TRAIN, "--train_only", "--checkpoint_dir", "divided"]
    train_sae.main([flag for flag in argv if flag != "--quiet"])
    assert f"{n_passes} passes (layers 0, seeds 0" in capsys.readouterr().out
    assert_same_folders("checkpoints", "divided")


def test_memory_is_looked_at_after_packing(tiny, monkeypatch, capsys):
    """Packing may take hours, in which others fill the device; the number decides into how many passes a cell goes."""
    generate("--num_tokens", "2000")
    memory = planned()[0].memory(torch.device("cpu"), is_replicated=False)
    shutil.rmtree("datasets/.packed")
    monkeypatch.setattr(
        machines,
        "free_bytes",
        lambda device: int(memory.of(2 if list(Path("datasets").glob(".packed/*.npy")) else 4) / 0.85) + 1,
    )
    capsys.readouterr()
    train_sae.main([*TRAIN, "--dry_run"])
    assert "2 passes" in capsys.readouterr().out


def planned(*flags: str) -> list[Cell]:
    args = parsed(*flags)
    choice, settings = train_sae.grid_choice(args), train_sae.training_settings(args)
    return plan_grid(choice, settings, torch.float32, torch.device("cpu"), Workers())


def test_out_of_memory_divides_the_pass_and_goes_on(tiny, monkeypatch, capsys):
    """The estimate was wrong: nothing is lost but the steps of the pass that did not fit."""
    generate("--num_tokens", "2000")
    train()
    fit = SaeTrainer.fit

    def fit_if_small(trainer):
        if len(trainer.saes) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        fit(trainer)

    monkeypatch.setattr(SaeTrainer, "fit", fit_if_small)
    train("--checkpoint_dir", "divided")
    assert "out of memory with layers 0 1, seeds 0 1; going on with layers 0, seeds 0 1" in capsys.readouterr().err
    assert_same_folders("checkpoints", "divided")


def test_out_of_memory_with_one_sae_says_what_to_lower(tiny, monkeypatch, capsys):
    generate("--num_tokens", "2000")
    monkeypatch.setattr(SaeTrainer, "fit", lambda trainer: (_ for _ in ()).throw(torch.OutOfMemoryError("too much")))
    with pytest.raises(SystemExit) as stop:
        train()
    assert stop.value.code == 2
    assert (
        "out of memory while training a single SAE (layers 0, seeds 0); lower --batch_size" in capsys.readouterr().err
    )


def test_out_of_memory_keeps_a_checkpoint(tiny, monkeypatch, capsys):
    """Another program may have taken the device for a while: days of training must not be thrown away for it."""
    generate("--num_tokens", "2000")
    train()
    capsys.readouterr()
    end_step = SaeTrainer._end_step

    def end_step_or_fail(trainer):
        end_step(trainer)
        if trainer.global_step == 12:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(SaeTrainer, "_end_step", end_step_or_fail)
    flags = [*TRAIN, "--train_only", "--save_every", "5", "--checkpoint_dir", "kept"]
    assert "which fitted before; the checkpoint in kept/" in refused(capsys, train_sae.main, flags)
    assert json.loads(next(Path("kept").rglob("state.json")).read_text())["global_step"] == 10
    monkeypatch.setattr(SaeTrainer, "_end_step", end_step)
    train_sae.main(flags)
    assert_same_folders("checkpoints", "kept")


def test_a_seed_that_is_removed_while_the_others_wait_is_trained_again(tiny, monkeypatch):
    """A damaged folder's error says to remove it; a run killed while publishing would go on without its seed."""
    generate("--num_tokens", "2000")
    train()
    replace = os.replace

    def replace_one(source, target):
        if Path(target).name == FOLDERS[1]:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_one)
    flags = [*TRAIN, "--train_only", "--checkpoint_dir", "stopped"]
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train_sae.main(flags)
    monkeypatch.setattr(os, "replace", replace)
    shutil.rmtree(Path("stopped") / FOLDERS[0])
    train_sae.main(flags)
    assert_same_folders("checkpoints", "stopped")


@pytest.mark.parametrize("optimizer", ["signum", "adam"])
def test_nothing_of_a_pass_is_kept_for_the_next(tiny, monkeypatch, optimizer):
    """Four cells kept four cells' SAEs, gradients and optimizers on the device, which was planned for one."""
    generate("--num_tokens", "2000")
    memory = planned()[0].memory(torch.device("cpu"), is_replicated=False)
    monkeypatch.setattr(machines, "free_bytes", lambda device: int(memory.of(1) / 0.85) + 1)
    fit, held, n_alive = SaeTrainer.fit, [], []

    def watched(trainer):
        n_alive.append(sum(each() is not None for each in held))
        held.append(weakref.ref(trainer))
        held.extend(weakref.ref(optimizer) for optimizer in trainer.optimizers)
        held.extend(weakref.ref(sae.W_dec) for sae in trainer.saes.values())
        fit(trainer)

    monkeypatch.setattr(SaeTrainer, "fit", watched)
    evaluate, while_measuring = single_pass.evaluate_reconstruction, []
    monkeypatch.setattr(
        single_pass,
        "evaluate_reconstruction",
        lambda *args, **kwargs: (while_measuring.append(held[-2]()), evaluate(*args, **kwargs))[1],
    )
    gc.disable()
    try:
        train("--optimizer", optimizer)
    finally:
        gc.enable()
    assert n_alive == [0, 0, 0, 0]
    assert while_measuring == [None] * 4, "optimizers"
    assert [each() for each in held] == [None] * len(held)


def test_other_errors_are_not_taken_for_memory(tiny, monkeypatch):
    generate("--num_tokens", "2000")
    monkeypatch.setattr(SaeTrainer, "fit", lambda trainer: (_ for _ in ()).throw(RuntimeError("a bug of ours")))
    with pytest.raises(RuntimeError, match="a bug of ours"):
        train()


# corpora


def test_corpora_are_sources_like_any_other(tiny):
    """Three sources of different sizes: one budget, and what is held out of each is in no training batch."""
    generate("--num_tokens", "4000")
    Path("prose.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 400)
    Path("facts.jsonl").write_text("".join(json.dumps({"text": f"number {i} is {i}"}) + "\n" for i in range(250)))
    records = train("--text_datasets", "prose.txt", "facts.jsonl", "--num_seeds", "1", "--layers", "0")
    assert [record["source"] for record in records] == ["facts", "prose", "tiny"]
    runs = [json.loads(path.read_text()) for path in sorted(Path("checkpoints").glob("*/run.json"))]
    assert [run["dataset"] for run in runs] == ["facts.jsonl", "prose.txt", "datasets/tiny_42_1.0_0.9"]
    assert len({(run["n_train_tokens"], run["n_eval_tokens"]) for run in runs}) == 1
    cells = planned("--text_datasets", "prose.txt", "facts.jsonl")
    assert len({len(cell.packed.chunks) for cell in cells}) == 3, "sources of one size test nothing"


def test_a_corpus_alone_is_enough(tiny):
    Path("prose.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 100)
    train("--source_models", "--text_datasets", "prose.txt", "--num_seeds", "1")
    assert Path("checkpoints/tiny_from_prose_seed_0/layers.0/sae.safetensors").exists()


def test_changed_text_is_not_trained_on_as_if_it_were_the_same(tiny, capsys):
    argv = [*TRAIN, "--train_only", "--text_datasets", "prose.txt", "--num_seeds", "1"]
    generate("--num_tokens", "2000")
    Path("prose.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 400)
    train_sae.main(argv)
    Path("prose.txt").write_text("the quick brown dog jumps over the lazy fox\n" * 400)
    capsys.readouterr()
    said = refused(capsys, train_sae.main, argv)
    assert "source_fingerprint was" in said and "more or less of a corpus is taken than then" in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--source_models"], "nothing to train on: --source_models is empty"),
        (["--text_datasets", "nowhere.txt"], "--text_datasets nowhere.txt does not exist"),
        (["--text_datasets", "tiny.txt"], "--source_models and --text_datasets must have different short names"),
        (["--distribute_modules"], "--distribute_modules needs several processes, started by torchrun"),
    ],
)
def test_refused_in_one_line(tiny, capsys, flags, message):
    generate("--num_tokens", "300")
    capsys.readouterr()
    assert message in refused(capsys, train_sae.main, [*TRAIN, *flags])


# several processes


def torchrun(*flags: str, fails: bool = False) -> str:
    """Run training in two processes; what they printed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "--"]
    done = subprocess.run(
        [*command, str(ROOT / "train_sae.py"), *TRAIN, "--train_only", *flags],
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert (done.returncode != 0) == fails, done.stderr
    return done.stdout + done.stderr


def losses(folder: str) -> list[dict]:
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def with_data(tmp_path):
    """A model and a data set with an odd number of sequences."""
    make_model(Path("tiny"), "neox")
    generate("--num_tokens", "2020")  # 63 sequences of 32


@pytest.mark.parametrize(
    "how",
    [
        [],
        ["--distribute_modules", "--exclude", "first", "norm:1.1"],
        ["--optimizer", "muon", "--exclude"],
        ["--micro_acc_steps", "2", "--exclude", "7", "norm:1.2"],
    ],
)
def test_two_processes_train_what_one_does(with_data, how):
    """Whole batches are the same, in the same order, and so is what is left out of them; only rounding may differ.

    For Muon that is the rounding of bfloat16, in which sparsify makes its updates orthogonal.
    """
    near, weights_near = (1e-2, 2e-2) if "muon" in how else (1e-4, 1e-4)
    one = [flag for flag in how if flag != "--distribute_modules"]
    settings = ["--optimizer", "adam", "--grad_acc_steps", "2", "--max_tokens", "1024"]
    train(*settings, *one)
    torchrun(*settings, *how, "--checkpoint_dir", "two")
    for folder in FOLDERS:
        expected, found = losses(f"checkpoints/{folder}"), losses(f"two/{folder}")
        assert len(expected) == len(found) == 8
        for a, b in zip(expected, found, strict=True):
            assert a == pytest.approx(b, rel=near)
        saes = SparseCoder.load_many(f"two/{folder}", local=True)
        assert list(saes) == ["layers.0", "layers.1"]
        weights = load_file(f"checkpoints/{folder}/layers.1/sae.safetensors")
        torch.testing.assert_close(saes["layers.1"].W_dec.data, weights["W_dec"], rtol=1e-3, atol=weights_near)
        runs = [json.loads(Path(f"{where}/{folder}/run.json").read_text()) for where in ("checkpoints", "two")]
        assert [run["n_processes"] for run in runs] == [1, 2]
        n_kept = [[sae["n_tokens_trained_on"] for sae in run["saes"]] for run in runs]
        assert n_kept[0] == n_kept[1] and (max(n_kept[0]) < 1024) == (how[-1:] != ["--exclude"])
    assert sorted(all_bytes(Path("two"))) == sorted(all_bytes(Path("checkpoints")))


@pytest.mark.parametrize("how", [[], ["--distribute_modules"]])
def test_two_processes_go_on_where_they_were_killed(with_data, how):
    """Every process's state is in a checkpoint: the end is that of an unbroken run of two, bit for bit."""
    options = ["--save_every", "5", "--exclude", "first", "norm:1.1"]
    torchrun(*how, *options)
    argv = [*how, *options, "--checkpoint_dir", "killed"]
    code = (
        "import os, signal, sys; sys.path.insert(0, sys.argv.pop(1));"
        "from sae_utils.training.trainer import SaeTrainer; import train_sae; end = SaeTrainer._end_step\n"
        "def deadly(self):\n"
        "    end(self)\n"
        "    if self.global_step == 12 and self.workers.rank == 1: os.kill(os.getpid(), signal.SIGKILL)\n"
        "SaeTrainer._end_step = deadly\n"
        "train_sae.main(sys.argv[1:])"
    )
    Path("deadly.py").write_text(code)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "--"]
    subprocess.run(
        [*command, "deadly.py", str(ROOT), *TRAIN, "--train_only", *argv], capture_output=True, env=os.environ
    )
    assert json.loads(next(Path("killed").rglob("state.json")).read_text())["global_step"] == 10
    if how:
        assert "was begun with --distribute_modules on 2 processes and cannot go on" in refused_by_one(argv[1:])
    torchrun(*argv)
    assert_same_folders("checkpoints", "killed")


def test_distributed_losses_are_the_same_whenever_they_are_read(with_data):
    """On GPUs several steps are read together: every process's part of every step must find its place."""
    torchrun("--distribute_modules")
    Path("seldom.py").write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from sae_utils.training import trainer; trainer.READ_BACK_STEPS['cpu'] = 7\n"
        "import train_sae; train_sae.main(sys.argv[1:])"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "--"]
    argv = [*TRAIN, "--train_only", "--distribute_modules", "--checkpoint_dir", "seldom"]
    done = subprocess.run([*command, "seldom.py", *argv], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert_same_folders("checkpoints", "seldom")


def refused_by_one(argv: list[str]) -> str:
    """What a single process says."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "train_sae.py"), *TRAIN, *argv], capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 2
    return done.stderr


def test_a_batch_that_cannot_be_shared_out_is_refused(with_data):
    assert "must be a multiple of their number, got 3 for 2 processes" in torchrun("--batch_size", "3", fails=True)


# what is left to do
