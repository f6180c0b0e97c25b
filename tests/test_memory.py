import numpy as np
import pytest
import torch
from conftest import llama_config, neox_config

from sae_utils.memory import MemoryEstimate, estimate_memory, free_bytes, is_out_of_memory, kv_bytes_per_token

GB = 10**9


def test_cache_by_hand():
    """Llama of 3 layers, 2 key-value heads of 4 dimensions: keys and values, 2 x 3 x 2 x 4 numbers of 4 bytes."""
    assert kv_bytes_per_token(llama_config(50, n_layers=3), torch.float32) == 192


def test_weights_are_counted_without_being_made():
    config = neox_config(100)
    memory = estimate_memory(config, torch.bfloat16, max_length=10)
    n_layer = 12 * 16 * 16 + 13 * 16  # weights and biases of attention and MLP, two layer norms
    assert memory.n_parameters == 2 * 100 * 16 + 2 * n_layer + 2 * 16
    assert memory.model_bytes == 2 * memory.n_parameters


def test_batch_is_what_fits_in_multiples_of_32():
    """Whole warps and tiles above 32 rows; below, every row counts."""
    memory = MemoryEstimate(n_parameters=0, model_bytes=2 * GB, row_bytes=GB // 10)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert memory.fitting_rows(12 * GB, cuda) == 64  # 8.2 GB usable: 82 rows
    assert memory.fitting_rows(14 * GB, cuda) == 96  # 9.9 GB usable: 99 rows
    assert memory.fitting_rows(5 * GB, cuda) == 22  # 2.25 GB usable
    assert memory.fitting_rows(1000 * GB, cuda) == 1024
    assert memory.fitting_rows(1000 * GB, cpu) == 128
    assert memory.fitting_rows(1 * GB, cuda) == 1  # tried one at a time, and refused if that fails


@pytest.mark.parametrize(
    "err",
    [
        torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB"
        ),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError(
            "NCCL error: unhandled cuda error\nLast error:\nFailed to CUDA calloc async 608 bytes: out of memory"
        ),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
        ),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:98] data. DefaultCPUAllocator: not enough memory: you tried to allocate"
        ),
        RuntimeError("unable to mmap 4096 bytes: Cannot allocate memory (12)"),
        RuntimeError("std::bad_alloc"),
        MemoryError(),
    ],
)
def test_every_wording_of_out_of_memory_is_known(err):
    """One that is not ends a run of days with a traceback, where half the batch would have done."""
    assert is_out_of_memory(err)


@pytest.mark.parametrize(
    "err",
    [
        RuntimeError("shape mismatch"),
        RuntimeError("out of resource: shared memory, Required: 262144, Hardware limit: 232448."),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasSetStream(handle)`"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        ValueError("out of memory"),
    ],
)
def test_other_errors_are_none(err):
    """Halving a batch because of a defect would end with advice that cannot help."""
    assert not is_out_of_memory(err)


def test_a_real_lack_of_memory_is_recognised():
    """As this machine's own allocators word it."""
    with pytest.raises((RuntimeError, MemoryError)) as too_much:
        torch.empty(2**58, dtype=torch.uint8)
    assert is_out_of_memory(too_much.value)
    with pytest.raises((RuntimeError, MemoryError)) as too_much:
        np.empty(2**58, dtype=np.uint8)
    assert is_out_of_memory(too_much.value)


def test_memory_of_a_gpu_that_is_not_here_is_not_known(monkeypatch):
    """Any number would be made up, and a plan would be built on it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert free_bytes(torch.device("cuda", 0)) is None
    assert free_bytes(torch.device("cpu")) > 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 * GB, 8 * GB))
    assert free_bytes(torch.device("cuda", 0)) == 3 * GB
