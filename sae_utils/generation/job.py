"""One generated data set from start to end: load the model, sample up to the goal, write, record."""

import contextlib
import hashlib
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from sae_utils.devices import dtype_name
from sae_utils.distributed import Workers
from sae_utils.errors import InputError
from sae_utils.generation.data_card import write_data_card
from sae_utils.generation.quality import measure_quality
from sae_utils.generation.sample_memory import MAX_ROWS, MemoryEstimate, estimate_memory
from sae_utils.generation.sampling import Pace, Sample, SamplingSettings, pace_of, prepare_for_sampling_, sample_tokens
from sae_utils.generation.shards import OTHER_SETTINGS_REMEDY, Goal, GrowingDataset
from sae_utils.memory import NOT_HERE, free_bytes, is_out_of_memory, release_memory
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
from sae_utils.records import check_same_settings, git_commit, versions, write_json

logger = logging.getLogger(__name__)

DISK_BYTES_PER_TOKEN = 20
"""Id (4), likelihood (4) and text (about 4) of a token in shards, and id and text again in the finished data set."""

GB, MB = 1e9, 1e6

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
    """Samples decoded together; None for what fits."""

    device: torch.device
    """Where to compute."""

    dtype: torch.dtype
    """Number format of the model."""

    overwrite: bool
    """Throw away what stands there."""

    fixed_batches: bool = False
    """Decode sample i in row i mod `n_rows` of a batch of `n_rows` that keeps its shape, whatever else is sampled."""

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


@dataclass(frozen=True)
class CheckedJob:
    """A job whose model was found to fit it, with what that takes."""

    job: GenerationJob
    """The job."""

    memory: MemoryEstimate
    """Memory of the model and of a sample."""

    n_rows: int
    """Samples decoded together, and samples in a shard."""

    free_bytes: int | None
    """Memory that the device has left; None for a GPU that is not here."""

    def describe(self) -> str:
        """What the job will do, in a few lines."""
        job, chosen, n_rows = self.job, self.job.settings, self.n_rows
        most = job.goal.n_tokens or job.goal.n_samples * chosen.max_length
        at_most = "" if job.goal.n_tokens else f", at most {most:,} tokens"
        unknown = f"; {NOT_HERE}" if self.free_bytes is None else ""
        fixed = ", in batches of one shape" if job.fixed_batches else ""
        return (
            f"{job.reference} -> {job.folder}\n"
            f"  {job.goal} of up to {chosen.max_length:,} tokens{at_most}; seed {chosen.seed}, temperature "
            f"{chosen.temperature}, top_p {chosen.top_p}\n"
            f"  {self.memory.n_parameters / 1e6:,.0f} M parameters in {dtype_name(job.dtype)} on {job.device}: "
            f"{self.memory.model_bytes / GB:.2f} GB; {n_rows} samples together{fixed}, "
            f"{self.memory.row_bytes / MB:,.1f} MB each: {n_rows * self.memory.row_bytes / GB:.2f} GB{unknown}\n"
            f"  up to {most * DISK_BYTES_PER_TOKEN / GB:.3f} GB on disk"
        )


def check_jobs(jobs: list[GenerationJob], workers: Workers) -> list[CheckedJob]:
    """Refuse, before any weights are loaded, what would fail later.

    Raises:
        InputError: If a model is missing, cannot start a text, has too short a context, or two share a folder.
    """
    folders: dict[Path, str] = {}
    checked = []
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
        memory = estimate_memory(config, job.dtype, job.settings.max_length)
        free = free_bytes(job.device)
        # One number for all processes: it says which samples are whose.
        n_rows = workers.agree(_rows_together(job, memory, free))
        checked.append(CheckedJob(job, memory, n_rows, free))
    return checked


def run_job(checked: CheckedJob, workers: Workers, *, quiet: bool = False) -> str:
    """Make one data set, or continue, extend or leave alone what is there.

    Every process of `workers` calls this; they share the samples out, and the main one puts the data set together.

    Returns:
        One line on the outcome.

    Raises:
        InputError: If what is there was made with other settings, or another run is writing it.
    """
    job = checked.job
    if not job.overwrite and (outcome := workers.agree(describe_if_finished(job))):
        return outcome
    source = load_causal_lm(job.reference, job.device, job.dtype)
    growing = GrowingDataset(job.folder, _identity(job, source), overwrite=job.overwrite)
    prepare_for_sampling_(source.model)
    with growing if workers.is_main else contextlib.nullcontext():
        sample_until_goal(growing, source, checked, workers, quiet=quiet)
        if not workers.is_main:
            return workers.agree(None)
        dataset, cut, nll_sum_units = growing.finish(job.goal, source.tokenizer, source.bos_id)
        record = _make_record(job, growing, source, dataset)
        record |= {"nll_sum_units": nll_sum_units, "cut_sample": cut}
        record["quality"] = measure_quality(dataset, source, job.settings, nll_sum_units)
        write_data_card(growing.work / "dataset", record, dataset)
        write_json(growing.work / "dataset" / "generation.json", record)
        growing.publish()
    mean_length = record["n_tokens"] / record["n_samples"]
    return workers.agree(
        f"{job.folder}: {record['n_samples']:,} samples, {record['n_tokens']:,} tokens, {mean_length:.1f} tokens each"
    )


def describe_if_finished(job: GenerationJob) -> str | None:
    """One line if the finished data set holds what is asked for, found without loading the model; None if it does not.

    Raises:
        InputError: If it was sampled with other settings.
    """
    growing = GrowingDataset(job.folder, {}, overwrite=False)
    if not growing.covers(job.goal):
        return None
    record = growing.record
    asked = _asked_settings(job)
    made = {name: record["settings"][name] for name in asked}
    check_same_settings(made, asked, where=job.folder, remedy=OTHER_SETTINGS_REMEDY)
    held = f"{record['n_samples']:,} samples, {record['n_tokens']:,} tokens"
    return f"{job.folder} is finished ({held}) and left alone; --overwrite would sample it anew"


def sample_until_goal(
    growing: GrowingDataset, source: LoadedModel, checked: CheckedJob, workers: Workers, *, quiet: bool
) -> None:
    """Add shards until the unbroken beginning of the stream holds what was asked for.

    Work goes in rounds: as many samples as all processes take together, each process one shard. What a shard holds does
    not depend on who makes it, so any number of processes makes, or finishes, the same data set. With fixed batches,
    shards end where batches do, so that no batch is decoded for two of them.
    """
    job = checked.job
    n_samples, n_tokens = workers.agree(growing.progress() if workers.is_main else None)
    if workers.is_main:
        growing.begin()
        growing.add_batches(checked.n_rows, is_fixed=job.fixed_batches)
        if n_samples:
            logger.info("%s: going on after %s samples, %s tokens", growing.final, f"{n_samples:,}", f"{n_tokens:,}")
    is_quiet = quiet or not workers.is_main
    with token_bar(short_name(job.reference), total=job.goal.n_tokens, initial=n_tokens, quiet=is_quiet) as bar:
        n_together, pace = checked.n_rows, pace_of(job.device)
        while not job.goal.is_reached(n_samples, n_tokens):
            stop = n_samples + _rows_in_round(checked, n_samples, n_tokens, workers.n)
            start = n_samples - n_samples % checked.n_rows if job.fixed_batches else n_samples
            first = start + workers.rank * checked.n_rows
            own = range(max(first, n_samples), min(stop, first + checked.n_rows))
            if own:
                samples, n_together = sample_within_memory(
                    source, own, job.settings, n_together, bar.update, is_fixed=job.fixed_batches, pace=pace
                )
                growing.add(own.start, samples, source.tokenizer, source.bos_id)
            for each in workers.gather(n_together):  # smaller where memory ran out
                if workers.is_main:
                    growing.add_batches(each, is_fixed=job.fixed_batches)
            n_samples, n_tokens = workers.agree(growing.progress() if workers.is_main else None)
            bar.n = n_tokens
            if job.goal.n_tokens is None:
                bar.total = round(job.goal.n_samples * n_tokens / n_samples)  # best guess from the mean length so far


def sample_within_memory(
    source: LoadedModel,
    sample_ids: range,
    settings: SamplingSettings,
    n_together: int,
    on_tokens: Callable[[int], None],
    *,
    is_fixed: bool = False,
    pace: Pace | None = None,
) -> tuple[list[Sample], int]:
    """Sample these, at most `n_together` at a time; when the device runs out of memory, half as many, and so on.

    Args:
        source: The model.
        sample_ids: Which samples.
        settings: How.
        n_together: Samples decoded together.
        on_tokens: Called with the number of tokens added, for progress.
        is_fixed: Decode sample i in row i mod `n_together` of a whole batch, and leave out what was not asked for.
        pace: See `sample_tokens`.

    Returns:
        The samples, and how many fitted together.

    Raises:
        InputError: If not even one fits.
    """
    samples: list[Sample] = []
    while len(samples) < len(sample_ids):
        todo = sample_ids[len(samples) :]
        start = todo.start - todo.start % n_together if is_fixed else todo.start
        batch = range(start, start + n_together if is_fixed else min(start + n_together, todo.stop))
        try:
            sampled = sample_tokens(source, batch, settings, is_fixed=is_fixed, pace=pace, on_tokens=on_tokens)
            samples += sampled[todo.start - start : todo.stop - start]
            continue
        except (RuntimeError, MemoryError) as err:
            if not is_out_of_memory(err):
                raise
            if len(batch) == 1:
                raise InputError(
                    f"not even one sample of --max_length {settings.max_length} fits on {source.model.device}; lower it"
                ) from err
        n_together = len(batch) // 2
        logger.warning("out of memory with %d samples together; going on with %d", len(batch), n_together)
        release_memory(source.model.device)
    return samples, n_together


def fingerprint_dataset(dataset: Dataset) -> str:
    """Short hash of the token ids of a data set, sample by sample; texts and file layout do not matter."""
    digest = hashlib.sha256()
    for batch in dataset.with_format("arrow").iter(batch_size=1000):
        column = batch.column("input_ids").combine_chunks()
        digest.update(np.asarray(column.value_lengths(), dtype=np.int32).tobytes())
        digest.update(np.asarray(column.flatten(), dtype=np.int32).tobytes())
    return digest.hexdigest()[:16]


def _rows_together(job: GenerationJob, memory: MemoryEstimate, free: int | None) -> int:
    """Samples decoded together: as many as asked for, or as fit; the most there may be if nobody knows.

    The free memory is another one at every start, and the shape of a batch shows in what a GPU rounds: so as many as
    the data set was begun with, if they fit.
    """
    if job.batch_size is not None:
        return job.batch_size
    n_fit = MAX_ROWS[job.device.type] if free is None else memory.fitting_rows(free, job.device)
    batches = [] if job.overwrite else GrowingDataset(job.folder, {}, overwrite=False).batches
    if not batches:
        return n_fit
    begun_with = batches[0][0]
    if n_fit < begun_with:
        logger.warning(
            "%s was begun with %d samples together, and %d fit here; going on with those", job.folder, begun_with, n_fit
        )
    return min(begun_with, n_fit)


def _rows_in_round(checked: CheckedJob, n_samples: int, n_tokens: int, n_workers: int) -> int:
    """Samples in the next round: full batches for all, or fewer if the goal is surely or probably nearer."""
    goal, full = checked.job.goal, checked.n_rows * n_workers
    if goal.n_tokens is None:
        return min(full, goal.n_samples - n_samples)
    n_missing = goal.n_tokens - n_tokens
    if n_samples == 0:
        return min(full, -(-n_missing // checked.job.settings.max_length))  # no fewer can hold them
    n_likely = n_missing * n_samples / n_tokens
    return min(full, math.ceil(n_likely * TAIL_MARGIN))


def _asked_settings(job: GenerationJob) -> dict[str, Any]:
    """What a sample depends on, as far as it is known without the model."""
    return {"model": short_name(job.reference), **asdict(job.settings), "dtype": dtype_name(job.dtype)}


def _identity(job: GenerationJob, source: LoadedModel) -> dict[str, Any]:
    """Everything that a sample depends on."""
    return {
        **_asked_settings(job),
        "model_fingerprint": fingerprint_model(source.model),
        "tokenizer_fingerprint": fingerprint_tokenizer(source.tokenizer),
        "bos_id": source.bos_id,
        "eos_ids": list(source.eos_ids),
    }


def _make_record(job: GenerationJob, growing: GrowingDataset, source: LoadedModel, dataset: Dataset) -> dict[str, Any]:
    """Contents of generation.json, without the statistics."""
    return {
        "settings": growing.settings,
        "model_reference": job.reference,
        "bos_token": source.tokenizer.convert_ids_to_tokens(source.bos_id),
        "goal": asdict(job.goal),
        "n_samples": len(dataset),
        "n_tokens": int(dataset.data.column("num_tokens").to_numpy().sum()),
        "fingerprint": fingerprint_dataset(dataset),
        "device": job.device.type,
        **_rounding(job, growing),
        "versions": versions(),
        "git_commit": git_commit(),
    }


def _rounding(job: GenerationJob, growing: GrowingDataset) -> dict[str, Any]:
    """What, beside the settings, shows in the last bits on a GPU and may so change an id; nothing on a CPU."""
    if job.device.type == "cpu":
        return {}
    return {"device_name": torch.cuda.get_device_name(job.device), "batches": growing.batches}
