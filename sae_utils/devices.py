"""Where to compute and in which number format, from `--device` and `--dtype`."""

import torch

from sae_utils.errors import InputError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str) -> torch.device:
    """The device that `--device` names; `auto` is the first CUDA GPU, or the CPU when there is none.

    Raises:
        InputError: If this machine or this build of PyTorch does not have the device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as err:
        raise InputError(f"--device must be auto, cpu, cuda or cuda:N, got {name!r}") from err
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {name} needs a CUDA GPU and PyTorch sees none; use --device cpu or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {name} does not exist: this machine has {torch.cuda.device_count()} CUDA GPUs")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device must be auto, cpu, cuda or cuda:N, got {name!r}")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The number format that `--dtype` names; `auto` is bfloat16 on a GPU that has it and float32 elsewhere.

    Raises:
        InputError: If there is no such format.
    """
    if name == "auto":
        has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if has_bf16 else torch.float32
    if name not in DTYPES:
        raise InputError(f"--dtype must be one of auto, {', '.join(DTYPES)}, got {name!r}")
    return DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    """Name of a number format as `--dtype` spells it."""
    return str(dtype).removeprefix("torch.")
