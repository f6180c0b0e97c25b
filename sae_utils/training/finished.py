"""Finished SAEs: their folders, written whole, and their records, read again.

<target>_from_<source>_seed_<s>/layers.<L>/cfg.json, sae.safetensors    what `SparseCoder.load_many` reads
                                config.json                              model, dataset, ctx_len, hooked modules
                                run.json                                 the full record
                                metrics.jsonl                            losses of training, step by step
                                wandb.json                               id of the W&B run
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from sae_utils.models import fingerprint_model
from sae_utils.paths import METRICS_FILE
from sae_utils.records import git_commit, remove_folder, versions, write_json, write_text
from sae_utils.sparse_coders import SparseCoder
from sae_utils.training.cells import Cell
from sae_utils.training.tracking import RUN_FILE

SaeKey = tuple[int, int]
"""Layer and seed."""


def staged_dir(cell: Cell, seed: int) -> Path:
    """Where a seed's folder is put together before it gets its final name."""
    return cell.work_dir / "finished" / cell.seed_dir(seed).name


def stage_sae(cell: Cell, key: SaeKey, sae: SparseCoder) -> None:
    """Write an SAE into its seed's folder, whole or not at all."""
    layer, seed = key
    scratch, folder = cell.work_dir / f"writing_layers.{layer}_seed_{seed}", staged_dir(cell, seed) / f"layers.{layer}"
    remove_folder(scratch)
    sae.save_to_disk(scratch)
    remove_folder(folder)  # of a run that was stopped between writing and recording it
    folder.parent.mkdir(parents=True, exist_ok=True)
    os.replace(scratch, folder)


def make_record(cell: Cell, key: SaeKey, sae: SparseCoder, measured: Mapping[str, Any]) -> dict[str, Any]:
    """One flat record of an SAE: what it is, where it will be, and how it did on the held-out tokens."""
    layer, seed = key
    return {
        "target": cell.target.name,
        "source": cell.source.name,
        "layer": layer,
        "seed": seed,
        "d_model": sae.d_in,
        "n_latents": sae.num_latents,
        "k": sae.cfg.k,
        "n_train_tokens": cell.run.budget.n_train_tokens,
        **measured,
        "max_decoder_norm_deviation": float((sae.W_dec.detach().norm(dim=1) - 1).abs().max()),
        "path": str(cell.seed_dir(seed) / f"layers.{layer}"),
    }


def publish(
    cell: Cell,
    model: PreTrainedModel,
    hookpoints: Mapping[int, str],
    seeds: Sequence[int],
    records: Sequence[dict[str, Any]],
    metrics: Sequence[Path],
) -> None:
    """Complete the staged folder of each seed, move each into place in one step, then remove the resumable state.

    Args:
        cell: What was trained.
        model: Its target.
        hookpoints: Name of the hooked module of each layer.
        seeds: Seeds trained.
        records: One of each SAE.
        metrics: The `metrics.jsonl` of every pass.
    """
    target_fingerprint = fingerprint_model(model)
    losses = _merge_losses(metrics)
    for seed in seeds:
        if cell.seed_dir(seed).exists():  # an interrupted run got as far as this one
            continue
        staged = staged_dir(cell, seed)
        modules = {f"layers.{layer}": name for layer, name in hookpoints.items()}
        write_text(staged / METRICS_FILE, _losses_of(seed, losses))
        shutil.copyfile(cell.work_dir / RUN_FILE, staged / RUN_FILE)
        write_json(staged / "config.json", _reader_config(cell, modules))
        own_records = [record for record in records if record["seed"] == seed]
        write_json(staged / "run.json", _run_record(cell, seed, modules, target_fingerprint, own_records))
        os.replace(staged, cell.seed_dir(seed))
    remove_folder(cell.work_dir)


def _merge_losses(paths: Sequence[Path]) -> dict[int, dict[str, float]]:
    """The losses of all passes by the number of tokens; every pass has its own SAEs."""
    merged: dict[int, dict[str, float]] = {}
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            values = json.loads(line)
            merged.setdefault(values.pop("tokens"), {}).update(values)
    return merged


def _losses_of(seed: int, losses: Mapping[int, Mapping[str, float]]) -> str:
    """Lines of a seed's own `metrics.jsonl`."""
    lines = []
    for n_tokens in sorted(losses):
        own = {name: value for name, value in losses[n_tokens].items() if name.endswith(f"/seed_{seed}")}
        lines.append(json.dumps({"tokens": n_tokens, **dict(sorted(own.items()))}) + "\n")
    return "".join(lines)


def _reader_config(cell: Cell, modules: Mapping[str, str]) -> dict[str, Any]:
    """config.json: what other readers of sparsify folders look for."""
    return {
        "model": cell.target.reference,
        "dataset": cell.source.reference,
        "ctx_len": cell.run.settings.ctx_len,
        "hookpoints": dict(modules),
    }


def _run_record(
    cell: Cell, seed: int, modules: Mapping[str, str], target_fingerprint: str, records: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """run.json: enough to train the same SAEs again, and how they did."""
    return {
        "settings": cell.identity(),
        "seed": seed,
        "target_reference": cell.target.reference,
        "target_fingerprint": target_fingerprint,
        "dataset": cell.source.reference,
        "dataset_fingerprint": cell.source.fingerprint,
        "n_train_tokens": cell.run.budget.n_train_tokens,
        "n_eval_tokens": cell.run.budget.n_eval_tokens,
        "hookpoints": dict(modules),
        "saes": list(records),
        "device": str(cell.run.device),
        "n_processes": cell.run.workers.n,
        "versions": versions(),
        "git_commit": git_commit(),
    }
