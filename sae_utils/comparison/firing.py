"""What latents do on other sources than their own: whether they fire there, and as often."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sae_utils.comparison.results import Results
from sae_utils.comparison.trained import TrainedSae

COUNTED = ("also_live_share", "firing_overlap")
"""Numbers of an evaluation that need what was measured on the SAE's own source as well."""


def compare_firing(saes: Sequence[TrainedSae], results: Results) -> None:
    """Add to every evaluation how firing there compares with firing on the SAE's own source, where it is not known.

    What an earlier version measured on a source that this run is not about says nothing of it, and stays as it is.
    """
    is_new = False
    for sae in saes:
        known = results.saes[sae.key]["evaluations"]
        if todo := [each for each in known if COUNTED[0] in each and each[COUNTED[0]] is None]:
            _compare(todo, sae, results)
            results.changed.add(sae.key[:2])
            is_new = True
    if is_new:
        results.save()


def rates_name(source: str, seed: int) -> str:
    """Name of the array of firing rates on another source."""
    return f"firing_rate_on_{source}_{seed}"


def compare_rates(own: np.ndarray, there: np.ndarray) -> dict[str, float | None]:
    """How firing on another source compares with firing on an SAE's own.

    Args:
        own: Share of the held-out tokens of its own source on which each latent fires, `(n_latents,)`.
        there: The same of the other source.

    Returns:
        - `also_live_share`: of the latents that fire on their own source, the share that fires there; None if none
          fires;
        - `firing_overlap`: share of all firing that falls on the same latents on both, `2 sum min(own, there) /
          sum (own + there)`: 1 if every latent fires as often, 0 if none fires on both; None if none fires on any.

    >>> compare_rates(np.array([0.5, 0.25, 0.0]), np.array([0.25, 0.0, 0.5]))
    {'also_live_share': 0.5, 'firing_overlap': 0.3333333333333333}
    """
    own, there = own.astype(np.float64), there.astype(np.float64)
    is_live, total = own > 0, float((own + there).sum())
    return {
        "also_live_share": float((there[is_live] > 0).mean()) if is_live.any() else None,
        "firing_overlap": float(2 * np.minimum(own, there).sum() / total) if total else None,
    }


def _compare(evaluations: Sequence[dict[str, Any]], sae: TrainedSae, results: Results) -> None:
    """Add to evaluations of an SAE how firing there compares."""
    arrays, own_source = results.arrays(*sae.key[:3]), results.saes[sae.key]["dataset"]
    own = arrays[f"firing_rate_{sae.seed}"]
    for each in evaluations:
        name = each["eval_source"]
        each |= compare_rates(own, own if name == own_source else arrays[rates_name(name, sae.seed)])
