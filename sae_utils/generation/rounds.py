"""Sampling in rounds until a data set holds what is asked for, in batches as large as memory allows."""

import logging
import math
from collections.abc import Callable

from sae_utils.distributed import Workers
from sae_utils.errors import InputError
from sae_utils.generation.sampling import Pace, Sample, SamplingSettings, pace_of, sample_tokens
from sae_utils.generation.shards import Goal, GrowingDataset
from sae_utils.memory import is_out_of_memory, release_memory
from sae_utils.models import LoadedModel
from sae_utils.paths import short_name
from sae_utils.progress import token_bar

logger = logging.getLogger(__name__)

TAIL_MARGIN = 1.05
"""Samples begun for the last tokens, as a multiple of what the mean length suggests: one more round costs far more."""


def sample_until_goal(
    growing: GrowingDataset,
    source: LoadedModel,
    goal: Goal,
    settings: SamplingSettings,
    workers: Workers,
    *,
    n_rows: int,
    is_fixed: bool = False,
    quiet: bool = False,
    on_round: Callable[[int], None] = lambda n_tokens: None,
) -> None:
    """Add shards until the unbroken beginning of the stream holds what was asked for.

    Work goes in rounds: as many samples as all processes take together, each process one shard. What a shard holds does
    not depend on who makes it, so any number of processes makes, or finishes, the same data set. With fixed batches,
    shards end where batches do, so that no batch is decoded for two of them.

    Args:
        growing: The data set; held by the main process.
        source: The model, ready to sample.
        goal: How much is asked for.
        settings: What decides each sample.
        workers: The processes that share the samples out.
        n_rows: Samples decoded together, and samples in a shard.
        is_fixed: Decode sample i in row i mod `n_rows` of a batch that keeps its shape.
        quiet: No bars.
        on_round: Called with the tokens that are there, before the first round and after each.
    """
    n_samples, n_tokens = workers.agree(growing.progress() if workers.is_main else None)
    if workers.is_main:
        growing.begin()
        growing.add_batches(n_rows, is_fixed=is_fixed)
        if n_samples:
            logger.info("%s: going on after %s samples, %s tokens", growing.final, f"{n_samples:,}", f"{n_tokens:,}")
    on_round(n_tokens)
    is_quiet = quiet or not workers.is_main
    with token_bar(short_name(source.reference), total=goal.n_tokens, initial=n_tokens, quiet=is_quiet) as bar:
        n_together, pace = n_rows, pace_of(source.model.device)
        while not goal.is_reached(n_samples, n_tokens):
            stop = n_samples + _rows_in_round(goal, n_samples, n_tokens, n_rows * workers.n, settings.max_length)
            start = n_samples - n_samples % n_rows if is_fixed else n_samples
            first = start + workers.rank * n_rows
            own = range(max(first, n_samples), min(stop, first + n_rows))
            shard = None
            if own:
                samples, n_together = sample_within_memory(
                    source, own, settings, n_together, bar.update, is_fixed=is_fixed, pace=pace
                )
                shard = growing.add(own.start, samples, source.tokenizer, source.bos_id)
            for each, written in workers.gather((n_together, shard)):  # fewer together where memory ran out
                if workers.is_main:
                    growing.add_batches(each, is_fixed=is_fixed)
                    if written is not None:
                        growing.take_in(written)
            n_samples, n_tokens = workers.agree(growing.progress() if workers.is_main else None)
            bar.n = n_tokens
            on_round(n_tokens)
            if goal.n_tokens is None:
                bar.total = round(goal.n_samples * n_tokens / n_samples)  # best guess from the mean length so far


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


def _rows_in_round(goal: Goal, n_samples: int, n_tokens: int, full: int, max_length: int) -> int:
    """Samples in the next round: full batches for all, or fewer if the goal is surely or probably nearer."""
    if goal.n_tokens is None:
        return min(full, goal.n_samples - n_samples)
    n_missing = goal.n_tokens - n_tokens
    if n_samples == 0:
        return min(full, -(-n_missing // max_length))  # no fewer can hold them
    n_likely = n_missing * n_samples / n_tokens
    return min(full, math.ceil(n_likely * TAIL_MARGIN))
