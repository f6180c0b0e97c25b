"""Plans for models of which nothing is there but config.json."""

import re
import shutil
from pathlib import Path

import pytest
from random_model import SHAPES
from test_cli import TRAIN, generate, refused
from transformers import GPTNeoXConfig

import generate_datasets
import train_sae

PYTHIA_12B = {"hidden_size": 5120, "num_hidden_layers": 36, "num_attention_heads": 40, "intermediate_size": 20480}
N_PARAMETERS = {"pythia-70m": 70, "pythia-1.4b": 1415, "pythia-2.8b": 2775, "pythia-12b": 11846}
"""In millions, as the Pythia suite names them."""


def config_only(name: str) -> Path:
    """A folder with the published shape alone."""
    shape = {**SHAPES, "pythia-12b": PYTHIA_12B}[name]
    config = GPTNeoXConfig(
        vocab_size=50_688 if name == "pythia-12b" else 50_304, bos_token_id=0, eos_token_id=0, **shape
    )
    config.save_pretrained(Path("shapes") / name)
    return Path("shapes") / name


@pytest.mark.parametrize("name", N_PARAMETERS)
def test_sampling_is_planned_from_a_shape_alone(capsys, name):
    """Before a GPU is paid for, and before tens of GB are fetched."""
    folder = config_only(name)
    generate_datasets.main(["--models", str(folder), "--dry_run", "--device", "cuda", "--num_tokens", "100000000"])
    said = capsys.readouterr()
    n_parameters = int(re.search(r"  ([\d,]+) M parameters in bfloat16 on cuda:0", said.out)[1].replace(",", ""))
    assert n_parameters == pytest.approx(N_PARAMETERS[name], rel=0.02)
    assert f"{2e6 * n_parameters / 1e9:.1f}"[:-1] in said.out and "PyTorch sees no GPU here" in said.out
    assert "0.80 GB on disk, at most 2.8" in said.out, "28 bytes a token"
    assert "how long that takes is not known, as PyTorch sees no such device here" in said.out
    assert f"{folder} has no weights and no tokenizer: planned by its config.json alone" in said.err


@pytest.mark.parametrize("name", N_PARAMETERS)
def test_training_is_planned_from_a_shape_alone(capsys, name):
    config_only(name)
    argv = ["--org_name", "shapes", "--target_models", name, "--source_models", name, "--max_tokens", "100000000"]
    train_sae.main([*argv, "--layers", "3", "5", "--dry_run", "--device", "cuda", "--num_latents", "40960"])
    said = capsys.readouterr()
    d_model = {**SHAPES, "pythia-12b": PYTHIA_12B}[name]["hidden_size"]
    assert f"{name}_from_{name}: 40,960 latents, k 32, 1 pass (layers 3 5, seeds 0 1), about " in said.out
    saes = 4 * 4 * (2 * d_model * 40_960 + 40_960 + d_model) / 1e9
    assert float(re.search(r", ([\d.]+) GB on disk", said.out)[1]) == pytest.approx(saes, rel=0.03)
    assert "how long that takes is not known, as PyTorch sees no such device here" in said.out
    assert "planned by its config.json alone" in said.err


def test_a_run_is_refused_without_weights(tiny, capsys):
    shutil.copytree("tiny", "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    argv = ["--models", "./bare", "--max_length", "40"]
    generate_datasets.main([*argv, "--dry_run"])
    said = capsys.readouterr()
    assert "bare has no weights: planned by its config.json alone" in said.err and "samples together" in said.out
    assert "has no weights" in refused(capsys, generate_datasets.main, argv)
    assert "has no weights" in refused(capsys, generate_datasets.main, [*argv, "--dry_run", "--time_steps"])


def test_sources_that_are_there_are_not_packed_with_a_tokenizer_that_is_not(tiny, capsys):
    """Their texts would be read as numbers, and kept."""
    generate("--num_tokens", "2000")
    Path("bare").mkdir()
    shutil.copyfile("tiny/config.json", "bare/config.json")
    train_sae.main([*TRAIN, "--target_models", "./bare", "--dry_run", "--train_only"])
    assert "assumed: 62 rows, 0.00 GB when packed; bare has no tokenizer to pack them with" in capsys.readouterr().out
    assert not list(Path("datasets").glob(".packed/*.npy"))
