"""Sampling texts from a language model, from its beginning-of-sequence token alone."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from sae_utils.devices import dtype_name
from sae_utils.errors import InputError, NonFiniteError, remedy_for_non_finite
from sae_utils.generation.fused_layers import fuse_layers_
from sae_utils.generation.kv_cache import can_go_back, go_back_, make_cache
from sae_utils.generation.nucleus import choose_among, choose_tokens
from sae_utils.generation.packed_attention import attention_kernels, use_packed_attention_
from sae_utils.generation.packed_linear import pack_linears_
from sae_utils.models import LoadedModel
from sae_utils.seeding import sample_uniforms

COMPACT_SHARE = 1 / 8
"""Rows are dropped once this share of a batch has ended: dropping copies the cache, keeping wastes forward passes."""

EVERY_TOKEN = sys.maxsize
"""More candidates than any vocabulary has."""


@dataclass(frozen=True)
class SamplingSettings:
    """What decides what sample `i` is, beside the model and its number format; `max_length` only cuts it."""

    seed: int = 42
    """Seed of the sampling streams."""

    temperature: float = 1.0
    """Divides the logits; 1.0 is the model's own distribution."""

    top_p: float = 0.9
    """Nucleus mass kept at each step; 1.0 keeps everything."""

    max_length: int = 1024
    """Longest sample in tokens, BOS included."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**64:
            raise InputError(f"--seed must be in 0 .. 2**64 - 1, got {self.seed}")
        if not 0 < self.temperature < float("inf"):
            raise InputError(f"--temperature must be > 0 and finite, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"--top_p must be in (0, 1], got {self.top_p}; 1.0 keeps the whole distribution")
        if self.max_length < 2:
            raise InputError(f"--max_length must be at least 2 tokens, BOS and one more, got {self.max_length}")


NLL_UNIT = 2.0**-20
"""Negative log-likelihoods are kept as whole numbers of this many nats: such sums do not depend on their order."""


@dataclass(frozen=True)
class Sample:
    """One sampled text."""

    ids: np.ndarray
    """int32 token ids, BOS first, EOS last where the model chose it."""

    nll: np.ndarray
    """int32, as long as `ids`: each token's negative log-likelihood under the model in units of `NLL_UNIT` nats, at
    temperature 1 and with nothing cut off; 0 for BOS, which was given."""


@dataclass
class Pace:
    """How a device likes to be driven. It shows in samples by rounding alone: `is_cache_whole`, `least_rows`."""

    look_every: int
    """Steps between two looks at what was sampled. A GPU runs ahead of the host as long as the host does not look."""

    n_candidates: int | None
    """Most probable tokens that every row's nucleus is looked for in; four times as many, for all batches of this pace,
    once they were not enough for a row. None to look in as many as it takes, for devices that can be asked at every
    step."""

    is_cache_whole: bool
    """Make room in the cache for `max_length` tokens at once; where attention takes whole buffers, as on a CPU, their
    size shows in how it rounds."""

    least_rows: int = 1
    """Rows that a batch never has fewer of, so that what a row is rounded to is the same in every batch."""


def pace_of(device: torch.device) -> Pace:
    """What suits a device, to begin with."""
    if device.type == "cpu":
        # A matrix times one vector has a kernel of its own there, which rounds bfloat16 otherwise.
        return Pace(look_every=1, n_candidates=None, is_cache_whole=False, least_rows=2)
    # One wide nucleus among the rows of a block is enough to decode it again: few candidates cost more than many.
    return Pace(look_every=16, n_candidates=4096, is_cache_whole=True)


def prepare_for_sampling_(model: PreTrainedModel) -> None:
    """Give a model, in place, the attention, the layers and the layout of weights that decode fastest.

    What it computes stays the same up to rounding; from here on it only samples.
    """
    use_packed_attention_(model)
    fuse_layers_(model)
    pack_linears_(model)


@torch.inference_mode()
def sample_tokens(
    source: LoadedModel,
    sample_ids: Sequence[int],
    settings: SamplingSettings,
    *,
    is_fixed: bool = False,
    pace: Pace | None = None,
    on_tokens: Callable[[int], None] = lambda n_tokens: None,
) -> list[Sample]:
    """Sample texts, all rows in step, each from BOS until EOS or `max_length`.

    All rows stand at the same position at every step, so nothing is padded and nothing is masked.

    Args:
        source: The model.
        sample_ids: Which samples of the infinite stream to make; each depends on its own id, not on the others, but for
            how the device rounds a row of a product by the shape of the whole. That shows in the last bits of float32
            on a CPU and may flip an id on a GPU; with `is_fixed` the shape stays.
        settings: Seed, temperature, nucleus and longest length.
        is_fixed: Keep rows that have ended in the batch, so that all passes have one shape.
        pace: How to drive the device; None for what suits it. It keeps what was found out for the next batch.
        on_tokens: Called with the number of tokens added, for progress.

    Returns:
        One sample per id, 2 .. max_length tokens long.
    """
    batch = Batch(source, sample_ids, settings, pace or pace_of(source.model.device), is_fixed=is_fixed)
    on_tokens(len(sample_ids))  # BOS
    with attention_kernels(source.model.device):
        while batch.n_live and batch.position < settings.max_length:
            on_tokens(batch.advance())
    return batch.samples()


class Batch:
    """Samples that are decoded in step, a few positions at a time.

    Between two looks nothing is read from the device; so some rows go on behind their EOS, which is cut off later, and
    a nucleus may turn out not to have been found, upon which those positions are decoded again.
    """

    def __init__(
        self, source: LoadedModel, sample_ids: Sequence[int], settings: SamplingSettings, pace: Pace, *, is_fixed: bool
    ) -> None:
        n, longest, device = max(len(sample_ids), pace.least_rows), settings.max_length, source.model.device
        self.source, self.settings, self.pace, self.is_fixed = source, settings, pace, is_fixed
        self.sample_ids = sample_ids
        drawn = sample_uniforms(settings.seed, sample_ids, longest - 1)
        self.uniforms = torch.from_numpy(np.resize(drawn, (n, longest - 1))).to(device)
        self.eos_ids = torch.tensor(source.eos_ids, dtype=torch.int32, device=device)
        self.tokens = torch.full((n, longest), source.bos_id, dtype=torch.int32, device=device)
        self.nll = torch.zeros((n, longest), device=device)
        self.lengths = torch.full((n,), longest, device=device)
        self.rows = torch.arange(n, device=device)  # samples that are still in the batch
        self.is_live = self.rows < len(sample_ids)  # of these rows; the others repeat samples to fill the batch
        self.n_live = len(sample_ids)
        self.position = 1  # of the next token
        self.cache = make_cache(source.model.config, longest if pace.is_cache_whole else None)
        if pace.n_candidates is not None and not can_go_back(self.cache):
            pace.n_candidates = EVERY_TOKEN

    def advance(self) -> int:
        """Decode a few positions, look at them, and drop rows that have ended; the number of tokens that were added."""
        n_candidates, n_steps = self.pace.n_candidates, self.pace.look_every
        if n_candidates is not None and self.position == 1:  # one distribution for all rows, and often a flat one
            n_candidates, n_steps = EVERY_TOKEN, 1
        stop = min(self.position + n_steps, self.settings.max_length)
        has_found = self.decode(stop, n_candidates)
        is_end = torch.isin(self.tokens[self.rows, self.position : stop], self.eos_ids) & self.is_live[:, None]
        is_ending = is_end.any(dim=1)  # (rows,)
        n_added = torch.where(is_ending, is_end.int().argmax(dim=1) + 1, stop - self.position) * self.is_live
        is_live = self.is_live & ~is_ending
        # The one look: everything that the host has to know.
        found = [n_added.sum(), is_live.sum(), has_found.long(), self._first_lost(n_added, stop)]
        n_tokens, n_live, is_found, first_lost = torch.stack(found).tolist()
        if first_lost < stop:
            self._refuse_non_finite(first_lost)
        if not is_found:
            go_back_(self.cache, stop - self.position)
            self.pace.n_candidates *= 4
            return 0
        ends = torch.where(is_ending, self.position + n_added, self.lengths[self.rows])
        self.lengths[self.rows] = ends
        self.position, self.is_live, self.n_live = stop, is_live, n_live
        n_kept = max(n_live, self.pace.least_rows)
        if not self.is_fixed and len(self.rows) - n_kept >= COMPACT_SHARE * len(self.rows):
            self._drop_ended_rows(n_kept)
        return n_tokens

    def decode(self, stop: int, n_candidates: int | None) -> Tensor:
        """Sample every row up to position `stop`; whether each nucleus was found, bool `()`, on the device.

        Nothing is read from the device if `n_candidates` is a number. Behind a row's EOS another text would begin, with
        a wide nucleus: there it does not matter.
        """
        has_found = torch.ones((), dtype=torch.bool, device=self.rows.device)
        is_open = self.is_live  # rows whose next token counts
        step_ids = self.tokens[self.rows, self.position - 1].long()[:, None]
        shape = {"temperature": self.settings.temperature, "top_p": self.settings.top_p}
        for position in range(self.position, stop):
            output = self.source.model(input_ids=step_ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
            logits, uniforms = output.logits[:, -1], self.uniforms[self.rows, position - 1]
            if n_candidates is None:
                chosen, nll = choose_tokens(logits, uniforms, **shape)
            else:
                chosen, nll, is_whole = choose_among(logits, uniforms, **shape, n_candidates=n_candidates)
                has_found = has_found & (is_whole | ~is_open).all()
                is_open = is_open & ~torch.isin(chosen, self.eos_ids)
            self.tokens[self.rows, position] = chosen.int()
            self.nll[self.rows, position] = nll
            step_ids = chosen[:, None]
        return has_found

    def _first_lost(self, n_added: Tensor, stop: int) -> Tensor:
        """First position from here to `stop` whose logits were NaN or infinite for a row that counts; else `stop`.

        Such logits show in the likelihood of whatever is chosen from them.
        """
        positions = torch.arange(self.position, stop, device=self.rows.device)
        counts = positions < self.position + n_added[:, None]  # (rows, positions)
        is_lost = ~torch.isfinite(self.nll[self.rows, self.position : stop]) & counts
        return torch.where(is_lost.any(dim=0), positions, stop).min()

    def _refuse_non_finite(self, position: int) -> None:
        """Stop before a token that nobody has said becomes part of a sample.

        Raises:
            NonFiniteError: Always.
        """
        is_lost = ~torch.isfinite(self.nll[self.rows, position])
        sample_id = self.sample_ids[int(self.rows[is_lost.nonzero()[0, 0]])]
        dtype = dtype_name(self.source.model.dtype)
        raise NonFiniteError(
            f"the logits of {self.source.reference} are NaN or infinite for the token at position {position} of sample "
            f"{sample_id} in {dtype}; nothing of it is kept: {remedy_for_non_finite(dtype)}"
        )

    def samples(self) -> list[Sample]:
        """What was sampled, cut to its length."""
        units = (self.nll.double() / NLL_UNIT).round().int().cpu().numpy()
        ids = self.tokens.cpu().numpy()
        ends = self.lengths[: len(self.sample_ids)].tolist()
        return [Sample(ids[i, :end].copy(), units[i, :end].copy()) for i, end in enumerate(ends)]

    def _drop_ended_rows(self, n_kept: int) -> None:
        """Leave so many rows in the batch, the live ones first."""
        if self.n_live:
            keep = torch.argsort(self.is_live.int(), descending=True, stable=True)[:n_kept]  # GPUs may not sort bool
            self.cache.batch_select_indices(keep)
            self.rows, self.is_live = self.rows[keep], self.is_live[keep]
