"""The same laws on a GPU, where there is one: `pytest -m gpu`."""

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from test_cli import generate, train

import train_sae
from sae_utils.matching import match_rows

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
