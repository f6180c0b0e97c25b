"""What a run of sampling will do and take: the lines of its plan, and of a dry run what is left and for how long."""

from collections.abc import Sequence

from sae_utils.devices import dtype_name
from sae_utils.disk import NOTHING, describe_bytes, free_disk_bytes
from sae_utils.generation.dataset_size import TEXT_BYTES
from sae_utils.generation.expected import Expected
from sae_utils.generation.job import CheckedJob, GenerationJob, describe_if_finished
from sae_utils.generation.sampling_rate import about_sampling
from sae_utils.memory import NOT_HERE
from sae_utils.progress import span
from sae_utils.rates import TIMING_REMEDY, UNKNOWN_DEVICE, describe_rate, on_machine, unknown_rate

GB, MB = 1e9, 1e6


def describe_job(checked: CheckedJob) -> str:
    """What a job will do, in a few lines."""
    job, chosen, expected = checked.job, checked.job.settings, checked.expected
    at_most = "" if job.goal.n_tokens else f", at most {job.goal.n_samples * chosen.max_length:,} tokens"
    unknown = f"; {NOT_HERE}" if checked.free_bytes is None else ""
    fixed = ", in batches of one shape" if job.fixed_batches else ""
    n_rows, memory = checked.n_rows, checked.memory
    return (
        f"{job.reference} -> {job.folder}\n"
        f"  {job.goal} of up to {chosen.max_length:,} tokens{at_most}; seed {chosen.seed}, temperature "
        f"{chosen.temperature}, top_p {chosen.top_p}\n"
        f"  {memory.n_parameters / 1e6:,.0f} M parameters in {dtype_name(job.dtype)} on {job.device}: "
        f"{memory.model_bytes / GB:.2f} GB; {n_rows} samples together{fixed}, {memory.row_bytes / MB:,.1f} MB each: "
        f"{n_rows * memory.row_bytes / GB:.2f} GB, in all {checked.memory_bytes / GB:.2f} GB{unknown}\n"
        f"  {'up to ' if expected.is_bound else ''}{checked.disk}, of "
        f"{describe_bytes(free_disk_bytes(job.output_dir))} free; {_describe_text(expected)}"
    )


def describe_unsampled(checked: CheckedJob) -> str:
    """Samples that are there, and those that are left with the time that they take, as far as it is known.

    Raises:
        InputError: If what is there was made with other settings.
    """
    if is_all_there(checked.job):
        return "  already there: all of it; nothing is left to sample"
    expected = checked.expected
    left, how_long = _left(expected), _how_long(checked, expected)
    there = f"{expected.n_samples:,} samples, {expected.n_tokens:,} tokens"
    return f"  already there: {there}; left to sample: {left}, {how_long}"


def describe_all_unsampled(jobs: Sequence[CheckedJob]) -> str:
    """What all data sets take together, made one after the other."""
    left = [each for each in jobs if not is_all_there(each.job)]
    times = [each.expected.left_sec for each in left]
    how_long = "time not known of all" if None in times else f"about {span(sum(times))}"
    memory, disk = max((each.memory_bytes for each in left), default=0), NOTHING
    for each in left:
        disk = disk.then(each.disk)
    return f"all {len(jobs)} data sets: {how_long}, at most {memory / GB:.2f} GB of memory in a process, {disk}"


def is_all_there(job: GenerationJob) -> bool:
    """Whether nothing is left to sample.

    Raises:
        InputError: If what is there was made with other settings.
    """
    return not job.overwrite and describe_if_finished(job) is not None


def _left(expected: Expected) -> str:
    """What is left, in the unit of what was asked for."""
    if expected.goal.n_tokens is not None:
        return f"{expected.n_tokens_left:,} tokens"
    return f"{expected.n_samples_left:,} samples"


def _how_long(checked: CheckedJob, expected: Expected) -> str:
    """How long that takes, and by what was measured; or how to find out."""
    job, rate = checked.job, expected.rate
    of = about_sampling(job.reference, job.settings, job.dtype, job.device, checked.n_processes)
    if of is None:
        return UNKNOWN_DEVICE
    if rate is None:
        first = "or sample a few first, by a smaller --n or --num_tokens: a larger one goes on from there"
        return f"{unknown_rate(job.output_dir, of)}; {TIMING_REMEDY}, {first}"
    together = f"{rate.more['n_together']:,} samples together, {on_machine(of)}"
    return f"about {span(expected.left_sec)} by {describe_rate(rate)}, {together}"


def _describe_text(expected: Expected) -> str:
    """How long a token's text is taken to be, and whether anybody knows."""
    if expected.text_bytes is None:
        return f"a token's text is taken for {TEXT_BYTES:.0f} bytes, as none was sampled yet"
    return f"a token's text is {expected.text_bytes:.1f} bytes"
