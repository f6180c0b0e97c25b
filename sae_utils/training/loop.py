"""Training the target x source grid, cell by cell, each in as few passes of the target model as memory allows."""

import contextlib
import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from sae_utils.errors import InputError
from sae_utils.evaluation.reconstruction import evaluate_reconstruction
from sae_utils.locks import Lock
from sae_utils.memory import is_out_of_memory, release_memory
from sae_utils.models import cut_after_, cut_for_now, find_layers, fingerprint_model, load_trunk
from sae_utils.paths import METRICS_FILE
from sae_utils.records import check_same_settings, read_json, remove_folder, versions, write_json
from sae_utils.sparse_coders import SparseCoder, SparseCoderConfig, TrainConfig
from sae_utils.training.cells import Cell
from sae_utils.training.finished import SaeKey, make_record, publish, reader_config, run_record, stage_sae
from sae_utils.training.folders import CellFolders, Checkpoints
from sae_utils.training.machines import Machines
from sae_utils.training.monitor import TrainingMonitor
from sae_utils.training.passes import Pass
from sae_utils.training.settings import TrainingSettings
from sae_utils.training.tracking import Tracker, Tracking
from sae_utils.training.trainer import STATE_FILE, SaeTrainer

logger = logging.getLogger(__name__)

RECORDS_FILE = "records.json"
"""Measurements of a pass' SAEs; written last, so that a pass that has it is complete."""


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
        tracking: Where W&B runs go.
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


def train_pass_within_memory(
    cell: Cell,
    which: Pass,
    model: PreTrainedModel,
    machines: Machines,
    checkpoints: Checkpoints,
    monitor: TrainingMonitor | None,
) -> list[dict[str, Any]] | None:
    """`train_pass`, or None if the device ran out of memory and the pass has to be divided.

    Raises:
        InputError: If memory ran out and dividing would lose a checkpoint, for which the pass did fit once; if it is a
            single SAE; or if several processes train together, of which the others are inside a step.
    """
    folder = checkpoints.of(cell.target.name, cell.source.name).pass_dir(which)
    try:
        return train_pass(cell, which, model, machines, checkpoints, monitor)
    except (RuntimeError, MemoryError) as err:
        if not is_out_of_memory(err):
            raise
        if machines.workers.n > 1:
            raise InputError(
                f"out of memory with {which} in each process; lower --batch_size, --ctx_len or the number of latents, "
                f"raise --micro_acc_steps, or use --distribute_modules"
            ) from err
        if (folder / STATE_FILE).exists():
            raise InputError(
                f"out of memory with {which}, which fitted before; the checkpoint in {folder.parent} is kept: free the "
                f"device and give the same command, or start again in smaller passes with --overwrite"
            ) from err
    release_memory(machines.device)
    remove_folder(folder)
    return None


def train_pass(
    cell: Cell,
    which: Pass,
    model: PreTrainedModel,
    machines: Machines,
    checkpoints: Checkpoints,
    monitor: TrainingMonitor | None,
) -> list[dict[str, Any]]:
    """Train some of a cell's SAEs, measure them on the held-out sequences, and stage their folders.

    Returns:
        One record per SAE; in every process, of all processes' SAEs.
    """
    workers, folders = machines.workers, checkpoints.of(cell.target.name, cell.source.name)
    records_path = folders.pass_dir(which) / RECORDS_FILE
    if workers.agree(records_path.exists()):
        return read_json(records_path)
    train_chunks, eval_chunks = cell.split()
    hookpoints = layer_names(model, which.layers)
    with cut_for_now(model, max(which.layers)):
        cfg = sparsify_config(
            cell.settings,
            cell.target.d_model,
            cell.target.n_latents,
            hookpoints=list(hookpoints.values()),
            seeds=which.seeds,
            distribute_modules=machines.distribute_modules,
            save_every=checkpoints.save_every,
        )
        trainer = SaeTrainer(cfg, train_chunks, model, work_dir=records_path.parent, workers=workers)
        if workers.agree((records_path.parent / STATE_FILE).exists()):
            trainer.load_state()
            logger.info("%s: %s goes on after %s tokens", cell.name, which, f"{trainer.n_tokens_seen:,}")
        keys = {
            trainer.sae_name(hookpoints[layer], seed): (layer, seed) for layer in hookpoints for seed in which.seeds
        }
        shown = cell.name if set(which.layers) == set(cell.settings.layers) else f"{cell.name} {which}"
        saes = fit(trainer, keys, monitor, shown)
        del trainer
        release_memory(machines.device)  # what is measured needs no optimizer
        hooked = {key: (hookpoints[key[0]], sae) for key, sae in saes.items()}
        measured = evaluate_reconstruction(model, hooked, eval_chunks, batch_size=cell.settings.batch_size)
    for key, sae in saes.items():
        stage_sae(folders, key, sae)
    n_tokens = cell.budget.n_train_tokens
    own = [make_record(folders, key, sae, n_tokens, measured[key]) for key, sae in saes.items()]
    records = [record for part in workers.gather(own) for record in part]
    if workers.is_main:
        write_json(records_path, records)
    return records


def fit(
    trainer: SaeTrainer, keys: Mapping[str, SaeKey], monitor: TrainingMonitor | None, shown: str
) -> dict[SaeKey, SparseCoder]:
    """Train what is left of a pass, with its bar and its losses.

    Args:
        trainer: Its trainer.
        keys: Layer and seed of each of the trainer's SAEs.
        monitor: Where losses go; None in all processes but the main one.
        shown: What is shown before the bar.

    Returns:
        The SAEs that this process owns.
    """
    if monitor is not None:
        labels = {name: f"layers.{layer}/seed_{seed}" for name, (layer, seed) in keys.items()}
        monitor.begin_pass(shown, trainer.work_dir, labels, from_tokens=trainer.n_tokens_seen)
        trainer.on_step = monitor.report
    trainer.fit()
    if monitor is not None:
        monitor.end_pass()
    return {keys[name]: trainer.saes[name] for name in trainer.owned_saes}


def layer_names(model: PreTrainedModel, layers: Sequence[int]) -> dict[int, str]:
    """Names, inside `model.base_model`, of decoder layers."""
    list_name, _ = find_layers(model)
    return {layer: f"{list_name}.{layer}" for layer in layers}


def sparsify_config(
    settings: TrainingSettings,
    d_model: int,
    n_latents: int,
    *,
    hookpoints: Sequence[str],
    seeds: Sequence[int],
    distribute_modules: bool = False,
    save_every: int = 1000,
) -> TrainConfig:
    """sparsify's settings for SAEs of some layers and seeds.

    Args:
        settings: Ours.
        d_model: Width of the residual stream.
        n_latents: Latents of each SAE.
        hookpoints: Names of the layers.
        seeds: Seeds of the SAEs of each layer.
        distribute_modules: Whether each process trains some of the layers.
        save_every: Optimizer steps between resumable checkpoints.
    """
    # Other readers take `num_latents` from cfg.json literally, so it is never left at 0.
    coder = SparseCoderConfig(expansion_factor=max(1, round(n_latents / d_model)), num_latents=n_latents, k=settings.k)
    return TrainConfig(
        coder,
        batch_size=settings.batch_size,
        grad_acc_steps=settings.grad_acc_steps,
        micro_acc_steps=settings.micro_acc_steps,
        optimizer=settings.optimizer,
        lr=settings.lr,
        hookpoints=list(hookpoints),
        init_seeds=list(seeds),
        distribute_modules=distribute_modules,
        save_every=save_every,
    )


def _monitor(
    cell: Cell, seeds: Sequence[int], folders: CellFolders, tracking: Tracking, quiet: bool
) -> TrainingMonitor:
    """The monitor of a cell, with its W&B run started."""
    tracker = Tracker(
        folder=folders.work_dir,
        **asdict(tracking),
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
