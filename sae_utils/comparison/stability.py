"""How often each latent of an SAE comes back in others of its target and layer, and what those that do are worth."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_utils.comparison.floors import floor_of
from sae_utils.comparison.groups import Group
from sae_utils.comparison.matching import SHARED_ABOVE
from sae_utils.comparison.measuring import converged
from sae_utils.comparison.pairs import SAME_SEED
from sae_utils.comparison.results import Results, SaeKey, keys_of_pair
from sae_utils.comparison.trained import TrainedSae
from sae_utils.evaluation.reconstruction import measure_reconstruction
from sae_utils.sparse_coders import SparseCoder

STABLE_FROM = 0.5
"""Share of other seeds in which a stable latent comes back, at least."""

MEASURED = ("floor", "fvu_of_stable", "explained_share")
"""What takes more than counting, and is taken over where it is known."""

LEAST_SEEDS = 3
"""With two, every latent comes back always or never."""


def measure_stability(group: Group, results: Results) -> None:
    """Add the stability of latents to the records of the group's SAEs, where there are enough seeds.

    What depends on tokens is measured where it is not known for these SAEs; the rest is counted anew.
    """
    stable: dict[SaeKey, np.ndarray] = {}
    for sae in converged(group.saes, results):
        others = others_of(sae.key, results)
        within = others.get(sae.series, {})
        if len(within) + 1 < LEAST_SEEDS:
            results.saes[sae.key]["stability"] = None
            continue
        stability = share_of_others(within.values())
        live = results.arrays(*sae.key[:3])[f"firing_rate_{sae.seed}"] > 0
        record = stability_record(stability, live, len(within))
        found = {series: share_of_others(list(there.values())) for series, there in others.items()}
        record["elsewhere"] = {
            series: elsewhere_record(there, stability) | {"seeds": sorted(others[series])}
            for series, there in found.items()
            if series != sae.series
        }
        record["of"] = sorted([seed, results.saes[(*sae.key[:3], seed)]["weights_fingerprint"]] for seed in within)
        known = results.saes[sae.key].get("stability") or {}
        _add_floors_elsewhere(sae, record["elsewhere"], known.get("elsewhere", {}), group, results)
        _keep_arrays(sae, stability, found, results)
        if known.get("of") == record["of"] and known["fvu_of_stable"] is not None:
            record |= {name: known[name] for name in MEASURED}
        else:
            record |= dict.fromkeys(MEASURED) | {"floor": _floor(sae, list(within), group, results)}
            stable[sae.key] = stability >= STABLE_FROM
            results.changed.add(sae.key[:2])
        results.saes[sae.key]["stability"] = record
    if stable:
        _reconstruct_with(stable, group, results)


def others_of(key: SaeKey, results: Results) -> dict[str, dict[int, np.ndarray]]:
    """For each source and other seed, the highest cosine of each latent of an SAE there, float32 `(n_latents,)`."""
    found: dict[str, dict[int, np.ndarray]] = {}
    for pair_key, pair in sorted(results.pairs.items()):
        ends = keys_of_pair(pair)
        if key in ends and pair["kind"] != SAME_SEED:
            _, source, _, seed = ends[1] if key == ends[0] else ends[0]
            best = results.pair_arrays(pair_key)["best" if key == ends[0] else "best_b"]
            found.setdefault(source, {})[seed] = best
    return found


def share_of_others(bests: Sequence[np.ndarray]) -> np.ndarray:
    """Stability: share of other SAEs in which each latent comes back.

    Args:
        bests: For each of them, the highest cosine of each latent with any of its latents, `(n_latents,)`.

    Returns:
        float64 `(n_latents,)`.

    Source: after Gerasimov et al. 2026, arXiv:2606.12138, "feature stability"; with the threshold that is used for all
    ratios here.

    >>> share_of_others([np.array([0.9, 0.8, 0.1]), np.array([0.9, 0.2, 0.3])]).tolist()
    [1.0, 0.5, 0.0]
    """
    return np.mean([best > SHARED_ABOVE for best in bests], axis=0)


def stability_record(stability: np.ndarray, live: np.ndarray, n_others: int) -> dict[str, Any]:
    """What a record has of it.

    Args:
        stability: `(n_latents,)`.
        live: Whether each latent fires on the held-out tokens, bool `(n_latents,)`.
        n_others: Other seeds.

    Returns:
        `n_others`; `mean`, over all latents; `mean_live`, over those that fire, None without any; `shares`: of the
        latents, those that come back in 0, 1 ... `n_others` of the others; `stable_share`: those that come back in at
        least half of them.
    """
    n_times = np.round(stability * n_others).astype(int)
    counts = np.bincount(n_times, minlength=n_others + 1)
    return {
        "n_others": n_others,
        "mean": float(stability.mean()),
        "mean_live": float(stability[live].mean()) if live.any() else None,
        "shares": {str(times): float(count / len(stability)) for times, count in enumerate(counts)},
        "stable_share": float((stability >= STABLE_FROM).mean()),
    }


def elsewhere_record(found: np.ndarray, stability: np.ndarray) -> dict[str, float | None]:
    """How often latents come back in SAEs of another source: all, the stable ones, and the others.

    Args:
        found: Share of those SAEs, of other seeds, in which each latent comes back, `(n_latents,)`.
        stability: The same in SAEs of its own source.

    >>> elsewhere_record(np.array([1.0, 0.0, 0.5]), np.array([1.0, 0.5, 0.0]))
    {'mean': 0.5, 'mean_stable': 0.5, 'mean_unstable': 0.5}
    """
    is_stable = stability >= STABLE_FROM
    parts = {"mean": found, "mean_stable": found[is_stable], "mean_unstable": found[~is_stable]}
    return {name: float(part.mean()) if len(part) else None for name, part in parts.items()}


def only_latents(sae: SparseCoder, is_kept: Tensor) -> SparseCoder:
    """An SAE of which some latents write nothing: which of them are active on a token is as before.

    Args:
        sae: Changed in place.
        is_kept: bool `(n_latents,)`.
    """
    with torch.no_grad():
        sae.W_dec[~is_kept.to(sae.device)] = 0.0
    return sae


def _keep_arrays(sae: TrainedSae, stability: np.ndarray, found: Mapping[str, np.ndarray], results: Results) -> None:
    """Put what is known of each latent beside the results, where that is new."""
    shares = {f"stability_{sae.seed}": stability}
    shares |= {f"found_in_{series}_{sae.seed}": there for series, there in found.items() if series != sae.series}
    known, arrays = results.arrays(*sae.key[:3]), {name: share.astype(np.float32) for name, share in shares.items()}
    if new := {name: array for name, array in arrays.items() if not np.array_equal(known.get(name), array)}:
        results.add_arrays(*sae.key[:3], **new)


def _reconstruct_with(stable: Mapping[SaeKey, np.ndarray], group: Group, results: Results) -> None:
    """FVU of the stable latents alone, on the held-out tokens of the SAEs' own sources."""
    target = group.load_target()
    members = sorted((sae for sae in group.saes if sae.key in stable), key=lambda sae: sae.source)
    for source, of_source in itertools.groupby(members, key=lambda sae: sae.source):
        chunks = group.held_out(group.sources[source], target)
        for hooked in group.in_memory(list(of_source), target):
            reduced = {
                key: (hookpoint, only_latents(sae, torch.from_numpy(stable[key])))
                for key, (hookpoint, sae) in hooked.items()
            }
            with group.bar(f"stable latents on {source}", chunks.order.size * chunks.ctx_len) as bar:
                options = {"batch_size": group.settings.batch_size, "exclusion": group.exclusion}
                measured = measure_reconstruction(target.model, reduced, chunks, **options, on_tokens=bar.update)
            for key, counted in measured.saes.items():
                fvu_of_stable = counted.record()["fvu"]
                (fvu,) = [each["fvu"] for each in results.saes[key]["evaluations"] if each["eval_source"] == source]
                explained_share = (1 - fvu_of_stable) / (1 - fvu) if fvu < 1 else None
                results.saes[key]["stability"] |= {"fvu_of_stable": fvu_of_stable, "explained_share": explained_share}
        results.save()


def _add_floors_elsewhere(
    sae: TrainedSae, elsewhere: Mapping[str, dict[str, Any]], known: Mapping[str, dict], group: Group, results: Results
) -> None:
    """Put the floors beside what was found in other sources; they depend on seeds alone, and are kept."""
    floors = {tuple(each["seeds"]): each["floor"] for each in known.values() if "floor" in each}
    for each in elsewhere.values():
        seeds = tuple(each["seeds"])
        if seeds not in floors:
            floors[seeds] = _floor(sae, seeds, group, results)
        each["floor"] = floors[seeds]


def _floor(sae: TrainedSae, seeds: Sequence[int], group: Group, results: Results) -> float:
    """`mean` between untrained SAEs."""
    device = group.settings.device
    loaded = sae.load("cpu")
    shares = [floor_of(loaded, (sae.seed, seed), results.folder, device).sfr_top1 for seed in seeds]
    return float(np.mean(shares))
