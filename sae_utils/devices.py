"""Where to compute and in which number format, from `--device` and `--dtype`."""

import logging
import os
import platform
import subprocess
import warnings
from pathlib import Path

import torch

from sae_utils.distributed import Launch, find_launch
from sae_utils.errors import InputError, first_line

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

DRIVER_FILE = Path("/proc/driver/nvidia/version")
"""What NVIDIA's kernel driver says about itself while it is loaded."""

PROCESSOR_FILE = Path("/proc/cpuinfo")
"""What Linux says about the processors."""

SMI_TIMEOUT_SEC = 20
"""Longest wait for nvidia-smi, which takes seconds where it has to wake many cards."""


def choose_device(name: str, *, is_plan: bool = False) -> torch.device:
    """The device of this process, made PyTorch's current one: Triton starts kernels there, wherever the tensors are.

    `auto` is a GPU if there is one that works, else the CPU, with a warning if a card is there. Processes that torchrun
    started take a GPU each. To be called once, before any process group and before sparsify is imported, which asks
    for GPUs as well: PyTorch gives its reason for seeing none only to the first who asks.

    Args:
        name: Value of --device.
        is_plan: Whether nothing will be computed; a GPU may then be another machine's.

    Raises:
        InputError: If there is no such device, or not one for every process, or it does not work.
    """
    asked, launch = _parse_device(name), find_launch()
    if asked.type == "cpu":
        return asked
    if asked.index is not None and launch.n_local > 1:
        raise InputError(
            f"--device {name} names one GPU, and torchrun started {launch.n_local} processes on this machine, each of "
            f"which takes a GPU of its own; give --device cuda"
        )
    device = torch.device("cuda", launch.local_rank if asked.index is None else asked.index)
    is_seen, said = _ask_for_gpus()
    if is_seen:
        _check_number(name, device, launch)
        said = _failure_on(device)
        if said is None:
            torch.cuda.set_device(device)
            return device
    fault = _describe_fault(device, is_seen=is_seen, said=said)
    # Where several processes see GPUs, each knows only its own; going on with some on CPUs would hang them all.
    if name == "auto" and not (is_seen and launch.n > 1):
        _warn(fault, "going on on the CPU", launch)
        return torch.device("cpu")
    if is_plan and not is_seen:
        _warn(fault, "planning for a GPU that can be used", launch)
        return device
    remedy = "use --device cpu" if name == "auto" else "use --device cpu or auto"
    if fault:
        raise InputError(f"--device {name} needs a CUDA GPU that works; {fault}; {remedy}")
    raise InputError(f"--device {name} needs a CUDA GPU and PyTorch sees none{_shown_visibility()}; {remedy}")


def is_here(device: torch.device) -> bool:
    """Whether PyTorch sees the device; a plan may be made for a GPU that it does not see."""
    return device.type != "cuda" or torch.cuda.is_available()


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The number format that `--dtype` names; `auto` is bfloat16 on a GPU that has it and float32 elsewhere.

    A GPU that is not here is taken to have it.

    Raises:
        InputError: If there is no such format.
    """
    if name == "auto":
        is_gpu = device.type == "cuda"
        has_bf16 = is_gpu and (not is_here(device) or torch.cuda.is_bf16_supported(including_emulation=False))
        return torch.bfloat16 if has_bf16 else torch.float32
    if name not in DTYPES:
        raise InputError(f"--dtype must be one of auto, {', '.join(DTYPES)}, got {name!r}")
    return DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    """Name of a number format as `--dtype` spells it."""
    return str(dtype).removeprefix("torch.")


def device_name(device: torch.device) -> str:
    """Name of the card or the processor, as far as the system tells it; PyTorch must see the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = PROCESSOR_FILE.read_text(encoding="utf-8").splitlines()
    except OSError:  # not on Linux
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def find_cards() -> str | None:
    """NVIDIA's cards in this machine and their driver, whether PyTorch can use them or not; None if there are none."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=SMI_TIMEOUT_SEC, check=True).stdout
    except (OSError, subprocess.SubprocessError):  # not installed, or at odds with the driver
        return _loaded_driver()
    cards = [line.rsplit(", ", 1) for line in listed.splitlines() if ", " in line]
    if not cards:
        return None
    return f"{' and '.join(dict.fromkeys(card for card, _ in cards))} (driver {cards[0][1].strip()})"


def _loaded_driver() -> str | None:
    """The same as far as the kernel knows it: the driver alone."""
    try:
        words = DRIVER_FILE.read_text(encoding="utf-8").split("\n")[0].split()
    except OSError:
        return None
    versions = [word for word in words if word[0].isdigit() and "." in word]
    return f"an NVIDIA card (driver {versions[0] if versions else 'of unknown version'})"


def _parse_device(name: str) -> torch.device:
    """The device as it is spelled; `auto` is a GPU until none is found."""
    try:
        device = torch.device("cuda" if name == "auto" else name)
    except RuntimeError as err:
        raise InputError(f"--device must be auto, cpu, cuda or cuda:N, got {name!r}") from err
    is_spelled_out = name in ("auto", str(device))  # PyTorch reads cuda:300 as cuda:44
    if device.type not in ("cpu", "cuda") or not is_spelled_out:
        raise InputError(f"--device must be auto, cpu, cuda or cuda:N, got {name!r}")
    return device


def _ask_for_gpus() -> tuple[bool, str | None]:
    """Whether PyTorch sees a GPU, and the first line of what it would have printed about that."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        is_seen = torch.cuda.is_available()
    return is_seen, first_line(caught[0].message) if caught else None


def _check_number(name: str, device: torch.device, launch: Launch) -> None:
    """Refuse a GPU beyond the last, and processes that would have to share one."""
    n_gpus = torch.cuda.device_count()
    gpus = f"{n_gpus} CUDA GPU{'s' if n_gpus > 1 else ''}"
    if launch.n_local > n_gpus:
        raise InputError(
            f"torchrun started {launch.n_local} processes on this machine, each of which takes a GPU of its own, and "
            f"PyTorch sees {gpus}; lower --nproc_per_node to {n_gpus}, or give --device cpu"
        )
    if device.index >= n_gpus:
        raise InputError(f"--device {name} does not exist: this machine has {gpus}, counted from 0")


def _failure_on(device: torch.device) -> str | None:
    """First line of the error that the smallest computation ends with; None if it works.

    A card that is too old or too new for this build of PyTorch is seen, and runs nothing.

    Raises:
        InputError: If there is no room on it even for that: no reason to compute elsewhere for days.
    """
    try:
        with warnings.catch_warnings(record=True):  # many lines on such a card
            (torch.zeros(1, device=device) + 1).item()
    except torch.OutOfMemoryError as err:
        raise InputError(f"{device} works and is full ({first_line(err)}); free it, or use --device cpu") from err
    except RuntimeError as err:
        return first_line(err)
    return None


def _describe_fault(device: torch.device, *, is_seen: bool, said: str | None) -> str | None:
    """Which card does not work with which PyTorch, and why; None if there is no card, or it is hidden on purpose."""
    if not is_seen and os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return None
    cards = find_cards()
    if is_seen:
        cards = f"{cards or 'the GPU'}, as {device},"
    if cards is None:
        return None
    build = ", a build without CUDA (pytorch.org has those with it)" if torch.version.cuda is None else ""
    reason = f": {said}" if said else ""
    return f"{cards} cannot be used by PyTorch {torch.__version__}{build}{reason}{_shown_visibility()}"


def _shown_visibility() -> str:
    """The variable that hides GPUs, where it is set."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "" if visible is None else f" (CUDA_VISIBLE_DEVICES is {visible!r})"


def _warn(fault: str | None, consequence: str, launch: Launch) -> None:
    """One line on a card that does not work, from the main process."""
    if fault and launch.is_main:
        logger.warning("%s; %s", fault, consequence)
