"""One generated data set from start to end: load the model, sample up to the goal, write, record."""

import hashlib
import logging
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from sae_utils.data_card import write_data_card
from sae_utils.devices import dtype_name
from sae_utils.errors import InputError
from sae_utils.models import (
    LoadedModel,
    check_fits_context,
    find_bos_id,
    fingerprint_model,
    fingerprint_tokenizer,
    load_causal_lm,
    load_config,
    load_tokenizer,
    resolve_reference,
)
from sae_utils.paths import DatasetKey, short_name
from sae_utils.progress import token_bar
from sae_utils.records import git_commit, versions, write_json
from sae_utils.sampling import SamplingSettings, sample_tokens
from sae_utils.shards import Goal, GrowingDataset

logger = logging.getLogger(__name__)

DEFAULT_BATCH_SIZE = 32
"""Samples decoded together when --batch_size is not given."""

TAIL_MARGIN = 1.05
"""Samples begun for the last tokens, as a multiple of what the mean length suggests: one more round costs far more."""


@dataclass(frozen=True)
class GenerationJob:
    """One model's data set to make."""

    model: str
    """Hub id or folder, as given."""

    output_dir: Path
    """Folder of the data sets."""

    settings: SamplingSettings
    """What decides each sample."""

    goal: Goal
    """How much to sample."""

    batch_size: int | None
    """Samples decoded together; None for automatic."""

    device: torch.device
    """Where to compute."""

    dtype: torch.dtype
    """Number format of the model."""

    overwrite: bool
    """Throw away what stands there."""

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise InputError(f"--batch_size must be at least 1 sample, got {self.batch_size}")

    @property
    def reference(self) -> str:
        """Where the model is loaded from."""
        return resolve_reference(self.model)

    @property
    def folder(self) -> Path:
        """Where the finished data set stands."""
        chosen = self.settings
        key = DatasetKey(short_name(self.reference), chosen.seed, chosen.temperature, chosen.top_p)
        return self.output_dir / key.folder

    @property
    def rows_together(self) -> int:
        """Samples decoded together."""
        return self.batch_size or DEFAULT_BATCH_SIZE


def check_jobs(jobs: list[GenerationJob]) -> None:
    """Refuse, before any weights are loaded, what would fail later.

    Raises:
        InputError: If a model is missing, cannot start a text, has too short a context, or two share a folder.
    """
    folders: dict[Path, str] = {}
    for job in jobs:
        config = load_config(job.reference)
        check_fits_context(job.settings.max_length, config, flag="--max_length", reference=job.reference)
        find_bos_id(load_tokenizer(job.reference), config, job.reference)
        if job.folder in folders:
            raise InputError(
                f"--models {folders[job.folder]} and {job.model} would both be written to {job.folder}; run them with "
                f"different --output_dir"
            )
        folders[job.folder] = job.model


def describe_job(job: GenerationJob) -> str:
    """One line on what a job will do."""
    chosen = job.settings
    return (
        f"{job.reference} -> {job.folder}: {job.goal} of up to {chosen.max_length} tokens, seed {chosen.seed}, "
        f"temperature {chosen.temperature}, top_p {chosen.top_p}, batch {job.rows_together}, {job.device}, "
        f"{dtype_name(job.dtype)}"
    )


def run_job(job: GenerationJob, *, quiet: bool = False) -> str:
    """Make one data set, or continue, extend or leave alone what is there.

    Returns:
        One line on the outcome.

    Raises:
        InputError: If what is there was made with other settings, or another run is writing it.
    """
    source = load_causal_lm(job.reference, job.device, job.dtype)
    with GrowingDataset(job.folder, _identity(job, source), overwrite=job.overwrite) as growing:
        if growing.covers(job.goal):
            record = growing.record
            held = f"{record['n_samples']:,} samples, {record['n_tokens']:,} tokens"
            return f"{job.folder} is finished ({held}) and left alone; --overwrite would sample it anew"
        sample_until_goal(growing, source, job, quiet=quiet)
        dataset, cut = growing.finish(job.goal, source.tokenizer, source.bos_id)
        record = _make_record(job, growing.settings, source, dataset, cut)
        write_data_card(growing.work / "dataset", record, dataset)
        write_json(growing.work / "dataset" / "generation.json", record)
        growing.publish()
    counts = record["n_samples"], record["n_tokens"], record["mean_length_tokens"]
    return f"{job.folder}: {counts[0]:,} samples, {counts[1]:,} tokens, {counts[2]:.1f} tokens each"


def sample_until_goal(growing: GrowingDataset, source: LoadedModel, job: GenerationJob, *, quiet: bool) -> None:
    """Add shards until the unbroken beginning of the stream holds what was asked for."""
    n_samples, n_tokens = growing.progress()
    if n_samples:
        logger.info("%s: going on after %s samples, %s tokens", growing.final, f"{n_samples:,}", f"{n_tokens:,}")
    with token_bar(short_name(job.reference), total=job.goal.n_tokens, initial=n_tokens, quiet=quiet) as bar:
        while not job.goal.is_reached(n_samples, n_tokens):
            n_rows = _rows_to_sample(job, n_samples, n_tokens)
            sample_ids = range(n_samples, n_samples + n_rows)
            samples = sample_tokens(source, sample_ids, job.settings, on_tokens=bar.update)
            growing.add(n_samples, samples, source.tokenizer, source.bos_id)
            n_samples, n_tokens = n_samples + n_rows, n_tokens + sum(map(len, samples))
            if job.goal.n_tokens is None:
                bar.total = round(job.goal.n_samples * n_tokens / n_samples)  # best guess from the mean length so far


def fingerprint_dataset(dataset: Dataset) -> str:
    """Short hash of the token ids of a data set, sample by sample; texts and file layout do not matter."""
    digest = hashlib.sha256()
    for batch in dataset.with_format("arrow").iter(batch_size=1000):
        column = batch.column("input_ids").combine_chunks()
        digest.update(np.asarray(column.value_lengths(), dtype=np.int32).tobytes())
        digest.update(np.asarray(column.flatten(), dtype=np.int32).tobytes())
    return digest.hexdigest()[:16]


def _rows_to_sample(job: GenerationJob, n_samples: int, n_tokens: int) -> int:
    """Samples in the next batch: a full batch, or fewer if the goal is surely or probably nearer."""
    if job.goal.n_tokens is None:
        return min(job.rows_together, job.goal.n_samples - n_samples)
    n_missing = job.goal.n_tokens - n_tokens
    if n_samples == 0:
        return min(job.rows_together, -(-n_missing // job.settings.max_length))  # no fewer can hold them
    n_likely = n_missing * n_samples / n_tokens
    return min(job.rows_together, math.ceil(n_likely * TAIL_MARGIN))


def _identity(job: GenerationJob, source: LoadedModel) -> dict[str, Any]:
    """Everything that a sample depends on."""
    return {
        "model": short_name(job.reference),
        **asdict(job.settings),
        "dtype": dtype_name(job.dtype),
        "model_fingerprint": fingerprint_model(source.model),
        "tokenizer_fingerprint": fingerprint_tokenizer(source.tokenizer),
        "bos_id": source.bos_id,
        "eos_ids": list(source.eos_ids),
    }


def _make_record(
    job: GenerationJob, settings: dict[str, Any], source: LoadedModel, dataset: Dataset, cut: dict | None
) -> dict[str, Any]:
    """Contents of generation.json."""
    lengths = dataset.data.column("num_tokens").to_numpy()
    last_ids = (ids[-1].as_py() for ids in dataset.data.column("input_ids"))
    n_ended = sum(last in source.eos_ids for last in last_ids) if dataset else 0
    return {
        "settings": settings,
        "model_reference": job.reference,
        "bos_token": source.tokenizer.convert_ids_to_tokens(source.bos_id),
        "goal": asdict(job.goal),
        "n_samples": len(dataset),
        "n_tokens": int(lengths.sum()),
        "mean_length_tokens": float(lengths.mean()),
        "ended_in_eos_share": n_ended / len(dataset),
        "cut_sample": cut,
        "fingerprint": fingerprint_dataset(dataset),
        "device": str(job.device),
        "versions": versions(),
        "git_commit": git_commit(),
    }
