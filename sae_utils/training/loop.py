"""Training the target x source grid, cell by cell, each in as few passes of the target model as memory allows."""

import contextlib
import itertools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from sae_utils.errors import InputError
from sae_utils.files import (
    DamagedFileError,
    Record,
    being_removed,
    holds_something,
    read_record,
    removal,
    remove_folder,
    write_record,
)
from sae_utils.locks import Lock
from sae_utils.memory import release_memory
from sae_utils.models import cut_after_, fingerprint_model, load_trunk
from sae_utils.paths import METRICS_FILE
from sae_utils.records import check_same_settings, differing_settings, versions
from sae_utils.training.cells import Cell
from sae_utils.training.finished import publish, reader_config, run_record
from sae_utils.training.folders import CellFolders, Checkpoints
from sae_utils.training.machines import Machines
from sae_utils.training.monitor import TrainingMonitor
from sae_utils.training.passes import Pass
from sae_utils.training.single_pass import layer_names, train_pass_within_memory
from sae_utils.training.tracking import Tracker
from sae_utils.training.wandb_login import Tracking

logger = logging.getLogger(__name__)

OVERWRITE_REMEDY = "give --overwrite to train it anew, or another --checkpoint_dir"


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
        model = None
        for cell in of_target:
            folders = checkpoints.of(cell.target.name, cell.source.name)
            finished += [folders.seed_dir(seed) for seed in seeds]
            refusal = f"another run is training {cell.name} in {folders.checkpoint_dir}; wait for it"
            lock = Lock(folders.checkpoint_dir, cell.name, refusal=refusal)
            if workers.agree(workers.is_main and is_finished(cell, seeds, checkpoints)):
                logger.info("%s is finished and left alone; --overwrite would train it anew", cell.name)
                if workers.is_main:
                    lock.remove_left_over()
                continue
            with lock if workers.is_main else contextlib.nullcontext():
                todo = workers.agree(seeds_of(cell, seeds, checkpoints) if workers.is_main else None)
                if not todo and workers.is_main:
                    remove_leftovers(cell, folders)
                while todo:
                    model = model or load_target(cell, machines.device)
                    train_cell(cell, todo, model, machines, checkpoints, tracking, quiet=quiet)
                    # What went on lacks a seed whose folder was published before it was stopped, and removed since.
                    is_missing = workers.is_main and not checkpoints.overwrite
                    todo = workers.agree(seeds_of(cell, seeds, checkpoints) if is_missing else None)
        del model
        release_memory(machines.device)
    return finished


def load_target(cell: Cell, device: torch.device) -> PreTrainedModel:
    """The cell's target model without its head, cut after the last layer that is encoded."""
    model = load_trunk(cell.target.reference, device, cell.target.dtype)
    cut_after_(model, max(cell.settings.layers))
    return model


def is_finished(cell: Cell, seeds: Sequence[int], checkpoints: Checkpoints) -> bool:
    """Whether nothing is left to do; nothing is written and no lock is taken to find out.

    Raises:
        InputError: If something there was made with other settings, or is damaged.
    """
    folders = checkpoints.of(cell.target.name, cell.source.name)
    are_there = all((folders.seed_dir(seed) / "run.json").exists() for seed in seeds)
    has_leftovers = folders.work_dir.exists() or being_removed(folders.work_dir).exists()
    return are_there and not has_leftovers and not seeds_of(cell, seeds, checkpoints)


def seeds_of(cell: Cell, seeds: Sequence[int], checkpoints: Checkpoints) -> list[int]:
    """`seeds_to_train` of a cell."""
    folders = checkpoints.of(cell.target.name, cell.source.name)
    return seeds_to_train(folders, cell.identity(), seeds, overwrite=checkpoints.overwrite)


def remove_leftovers(cell: Cell, folders: CellFolders) -> None:
    """Remove what a run left that was killed when all was published; what was begun with other settings stays."""
    if not folders.settings_path.exists() or read_plan(folders)["settings"] == cell.identity():
        remove_folder(folders.work_dir)


def seeds_to_train(
    folders: CellFolders, identity: Mapping[str, Any], wanted: Sequence[int], *, overwrite: bool = False
) -> list[int]:
    """Seeds that have no finished folder, or are to be trained anew; those of an interrupted run all go on together.

    Args:
        folders: The cell's.
        identity: What decides its weights.
        wanted: Seeds that are asked for.
        overwrite: Train anew what is finished.

    Raises:
        InputError: If something there was made with other settings, or is not ours.
    """
    _check_are_ours(folders, wanted)
    if overwrite:
        return list(wanted)
    begun = read_plan(folders) if folders.settings_path.exists() else None
    is_replacing = bool(begun and begun.get("replaces_finished"))
    if is_replacing and not differing_settings(begun["settings"], identity):  # --overwrite was given, and stopped
        missing = list(wanted)
    else:
        missing = [seed for seed in wanted if not folders.seed_dir(seed).exists()]
        for seed in set(wanted) - set(missing):
            remedy = f"{removal(folders.seed_dir(seed))}, and the same command trains its seed anew"
            run = read_record(folders.seed_dir(seed) / "run.json", remedy, settings=dict)
            check_same_settings(run["settings"], identity, where=folders.seed_dir(seed), remedy=OVERWRITE_REMEDY)
    if not missing or begun is None:
        return missing
    check_same_settings(begun["settings"], identity, where=folders.work_dir, remedy=OVERWRITE_REMEDY)
    if not set(missing) <= set(begun["seeds"]):
        raise InputError(
            f"{folders.work_dir} was begun with seeds {begun['seeds']} and seeds {missing} are asked for; finish it "
            f"with --num_seeds {max(begun['seeds']) + 1} first, or give --overwrite"
        )
    return begun["seeds"]


def read_plan(folders: CellFolders) -> Record:
    """What a cell was begun with.

    Raises:
        DamagedFileError: If its file is damaged.
    """
    remedy = f"{removal(folders.work_dir)}, and the same command begins anew"
    plan = read_record(folders.settings_path, remedy, settings=dict, seeds=list, passes=list)
    if not all(isinstance(number, int) for number in itertools.chain(plan["seeds"], *itertools.chain(*plan["passes"]))):
        raise DamagedFileError(folders.settings_path, "its passes are not lists of numbers", remedy)
    return plan


def _check_are_ours(folders: CellFolders, seeds: Sequence[int]) -> None:
    """Refuse folders under our names that something else made; not even --overwrite throws those away.

    Raises:
        InputError: If there is one.
    """
    work, finished = folders.work_dir, [folders.seed_dir(seed) for seed in seeds]
    foreign = [folder for folder in finished if folder.exists() and not (folder / "run.json").exists()]
    if foreign:
        raise InputError(f"{foreign[0]} exists and has no run.json; if you do not need it, move it away")
    if work.exists() and not folders.settings_path.exists() and holds_something(work):
        raise InputError(f"{work} exists and has no settings.json; if you do not need it, move it away")


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
    workers, folders = machines.workers, checkpoints.of(cell.target.name, cell.source.name)
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
            monitor.summarise(records)
            hookpoints, fingerprint = layer_names(model, cell.settings.layers), fingerprint_model(model)
            runs = {seed: run_record(cell, folders, seed, hookpoints, fingerprint, records, machines) for seed in seeds}
            metrics = [folders.pass_dir(each) / METRICS_FILE for each in done]
            publish(folders, runs, reader_config(cell, hookpoints), metrics)
    workers.wait()


def begin_cell(cell: Cell, seeds: Sequence[int], checkpoints: Checkpoints, machines: Machines) -> list[Pass]:
    """The passes of a cell: those it was begun with, so that each can go on, or those that fit the memory there is.

    Finished SAEs that are to be replaced stay until then; what was begun before goes.
    """
    folders = checkpoints.of(cell.target.name, cell.source.name)
    folders.restore_previous()
    if checkpoints.overwrite:
        remove_folder(folders.work_dir)
    if folders.settings_path.exists():
        return [Pass(tuple(layers), tuple(of_these)) for layers, of_these in read_plan(folders)["passes"]]
    memory = cell.memory(is_replicated=machines.is_replicated)
    passes = machines.plan_passes(memory, cell.settings.layers, seeds)
    write_plan(folders.settings_path, cell.identity(), seeds, passes, replaces_finished=checkpoints.overwrite)
    return passes


def write_plan(
    path: Path,
    identity: Mapping[str, Any],
    seeds: Sequence[int],
    passes: Sequence[Pass],
    *,
    replaces_finished: bool = False,
) -> None:
    """Keep, beside the state, what a run that goes on must find again."""
    plan = [[list(each.layers), list(each.seeds)] for each in passes]
    about = {"settings": identity, "seeds": list(seeds), "passes": plan, "replaces_finished": replaces_finished}
    write_record(path, about)


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
