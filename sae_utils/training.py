"""Training the target x source grid, cell by cell."""

import logging
from collections.abc import Sequence
from typing import Any

from filelock import AcquireReturnProxy, FileLock, Timeout
from transformers import PreTrainedModel

from sae_utils.cells import Cell
from sae_utils.errors import InputError
from sae_utils.evaluation import evaluate_reconstruction
from sae_utils.finished import make_records, publish, read_records
from sae_utils.models import cut_after_, find_layers, load_trunk
from sae_utils.monitor import TrainingMonitor
from sae_utils.packing import split_chunks
from sae_utils.records import check_same_settings, read_json, remove_folder, write_json
from sae_utils.sparse_coders import SparseCoderConfig, TrainConfig
from sae_utils.trainer import STATE_FILE, SaeTrainer

logger = logging.getLogger(__name__)


def train_cells(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Train every cell that is not finished; each target is loaded once, and only if something is left to do.

    Returns:
        One record per SAE, in the order of cells, layers and seeds.

    Raises:
        InputError: If what is on disk was made with other settings, or another run is at it.
    """
    records = []
    for target in dict.fromkeys(cell.target.reference for cell in cells):
        model = None
        for cell in [cell for cell in cells if cell.target.reference == target]:
            with _locked(cell):
                if seeds := seeds_to_train(cell):
                    model = model or load_target(cell)
                    train_cell(cell, model, seeds)
                else:
                    logger.info("%s is finished and left alone; --overwrite would train it anew", cell.name)
                records.extend(read_records(cell))
        del model
    return records


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
    """Train the SAEs of one cell, measure them on the held-out sequences, and put them in their folders."""
    run = cell.run
    train_chunks, eval_chunks = split_chunks(
        cell.chunks,
        n_train=run.budget.n_train_chunks,
        n_eval=run.budget.n_eval_chunks,
        shuffle_seed=run.settings.shuffle_seed,
    )
    layers_name, _ = find_layers(model)
    hookpoints = {layer: f"{layers_name}.{layer}" for layer in run.settings.layers}
    cell.work_dir.mkdir(parents=True, exist_ok=True)
    write_json(cell.work_dir / "settings.json", {"settings": cell.identity(), "seeds": list(seeds)})

    trainer = SaeTrainer(
        sparsify_config(cell, list(hookpoints.values()), seeds), train_chunks, model, work_dir=cell.work_dir
    )
    if (cell.work_dir / STATE_FILE).exists():
        trainer.load_state(cell.work_dir / STATE_FILE)
        logger.info("%s: going on after %s tokens", cell.name, f"{trainer.n_tokens_seen:,}")
    names = {(layer, seed): trainer.sae_name(hookpoints[layer], seed) for layer in hookpoints for seed in seeds}
    labels = {name: f"layers.{layer}/seed_{seed}" for (layer, seed), name in names.items()}
    saes = {key: trainer.saes[name] for key, name in names.items()}

    with TrainingMonitor(cell, seeds, labels, from_tokens=trainer.n_tokens_seen) as monitor:
        trainer.on_step = monitor.report
        trainer.fit()
        hooked = {key: (hookpoints[key[0]], sae) for key, sae in saes.items()}
        measured = evaluate_reconstruction(model, hooked, eval_chunks, batch_size=run.settings.batch_size)
        records = make_records(cell, measured, saes)
        monitor.summarise(records)
    publish(cell, model, hookpoints, saes, records)


def sparsify_config(cell: Cell, hookpoints: list[str], seeds: Sequence[int]) -> TrainConfig:
    """Sparsify's settings for a cell."""
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
        save_every=cell.run.save_every,
        run_name=cell.name,
        save_dir=str(cell.run.checkpoint_dir),
    )


def _locked(cell: Cell) -> AcquireReturnProxy:
    """The cell's lock, taken; released by its `with` block."""
    cell.run.checkpoint_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(cell.run.checkpoint_dir / f".{cell.name}.lock")
    try:
        return lock.acquire(blocking=False)
    except Timeout:
        raise InputError(f"another run is training {cell.name} in {cell.run.checkpoint_dir}; wait for it") from None
