"""Every two SAEs that differ in the seed alone, matched with each other; what is known is not matched again."""

import itertools
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from sae_utils.comparison.measuring import converged
from sae_utils.comparison.results import Results, pair_key, read_arrays, write_arrays
from sae_utils.comparison.stability import Floor, compare_dictionaries, directions, untrained_floor
from sae_utils.comparison.trained import TrainedSae
from sae_utils.sparse_coders import SparseCoder

logger = logging.getLogger(__name__)

STATUS_INTERVAL_SEC = 20.0
"""Time between status lines of a matching."""


def match_seeds(saes: Sequence[TrainedSae], results: Results, device: torch.device) -> None:
    """Add the agreement of every two seeds of a target, source and layer, all of them measured, to the results.

    SAEs that have diverged have no directions to be matched.
    """
    for a, b in itertools.combinations(converged(saes, results), 2):
        if a.key[:3] == b.key[:3] and (*a.key, b.seed) not in results.pairs:
            match_pair(a, b, results, device)


def match_pair(a: TrainedSae, b: TrainedSae, results: Results, device: torch.device) -> None:
    """Match two seeds of a target, source and layer, and write what came out."""
    logger.info("matching %s, layer %d, seeds %d and %d", a.record["source"], a.layer, a.seed, b.seed)
    arrays = results.arrays(*a.key[:3])
    sae_a, sae_b = (sae.load(device) for sae in (a, b))
    agreement = compare_dictionaries(
        directions(sae_a),
        directions(sae_b),
        floor_of(sae_a, (a.seed, b.seed), results.folder, device),
        live_a=arrays[f"firing_rate_{a.seed}"] > 0,
        live_b=arrays[f"firing_rate_{b.seed}"] > 0,
        on_status=_now_and_then(),
    )
    pair = f"{a.seed}_{b.seed}"
    found = {
        f"partner_{pair}": agreement.partner,
        f"cosine_{pair}": agreement.cosine,
        f"floor_cosine_{pair}": agreement.floor_cosine,
    }
    results.add_arrays(*a.key[:3], **found)
    results.changed.add(a.key[:2])
    about = {"target": a.key[0], "source": a.key[1], "layer": a.layer, "seed": a.seed, "seed_b": b.seed}
    fingerprints = {"weights_fingerprints": [a.weights_fingerprint, b.weights_fingerprint]}
    results.pairs[pair_key(about)] = about | agreement.record | fingerprints
    results.save()


def floor_of(sae: SparseCoder, seeds: tuple[int, int], results_dir: Path, device: torch.device) -> Floor:
    """Agreement of the untrained SAEs of this size and these seeds; matched once and kept."""
    shape = f"{sae.d_in}_{sae.num_latents}_seeds_{seeds[0]}_{seeds[1]}_{device.type}"
    path = results_dir / "details" / f"floor_{shape}.npz"
    if not path.exists():
        floor = untrained_floor(sae.d_in, sae.cfg, seeds, device=device)
        write_arrays(path, {"cosine": floor.cosine, "sfr": floor.sfr, "mean_cosine": floor.mean_cosine})
    stored = read_arrays(path)
    return Floor(float(stored["sfr"]), float(stored["mean_cosine"]), stored["cosine"])


def _now_and_then() -> Callable[[str], None]:
    """A function that logs the lines it is given, but not more often than `STATUS_INTERVAL_SEC`."""
    last_sec = time.monotonic()

    def log(line: str) -> None:
        nonlocal last_sec
        if time.monotonic() - last_sec > STATUS_INTERVAL_SEC:
            last_sec = time.monotonic()
            logger.info("  %s", line)

    return log
