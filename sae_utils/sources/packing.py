"""Packed sequences: rows of token ids on disk, memory-mapped, handed out for training and for evaluation."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch.utils.data import Dataset as TorchDataset

from sae_utils.exclusion import Exclusion
from sae_utils.files import written_whole

SEQUENCES_AT_ONCE = 1024
"""Sequences that are looked through together."""

SEQUENCES_PER_COPY = 64
"""Sequences that go to a device together: 1 MB at 2,048 tokens."""


class Chunks(TorchDataset):
    """Packed sequences in a fixed order, in the form that sparsify's trainer takes.

    `chunks[i]["input_ids"]` is int64 `(ctx_len,)`.
    """

    def __init__(self, tokens: np.ndarray, order: np.ndarray | None = None) -> None:
        """Wrap packed tokens.

        Args:
            tokens: int32 `(n_chunks, ctx_len)`, usually memory-mapped.
            order: Which rows, in which order; all as they stand if None.
        """
        self.tokens = tokens
        self.order = np.arange(len(tokens)) if order is None else np.asarray(order)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.from_numpy(self.tokens[self.order[index]].astype(np.int64))}

    def select(self, indices: Sequence[int]) -> "Chunks":
        """These of the sequences, in this order."""
        return Chunks(self.tokens, self.order[np.asarray(indices, dtype=np.int64)])

    def share(self, rank: int, n_ranks: int, batch_size: int) -> "Chunks":
        """What one of several processes reads of batches that they read together.

        Batch `i` of all is the processes' `i`-th parts in the order of their ranks; sequences after the last whole
        batch are left out, so that all have equally many.

        Args:
            rank: Number of the process.
            n_ranks: Number of processes; divides `batch_size`.
            batch_size: Sequences of a batch, all processes together.
        """
        assert batch_size % n_ranks == 0, f"{batch_size} sequences for {n_ranks} processes"
        batches = self.order[: len(self) // batch_size * batch_size].reshape(-1, n_ranks, batch_size // n_ranks)
        return Chunks(self.tokens, batches[:, rank].reshape(-1))

    def count_kept(self, exclusion: Exclusion) -> np.ndarray:
        """Tokens of each sequence that are kept as far as ids and positions tell, int64 `(n_sequences,)`."""
        counts = [
            exclusion.keeps_ids(torch.from_numpy(self.tokens[rows].astype(np.int64))).sum(dim=1).numpy()
            for rows in np.array_split(self.order, -(-len(self) // SEQUENCES_AT_ONCE))
        ]
        return np.concatenate(counts)

    @property
    def ctx_len(self) -> int:
        """Tokens per sequence."""
        return self.tokens.shape[1]


class ChunksOnDevice(Chunks):
    """Packed sequences handed out on a device, brought there many at a time and ahead of what the device is doing."""

    def __init__(self, chunks: Chunks, device: torch.device) -> None:
        super().__init__(chunks.tokens, chunks.order)
        self.device = device
        self._block: int | None = None

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        block, row = divmod(index, SEQUENCES_PER_COPY)
        if block != self._block:
            self._ids, self._block = self._copied(block), block
        return {"input_ids": self._ids[row]}

    def select(self, indices: Sequence[int]) -> "ChunksOnDevice":
        """These of the sequences, in this order."""
        return ChunksOnDevice(super().select(indices), self.device)

    def _copied(self, block: int) -> torch.Tensor:
        """int64 `(sequences, ctx_len)`; from memory that a GPU reads by itself, so that nobody waits."""
        rows = self.order[block * SEQUENCES_PER_COPY : (block + 1) * SEQUENCES_PER_COPY]
        ids = torch.from_numpy(self.tokens[rows].astype(np.int64))
        return (ids.pin_memory() if self.device.type == "cuda" else ids).to(self.device, non_blocking=True)


def write_chunks(rows: Iterable[np.ndarray], ctx_len: int, path: Path) -> Chunks:
    """Write rows as packed sequences to `path`, complete or not at all, and map them.

    Args:
        rows: int32 `(ctx_len,)` each; how many is not known before.
        ctx_len: Tokens per row.
        path: `.npy` file to make.
    """
    with written_whole(path) as file, open(file.scratch, "wb") as packed:
        _write_header(packed, 0, ctx_len)
        n_rows = 0
        for row in rows:
            packed.write(np.ascontiguousarray(row, dtype=np.int32))  # into a mapped file, a full disk would end us
            n_rows += 1
        data_bytes = packed.tell()
        packed.seek(0)
        _write_header(packed, n_rows, ctx_len)  # numpy leaves room in it for any number
        assert data_bytes - packed.tell() == 4 * n_rows * ctx_len, "a header of another length"
    return open_chunks(path)


def _write_header(file: BinaryIO, n_rows: int, ctx_len: int) -> None:
    """What numpy's files begin with."""
    about = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.int32)), "fortran_order": False}
    np.lib.format.write_array_header_1_0(file, about | {"shape": (n_rows, ctx_len)})


def open_chunks(path: Path) -> Chunks:
    """Map packed sequences from disk."""
    return Chunks(np.load(path, mmap_mode="r"))


def split_chunks(chunks: Chunks, *, n_train: int, n_eval: int, shuffle_seed: int) -> tuple[Chunks, Chunks]:
    """Training and held-out sequences: the held-out ones are the last of the source, the others are shuffled once.

    Shuffling comes before cutting to `n_train`, so that a smaller budget still sees all of the source.

    Args:
        chunks: All sequences of a source, in its own order.
        n_train: Training sequences to keep.
        n_eval: Sequences held out.
        shuffle_seed: Seed of the order; the global random state is neither read nor changed.

    Returns:
        Training sequences in the order of training, held-out sequences in the source's order.
    """
    n_available = len(chunks) - n_eval
    assert 0 < n_train <= n_available, f"{n_train} training sequences of {n_available}"
    order = np.random.Generator(np.random.PCG64(shuffle_seed)).permutation(n_available)
    return chunks.select(order[:n_train]), chunks.select(range(n_available, len(chunks)))
