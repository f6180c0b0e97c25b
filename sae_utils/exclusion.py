"""Positions that SAEs neither learn from nor are measured on, because their activations are unlike all others.

At the first position of a sequence, and on some special tokens, many models hold activations whose norm is a hundred
or a thousand times that of others ("massive activations", Sun et al. 2024, arXiv:2402.17762). Squared errors there
outweigh those of all words together. What is left out is the same in training, in the variance that errors are divided
by, and in every held-out measure; where a layer's output is replaced, it is left as it is at these positions.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sae_utils.errors import InputError

WORDS = ("first", "bos", "eos")
"""What can be left out by name, in the order in which it is recorded."""

NORM = "norm:"
"""What a limit for norms begins with."""


@dataclass(frozen=True)
class Exclusion:
    """Which positions are left out, of the rows of one target."""

    has_first: bool = False
    """The first position of every sequence."""

    ids: tuple[int, ...] = ()
    """These tokens, wherever they stand; ascending."""

    max_norm: float | None = None
    """Activations whose norm is more than so many times the median of their sequence, of what else is kept of it.

    A limit of a sequence alone, so that a position is kept or not whatever else is in its batch, however many processes
    share it, and whichever source it is of.
    """

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left out."""
        return not (self.has_first or self.ids or self.max_norm)

    def keeps_ids(self, ids: Tensor) -> Tensor:
        """What is kept as far as ids and positions tell, bool like `ids`, int64 `(batch, seq)`."""
        kept = torch.isin(ids, torch.tensor(self.ids, dtype=ids.dtype, device=ids.device), invert=True)
        if self.has_first:
            kept[:, 0] = False
        return kept

    def keeps(self, ids: Tensor, activations: Tensor) -> Tensor:
        """What is kept, bool `(batch, seq)`, on the activations' device.

        Args:
            ids: `(batch, seq)`.
            activations: Of one layer, `(batch, seq, d_model)`.
        """
        return self.keeps_norms(self.keeps_ids(ids.to(activations.device)), activations)

    def keeps_norms(self, kept: Tensor, activations: Tensor) -> Tensor:
        """What `keeps_ids` keeps, without activations that are too large; NaN and infinity stay, to be noticed."""
        if self.max_norm is None:
            return kept
        norms = activations.float().norm(dim=-1)  # (batch, seq)
        medians = norms.masked_fill(~kept, torch.nan).nanmedian(dim=1, keepdim=True).values
        return kept & ~((norms > self.max_norm * medians) & norms.isfinite())


NOTHING = Exclusion()
"""Every position is kept."""


def parse_exclusion(words: Sequence[str]) -> tuple[str, ...]:
    """What is left out as it is written in flags and records: each once, in one order.

    Args:
        words: `first`, `bos`, `eos`, ids, and `norm:MULTIPLE`.

    Raises:
        InputError: If one is something else.

    >>> parse_exclusion(["norm:10.0", "7", "bos", "first", "7"])
    ('first', 'bos', '7', 'norm:10')
    """
    ids = sorted({int(word) for word in words if word.isdecimal()})
    limits = [word for word in words if word.startswith(NORM)]
    named = [word for word in WORDS if word in words]
    if unknown := [word for word in words if not (word.isdecimal() or word in WORDS or word in limits)]:
        raise InputError(f"--exclude takes {', '.join(WORDS)}, token ids, and {NORM}MULTIPLE, got {unknown[0]!r}")
    if len(limits) > 1:
        raise InputError(f"--exclude takes one {NORM}MULTIPLE, got {' '.join(limits)}")
    return (*named, *map(str, ids), *(f"{NORM}{_multiple_in(limit):g}" for limit in limits))


def find_exclusion(words: Sequence[str], *, bos_id: int, eos_id: int | None, vocab_size: int) -> Exclusion:
    """What is left out of the rows of a target.

    Args:
        words: As `parse_exclusion` gives them.
        bos_id: What begins a document for the target.
        eos_id: What ends one; None if that is the next one's BOS.
        vocab_size: Ids that it knows.

    Raises:
        InputError: If it does not know one of the ids.
    """
    by_name = {"bos": bos_id, "eos": bos_id if eos_id is None else eos_id}
    ids = {by_name[word] for word in words if word in by_name} | {int(word) for word in words if word.isdecimal()}
    if unknown := sorted(each for each in ids if each >= vocab_size):
        raise InputError(f"--exclude names the token {unknown[0]}, and the target knows 0 .. {vocab_size - 1}")
    return exclusion_of(words, ids)


def exclusion_of(words: Sequence[str], ids: Collection[int]) -> Exclusion:
    """What is left out, once the ids that the words stand for are known; both are in records."""
    limits = [_multiple_in(word) for word in words if word.startswith(NORM)]
    return Exclusion("first" in words, tuple(sorted(ids)), limits[0] if limits else None)


def _multiple_in(word: str) -> float:
    """The number behind `norm:`.

    Raises:
        InputError: If it is none, or at most 1: half of all activations are above their median.
    """
    try:
        multiple = float(word.removeprefix(NORM))
    except ValueError as err:
        raise InputError(f"--exclude {word}: {NORM} must be followed by a number, such as {NORM}10") from err
    if not 1 < multiple < float("inf"):
        raise InputError(f"--exclude {word}: the multiple of the median norm must be > 1 and finite")
    return multiple
