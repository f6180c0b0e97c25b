"""Finished SAEs: their folders, written whole, and their records, read again.

<target>_from_<source>_seed_<s>/layers.<L>/cfg.json, sae.safetensors    what `SparseCoder.load_many` reads
                                config.json                              model, dataset, ctx_len, hooked modules
                                run.json                                 the full record
                                metrics.jsonl                            losses of training, step by step
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel

from sae_utils.cells import Cell
from sae_utils.models import fingerprint_model
from sae_utils.records import git_commit, read_json, remove_folder, versions, write_json
from sae_utils.sparse_coders import SparseCoder
from sae_utils.tracking import METRICS_FILE

SaeKey = tuple[int, int]
"""Layer and seed."""


def make_records(
    cell: Cell, measured: Mapping[SaeKey, dict[str, Any]], saes: Mapping[SaeKey, SparseCoder]
) -> list[dict[str, Any]]:
    """One flat record per SAE: what it is, where it is, and how it did on the held-out tokens."""
    return [
        {
            "target": cell.target.name,
            "source": cell.source.name,
            "layer": layer,
            "seed": seed,
            **measured[layer, seed],
            "max_decoder_norm_deviation": float((saes[layer, seed].W_dec.detach().norm(dim=1) - 1).abs().max()),
            "path": str(cell.seed_dir(seed) / f"layers.{layer}"),
        }
        for layer, seed in measured
    ]


def publish(
    cell: Cell,
    model: PreTrainedModel,
    hookpoints: Mapping[int, str],
    saes: Mapping[SaeKey, SparseCoder],
    records: Sequence[dict[str, Any]],
) -> None:
    """Write one folder per seed, move each into place in one step, then remove this cell's resumable state."""
    target_fingerprint = fingerprint_model(model)
    for seed in dict.fromkeys(seed for _, seed in saes):
        if cell.seed_dir(seed).exists():  # an interrupted run got as far as this one
            continue
        staged = cell.work_dir / "finished" / cell.seed_dir(seed).name
        remove_folder(staged)
        for layer in hookpoints:
            saes[layer, seed].save_to_disk(staged / f"layers.{layer}")
        shutil.copyfile(cell.work_dir / METRICS_FILE, staged / METRICS_FILE)
        modules = {f"layers.{layer}": name for layer, name in hookpoints.items()}
        write_json(staged / "config.json", _reader_config(cell, modules))
        own_records = [record for record in records if record["seed"] == seed]
        write_json(staged / "run.json", _run_record(cell, seed, modules, target_fingerprint, own_records))
        os.replace(staged, cell.seed_dir(seed))
    remove_folder(cell.work_dir)


def read_records(cell: Cell) -> list[dict[str, Any]]:
    """The records of a finished cell, by layer and seed."""
    records = [
        record for seed in range(cell.run.n_seeds) for record in read_json(cell.seed_dir(seed) / "run.json")["saes"]
    ]
    return sorted(records, key=lambda record: (record["layer"], record["seed"]))


def _reader_config(cell: Cell, modules: Mapping[str, str]) -> dict[str, Any]:
    """config.json: what other readers of sparsify folders look for."""
    return {
        "model": cell.target.reference,
        "dataset": str(cell.source.folder),
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
        "dataset": str(cell.source.folder),
        "dataset_fingerprint": cell.source.fingerprint,
        "n_train_tokens": cell.run.budget.n_train_tokens,
        "n_eval_tokens": cell.run.budget.n_eval_tokens,
        "hookpoints": dict(modules),
        "saes": list(records),
        "device": str(cell.run.device),
        "versions": versions(),
        "git_commit": git_commit(),
    }
