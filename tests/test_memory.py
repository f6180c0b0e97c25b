import platform

import numpy as np
import psutil
import pytest
import torch

from sae_utils.memory import free_bytes, is_out_of_memory, release_memory

GB = 10**9


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


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="other C libraries give memory back by rules of their own"
)
def test_gaps_between_arrays_that_stay_are_given_back():
    """A model's later layers are cut off while its first ones stay; the plan counts only those."""
    torch.ones(7_000_000)  # from here on, glibc keeps arrays up to this size in its heap
    arrays = [torch.ones(500_000) for _ in range(100)]  # 2 MB each
    before = psutil.Process().memory_info().rss
    arrays = arrays[::10]  # those that stay
    release_memory(torch.device("cpu"))
    assert psutil.Process().memory_info().rss < before - 150_000_000
