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
from sae_utils.locks import Lock
from sae_utils.memory import release_memory
from sae_utils.models import cut_after_, fingerprint_model, load_trunk
from sae_utils.paths import METRICS_FILE
from sae_utils.records import check_same_settings, read_json, versions, write_json
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
            with lock if workers.is_main else contextlib.nullcontext():
                if workers.is_main and checkpoints.overwrite:
                    folders.remove(seeds)
                if todo := workers.agree(seeds_to_train(folders, cell.identity(), seeds) if workers.is_main else None):
                    model = model or load_target(cell, machines.device)
                    train_cell(cell, todo, model, machines, checkpoints, tracking, quiet=quiet)
                else:
                    logger.info("%s is finished and left alone; --overwrite would train it anew", cell.name)
        del model
        release_memory(machines.device)
    return finished


def load_target(cell: Cell, device: torch.device) -> PreTrainedModel:
    """The cell's target model without its head, cut after the last layer that is encoded."""
    model = load_trunk(cell.target.reference, device, cell.target.dtype)
    cut_after_(model, max(cell.settings.layers))
    return model


def seeds_to_train(folders: CellFolders, identity: Mapping[str, Any], wanted: Sequence[int]) -> list[int]:
    """Seeds that have no finished folder; those of an interrupted run all go on together.

    Args:
        folders: The cell's.
        identity: What decides its weights.
        wanted: Seeds that are asked for.

    Raises:
        InputError: If something there was made with other settings.
    """
    remedy = "give --overwrite to throw it away, or another --checkpoint_dir"
    missing = []
    for seed in wanted:
        folder = folders.seed_dir(seed)
        if (folder / "run.json").exists():
            check_same_settings(read_json(folder / "run.json")["settings"], identity, where=folder, remedy=remedy)
        elif folder.exists():
            raise InputError(f"{folder} exists and has no run.json; move it away or give --overwrite")
        else:
            missing.append(seed)
    if not missing or not folders.settings_path.exists():
        return missing
    begun = read_json(folders.settings_path)
    check_same_settings(begun["settings"], identity, where=folders.work_dir, remedy=remedy)
    if not set(missing) <= set(begun["seeds"]):
        raise InputError(
            f"{folders.work_dir} was begun with seeds {begun['seeds']} and seeds {missing} are asked for; finish it "
            f"with --num_seeds {max(begun['seeds']) + 1} first, or give --overwrite"
        )
    return begun["seeds"]


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
    passes = workers.agree(begin_cell(cell, seeds, folders, machines) if workers.is_main else None)
    records: list[dict[str, Any]] = []
    done: list[Pass] = []
    with _monitor(cell, seeds, folders, tracking, quiet) if workers.is_main else contextlib.nullcontext() as monitor:
        while passes:
            each = passes.pop(0)
            measured = train_pass_within_memory(cell, each, model, machines, checkpoints, monitor)
            if measured is None:
                passes = each.halves() + passes
                logger.warning("%s: out of memory with %s; going on with %s", cell.name, each, passes[0])
                write_plan(folders.settings_path, cell.identity(), seeds, done + passes)
                continue
            release_memory(machines.device)
            done.append(each)
            records.extend(measured)
        if workers.is_main:
            monitor.summarise(records)
            hookpoints, fingerprint = layer_names(model, cell.settings.layers), fingerprint_model(model)
            runs = {seed: run_record(cell, seed, hookpoints, fingerprint, records, machines) for seed in seeds}
            metrics = [folders.pass_dir(each) / METRICS_FILE for each in done]
            publish(folders, runs, reader_config(cell, hookpoints), metrics)
    workers.wait()


def begin_cell(cell: Cell, seeds: Sequence[int], folders: CellFolders, machines: Machines) -> list[Pass]:
    """The passes of a cell: those it was begun with, so that each can go on, or those that fit the memory there is."""
    path = folders.settings_path
    if path.exists():
        return [Pass(tuple(layers), tuple(of_these)) for layers, of_these in read_json(path)["passes"]]
    memory = cell.memory(is_replicated=machines.is_replicated)
    passes = machines.plan_passes(memory, cell.settings.layers, seeds)
    write_plan(path, cell.identity(), seeds, passes)
    return passes


def write_plan(path: Path, identity: Mapping[str, Any], seeds: Sequence[int], passes: Sequence[Pass]) -> None:
    """Keep, beside the state, what a run that goes on must find again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plan = [[list(each.layers), list(each.seeds)] for each in passes]
    write_json(path, {"settings": identity, "seeds": list(seeds), "passes": plan})


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
