"""One pass of the target model: some of a cell's SAEs trained together, measured, and written."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from sae_utils.errors import InputError
from sae_utils.evaluation.reconstruction import evaluate_reconstruction
from sae_utils.files import check_files, checksum_files, read_record, removal, remove_folder, write_record
from sae_utils.hookpoints import layer_names
from sae_utils.memory import is_out_of_memory, release_memory
from sae_utils.models import cut_for_now
from sae_utils.paths import METRICS_FILE
from sae_utils.rates import Stopwatch, keep_rate
from sae_utils.sparse_coders import SparseCoder, SparseCoderConfig, TrainConfig
from sae_utils.training.cells import Cell
from sae_utils.training.finished import (
    SaeKey,
    TrainingTokens,
    check_measured,
    check_staged,
    make_record,
    stage_sae,
)
from sae_utils.training.folders import CellFolders, Checkpoints
from sae_utils.training.kept import counts_at, keep_on_the_way, measure_kept
from sae_utils.training.machines import Machines
from sae_utils.training.monitor import TrainingMonitor
from sae_utils.training.passes import RECORDS_FILE, Pass
from sae_utils.training.settings import TrainingSettings
from sae_utils.training.speed import about_pass
from sae_utils.training.trainer import STATE_FILE, SaeTrainer

logger = logging.getLogger(__name__)


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
    folder = checkpoints.of(cell).pass_dir(which)
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
    workers, folders = machines.workers, checkpoints.of(cell)
    records_path = folders.pass_dir(which) / RECORDS_FILE
    if workers.agree(records_path.exists()):
        return workers.agree(read_pass_records(records_path, folders) if workers.is_main else None)
    train_chunks, eval_chunks = cell.split()
    hookpoints = layer_names(model, which.layers, cell.settings.hookpoint)
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
        trainer = SaeTrainer(
            cfg,
            train_chunks,
            model,
            work_dir=records_path.parent,
            exclusion=cell.target.exclusion,
            workers=workers,
            keep_at=[each.budget.n_train_tokens for each in cell.kept],
        )
        if workers.agree((records_path.parent / STATE_FILE).exists()):
            trainer.load_state()
            logger.info("%s: %s goes on after %s tokens", cell.name, which, f"{trainer.n_tokens_seen:,}")
        keys = {
            trainer.sae_name(hookpoints[layer], seed): (layer, seed) for layer in hookpoints for seed in which.seeds
        }
        trainer.saves_end = checkpoints.keeps_state
        trainer.on_keep = keep_on_the_way(cell, folders, trainer, keys, overwrite=checkpoints.overwrite)
        shown = cell.name if set(which.layers) == set(cell.settings.layers) else f"{cell.name} {which}"
        watch = Stopwatch()
        try:
            saes = fit(trainer, keys, monitor, shown, watch)
        finally:  # also of a run that is stopped and goes on later
            if workers.is_main:
                keep_rate(checkpoints.folder, about_pass(cell, which, machines), watch.rate())
        n_trained_on = {layer: trainer.n_tokens_trained_on(name) for layer, name in hookpoints.items()}
        n_trained_on_at = counts_at(trainer, hookpoints)
        del trainer
        release_memory(machines.device)  # what is measured needs no optimizer
        hooked = {key: (hookpoints[key[0]], sae) for key, sae in saes.items()}
        options = {"batch_size": cell.settings.batch_size, "exclusion": cell.target.exclusion}
        measured = evaluate_reconstruction(model, hooked, eval_chunks, **options)
        check_measured(measured)
        for key, sae in saes.items():
            stage_sae(folders, key, sae)
        n_read = cell.budget.n_train_tokens
        own = [
            make_record(folders, key, sae, TrainingTokens(n_read, n_trained_on[key[0]]), measured[key])
            for key, sae in saes.items()
        ]
        names = {key: hookpoint for key, (hookpoint, _) in hooked.items()}
        saes.clear()
        hooked.clear()
        own += measure_kept(cell, folders, names, n_trained_on_at, model, eval_chunks)
    records = [record for part in workers.gather(own) for record in part]
    if workers.is_main:
        losses = [METRICS_FILE] if (records_path.parent / METRICS_FILE).exists() else []
        write_record(records_path, {"saes": records, "checksums": checksum_files(records_path.parent, losses)})
    return records


def read_pass_records(path: Path, folders: CellFolders) -> list[dict[str, Any]]:
    """The records of a pass that is complete, compared with its losses and its SAEs.

    Raises:
        DamagedFileError: If something of it is not as it was written.
    """
    remedy = f"{removal(path.parent)}, and the same command trains this pass anew"
    stored = read_record(path, remedy, saes=list, checksums=dict)
    check_files(path.parent, stored["checksums"], remedy)
    check_staged(folders, stored["saes"], remedy)
    return stored["saes"]


def fit(
    trainer: SaeTrainer, keys: Mapping[str, SaeKey], monitor: TrainingMonitor | None, shown: str, watch: Stopwatch
) -> dict[SaeKey, SparseCoder]:
    """Train what is left of a pass, with its bar and its losses.

    Args:
        trainer: Its trainer.
        keys: Layer and seed of each of the trainer's SAEs.
        monitor: Where losses go; None in all processes but the main one.
        shown: What is shown before the bar.
        watch: Takes in how far it has got, and when.

    Returns:
        The SAEs that this process owns.
    """
    if monitor is not None:
        labels = {name: f"layers.{layer}/seed_{seed}" for name, (layer, seed) in keys.items()}
        monitor.begin_pass(shown, trainer.work_dir, labels, from_tokens=trainer.n_tokens_seen)

        def report(n_tokens: int, losses: Mapping[str, Mapping[str, float]]) -> None:
            monitor.report(n_tokens, losses)
            watch.note(trainer.n_tokens_seen)  # losses of several steps may come together, after the last of them

        trainer.on_step = report
    trainer.fit()
    if monitor is not None:
        monitor.end_pass()
    return {keys[name]: trainer.saes[name] for name in trainer.owned_saes}


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
