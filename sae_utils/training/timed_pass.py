"""A few real steps of training, timed on request, so that a plan knows how long the rest takes."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel

from sae_utils.devices import is_here
from sae_utils.errors import InputError
from sae_utils.hookpoints import layer_names
from sae_utils.memory import release_memory
from sae_utils.models import cut_for_now
from sae_utils.rates import Rate, Stopwatch, keep_rate
from sae_utils.training.cells import Cell
from sae_utils.training.folders import Checkpoints
from sae_utils.training.loop import load_target
from sae_utils.training.machines import Machines
from sae_utils.training.passes import Pass
from sae_utils.training.single_pass import sparsify_config
from sae_utils.training.speed import about_pass
from sae_utils.training.status import passes_left
from sae_utils.training.trainer import READ_BACK_STEPS, SaeTrainer

TIMED_STEPS = 5
"""Optimizer steps that are timed, after as many that are not; of a GPU, ten times as many of both."""

NEVER = 10**9
"""Steps between checkpoints of what is thrown away."""


def time_training(cells: Sequence[Cell], seeds: Sequence[int], machines: Machines, checkpoints: Checkpoints) -> None:
    """Take a few steps of every kind of pass that is left, and keep their rates; the SAEs are thrown away.

    Raises:
        InputError: If the device is not here.
    """
    if not is_here(machines.device):
        raise InputError(
            f"--time_steps needs the device that is planned for, and PyTorch sees no {machines.device} here"
        )
    timed: list[dict] = []
    on_the_way = {each.name for cell in cells for each in cell.kept}
    for cell in cells:
        for each in [] if cell.name in on_the_way else passes_left(cell, seeds, machines, checkpoints):
            about = about_pass(cell, each.which, machines)
            if about not in timed and each.n_left:
                timed.append(about)
                rate = time_pass(cell, each.which, machines)
                if machines.workers.is_main:
                    keep_rate(checkpoints.folder, about, rate)


def time_pass(cell: Cell, which: Pass, machines: Machines) -> Rate | None:
    """The rate of a few steps of a pass; None if its cell has only one."""
    part = cell.with_layers(which.layers)
    model = load_target(part, machines)
    with tempfile.TemporaryDirectory() as folder, cut_for_now(model, max(which.layers)):
        rate = _time_steps(part, which, model, machines, Path(folder))
    del model
    release_memory(machines.device)
    return rate


def _time_steps(cell: Cell, which: Pass, model: PreTrainedModel, machines: Machines, folder: Path) -> Rate | None:
    """The same with its model loaded."""
    settings, target = cell.settings, cell.target
    n_steps = 2 * TIMED_STEPS * READ_BACK_STEPS[machines.device.type]
    chunks, _ = cell.split()
    names = layer_names(model, which.layers, settings.hookpoint)
    cfg = sparsify_config(
        settings,
        target.d_model,
        target.n_latents,
        hookpoints=list(names.values()),
        seeds=which.seeds,
        distribute_modules=machines.distribute_modules,
        save_every=NEVER,
    )
    few = chunks.select(range(min(len(chunks), n_steps * settings.chunks_per_step)))
    trainer = SaeTrainer(cfg, few, model, work_dir=folder, exclusion=target.exclusion, workers=machines.workers)
    watch, n_half = Stopwatch(), len(few) // settings.chunks_per_step // 2 * settings.chunks_per_step

    def note(n_tokens: int, losses: object) -> None:
        if n_tokens >= n_half * settings.ctx_len:
            watch.note(trainer.n_tokens_seen)

    trainer.on_step = note
    trainer.fit()
    return watch.rate()
