"""A few real steps of sampling, timed on request, so that a plan knows how long the rest takes."""

import time
from collections.abc import Sequence

import numpy as np
import torch

from sae_utils.devices import is_here
from sae_utils.distributed import Workers
from sae_utils.errors import InputError
from sae_utils.generation.dataset_size import mean_text_bytes
from sae_utils.generation.job import CheckedJob
from sae_utils.generation.packed_attention import attention_kernels
from sae_utils.generation.rows import make_rows
from sae_utils.generation.sampling import Batch, SamplingSettings, pace_of, prepare_for_sampling_
from sae_utils.generation.sampling_rate import about_sampling
from sae_utils.memory import release_memory
from sae_utils.models import LoadedModel, load_causal_lm
from sae_utils.rates import Rate, keep_rate

TIMED_SEC = 30.0
"""Time after which a batch is not decoded to its end."""

LEAST_LOOKS = 4
"""Looks at a batch that are timed in any case: a line needs points."""


def time_sampling(checked: CheckedJob, workers: Workers) -> None:
    """Decode one batch of a job, for half a minute at most, and keep its rate; the samples are thrown away.

    Raises:
        InputError: If the device is not here.
    """
    job = checked.job
    if not is_here(job.device):
        raise InputError(f"--time_steps needs the device that is planned for, and PyTorch sees no {job.device} here")
    source = load_causal_lm(job.reference, job.device, job.dtype)
    prepare_for_sampling_(source.model)
    rate = time_batch(source, job.settings, checked.n_rows)
    if workers.is_main:
        of = about_sampling(job.reference, job.settings, job.dtype, job.device, workers.n)
        keep_rate(job.output_dir, of, Rate(rate.n_tokens * workers.n, rate.elapsed_sec, rate.more))
    del source
    release_memory(job.device)


@torch.inference_mode()
def time_batch(source: LoadedModel, settings: SamplingSettings, n_rows: int, *, timed_sec: float = TIMED_SEC) -> Rate:
    """The rate of one batch, by the positions that were decoded in the time given; the rest by a straight line.

    A step takes longer the more tokens are behind it. Rows that have not ended count as full ones.

    Args:
        source: The model, prepared.
        settings: How to sample.
        n_rows: Samples decoded together.
        timed_sec: Time after which no more is decoded.
    """
    batch = Batch(source, range(n_rows), settings, pace_of(source.model.device), is_fixed=False)
    looks = [(batch.position, time.perf_counter())]
    n_tokens, began = n_rows, time.perf_counter()
    with attention_kernels(source.model.device):
        while batch.n_live and batch.position < settings.max_length:
            if len(looks) > LEAST_LOOKS and time.perf_counter() - began > timed_sec:
                break
            n_tokens += batch.advance()
            looks.append((batch.position, time.perf_counter()))
    n_timed, sec = batch.position, looks[-1][1] - looks[0][1]
    if batch.n_live and batch.position < settings.max_length:
        sec += rest_sec(looks, settings.max_length)
        n_tokens += batch.n_live * (settings.max_length - batch.position)
    more = {"n_samples": n_rows, "n_together": n_rows, "text_bytes": _text_bytes(batch, source), "n_timed": n_timed}
    return Rate(n_tokens, sec, more)


def rest_sec(looks: Sequence[tuple[int, float]], max_length: int) -> float:
    """Time that the positions behind the last look take, by a straight line through the time of those before it.

    The first look is left out: what is done once was done there.

    Args:
        looks: Position and time of each, at least three.
        max_length: Where the rest ends.

    >>> times = [(1, 0.0), (2, 9.0), (3, 10.0), (4, 12.0), (5, 15.0)]  # 1, 2 and 3 seconds: 4 and 5 are left
    >>> round(rest_sec(times, max_length=7), 6)
    9.0
    """
    positions, times = np.array(looks[1:], dtype=np.float64).T
    is_new = np.diff(positions) > 0
    middles = ((positions[1:] + positions[:-1]) / 2)[is_new]
    slope, start = np.polyfit(middles, (np.diff(times)[is_new] / np.diff(positions)[is_new]), 1)
    last = positions[-1]
    return max(0.0, float((max_length - last) * (start + slope * (last + max_length) / 2)))


def _text_bytes(batch: Batch, source: LoadedModel) -> float:
    """UTF-8 bytes of text a token of what was decoded."""
    ids = [sample.ids[: batch.position] for sample in batch.samples()]
    return mean_text_bytes(make_rows(range(len(ids)), ids, source.tokenizer, source.bos_id))
