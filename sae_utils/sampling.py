"""Sampling texts from a language model, from its beginning-of-sequence token alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sae_utils.errors import InputError
from sae_utils.kv_cache import make_cache
from sae_utils.models import LoadedModel
from sae_utils.nucleus import choose_tokens
from sae_utils.seeding import sample_uniforms

COMPACT_SHARE = 1 / 8
"""Rows are dropped once this share of a batch has ended: dropping copies the cache, keeping wastes forward passes."""


@dataclass(frozen=True)
class SamplingSettings:
    """What, beside the model, decides what sample `i` is."""

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


@torch.inference_mode()
def sample_tokens(
    source: LoadedModel,
    sample_ids: Sequence[int],
    settings: SamplingSettings,
    *,
    on_tokens: Callable[[int], None] = lambda n_tokens: None,
) -> list[Sample]:
    """Sample texts, all rows in step, each from BOS until EOS or `max_length`.

    All rows stand at the same position at every step, so nothing is padded and nothing is masked.

    Args:
        source: The model.
        sample_ids: Which samples of the infinite stream to make; each depends on its own id, not on the others.
        settings: Seed, temperature, nucleus and longest length.
        on_tokens: Called with the number of tokens added, for progress.

    Returns:
        One sample per id, 2 .. max_length tokens long.
    """
    device = source.model.device
    uniforms = torch.from_numpy(sample_uniforms(settings.seed, sample_ids, settings.max_length - 1)).to(device)
    eos_ids = torch.tensor(source.eos_ids, device=device)
    tokens = torch.full((len(sample_ids), settings.max_length), source.bos_id, dtype=torch.int32, device=device)
    nll = torch.zeros((len(sample_ids), settings.max_length), device=device)
    lengths = torch.full((len(sample_ids),), settings.max_length, device=device)
    rows = torch.arange(len(sample_ids), device=device)  # samples that are still being decoded
    is_live = torch.ones_like(rows, dtype=torch.bool)  # of these rows
    step_ids = tokens[:, :1].long()
    cache = make_cache(source.model.config)
    on_tokens(len(sample_ids))  # BOS
    for position in range(1, settings.max_length):
        output = source.model(input_ids=step_ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        chosen, chosen_nll = choose_tokens(
            output.logits[:, -1],
            uniforms[rows, position - 1],
            temperature=settings.temperature,
            top_p=settings.top_p,
        )
        tokens[rows, position] = chosen.int()
        nll[rows, position] = chosen_nll
        n_live = int(is_live.sum())
        on_tokens(n_live)
        is_ending = is_live & torch.isin(chosen, eos_ids)
        lengths[rows[is_ending]] = position + 1
        is_live &= ~is_ending
        n_live -= int(is_ending.sum())
        if n_live == 0:
            break
        step_ids = chosen[:, None]
        if len(rows) - n_live >= COMPACT_SHARE * len(rows):
            cache.batch_select_indices(is_live.nonzero().squeeze(-1))
            rows, step_ids, is_live = rows[is_live], step_ids[is_live], is_live[is_live]
    units = (nll.double() / NLL_UNIT).round().int().cpu().numpy()
    ids = tokens.cpu().numpy()
    return [Sample(ids[i, :end].copy(), units[i, :end].copy()) for i, end in enumerate(lengths.tolist())]
