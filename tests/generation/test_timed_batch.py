"""A few steps of sampling that are timed on request."""

from pathlib import Path

import pytest
import torch
from test_cli import generate, refused
from test_unsampled import RATES, last_line

import generate_datasets
from sae_utils.files import read_record
from sae_utils.generation.sampling import SamplingSettings
from sae_utils.generation.timed_batch import time_batch
from sae_utils.models import load_causal_lm


def test_timed_steps_give_the_time_of_all_the_others(tiny, capsys):
    """And nothing but the rate: no sample is kept that would be in no data set."""
    line = last_line(capsys, "--n", "300", "--time_steps")
    assert "already there: 0 samples, 0 tokens; left to sample: 300 samples, about " in line
    assert [path.name for path in Path("datasets").iterdir() if path.name != ".locks"] == [RATES.name]
    (timed,) = read_record(RATES, "")["rates"]
    generate("--n", "300")
    (run,) = read_record(RATES, "")["rates"]
    assert timed["of"] == run["of"], "the next plan takes it for a rate of the like"
    assert timed["n_tokens"] / timed["n_samples"] == pytest.approx(run["n_tokens"] / run["n_samples"], rel=0.1)
    assert timed["text_bytes"] == pytest.approx(run["text_bytes"], rel=0.1)


def test_what_there_was_no_time_for_is_counted_all_the_same(neox):
    """A batch that is cut after a few positions has its rest by a straight line."""
    source, settings = load_causal_lm(str(neox), torch.device("cpu"), torch.float32), SamplingSettings(max_length=60)
    whole, cut = (time_batch(source, settings, 8, timed_sec=sec) for sec in (1000.0, 0.0))
    assert cut.more["n_timed"] < 10 < whole.more["n_timed"] <= 60
    assert whole.n_tokens <= cut.n_tokens <= 8 * 60 and cut.elapsed_sec > 0


def test_a_device_that_is_not_here_cannot_be_timed(tiny, capsys):
    argv = ["--models", "./tiny", "--max_length", "40", "--time_steps"]
    said = refused(capsys, generate_datasets.main, [*argv, "--dry_run", "--device", "cuda"])
    assert "--time_steps needs the device that is planned for, and PyTorch sees no cuda:0 here" in said
    assert "give --dry_run with it" in refused(capsys, generate_datasets.main, argv)
