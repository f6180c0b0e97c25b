"""Bytes on the disk that a plan of training foretells, held against those that were written."""

from pathlib import Path

import pytest
import torch
from peaks import DiskPeak
from test_cli import TRAIN, generate
from test_loop import planned

import train_sae
from sae_utils.disk import DiskUse
from sae_utils.distributed import Workers
from sae_utils.training.folders import Checkpoints
from sae_utils.training.machines import find_machines
from sae_utils.training.passes import PassMemory
from sae_utils.training.room import grid_disk
from sae_utils.training.variants import name_variants

SIZE = ["--num_latents", "512", "--save_every", "10"]


def foretold(*flags: str, keep_at: tuple[int, ...] = (), keeps_state: bool = False) -> DiskUse:
    """By the plan of training, without anything on the disk."""
    checkpoints = Checkpoints(Path("checkpoints"), save_every=10, keeps_state=keeps_state)
    cells = name_variants(planned(*SIZE, *flags), checkpoints, Workers(), keep_at=keep_at)
    machines = find_machines(torch.device("cpu"), Workers(), distribute_modules=False)
    return grid_disk(cells, range(2), machines, checkpoints)


@pytest.mark.parametrize(
    ("flags", "keep_at", "n_fit"),
    [
        ([], (), 4),
        (["--optimizer", "adam"], (), 4),
        (["--optimizer", "muon"], (), 4),
        ([], (), 1),
        ([], (640, 1280), 4),
        (["--keep_state"], (), 2),
    ],
)
def test_a_foretold_disk_is_within_a_twentieth_of_what_was_written(tiny, monkeypatch, flags, keep_at, n_fit):
    """Checkpoints with the optimizer's state are several times as large as the SAEs that stay."""
    generate("--num_tokens", "2000")
    monkeypatch.setattr(PassMemory, "fitting", lambda memory, free: n_fit)
    use = foretold(*flags, keep_at=keep_at, keeps_state="--keep_state" in flags)
    kept = ["--keep_at", *map(str, keep_at)] if keep_at else []
    with DiskPeak(Path("checkpoints")) as peak:
        train_sae.main([*TRAIN, "--train_only", *SIZE, *flags, *kept])
    assert use.n_peak == pytest.approx(peak.n_peak, rel=0.05)
    assert use.n_final == pytest.approx(peak.n_final, rel=0.05)


def test_without_a_checkpoint_there_is_none_on_the_disk(tiny):
    """A short run never writes one."""
    generate("--num_tokens", "2000")
    flags = ["--num_latents", "512", "--save_every", "1000"]
    checkpoints = Checkpoints(Path("checkpoints"), save_every=1000)
    machines = find_machines(torch.device("cpu"), Workers(), distribute_modules=False)
    use = grid_disk(planned(*flags), range(2), machines, checkpoints)
    with DiskPeak(Path("checkpoints")) as peak:
        train_sae.main([*TRAIN, "--train_only", *flags])
    assert use.n_peak == pytest.approx(peak.n_peak, rel=0.05)
