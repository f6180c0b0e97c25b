"""Training the target x source grid, cell by cell, each in as few passes of the target model as memory allows."""

import contextlib
import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from sae_utils.files import remove_folder
from sae_utils.hookpoints import layer_names
from sae_utils.locks import Lock
from sae_utils.memory import release_memory
from sae_utils.models import cut_after_, find_layers, fingerprint_trunk, load_trunk
from sae_utils.paths import METRICS_FILE, RUN_RECORD
from sae_utils.records import versions
from sae_utils.training.cells import Cell
from sae_utils.training.extension import keep_state, parts_by_state, take_up
from sae_utils.training.finished import publish, reader_config, run_record
from sae_utils.training.folders import CellFolders, Checkpoints
from sae_utils.training.machines import Machines
from sae_utils.training.monitor import TrainingMonitor
from sae_utils.training.passes import Pass
from sae_utils.training.remaining import Job, has_leftovers, is_of, next_job, passes_of, read_plan, write_plan
from sae_utils.training.single_pass import train_pass_within_memory
from sae_utils.training.tracking import Tracker
from sae_utils.training.wandb_login import Tracking

logger = logging.getLogger(__name__)


def train_grid(
    cells: Sequence[Cell],
    seeds: Sequence[int],
    machines: Machines,
    checkpoints: Checkpoints,
    tracking: Tracking,
    *,
    quiet: bool = False,
) -> list[Path]:
    """Train every cell that is not finished; each target is loaded once, and only if something is left to do.

    Args:
        cells: What is trained on what, cells of a target next to each other.
        seeds: Seeds of the SAEs of each layer.
        machines: Where.
        checkpoints: How SAEs are kept.
        tracking: Where W&B runs go; changed when they cannot go there.
        quiet: No bars.

    Returns:
        The finished folders, one per cell and seed.

    Raises:
        InputError: If what is on disk was made with other settings, or another run is at it.
    """
    workers, finished = machines.workers, []
    for _, of_target in itertools.groupby(cells, key=lambda cell: cell.target.reference):
        model, kept = None, set()
        for cell in of_target:
            folders = checkpoints.of(cell)
            finished += [folders.seed_dir(seed) for seed in seeds]
            if cell.name in kept:
                continue
            refusal = f"another run is training {cell.name} in {folders.checkpoint_dir}; wait for it"
            lock = Lock(folders.checkpoint_dir, cell.name, refusal=refusal)
            if workers.agree(workers.is_main and is_finished(cell, seeds, checkpoints)):
                logger.info("%s is finished and left alone; --overwrite would train it anew", cell.name)
                if workers.is_main:
                    lock.remove_left_over()
                continue
            with lock if workers.is_main else contextlib.nullcontext():
                job = workers.agree(next_job_of(cell, seeds, checkpoints) if workers.is_main else None)
                if job is None and workers.is_main:
                    remove_leftovers(cell, folders)
                while job:
                    part = cell.with_layers(job.layers)
                    if model is None or max(job.layers) >= len(find_layers(model)[1]):
                        model = load_target(part, machines)
                    train_cell(part, job.seeds, model, machines, checkpoints, tracking, quiet=quiet)
                    kept |= {each.name for each in cell.kept if checkpoints.overwrite}
                    # Of an interrupted run only what it was begun with went on.
                    may_lack_more = workers.is_main and not checkpoints.overwrite
                    job = workers.agree(next_job_of(cell, seeds, checkpoints) if may_lack_more else None)
        del model
        release_memory(machines.device)
    return finished


def load_target(cell: Cell, machines: Machines) -> PreTrainedModel:
    """The cell's target model without its head, cut after the last layer that is encoded.

    Raises:
        InputError: If it is not the same in all processes.
    """
    model = load_trunk(cell.target.reference, machines.device, cell.target.dtype)
    cut_after_(model, max(cell.settings.layers))
    release_memory(machines.device)
    if machines.workers.n > 1:
        found = fingerprint_trunk(model, max(cell.settings.layers))
        machines.workers.check_alike(f"the model {cell.target.reference}", found)
    return model


def next_job_of(cell: Cell, seeds: Sequence[int], checkpoints: Checkpoints) -> Job | None:
    """`next_job` of a cell, or the first part of it that can go on from a kept state."""
    folders = checkpoints.of(cell)
    job = next_job(folders, cell.identity(), seeds, overwrite=checkpoints.overwrite)
    if job is None or checkpoints.overwrite or folders.settings_path.exists():
        return job
    return parts_by_state(cell, job, folders)[0]


def is_finished(cell: Cell, seeds: Sequence[int], checkpoints: Checkpoints) -> bool:
    """Whether nothing is left to do; nothing is written and no lock is taken to find out.

    Raises:
        InputError: If something there was made with other settings, or is damaged.
    """
    folders = checkpoints.of(cell)
    are_there = all((folders.seed_dir(seed) / RUN_RECORD).exists() for seed in seeds)
    return are_there and not has_leftovers(folders) and next_job_of(cell, seeds, checkpoints) is None


def remove_leftovers(cell: Cell, folders: CellFolders) -> None:
    """Remove what a run left that was killed when all was published; what was begun with other settings stays."""
    if not folders.settings_path.exists() or is_of(cell, read_plan(folders)):
        remove_folder(folders.work_dir)


def train_cell(
    cell: Cell,
    seeds: Sequence[int],
    model: PreTrainedModel,
    machines: Machines,
    checkpoints: Checkpoints,
    tracking: Tracking,
    *,
    quiet: bool = False,
) -> None:
    """Train the SAEs of one cell pass by pass, measure them, and put them in their folders."""
    workers, folders = machines.workers, checkpoints.of(cell)
    passes = workers.agree(begin_cell(cell, seeds, checkpoints, machines) if workers.is_main else None)
    records: list[dict[str, Any]] = []
    done: list[Pass] = []
    with _monitor(cell, seeds, folders, tracking, quiet) if workers.is_main else contextlib.nullcontext() as monitor:
        while passes:
            each = passes.pop(0)
            measured = train_pass_within_memory(cell, each, model, machines, checkpoints, monitor)
            if measured is None:
                passes = each.halves() + passes
                logger.warning("%s: out of memory with %s; going on with %s", cell.name, each, passes[0])
                begun = read_plan(folders)
                write_plan(
                    folders.settings_path,
                    cell.identity(),
                    seeds,
                    done + passes,
                    replaces_finished=begun.get("replaces_finished", False),
                )
                continue
            release_memory(machines.device)
            done.append(each)
            records.extend(measured)
        if workers.is_main:
            monitor.summarise([record for record in records if record["variant"] == cell.variant])
            publish_cell(cell, seeds, records, [folders.pass_dir(each) for each in done], model, machines, folders)
            if checkpoints.keeps_state:
                keep_state(folders, Job(cell.settings.layers, tuple(seeds)))
            remove_folder(folders.work_dir)
    workers.wait()


def publish_cell(
    cell: Cell,
    seeds: Sequence[int],
    records: Sequence[dict[str, Any]],
    passes: Sequence[Path],
    model: PreTrainedModel,
    machines: Machines,
    folders: CellFolders,
) -> None:
    """Put the SAEs of a cell, and those that it has kept on the way, in their folders."""
    hookpoints = layer_names(model, cell.settings.layers, cell.settings.hookpoint)
    fingerprint = fingerprint_trunk(model, max(cell.settings.layers))
    is_replacing = read_plan(folders).get("replaces_finished", False)
    for each in (*cell.kept, cell):
        own = folders.of_variant(each.variant)
        of_it = [record for record in records if record["variant"] == each.variant]
        runs = {
            seed: run_record(each, own, seed, hookpoints, fingerprint, of_it, machines)
            for seed in seeds
            if any(record["seed"] == seed for record in of_it)
        }
        losses = [folder / METRICS_FILE for folder in passes]
        publish(own, runs, reader_config(each, hookpoints), losses, replaces_finished=is_replacing)


def begin_cell(cell: Cell, seeds: Sequence[int], checkpoints: Checkpoints, machines: Machines) -> list[Pass]:
    """The passes of a cell: those it was begun with, so that each can go on, or those that fit the memory there is.

    Finished SAEs that are to be replaced stay until then; what was begun before goes.
    """
    folders = checkpoints.of(cell)
    folders.restore_previous()
    if checkpoints.overwrite:
        remove_folder(folders.work_dir)
    if folders.settings_path.exists():
        return passes_of(read_plan(folders)["passes"])
    if not checkpoints.overwrite and (begun := take_up(cell, seeds, folders)) is not None:
        return begun
    memory = cell.memory(machines.device, is_replicated=machines.is_replicated)
    passes = machines.plan_passes(memory, cell.settings.layers, seeds)
    write_plan(folders.settings_path, cell.identity(), seeds, passes, replaces_finished=checkpoints.overwrite)
    return passes


def _monitor(
    cell: Cell, seeds: Sequence[int], folders: CellFolders, tracking: Tracking, quiet: bool
) -> TrainingMonitor:
    """The monitor of a cell, with its W&B run started."""
    tracker = Tracker(
        folder=folders.work_dir,
        tracking=tracking,
        group=cell.target.name,
        name=cell.name,
        tags=[f"target:{cell.target.name}"[:64], f"source:{cell.source.name}"[:64], f"k:{cell.settings.k}"],
        config={
            **cell.identity(),
            "seeds": list(seeds),
            "source_reference": cell.source.reference,
            "versions": versions(),
        },
    )
    return TrainingMonitor(cell.name, tracker, n_tokens=cell.budget.n_train_tokens, quiet=quiet)
