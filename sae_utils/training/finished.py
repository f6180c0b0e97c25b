"""Finished SAEs: their folders and their records, written whole.

<target>_from_<source>_seed_<s>/layers.<L>/cfg.json, sae.safetensors    what `SparseCoder.load_many` reads
                                config.json                              model, dataset, ctx_len, hooked modules
                                run.json                                 the full record
                                metrics.jsonl                            losses of training, step by step
                                wandb.json                               id of the W&B run
                                README.md                                what a hub shows of them
                                run_layers.<L>.json, metrics_..., wandb_...   the same of layers that were added later
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sae_utils.errors import NonFiniteError
from sae_utils.evaluation.random_tokens import RANDOM_DRAW
from sae_utils.files import (
    check_files,
    checksum_files,
    write_json,
    write_record,
    write_text,
    written_folder,
)
from sae_utils.memory import sae_bytes
from sae_utils.paths import METRICS_FILE, RUN_RECORD, added_name
from sae_utils.records import git_commit, versions
from sae_utils.sources.controls import SHUFFLE_SEED, SHUFFLED
from sae_utils.sources.joining import PACKING_RULE
from sae_utils.sparse_coders import SparseCoder
from sae_utils.training.cells import Cell
from sae_utils.training.folders import CellFolders
from sae_utils.training.machines import Machines
from sae_utils.training.model_card import write_card
from sae_utils.training.wandb_runs import RUN_FILE

SaeKey = tuple[int, int]
"""Layer and seed."""

SAE_FILES = ("cfg.json", "sae.safetensors")
"""What an SAE's folder holds."""


def stage_sae(folders: CellFolders, key: SaeKey, sae: SparseCoder) -> None:
    """Write an SAE into its seed's folder, whole or not at all."""
    layer, seed = key
    scratch = folders.work_dir / f"writing_layers.{layer}_seed_{seed}"
    n_bytes = sae_bytes(sae.d_in, sae.num_latents)
    # What is there already is of a run that was stopped between writing and recording it.
    with written_folder(folders.staged_sae(layer, seed), scratch=scratch, n_bytes=n_bytes) as folder:
        sae.save_to_disk(folder)


def check_measured(measured: Mapping[SaeKey, Mapping[str, Any]]) -> None:
    """Refuse SAEs that have diverged without a loss that says so.

    Raises:
        NonFiniteError: If a number is NaN or infinite.
    """
    for (layer, seed), numbers in measured.items():
        lost = {name: value for name, value in numbers.items() if value is not None and not math.isfinite(value)}
        if lost:
            raise NonFiniteError(
                f"on the held-out tokens, the SAE of layer {layer}, seed {seed} has {lost}: training has diverged, or "
                f"the model's activations there are not finite; nothing of it is published: lower --lr, or try another "
                f"--dtype"
            )


@dataclass(frozen=True)
class TrainingTokens:
    """How much an SAE was trained on."""

    n_read: int
    """Tokens of its training sequences, the same for all SAEs of a run."""

    n_trained_on: int
    """Those that it has seen: `--exclude` leaves the others out."""


def make_record(
    folders: CellFolders, key: SaeKey, sae: SparseCoder, tokens: TrainingTokens, measured: Mapping[str, Any]
) -> dict[str, Any]:
    """One flat record of an SAE: what it is, where it will be, and how it did on the held-out tokens."""
    layer, seed = key
    return {
        "target": folders.target,
        "source": folders.source,
        "variant": folders.variant,
        "layer": layer,
        "seed": seed,
        "d_model": sae.d_in,
        "n_latents": sae.num_latents,
        "k": sae.cfg.k,
        "n_train_tokens": tokens.n_read,
        "n_tokens_trained_on": tokens.n_trained_on,
        **measured,
        "max_decoder_norm_deviation": float((sae.W_dec.detach().norm(dim=1) - 1).abs().max()),
        "path": str(folders.seed_dir(seed) / f"layers.{layer}"),
        "checksums": checksum_files(folders.staged_sae(layer, seed), SAE_FILES),
    }


def check_staged(folders: CellFolders, records: Sequence[Mapping[str, Any]], remedy: str) -> None:
    """Compare staged SAEs with their records; those that have been published are gone from there.

    Raises:
        DamagedFileError: If one is not as it was written.
    """
    for record in records:
        layer, seed = record["layer"], record["seed"]
        own = folders.of_variant(record["variant"])
        staged = own.staged_sae(layer, seed)
        has_moved = not staged.exists() and (own.seed_dir(seed) / staged.name).exists()
        if own.staged_dir(seed).exists() and not has_moved:
            check_files(staged, record.get("checksums", {}), remedy)


def publish(
    folders: CellFolders,
    runs: Mapping[int, dict[str, Any]],
    config: dict[str, Any],
    metrics: Sequence[Path],
    *,
    replaces_finished: bool = False,
) -> None:
    """Complete the staged folder of each seed and move each into place.

    A new folder is moved in one step. Where one stands already, layers are added to it: what is there stays as it is,
    and the record, without which nothing of ours sees them, comes last.

    Args:
        folders: The cell's.
        runs: Contents of each seed's `run.json`.
        config: Contents of `config.json`, the same for all seeds.
        metrics: The `metrics.jsonl` of every pass; what is behind the SAEs' tokens is of later ones.
        replaces_finished: Put folders into the place of those that stand there.
    """
    losses = _merge_losses(metrics)
    for seed, run in runs.items():
        staged, final = folders.staged_dir(seed), folders.seed_dir(seed)
        if not staged.exists():  # an interrupted run got as far as this one
            continue
        own = {n_tokens: values for n_tokens, values in losses.items() if n_tokens <= run["n_train_tokens"]}
        write_text(staged / METRICS_FILE, _losses_of(seed, own))
        write_text(staged / RUN_FILE, (folders.work_dir / RUN_FILE).read_text(encoding="utf-8"))
        if final.exists() and not replaces_finished:
            _add_to(final, staged, run)
            continue
        write_json(staged / "config.json", config)
        write_record(staged / RUN_RECORD, run | {"checksums": checksum_files(staged, ["config.json", METRICS_FILE])})
        write_card(staged)
        if final.exists():  # what --overwrite replaces stays until there is something in its place
            folders.previous_dir.mkdir(exist_ok=True)
            os.replace(final, folders.previous_dir / final.name)
        os.replace(staged, final)


def _add_to(final: Path, staged: Path, run: Mapping[str, Any]) -> None:
    """Move the layers of a staged folder into one that stands, or what an interrupted run left of them."""
    layers = run["settings"]["layers"]
    for path in sorted(staged.glob("layers.*")):
        os.replace(path, final / path.name)
    names = {name: added_name(name, layers) for name in (METRICS_FILE, RUN_FILE)}
    for name, added in names.items():
        os.replace(staged / name, final / added)
    write_card(final, added=run)
    write_record(
        final / added_name(RUN_RECORD, layers), run | {"checksums": checksum_files(final, [names[METRICS_FILE]])}
    )
    staged.rmdir()


def reader_config(cell: Cell, hookpoints: Mapping[int, str]) -> dict[str, Any]:
    """config.json: what other readers of sparsify folders look for."""
    return {
        "model": cell.target.reference,
        "dataset": cell.source.reference,
        "ctx_len": cell.settings.ctx_len,
        "hookpoints": _by_layer_name(hookpoints),
    }


def run_record(
    cell: Cell,
    folders: CellFolders,
    seed: int,
    hookpoints: Mapping[int, str],
    target_fingerprint: str,
    records: Sequence[dict[str, Any]],
    machines: Machines,
) -> dict[str, Any]:
    """run.json: enough to train the SAEs of a seed again, and how they did."""
    here, source = folders.seed_dir(seed), cell.source
    return {
        "settings": cell.identity(),
        "seed": seed,
        "target_reference": cell.target.reference,
        "target_fingerprint": target_fingerprint,
        "target_from_here": _seen_from(here, cell.target.reference),
        "dataset": source.reference,
        "dataset_fingerprint": source.fingerprint,
        "dataset_from_here": _seen_from(here, source.reference),
        "dataset_form": {
            "n_samples": source.n_samples,
            "n_tokens": source.n_tokens,
            "last_text": source.last_text,
        }
        if source.is_generated or source.is_beginning
        else None,
        "dataset_column": source.column,
        "dataset_tokenizer": source.tokenizer_fingerprint,
        "dataset_control": None
        if source.base is None
        else {"kind": SHUFFLED, "seed": SHUFFLE_SEED, "of": source.base.fingerprint},
        "packing": {"rule": PACKING_RULE, **asdict(cell.packed.counts)},
        "n_train_tokens": cell.budget.n_train_tokens,
        "n_eval_tokens": cell.budget.n_eval_tokens,
        "random_tokens": RANDOM_DRAW,
        "hookpoints": _by_layer_name(hookpoints),
        "saes": [record for record in records if record["seed"] == seed],
        "device": str(machines.device),
        "n_processes": machines.workers.n,
        "versions": versions(),
        "git_commit": git_commit(),
    }


def _seen_from(folder: Path, reference: str) -> str | None:
    """A path from one folder to another, which holds when both are moved together; None for what is on a hub."""
    path = Path(reference).expanduser()
    return os.path.relpath(path, folder) if path.exists() else None


def _by_layer_name(hookpoints: Mapping[int, str]) -> dict[str, str]:
    """Hooked modules by the names of the folders that their SAEs lie in."""
    return {f"layers.{layer}": name for layer, name in hookpoints.items()}


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
