"""What of a data set is there already, what is left to sample, and how long that takes: a line of a dry run."""

from sae_utils.generation.job import CheckedJob, GenerationJob, describe_if_finished
from sae_utils.generation.sampling_rate import about_sampling
from sae_utils.generation.shards import GrowingDataset
from sae_utils.progress import span
from sae_utils.rates import UNKNOWN_DEVICE, describe_rate, find_rate, on_machine, unknown_rate


def describe_unsampled(checked: CheckedJob, n_processes: int) -> str:
    """Samples that are there, and those that are left with the time that they take, as far as it is known.

    Raises:
        InputError: If what is there was made with other settings.
    """
    job = checked.job
    if not job.overwrite and describe_if_finished(job):
        return "  already there: all of it; nothing is left to sample"
    n_samples, n_tokens = (0, 0) if job.overwrite else GrowingDataset(job.folder, {}, overwrite=False).progress()
    left, how_long = _left(job, n_samples, n_tokens), _how_long(job, n_samples, n_tokens, n_processes)
    return f"  already there: {n_samples:,} samples, {n_tokens:,} tokens; left to sample: {left}, {how_long}"


def tokens_left(job: GenerationJob, n_samples: int, n_tokens: int, mean_length: float) -> float:
    """Tokens that are to be sampled yet, if samples are as long as this on average."""
    if job.goal.n_tokens is not None:
        return max(0, job.goal.n_tokens - n_tokens)
    return max(0, job.goal.n_samples - n_samples) * mean_length


def _left(job: GenerationJob, n_samples: int, n_tokens: int) -> str:
    """What is left, in the unit of what was asked for."""
    if job.goal.n_tokens is not None:
        return f"{max(0, job.goal.n_tokens - n_tokens):,} tokens"
    return f"{max(0, job.goal.n_samples - n_samples):,} samples"


def _how_long(job: GenerationJob, n_samples: int, n_tokens: int, n_processes: int) -> str:
    """How long that takes, and by what was measured; or how to find out."""
    of = about_sampling(job.reference, job.settings, job.dtype, job.device, n_processes)
    if of is None:
        return UNKNOWN_DEVICE
    rate = find_rate(job.output_dir, of)
    if rate is None:
        return (
            f"{unknown_rate(job.output_dir, of)}; sample a few first, by a smaller --n or --num_tokens: a larger one "
            f"goes on from there"
        )
    mean_length = n_tokens / n_samples if n_samples else rate.n_tokens / rate.more["n_samples"]
    sec = tokens_left(job, n_samples, n_tokens, mean_length) / rate.tokens_per_sec
    return f"about {span(sec)} by {describe_rate(rate)}, {rate.more['n_together']:,} samples together, {on_machine(of)}"
