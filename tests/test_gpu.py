"""The same laws on a GPU, where there is one: `pytest -m gpu`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from test_cli import ROOT, TRAIN, generate, refused, train

import generate_datasets
import train_sae
from sae_utils.comparison.matching import match_rows
from sae_utils.generation.sampling import Batch, Pace, SamplingSettings, prepare_for_sampling_
from sae_utils.models import cut_after_, find_layers, load_causal_lm, load_trunk
from sae_utils.sources import packing
from sae_utils.sources.packing import Chunks
from sae_utils.sparse_coders import SparseCoderConfig, TrainConfig
from sae_utils.training.trainer import SaeTrainer

pytestmark = pytest.mark.gpu


def test_a_larger_data_set_begins_with_the_smaller_one(tiny):
    """float32 at one batch size: the same kernels see the same rows."""
    short = generate("--n", "50", "--device", "cuda", "--dtype", "float32", "--batch_size", "50")
    first = Dataset.load_from_disk(str(short))["input_ids"][:]
    longer = generate("--n", "100", "--device", "cuda", "--dtype", "float32", "--batch_size", "50")
    assert Dataset.load_from_disk(str(longer))["input_ids"][:50] == first


def test_bfloat16_samples_exactly_the_tokens_asked_for(tiny):
    folder = generate("--num_tokens", "5000", "--device", "cuda")
    assert json.loads((folder / "generation.json").read_text())["n_tokens"] == 5000


def test_training_lowers_fvu_and_its_folders_load(tiny):
    generate("--num_tokens", "20000")
    records = train("--device", "cuda", "--dtype", "float32")
    assert len(records) == 4
    assert all(record["fvu"] < 0.9 for record in records)


def test_the_comparison_is_that_of_a_cpu(tiny):
    generate("--num_tokens", "3000")
    train("--device", "cpu")
    found = {}
    for device in ("cpu", "cuda"):
        flags = ["--eval_only", "--quiet", "--random_tokens", "500", "--device", device, "--results_dir", device]
        train_sae.main(flags)
        found[device] = json.loads(Path(device, "metrics.json").read_text())
    for on_cpu, on_gpu in zip(found["cpu"]["saes"], found["cuda"]["saes"], strict=True):
        for a, b in zip(on_cpu["evaluations"], on_gpu["evaluations"], strict=True):
            assert a["fvu"] == pytest.approx(b["fvu"], rel=1e-3)
            assert a["ce_sae_nats"] == pytest.approx(b["ce_sae_nats"], rel=1e-3)
    for on_cpu, on_gpu in zip(found["cpu"]["pairs"], found["cuda"]["pairs"], strict=True):
        assert on_cpu["mean_matched_cosine"] == pytest.approx(on_gpu["mean_matched_cosine"], abs=1e-5)


def test_matching_is_the_same_on_both_devices():
    a, b = torch.randn(2, 500, 64, generator=torch.Generator().manual_seed(0))
    on_cpu, on_gpu = match_rows(a, b), match_rows(a.cuda(), b.cuda())
    assert on_cpu.cosine.sum() == pytest.approx(on_gpu.cosine.sum(), rel=1e-6)


def sampled(folder: str = "datasets") -> list[list[int]]:
    return Dataset.load_from_disk(f"{folder}/tiny_42_1.0_0.9")["input_ids"][:]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_same_command_samples_the_same_ids(tiny, dtype):
    generate("--n", "60", "--device", "cuda", "--dtype", dtype, "--batch_size", "32")
    first = sampled()
    generate("--n", "60", "--device", "cuda", "--dtype", dtype, "--batch_size", "32", "--overwrite")
    assert sampled() == first


def test_fixed_batches_give_the_same_ids_whatever_is_asked_for(tiny):
    """In bfloat16, where other shapes round otherwise."""
    flags = ["--device", "cuda", "--dtype", "bfloat16", "--batch_size", "32", "--fixed_batches"]
    generate("--n", "7", *flags)
    generate("--n", "40", *flags)
    generate("--n", "100", *flags)
    extended = sampled()
    generate("--n", "100", *flags, "--overwrite")
    assert sampled() == extended
    record = json.loads(Path("datasets/tiny_42_1.0_0.9/generation.json").read_text())
    assert (record["device_name"], record["batches"]) == (torch.cuda.get_device_name(), [[32, True]])


def test_killed_generation_on_a_gpu_goes_on(tiny):
    flags = ["--n", "60", "--device", "cuda", "--dtype", "float32", "--batch_size", "16"]
    generate(*flags)
    expected = sampled()
    argv = ["--models", "./tiny", "--max_length", "40", "--quiet", *flags, "--output_dir", "killed"]
    # A process of its own: CUDA does not survive a fork.
    code = "import sys; from conftest import _run_until; import generate_datasets\n"
    code += "_run_until(generate_datasets.main, sys.argv[1:], 4)"
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    killed = subprocess.run([sys.executable, "-c", code, *argv], env=os.environ | {"PYTHONPATH": path})
    assert killed.returncode < 0
    generate_datasets.main(argv)
    assert sampled("killed") == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_every_format_trains(tiny, dtype, device):
    """Float16 gave losses of 0; formats are close to each other."""
    generate("--num_tokens", "20000", "--device", "cpu")
    records = train("--device", device, "--dtype", dtype, "--num_seeds", "1", "--layers", "1")
    reference = train("--device", "cpu", "--num_seeds", "1", "--layers", "1", "--checkpoint_dir", "on_cpu")
    assert records[0]["fvu"] == pytest.approx(reference[0]["fvu"], rel=0.1)


def test_training_on_a_gpu_goes_on_from_a_checkpoint(tiny, monkeypatch):
    generate("--num_tokens", "4000", "--device", "cpu")
    flags = ["--device", "cuda", "--dtype", "float32", "--save_every", "5"]
    expected = train(*flags)
    end_step = SaeTrainer._end_step

    def end_step_or_stop(trainer):
        end_step(trainer)
        if trainer.global_step == 12:
            raise KeyboardInterrupt

    monkeypatch.setattr(SaeTrainer, "_end_step", end_step_or_stop)
    with pytest.raises(SystemExit):
        train(*flags, "--checkpoint_dir", "stopped")
    monkeypatch.setattr(SaeTrainer, "_end_step", end_step)
    for a, b in zip(expected, train(*flags, "--checkpoint_dir", "stopped"), strict=True):
        assert a["fvu"] == pytest.approx(b["fvu"], rel=0.02)


@pytest.mark.parametrize("script", ["generate_datasets.py", "train_sae.py"])
def test_torchrun_with_one_process(tiny, script):
    generate("--num_tokens", "3000", "--device", "cpu")
    own = {
        "generate_datasets.py": ["--models", "./tiny", "--max_length", "40", "--n", "20", "--output_dir", "alone"],
        "train_sae.py": [*TRAIN, "--train_only"],
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "1", "--standalone", "--"]
    done = subprocess.run(
        [*command, str(ROOT / script), *own[script], "--device", "cuda:0"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_odd_numbers_of_latents_are_refused(tiny, capsys):
    generate("--num_tokens", "3000", "--device", "cpu")
    capsys.readouterr()
    assert "multiple of 8" in refused(capsys, train_sae.main, [*TRAIN, "--num_latents", "50", "--device", "cuda"])


def test_a_decoding_block_never_waits_for_the_gpu(tiny):
    """PyTorch itself raises at whatever would."""
    source = load_causal_lm("tiny", torch.device("cuda", 0), torch.bfloat16)
    prepare_for_sampling_(source.model)
    batch = Batch(source, range(40), SamplingSettings(max_length=60), Pace(16, 64, True), is_fixed=True)
    batch.advance()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.inference_mode():
            batch.decode(batch.position + 16, n_candidates=64)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("optimizer", ["signum", "adam", "muon"])
def test_training_steps_never_wait_for_the_gpu(tiny, monkeypatch, optimizer):
    """Between two readings of the losses, and after the first steps, in which things are built."""
    monkeypatch.setattr(packing, "SEQUENCES_PER_COPY", 8)
    model = load_trunk("tiny", torch.device("cuda", 0), torch.bfloat16)
    cut_after_(model, 1)
    hookpoints = [f"{find_layers(model)[0]}.{layer}" for layer in (0, 1)]
    tokens = torch.randint(3, 250, (60, 32)).int().numpy()
    cfg = TrainConfig(
        SparseCoderConfig(num_latents=64, k=4),
        batch_size=2,
        hookpoints=hookpoints,
        init_seeds=[0, 1],
        optimizer=optimizer,
        save_every=10**9,
    )
    trainer = SaeTrainer(cfg, Chunks(tokens), model, work_dir=Path("work"))
    trainer.read_back_steps = 10**9
    end_step = trainer._end_step

    def end_step_then_watch() -> None:
        end_step()
        if trainer.global_step in (5, 25):
            torch.cuda.set_sync_debug_mode("error" if trainer.global_step == 5 else "default")

    trainer._end_step = end_step_then_watch
    try:
        trainer.fit()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_memory_of_finished_passes_returns_to_the_gpu(tiny):
    """Four cells one after the other take what one takes."""
    generate("--num_tokens", "4000", "--device", "cpu")
    flags = ["--device", "cuda", "--num_latents", "8192", "--num_seeds", "1", "--layers", "1"]
    train(*flags)
    before = torch.cuda.memory_allocated()
    for name in "abc":
        train(*flags, "--checkpoint_dir", name)
    assert torch.cuda.memory_allocated() <= before + 1_000_000
