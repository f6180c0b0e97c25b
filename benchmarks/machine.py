"""What a benchmark ran on: its name, and how fast it copies and multiplies."""

import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from sae_utils.files import write_json

COPIED_BYTES = {"cpu": 2**28, "cuda": 2**32}
"""Far more than any cache holds."""

MULTIPLIED = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of the square matrices that are multiplied."""


def add_record(path: Path, record: dict) -> None:
    """Add a record to a file of them."""
    known = json.loads(path.read_text()) if path.exists() else []
    write_json(path, [*known, record])


def device_name(device: torch.device) -> str:
    """Model name of what computes."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def cpu_name() -> str:
    """Model name of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def peak_resident_bytes() -> int:
    """Most memory that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def copied_bytes_per_sec(device: torch.device) -> float:
    """Memory bandwidth: bytes read and bytes written by a copy within the device's memory, per second."""
    source = torch.ones(COPIED_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * len(source) / median_sec(lambda: target.copy_(source), device)


def multiplied_flop_per_sec(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large product of square matrices of random numbers."""
    n = MULTIPLIED[device.type]
    a, b = torch.randn(2, n, n, device=device, dtype=dtype)
    return 2 * n**3 / median_sec(lambda: a @ b, device)


def median_sec(run: Callable[[], object], device: torch.device, n_runs: int = 7) -> float:
    """Seconds of a call on a device, the median of some after two that are not counted."""
    elapsed_sec = []
    for _ in range(n_runs + 2):
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        elapsed_sec.append(time.perf_counter() - start)
    return statistics.median(elapsed_sec[2:])


def synchronize(device: torch.device) -> None:
    """Wait until a device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
