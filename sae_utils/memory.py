"""How many samples fit a device together, estimated before anything is loaded; and what to do when they did not."""

import gc
import os
from dataclasses import dataclass

import psutil
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from sae_utils.devices import is_here

USABLE_SHARE = 0.85
"""Share of the free memory that may be filled; the rest is for what is not counted."""

ROWS_MULTIPLE = 32
"""Batches of more samples than this are a multiple of it, as GPUs multiply matrices in tiles of rows."""

MAX_ROWS = {"cpu": 128, "cuda": 1024}
"""Most samples decoded together: beyond this, speed hardly grows."""

OUT_OF_MEMORY_WORDINGS = (
    "out of memory",  # CUDA, its driver, Triton, NCCL
    "cuda_error_out_of_memory",
    "cudaerrormemoryallocation",
    "cublas_status_alloc_failed",
    "cublas_status_not_initialized when calling `cublascreate",  # its workspace did not fit
    "cudnn_status_alloc_failed",
    "cudnn_status_internal_error_device_allocation_failed",
    "cudnn_status_internal_error_host_allocation_failed",
    "allocate memory",  # "can't", "cannot": PyTorch's CPU allocators, the system
    "not enough memory",
    "bad_alloc",
    "bad allocation",
)
"""How a RuntimeError says that memory ran out, in lower case. A kernel that wants more shared memory than a GPU has
("out of resource") does so for batches of any size."""

LOGIT_COPIES = 7
"""Float32 arrays of a row's vocabulary that stand side by side while a token is chosen; some are float64."""

NOT_HERE = "PyTorch sees no GPU here, so its memory is not known"
"""What a plan says where `free_bytes` is None."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory of a model and of each sample that is decoded."""

    n_parameters: int
    """Parameters of the model."""

    model_bytes: int
    """Its weights."""

    row_bytes: int
    """One sample at full length: keys, values, logits."""

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


def is_out_of_memory(err: BaseException) -> bool:
    """Whether memory ran out, of a device or of the machine: only some who find out have an exception for it."""
    if isinstance(err, (torch.OutOfMemoryError, MemoryError)):
        return True
    message = str(err).lower()
    return isinstance(err, RuntimeError) and any(wording in message for wording in OUT_OF_MEMORY_WORDINGS)


def release_memory(device: torch.device) -> None:
    """Give what nothing refers to any more back to the device, so that what comes next finds one large piece.

    After an exception this belongs behind the `except` block: inside it, the exception still holds what ran out.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def free_bytes(device: torch.device) -> int | None:
    """Memory that this process can have on a device now; None for a GPU that is planned for and not here.

    Processes of one machine share its memory evenly.
    """
    if not is_here(device):
        return None
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
