"""A key-value cache that grows in blocks, on top of transformers' own cache classes."""

import logging

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
    """

    def __init__(self) -> None:
        super().__init__()
        self.length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Append `(batch, n_heads, seq, d_head)` and return views of all keys and values so far."""
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.key_buffer = key_states[:, :, :0]
            self.value_buffer = value_states[:, :, :0]
            self.is_initialized = True
        start, self.length = self.length, self.length + key_states.shape[-2]
        if self.length > self.key_buffer.shape[-2]:
            self.key_buffer = _grown(self.key_buffer, start, self.length)
            self.value_buffer = _grown(self.value_buffer, start, self.length)
        self.key_buffer[:, :, start : self.length] = key_states
        self.value_buffer[:, :, start : self.length] = value_states
        self._set_views()
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Tokens held."""
        return self.length

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these rows of the batch."""
        if self.is_initialized:
            self.key_buffer = self.key_buffer[indices]
            self.value_buffer = self.value_buffer[indices]
            self._set_views()

    def _set_views(self) -> None:
        """Point `keys` and `values`, which transformers reads, at the filled part."""
        self.keys = self.key_buffer[:, :, : self.length]
        self.values = self.value_buffer[:, :, : self.length]


def make_cache(config: PretrainedConfig) -> DynamicCache:
    """An empty cache for a model: block layers wherever the model asks for plain growing ones.

    Layers of other kinds (sliding windows, linear attention) keep transformers' own class, which is correct and slower;
    this is logged once.
    """
    cache = DynamicCache(config=config)
    if not cache.layers:
        cache.layer_class_to_replicate = BlockLayer
    kinds = {type(layer).__name__ for layer in cache.layers if type(layer) is not DynamicLayer}
    if kinds:
        _warn_once(
            f"{config.model_type}: cache layers {', '.join(sorted(kinds))} are decoded by transformers' own path"
        )
    cache.layers = [BlockLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


_warned: set[str] = set()


def _warn_once(message: str) -> None:
    """Log a warning the first time it comes up in this process."""
    if message not in _warned:
        _warned.add(message)
        logger.warning(message)


def _grown(buffer: Tensor, n_used: int, n_needed: int) -> Tensor:
    """A larger buffer with the same beginning, zero behind it: see `packed_attention.whole_buffer`."""
    capacity = -(-n_needed // BLOCK_TOKENS) * BLOCK_TOKENS
    larger = torch.zeros((*buffer.shape[:-2], capacity, buffer.shape[-1]), dtype=buffer.dtype, device=buffer.device)
    larger[:, :, :n_used] = buffer[:, :, :n_used]
    return larger
