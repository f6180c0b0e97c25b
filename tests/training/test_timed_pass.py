"""A few steps of training that are timed on request."""

from pathlib import Path

from test_cli import TRAIN, generate, refused, train
from test_status import RATES, status

import train_sae
from sae_utils.files import read_record


def test_timed_steps_give_the_time_of_all_the_others(tiny, capsys):
    """And nothing but the rate: no SAE is kept, and a run that follows begins at the beginning."""
    generate("--num_tokens", "2000")
    head, cell = status(capsys, "--time_steps")
    assert head.startswith("0 of 4 SAEs are finished, 4 left to train: about ")
    assert "tok/s over 320 tokens" in cell, "5 steps of 64 tokens, behind 5 others"
    assert [path.name for path in Path("checkpoints").iterdir() if path.name != ".locks"] == [RATES.name]
    (timed,) = read_record(RATES, "")["rates"]
    train()
    (run,) = read_record(RATES, "")["rates"]
    assert timed["of"] == run["of"], "the next plan takes it for a rate of the like"


def test_a_device_that_is_not_here_cannot_be_timed(tiny, capsys):
    generate("--num_tokens", "2000")
    said = refused(capsys, train_sae.main, [*TRAIN, "--dry_run", "--time_steps", "--device", "cuda"])
    assert "--time_steps needs the device that is planned for, and PyTorch sees no cuda:0 here" in said
