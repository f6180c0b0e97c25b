"""Training the target x source grid, cell by cell, each in as few passes of the target model as memory allows."""

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import AcquireReturnProxy, FileLock, Timeout
from transformers import PreTrainedModel

from sae_utils.errors import InputError
from sae_utils.evaluation.reconstruction import evaluate_reconstruction
from sae_utils.memory import is_out_of_memory, release_memory
from sae_utils.models import cut_after_, cut_for_now, find_layers, load_trunk
from sae_utils.paths import METRICS_FILE
from sae_utils.records import check_same_settings, read_json, remove_folder, write_json
from sae_utils.sources.packing import split_chunks
from sae_utils.sparse_coders import SparseCoderConfig, TrainConfig
from sae_utils.training.cells import Cell
from sae_utils.training.finished import make_record, publish, stage_sae
from sae_utils.training.monitor import TrainingMonitor
from sae_utils.training.passes import Pass
from sae_utils.training.trainer import STATE_FILE, SaeTrainer

logger = logging.getLogger(__name__)

RECORDS_FILE = "records.json"
"""Measurements of a pass' SAEs; written last, so that a pass that has it is complete."""


def train_cells(cells: Sequence[Cell]) -> list[Path]:
    """Train every cell that is not finished; each target is loaded once, and only if something is left to do.

    Returns:
        The finished folders, one per cell and seed.

    Raises:
        InputError: If what is on disk was made with other settings, or another run is at it.
    """
    for target in dict.fromkeys(cell.target.reference for cell in cells):
        model = None
        for cell in [cell for cell in cells if cell.target.reference == target]:
            workers = cell.run.workers
            with _locked(cell) if workers.is_main else contextlib.nullcontext():
                if seeds := workers.agree(seeds_to_train(cell) if workers.is_main else None):
                    model = model or load_target(cell)
                    train_cell(cell, model, seeds)
                else:
                    logger.info("%s is finished and left alone; --overwrite would train it anew", cell.name)
        del model
        release_memory(cells[0].run.device)
    return [cell.seed_dir(seed) for cell in cells for seed in range(cell.run.n_seeds)]


def load_target(cell: Cell) -> PreTrainedModel:
    """The cell's target model without its head, cut after the last layer that is encoded."""
    model = load_trunk(cell.target.reference, cell.run.device, cell.run.dtype)
    cut_after_(model, max(cell.run.settings.layers))
    return model


def seeds_to_train(cell: Cell) -> list[int]:
    """Seeds that have no finished folder; those of an interrupted run all go on together.

    Raises:
        InputError: If something there was made with other settings.
    """
    wanted = list(range(cell.run.n_seeds))
    if cell.run.overwrite:
        for folder in [cell.work_dir, *map(cell.seed_dir, wanted)]:
            remove_folder(folder)
    remedy = "give --overwrite to throw it away, or another --checkpoint_dir"
    missing = []
    for seed in wanted:
        record_path = cell.seed_dir(seed) / "run.json"
        if record_path.exists():
            before = read_json(record_path)["settings"]
            check_same_settings(before, cell.identity(), where=cell.seed_dir(seed), remedy=remedy)
        elif cell.seed_dir(seed).exists():
            raise InputError(f"{cell.seed_dir(seed)} exists and has no run.json; move it away or give --overwrite")
        else:
            missing.append(seed)
    begun_path = cell.work_dir / "settings.json"
    if not missing or not begun_path.exists():
        return missing
    begun = read_json(begun_path)
    check_same_settings(begun["settings"], cell.identity(), where=cell.work_dir, remedy=remedy)
    if not set(missing) <= set(begun["seeds"]):
        raise InputError(
            f"{cell.work_dir} was begun with seeds {begun['seeds']} and seeds {missing} are asked for; finish it with "
            f"--num_seeds {max(begun['seeds']) + 1} first, or give --overwrite"
        )
    return begun["seeds"]


def train_cell(cell: Cell, model: PreTrainedModel, seeds: Sequence[int]) -> None:
    """Train the SAEs of one cell pass by pass, measure them, and put them in their folders."""
    workers = cell.run.workers
    passes = workers.agree(begin_cell(cell, seeds) if workers.is_main else None)
    records: list[dict[str, Any]] = []
    done: list[Pass] = []
    with TrainingMonitor(cell, seeds) if workers.is_main else contextlib.nullcontext() as monitor:
        while passes:
            each = passes.pop(0)
            measured = train_pass_within_memory(cell, model, each, monitor)
            if measured is None:
                passes = each.halves() + passes
                logger.warning("%s: out of memory with %s; going on with %s", cell.name, each, passes[0])
                _write_plan(cell, seeds, done + passes)
                continue
            release_memory(cell.run.device)
            done.append(each)
            records.extend(measured)
        if workers.is_main:
            monitor.summarise(records)
            metrics = [cell.work_dir / each.name / METRICS_FILE for each in done]
            publish(cell, model, hookpoints_of(cell, model), seeds, records, metrics)
    workers.wait()


def begin_cell(cell: Cell, seeds: Sequence[int]) -> list[Pass]:
    """The passes of a cell: those it was begun with, so that each can go on, or those that fit the memory there is."""
    path = cell.work_dir / "settings.json"
    if path.exists():
        return [Pass(tuple(layers), tuple(of_these)) for layers, of_these in read_json(path)["passes"]]
    passes = cell.plan_passes(seeds)
    _write_plan(cell, seeds, passes)
    return passes


def train_pass_within_memory(
    cell: Cell, model: PreTrainedModel, which: Pass, monitor: TrainingMonitor | None
) -> list[dict[str, Any]] | None:
    """`train_pass`, or None if the device ran out of memory and the pass has to be divided.

    Raises:
        InputError: If memory ran out and dividing would lose a checkpoint, for which the pass did fit once; if it is a
            single SAE; or if several processes train together, of which the others are inside a step.
    """
    try:
        return train_pass(cell, model, which, monitor)
    except (RuntimeError, MemoryError) as err:
        if not is_out_of_memory(err):
            raise
        if cell.run.workers.n > 1:
            raise InputError(
                f"out of memory with {which} in each process; lower --batch_size, --ctx_len or the number of latents, "
                f"raise --micro_acc_steps, or use --distribute_modules"
            ) from err
        if (cell.work_dir / which.name / STATE_FILE).exists():
            raise InputError(
                f"out of memory with {which}, which fitted before; the checkpoint in {cell.work_dir} is kept: free the "
                f"device and give the same command, or start again in smaller passes with --overwrite"
            ) from err
    release_memory(cell.run.device)
    remove_folder(cell.work_dir / which.name)
    return None


def train_pass(
    cell: Cell, model: PreTrainedModel, which: Pass, monitor: TrainingMonitor | None
) -> list[dict[str, Any]]:
    """Train some of a cell's SAEs, measure them on the held-out sequences, and stage their folders.

    Returns:
        One record per SAE; in every process, of all processes' SAEs.
    """
    folder, run = cell.work_dir / which.name, cell.run
    workers = run.workers
    if workers.agree((folder / RECORDS_FILE).exists()):
        return read_json(folder / RECORDS_FILE)
    train_chunks, eval_chunks = split_chunks(
        cell.chunks,
        n_train=run.budget.n_train_chunks,
        n_eval=run.budget.n_eval_chunks,
        shuffle_seed=run.settings.shuffle_seed,
    )
    hookpoints = {layer: hookpoints_of(cell, model)[layer] for layer in which.layers}
    with cut_for_now(model, max(which.layers)):
        cfg = sparsify_config(cell, list(hookpoints.values()), which.seeds)
        trainer = SaeTrainer(cfg, train_chunks, model, work_dir=folder, workers=workers)
        if workers.agree((folder / STATE_FILE).exists()):
            trainer.load_state()
            logger.info("%s: %s goes on after %s tokens", cell.name, which, f"{trainer.n_tokens_seen:,}")
        names = {
            trainer.sae_name(hookpoints[layer], seed): (layer, seed) for layer in hookpoints for seed in which.seeds
        }
        if monitor is not None:
            labels = {name: f"layers.{layer}/seed_{seed}" for name, (layer, seed) in names.items()}
            shown = cell.name if set(which.layers) == set(run.settings.layers) else f"{cell.name} {which}"
            monitor.begin_pass(shown, folder, labels, from_tokens=trainer.n_tokens_seen)
            trainer.on_step = monitor.report
        trainer.fit()
        if monitor is not None:
            monitor.end_pass()
        saes = {names[name]: trainer.saes[name] for name in trainer.owned_saes}
        del trainer
        release_memory(run.device)  # what is measured needs no optimizer
        hooked = {key: (hookpoints[key[0]], sae) for key, sae in saes.items()}
        measured = evaluate_reconstruction(model, hooked, eval_chunks, batch_size=run.settings.batch_size)
    for key, sae in saes.items():
        stage_sae(cell, key, sae)
    own = [make_record(cell, key, sae, measured[key]) for key, sae in saes.items()]
    records = [record for part in workers.gather(own) for record in part]
    if workers.is_main:
        write_json(folder / RECORDS_FILE, records)
    return records


def hookpoints_of(cell: Cell, model: PreTrainedModel) -> dict[int, str]:
    """Name, inside `model.base_model`, of each layer whose output is encoded."""
    layers_name, _ = find_layers(model)
    return {layer: f"{layers_name}.{layer}" for layer in cell.run.settings.layers}


def sparsify_config(cell: Cell, hookpoints: list[str], seeds: Sequence[int]) -> TrainConfig:
    """Sparsify's settings for some of a cell's SAEs."""
    chosen = cell.run.settings
    n_latents = cell.target.n_latents
    coder = SparseCoderConfig(
        # Other readers take `num_latents` from cfg.json literally, so it is never left at 0.
        expansion_factor=max(1, round(n_latents / cell.target.d_model)),
        num_latents=n_latents,
        k=chosen.k,
    )
    return TrainConfig(
        coder,
        batch_size=chosen.batch_size,
        grad_acc_steps=chosen.grad_acc_steps,
        micro_acc_steps=chosen.micro_acc_steps,
        optimizer=chosen.optimizer,
        lr=chosen.lr,
        hookpoints=hookpoints,
        init_seeds=list(seeds),
        distribute_modules=cell.run.distribute_modules,
        save_every=cell.run.save_every,
        run_name=cell.name,
        save_dir=str(cell.run.checkpoint_dir),
    )


def _write_plan(cell: Cell, seeds: Sequence[int], passes: Sequence[Pass]) -> None:
    """Keep, beside the state, what a run that goes on must find again."""
    cell.work_dir.mkdir(parents=True, exist_ok=True)
    plan = [[list(each.layers), list(each.seeds)] for each in passes]
    write_json(cell.work_dir / "settings.json", {"settings": cell.identity(), "seeds": list(seeds), "passes": plan})


def _locked(cell: Cell) -> AcquireReturnProxy:
    """The cell's lock, taken; released by its `with` block."""
    cell.run.checkpoint_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(cell.run.checkpoint_dir / f".{cell.name}.lock")
    try:
        return lock.acquire(blocking=False)
    except Timeout:
        raise InputError(f"another run is training {cell.name} in {cell.run.checkpoint_dir}; wait for it") from None
