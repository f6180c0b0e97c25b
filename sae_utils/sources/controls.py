"""Controls made of other sources: the same rows with something taken away, so that one sees what it was worth."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sae_utils.errors import InputError
from sae_utils.files import checksum_text
from sae_utils.seeding import sample_uniforms
from sae_utils.sources.origins import Source
from sae_utils.sources.packing import Chunks
from sae_utils.sources.packs import Packed

SHUFFLED = "shuffled"
"""The tokens of each row in random order: what is left is which tokens there are, and which stand near each other."""

SHUFFLE_SEED = 0
"""Of the orders; a number of its own, so that --shuffle_seed, which is of the rows, leaves them as they are."""


def to_be_shuffled(controls: Sequence[str], names: Sequence[str]) -> list[str]:
    """Of which sources a shuffled form is asked for, in the order of the sources.

    Args:
        controls: What `--controls` was given: `shuffled` for all sources, or `shuffled:NAME` for one.
        names: Short names of the sources.

    Raises:
        InputError: If it is something else, or there is no source of that name.

    >>> to_be_shuffled(["shuffled"], ["prose", "code"]), to_be_shuffled(["shuffled:code"], ["prose", "code"])
    (['prose', 'code'], ['code'])
    """
    wanted = set()
    for control in controls:
        kind, colon, name = control.partition(":")
        if kind != SHUFFLED or (colon and name not in names):
            raise InputError(
                f"--controls must be {SHUFFLED}, for every source, or {SHUFFLED}:NAME for one of "
                f"{', '.join(names) or 'none'}, got {control}"
            )
        wanted |= {name} if colon else set(names)
    return [name for name in names if name in wanted]


def shuffled(source: Source) -> Source:
    """The source whose rows are those of another with their tokens in random order."""
    fingerprint = checksum_text(f"{SHUFFLED} {SHUFFLE_SEED} {source.fingerprint}")
    return replace(source, name=control_name(source.name), fingerprint=fingerprint, base=source)


def control_name(name: str) -> str:
    """What files and tables call the shuffled form of a source.

    >>> control_name("pythia-1.4b")
    'pythia-1.4b-shuffled'
    """
    return f"{name}-{SHUFFLED}"


def shuffle_rows(packed: Packed) -> Packed:
    """Rows with their tokens in random order; what they hold is the same."""
    return Packed(Chunks(ShuffledRows(packed.chunks.tokens)), packed.counts)


class ShuffledRows:
    """Packed tokens, `(n_rows, ctx_len)`, each row in an order of its own behind its first token, which is BOS.

    The order of a row depends on `SHUFFLE_SEED`, its number and its length alone. Rows are shuffled when they are read,
    so that nothing is kept of them.
    """

    def __init__(self, tokens: np.ndarray) -> None:
        """Wrap packed tokens, int32 `(n_rows, ctx_len)`."""
        self._tokens = tokens
        self.shape = tokens.shape

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, rows: int | np.ndarray) -> np.ndarray:
        """A row, int32 `(ctx_len,)`, or several, `(n, ctx_len)`, by their numbers."""
        numbers = np.atleast_1d(rows)
        chance = sample_uniforms(SHUFFLE_SEED, numbers.tolist(), self.shape[1] - 1)
        order = np.argsort(chance, axis=1, kind="stable") + 1
        tokens = self._tokens[numbers]
        found = np.concatenate([tokens[:, :1], np.take_along_axis(tokens, order, axis=1)], axis=1)
        return found if np.ndim(rows) else found[0]
