"""What initialisation and size give for free: untrained SAEs compared as trained ones are."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sae_utils.comparison.matching import SHARED_ABOVE, match_rows, share_above
from sae_utils.comparison.results import Results, read_arrays, write_arrays
from sae_utils.sparse_coders import SparseCoder, SparseCoderConfig


@dataclass(frozen=True)
class Floor:
    """Decoders of two untrained SAEs, matched; those of one seed are the same, so all of theirs is 1."""

    partner: np.ndarray
    """int32 `(n_latents,)`: the latent of the second that is matched to each latent of the first."""

    cosine: np.ndarray
    """float32 `(n_latents,)`: cosine of the two."""

    best: np.ndarray
    """float32 `(n_latents,)`: highest cosine of each latent of the first with any of the second."""

    best_b: np.ndarray
    """float32 `(n_latents,)`: highest cosine of each latent of the second with any of the first."""

    def exchanged(self) -> "Floor":
        """The same with the second SAE as the first."""
        order = np.argsort(self.partner)
        return Floor(order.astype(np.int32), self.cosine[order], self.best_b, self.best)

    @property
    def sfr(self) -> float:
        """Share of pairs whose cosine is above `SHARED_ABOVE`."""
        return share_above(self.cosine, SHARED_ABOVE)

    @property
    def mean_cosine(self) -> float:
        """Mean cosine of the pairs."""
        return float(self.cosine.mean(dtype=np.float64))

    @property
    def sfr_top1(self) -> float:
        """Share of latents of the first whose best cosine is above `SHARED_ABOVE`."""
        return share_above(self.best, SHARED_ABOVE)


def floor_of(
    sae: SparseCoder,
    seeds: tuple[int, int],
    results_dir: Path,
    device: torch.device,
    *,
    on_status: Callable[[str], None] = lambda line: None,
) -> Floor:
    """The floor for SAEs of this size and these seeds: matched once, and kept in the results.

    Args:
        sae: One of them; its sizes are all that matters.
        seeds: Initialisation seeds.
        results_dir: The results folder.
        device: Where the SAEs were trained: a GPU draws other numbers than a CPU from the same seed.
        on_status: Called with a line now and then.
    """
    if seeds[0] > seeds[1]:
        return floor_of(sae, (seeds[1], seeds[0]), results_dir, device, on_status=on_status).exchanged()
    shape = f"{sae.d_in}_{sae.num_latents}_seeds_{seeds[0]}_{seeds[1]}_{device.type}"
    path = results_dir / "details" / "floors" / f"{shape}.npz"
    if not path.exists():
        floor = untrained_floor(sae.d_in, sae.cfg, seeds, device=device, on_status=on_status)
        with Results(results_dir).lock():  # others may have found the same, as pairs of all layers have one floor
            write_arrays(path, vars(floor))
    return Floor(**read_arrays(path))


def untrained_floor(
    d_model: int,
    config: SparseCoderConfig,
    seeds: tuple[int, int],
    *,
    device: torch.device | str = "cpu",
    on_status: Callable[[str], None] = lambda line: None,
) -> Floor:
    """Agreement of the decoders of two SAEs as they are before their first training step.

    Args:
        d_model: Width of the activations.
        config: sparsify's settings; only the number of latents matters.
        seeds: Initialisation seeds of the two.
        device: Where the SAEs were trained.
        on_status: Called with a line now and then.
    """
    first, second = (untrained_sae(d_model, config, seed, device=device).W_dec.detach() for seed in seeds)
    found = match_rows(first, second, on_status=lambda line: on_status(f"untrained decoder rows: {line}"))
    return Floor(found.partner.astype(np.int32), found.cosine, found.best, found.best_b)


def untrained_sae(
    d_model: int, config: SparseCoderConfig, seed: int, *, device: torch.device | str = "cpu"
) -> SparseCoder:
    """The SAE that training starts from, in float32. Global random state is as before afterwards.

    Source: EleutherAI/sparsify, `Trainer.__init__`; the same seeding and construction.
    """
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        return SparseCoder(d_model, config, device, dtype=torch.float32).requires_grad_(False)
