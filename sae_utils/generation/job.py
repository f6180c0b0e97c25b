"""One generated data set from start to end: load the model, sample up to the goal, write, record."""

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sae_utils.disk import DiskUse, check_space
from sae_utils.distributed import Workers
from sae_utils.errors import InputError, LockedError
from sae_utils.files import being_removed
from sae_utils.generated_data import open_samples
from sae_utils.generation.data_card import write_data_card
from sae_utils.generation.dataset_size import mean_text_bytes
from sae_utils.generation.expected import Expected, expect
from sae_utils.generation.quality import measure_quality
from sae_utils.generation.record import asked_settings, full_settings, make_record
from sae_utils.generation.rounds import sample_until_goal
from sae_utils.generation.sample_memory import MAX_ROWS, MemoryEstimate, estimate_memory
from sae_utils.generation.sampling import SamplingSettings, prepare_for_sampling_
from sae_utils.generation.sampling_rate import about_sampling, keep_sampling_rate
from sae_utils.generation.shards import OTHER_SETTINGS_REMEDY, Goal, GrowingDataset
from sae_utils.memory import free_bytes
from sae_utils.model_checks import check_sampling
from sae_utils.models import check_fits_context, find_bos_id, load_causal_lm, resolve_reference
from sae_utils.paths import DatasetKey, short_name
from sae_utils.planned_models import check_to_be_run
from sae_utils.rates import Stopwatch, find_rate
from sae_utils.records import check_same_settings, differing_settings

logger = logging.getLogger(__name__)

GB = 1e9


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

    n_processes: int = 1
    """Processes that share the samples out."""

    @property
    def expected(self) -> Expected:
        """What is known of its samples now."""
        job = self.job
        of = about_sampling(job.reference, job.settings, job.dtype, job.device, self.n_processes)
        growing = GrowingDataset(job.folder, {}, overwrite=job.overwrite)
        rate = None if of is None else find_rate(job.output_dir, of)
        return expect(growing, job.goal, job.settings.max_length, rate)

    @property
    def disk(self) -> DiskUse:
        """What it writes."""
        return self.expected.disk(self.n_rows)

    @property
    def memory_bytes(self) -> int:
        """Memory that it takes in a process."""
        n_samples = self.job.goal.n_samples or self.n_rows
        return self.memory.of(min(self.n_rows, n_samples))

    def check_room(self) -> None:
        """Refuse a job whose model, or whose exact number of tokens, does not fit.

        Raises:
            InputError: If it does not; the message has what is needed and what is free.
        """
        job, needed = self.job, self.memory.model_bytes + self.memory.row_bytes
        if self.free_bytes is not None and needed > self.free_bytes:
            raise InputError(
                f"{job.reference} with one sample of --max_length {job.settings.max_length} needs about "
                f"{needed / GB:.2f} GB of memory on {job.device}, and {self.free_bytes / GB:.2f} GB are free; lower "
                f"--max_length, or take a --dtype of fewer bytes"
            )
        if job.goal.n_tokens is not None and self.expected.n_tokens_left:
            check_space(job.output_dir, self.disk.n_peak, f"{job.goal} in {job.folder}")


def check_jobs(jobs: list[GenerationJob], workers: Workers, *, is_plan: bool = False) -> list[CheckedJob]:
    """Refuse, before any weights are loaded, what would fail later; of a plan, weights need not be there.

    Raises:
        InputError: If a model is missing or unfit, cannot start a text, has too short a context, or two share a folder;
            or if what stands in a folder cannot be continued (see `check_folder`).
    """
    folders: dict[Path, str] = {}
    checked = []
    for job in jobs:
        config, tokenizer = check_to_be_run(job.reference, is_plan=is_plan)
        check_sampling(config, job.reference)
        check_fits_context(job.settings.max_length, config, flag="--max_length", reference=job.reference)
        find_bos_id(tokenizer, config, job.reference)
        if job.folder in folders:
            raise InputError(
                f"--models {folders[job.folder]} and {job.model} would both be written to {job.folder}; run them with "
                f"different --output_dir"
            )
        folders[job.folder] = job.model
        if workers.is_main:
            check_folder(job)
        memory = estimate_memory(config, job.dtype, job.settings.max_length)
        free = free_bytes(job.device)
        # One number for all processes: it says which samples are whose.
        n_rows = workers.agree(_rows_together(job, memory, free))
        checked.append(CheckedJob(job, memory, n_rows, free, workers.n))
    return checked


def check_folder(job: GenerationJob) -> None:
    """Refuse what stands in a job's folder if the job cannot go on with it, as far as that is seen without the model.

    Raises:
        InputError: If it is not a data set of ours, was made with other settings, or is damaged.
        LockedError: If another run is writing it.
    """
    growing = GrowingDataset(job.folder, {}, overwrite=job.overwrite)
    if not job.overwrite and describe_if_finished(job):
        return
    growing.check_is_ours()
    growing.lock.check_free()
    if job.overwrite:
        return
    asked = asked_settings(job.reference, job.settings, job.dtype)
    for where, record in ((growing.final, growing.record), (growing.work, growing.begun)):
        if record is not None:
            made = _part_of(record["settings"], asked)
            check_same_settings(made, asked, where=where, remedy=OTHER_SETTINGS_REMEDY)
    if growing.record is not None:
        open_samples(growing.final, growing.record)
    for shard in growing.parts():
        shard.check()


def run_job(checked: CheckedJob, workers: Workers, *, quiet: bool = False) -> str:
    """Make one data set, or continue, extend or leave alone what is there.

    Every process of `workers` calls this; they share the samples out, and the main one puts the data set together.

    Returns:
        One line on the outcome.

    Raises:
        InputError: If what is there was made with other settings, or another run is writing it.
    """
    job = checked.job
    if not job.overwrite and (outcome := workers.agree(describe_if_finished(job) if workers.is_main else None)):
        if workers.is_main:
            tidy_up(job)
        return outcome
    source = load_causal_lm(job.reference, job.device, job.dtype)
    settings = full_settings(source, job.settings, job.dtype)
    workers.check_alike(f"the model {job.reference}", settings["model_fingerprint"])
    growing = GrowingDataset(job.folder, settings, overwrite=job.overwrite)
    prepare_for_sampling_(source.model)
    with growing if workers.is_main else contextlib.nullcontext():
        how = {"n_rows": checked.n_rows, "is_fixed": job.fixed_batches, "quiet": quiet}
        watch, n_before = Stopwatch(), growing.progress()[0] if workers.is_main else 0
        sample_until_goal(growing, source, job.goal, job.settings, workers, **how, on_round=watch.note)
        if not workers.is_main:
            return workers.agree(None)
        of = about_sampling(job.reference, job.settings, job.dtype, job.device, workers.n)
        n_new = growing.progress()[0] - n_before
        dataset, cut, nll_sum_units = growing.finish(job.goal, source.tokenizer, source.bos_id)
        how_many = {"n_samples": n_new, "n_rows": checked.n_rows}
        keep_sampling_rate(job.output_dir, of, watch, text_bytes=mean_text_bytes(dataset), **how_many)
        record = make_record(growing, source, job.goal, dataset)
        record |= {"nll_sum_units": nll_sum_units, "cut_sample": cut}
        record["quality"] = measure_quality(dataset, source, job.settings, nll_sum_units)
        write_data_card(growing.work / "dataset", record, dataset)
        growing.publish(record)
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
    record, begun = growing.finished, growing.begun
    asked = asked_settings(job.reference, job.settings, job.dtype)
    if record is None or not job.goal.is_held_by(record):
        return None
    if begun and begun["replaces_finished"] and not differing_settings(_part_of(begun["settings"], asked), asked):
        return None  # --overwrite was given before, and stopped
    made = _part_of(record["settings"], asked)
    check_same_settings(made, asked, where=job.folder, remedy=OTHER_SETTINGS_REMEDY)
    held = f"{record['n_samples']:,} samples, {record['n_tokens']:,} tokens"
    return f"{job.folder} is finished ({held}) and left alone; --overwrite would sample it anew"


def tidy_up(job: GenerationJob) -> None:
    """Remove what a killed run left beside a finished data set, unless another run is at it."""
    growing = GrowingDataset(job.folder, {}, overwrite=False)
    if not (growing.work.exists() or being_removed(growing.work).exists()):
        growing.lock.remove_left_over()
        return
    with contextlib.suppress(LockedError), growing.lock:
        growing.remove_leftovers()


def _part_of(settings: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the recorded settings that are known without the model."""
    return {name: settings.get(name) for name in asked}


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
