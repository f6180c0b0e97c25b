"""How fast a model was sampled from on a device."""

from pathlib import Path
from typing import Any

import torch

from sae_utils.devices import dtype_name
from sae_utils.generation.sampling import SamplingSettings
from sae_utils.paths import short_name
from sae_utils.rates import Rate, Stopwatch, keep_rate, this_machine


def about_sampling(
    reference: str, settings: SamplingSettings, dtype: torch.dtype, device: torch.device, n_processes: int
) -> dict[str, Any] | None:
    """What decides how many tokens a second are sampled, but for how many rows are; None for a GPU that is not here."""
    machine = this_machine(device)
    if machine is None:
        return None
    return {
        **machine,
        "n_processes": n_processes,
        "model": short_name(reference),
        "dtype": dtype_name(dtype),
        "max_length": settings.max_length,
    }


def keep_sampling_rate(
    folder: Path, of: dict[str, Any], watch: Stopwatch, *, n_samples: int, n_rows: int, text_bytes: float
) -> None:
    """Write down how fast samples were made.

    Args:
        folder: Folder of the data sets.
        of: Of `about_sampling`.
        watch: Has seen them being made.
        n_samples: How many there were.
        n_rows: How many could be decoded together.
        text_bytes: UTF-8 bytes of text a token.
    """
    if (rate := watch.rate()) is not None:
        more = {"n_samples": n_samples, "n_together": min(n_rows, n_samples), "text_bytes": text_bytes}
        keep_rate(folder, of, Rate(rate.n_tokens, rate.elapsed_sec, more))
