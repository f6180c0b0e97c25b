"""How much memory is free, what SAEs take of it, and how to go on where it was not enough."""

import ctypes
import gc
import os
import platform

import psutil
import torch

from sae_utils.devices import is_here

USABLE_SHARE = 0.85
"""Share of the free memory that may be filled; the rest is for what is not counted."""

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

LATENT_COPIES = 2
"""Float32 arrays of `(tokens, n_latents)` side by side in an SAE's forward pass on a GPU, and while one is measured; in
training, one of them again in its backward pass there."""

SHARES_AT_ONCE = 2**19
"""Numbers of active latents' shares of the encoder's gradient that are made on a CPU before they are added up: 2 MiB in
float32, which caches hold."""

CPU_WORKSPACE_BYTES = 90_000_000
"""What training on a CPU takes besides: buffers of its matrix products, and gaps between arrays that the C library
keeps in one heap. Measured, not counted: `benchmarks/results/training_memory_cpu.json`."""

DENSE_COPIES = 6
"""Float32 arrays of `(tokens, d_model)`: activations, reconstructions, errors."""

NOT_HERE = "PyTorch sees no GPU here, so its memory is not known"
"""What a plan says where `free_bytes` is None."""


def is_out_of_memory(err: BaseException) -> bool:
    """Whether memory ran out, of a device or of the machine: only some who find out have an exception for it."""
    if isinstance(err, (torch.OutOfMemoryError, MemoryError)):
        return True
    message = str(err).lower()
    return isinstance(err, RuntimeError) and any(wording in message for wording in OUT_OF_MEMORY_WORDINGS)


def release_memory(device: torch.device) -> None:
    """Give what nothing refers to any more back to the device, so that what comes next finds one large piece.

    On a CPU, glibc would keep layers that were cut off a model in gaps of its heap, too small for an SAE's weights.

    After an exception this belongs behind the `except` block: inside it, the exception still holds what ran out.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def free_bytes(device: torch.device) -> int | None:
    """Memory that this process can have on a device now; None for a GPU that is planned for and not here.

    Processes of one machine share its memory evenly.
    """
    if not is_here(device):
        return None
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def sae_bytes(d_model: int, n_latents: int) -> int:
    """Size of one SAE in float32: encoder and decoder, and a bias of each."""
    return 4 * (2 * d_model * n_latents + n_latents + d_model)
