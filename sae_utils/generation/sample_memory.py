"""How many samples fit a device together, estimated from a model's configuration before anything is loaded."""

from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from sae_utils.memory import USABLE_SHARE

ROWS_MULTIPLE = 32
"""Batches of more samples than this are a multiple of it, as GPUs multiply matrices in tiles of rows."""

MAX_ROWS = {"cpu": 128, "cuda": 1024}
"""Most samples decoded together: beyond this, speed hardly grows."""

LOGIT_COPIES = 7
"""Float32 arrays of a row's vocabulary that stand side by side while a token is chosen; some are float64."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory of a model and of each sample that is decoded."""

    n_parameters: int
    """Parameters of the model."""

    model_bytes: int
    """Its weights."""

    row_bytes: int
    """One sample at full length: keys, values, logits."""

    def of(self, n_rows: int) -> int:
        """Memory with so many samples decoded together."""
        return self.model_bytes + n_rows * self.row_bytes

    def fitting_rows(self, free_bytes: int, device: torch.device) -> int:
        """Samples that fit beside the weights: at least one, above 32 a multiple of 32."""
        n_rows = int(free_bytes * USABLE_SHARE - self.model_bytes) // self.row_bytes
        n_rows = max(1, min(n_rows, MAX_ROWS[device.type]))
        return n_rows if n_rows < ROWS_MULTIPLE else n_rows - n_rows % ROWS_MULTIPLE


def estimate_memory(config: PretrainedConfig, dtype: torch.dtype, max_length: int) -> MemoryEstimate:
    """Memory needed to sample from a model, from its configuration alone."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    per_row = kv_bytes_per_token(config, dtype) * max_length + LOGIT_COPIES * 4 * config.vocab_size
    return MemoryEstimate(n_parameters, n_parameters * dtype.itemsize, per_row)


def kv_bytes_per_token(config: PretrainedConfig, dtype: torch.dtype) -> int:
    """Bytes of keys and values that one token leaves in the cache.

    >>> from transformers import GPTNeoXConfig
    >>> shape = GPTNeoXConfig(hidden_size=2048, num_hidden_layers=24, num_attention_heads=16)  # Pythia-1.4b
    >>> kv_bytes_per_token(shape, torch.bfloat16)  # 2 (keys, values) x 24 layers x 2048 x 2 bytes
    196608
    """
    n_heads = config.num_attention_heads
    d_head = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    n_kv_heads = getattr(config, "num_key_value_heads", None) or n_heads
    return 2 * config.num_hidden_layers * n_kv_heads * d_head * dtype.itemsize
