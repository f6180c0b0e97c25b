"""A key-value cache that grows in blocks, on top of transformers' own cache classes."""

import logging
from functools import partial

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

logger = logging.getLogger(__name__)

BLOCK_TOKENS = 32
"""Positions added when a layer's buffer is full: 32 copies of the cache on the way to 1,024 tokens, not 1,024."""


class BlockLayer(DynamicLayer):
    """One layer's keys and values in buffers `(batch, n_heads, capacity, d_head)` written in place.

    Same contract as transformers' `DynamicLayer`, which concatenates (and so copies) the whole cache at every step.
    What that class does to its tensors and nobody asks of this one is refused: it would not reach the buffers.
    """

    def __init__(self, capacity: int | None = None) -> None:
        """An empty layer.

        Args:
            capacity: Positions to make room for at once, for devices on which growing fragments the memory; None to
                grow in blocks, for devices that compute on whole buffers.
        """
        super().__init__()
        self.length = 0
        self.capacity = capacity

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Append `(batch, n_heads, seq, d_head)` and return views of all keys and values so far."""
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.key_buffer = key_states[:, :, :0]
            self.value_buffer = value_states[:, :, :0]
            self.is_initialized = True
        start, self.length = self.length, self.length + key_states.shape[-2]
        if self.length > self.key_buffer.shape[-2]:
            capacity = max(self.capacity or 0, -(-self.length // BLOCK_TOKENS) * BLOCK_TOKENS)
            self.key_buffer = _grown(self.key_buffer, start, capacity)
            self.value_buffer = _grown(self.value_buffer, start, capacity)
        self.key_buffer[:, :, start : self.length] = key_states
        self.value_buffer[:, :, start : self.length] = value_states
        self._set_views()
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Tokens held."""
        return self.length

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these rows of the batch, int64 `(rows,)`: moved to the front of the buffers, which stay."""
        if self.is_initialized:
            self.key_buffer = self._moved_to_front(self.key_buffer, indices)
            self.value_buffer = self._moved_to_front(self.value_buffer, indices)
            self._set_views()

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens; their number is given as transformers does, as 0 or negative."""
        if not -self.length <= tokens_to_remove <= 0:
            raise ValueError(
                f"crop takes the number of tokens to remove as -{self.length} .. 0, got {tokens_to_remove}"
            )
        self.length += tokens_to_remove
        if self.is_initialized:
            self._set_views()

    def reset(self) -> None:
        """Refused, see the class."""
        raise NotImplementedError("a BlockLayer is used once: make another cache")

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Refused, see the class."""
        raise NotImplementedError("a BlockLayer does not repeat rows")

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Refused, see the class."""
        raise NotImplementedError("a BlockLayer does not reorder rows; batch_select_indices keeps some")

    def offload(self) -> None:
        """Refused, see the class."""
        raise NotImplementedError("a BlockLayer stays on its device")

    def _moved_to_front(self, buffer: Tensor, indices: Tensor) -> Tensor:
        """The first rows of a buffer, with what these rows hold."""
        buffer[: len(indices), :, : self.length] = buffer[indices, :, : self.length]
        return buffer[: len(indices)]

    def _set_views(self) -> None:
        """Point `keys` and `values`, which transformers reads, at the filled part."""
        self.keys = self.key_buffer[:, :, : self.length]
        self.values = self.value_buffer[:, :, : self.length]


def make_cache(config: PretrainedConfig, capacity: int | None = None) -> DynamicCache:
    """An empty cache for a model: block layers wherever the model asks for plain growing ones.

    Layers of other kinds (sliding windows, linear attention) keep transformers' own class, which is correct and slower;
    this is logged once.

    Args:
        config: The model's.
        capacity: Positions that block layers make room for at once, see there.
    """
    cache = DynamicCache(config=config)
    if not cache.layers:
        cache.layer_class_to_replicate = partial(BlockLayer, capacity)
    kinds = {type(layer).__name__ for layer in cache.layers if type(layer) is not DynamicLayer}
    if kinds:
        _warn_once(
            f"{config.model_type}: cache layers {', '.join(sorted(kinds))} are decoded by transformers' own path"
        )
    cache.layers = [BlockLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def can_go_back(cache: DynamicCache) -> bool:
    """Whether a cache can forget its last tokens, see `go_back_`."""
    return all(type(layer) is BlockLayer for layer in cache.layers)


def go_back_(cache: DynamicCache, n_tokens: int) -> None:
    """Forget the last tokens of a cache, in place; what they left in the buffers is written over."""
    for layer in cache.layers:
        layer.crop(-n_tokens)


_warned: set[str] = set()


def _warn_once(message: str) -> None:
    """Log a warning the first time it comes up in this process."""
    if message not in _warned:
        _warned.add(message)
        logger.warning(message)


def _grown(buffer: Tensor, n_used: int, capacity: int) -> Tensor:
    """A larger buffer with the same beginning, zero behind it: see `packed_attention.whole_buffer`."""
    larger = torch.empty((*buffer.shape[:-2], capacity, buffer.shape[-1]), dtype=buffer.dtype, device=buffer.device)
    larger[:, :, :n_used] = buffer[:, :, :n_used]
    larger[:, :, n_used:] = 0
    return larger
