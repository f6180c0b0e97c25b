"""What the feature browser shows of each SAE: some of its latents, their best matches, and what they fire on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sae_utils.comparison.groups import Group
from sae_utils.comparison.measuring import converged
from sae_utils.comparison.pairs import WITHIN, pairs_of
from sae_utils.comparison.results import Results, remeasure
from sae_utils.comparison.trained import TrainedSae
from sae_utils.evaluation.contexts import HOW_CHOSEN, choose_latents, find_contexts
from sae_utils.files import read_record, write_record
from sae_utils.records import largest_budgets

N_SHOWN = 300
"""Latents per SAE whose contexts are kept for the report, at most."""

Arrays = Mapping[str, np.ndarray]
"""Arrays of one target, source and layer, by name."""

Pairs = Mapping[tuple[int, int], Arrays]
"""By two seeds, the arrays of the pair."""


def describe_features(group: Group, results: Results) -> None:
    """Write the top contexts of some latents of every SAE beside the results, where they are not known yet.

    Of SAEs that differ in their training tokens alone, only those with most are shown.
    """
    largest = largest_budgets(results.saes.values())
    saes = [sae for sae in converged(group.saes, results) if sae.key[:3] in largest]
    for source, layer in dict.fromkeys(sae.key[1:3] for sae in saes):
        members = [sae for sae in saes if sae.key[1:3] == (source, layer)]
        path = results.arrays_path(group.name, source, layer).with_suffix(".features.json")
        pairs = matched_pairs(members, results)
        about = {
            "n_latents": members[0].record["n_latents"],
            "how_chosen": HOW_CHOSEN,
            "weights_fingerprints": [[sae.seed, sae.weights_fingerprint] for sae in members],
            "matched_seeds": [list(seeds) for seeds in pairs],
            "n_random_tokens": group.settings.n_random_tokens,
        }
        if not are_known(path, about):
            arrays = results.arrays(group.name, source, layer)
            write_record(path, about | {"seeds": describe_layer(group, members, arrays, pairs)})


def matched_pairs(members: Sequence[TrainedSae], results: Results) -> Pairs:
    """What is known of every two of the SAEs of one source and layer, as far as they were matched."""
    keys = [pair.key for pair in pairs_of(members, (WITHIN,)) if pair.key in results.pairs]
    return {(key[3], key[5]): results.pair_arrays(key) for key in keys}


def describe_layer(
    group: Group, members: Sequence[TrainedSae], arrays: Arrays, pairs: Pairs
) -> dict[str, list[dict[str, Any]]]:
    """Latents of the SAEs of one source and layer, with their contexts in the tokens held out of that source.

    Args:
        group: What the SAEs are measured with.
        members: The SAEs, one per seed.
        arrays: What was measured of them.
        pairs: What was measured of every two.

    Returns:
        By seed, in the form that JSON has for it.
    """
    matches = {sae.seed: best_matches(sae.seed, pairs) for sae in members}
    chosen = {
        sae.key: choose_latents(
            arrays[f"firing_rate_{sae.seed}"],
            matches[sae.seed]["cosine"] if matches[sae.seed] else None,
            arrays[f"is_fake_{sae.seed}"],
            N_SHOWN,
        )
        for sae in members
    }
    target = group.load_target()
    chunks = group.held_out(group.sources[members[0].source], target)
    described: dict[str, list[dict[str, Any]]] = {}
    for hooked in group.in_memory(members, target):
        with group.bar(f"contexts of layer {members[0].layer}", chunks.order.size * chunks.ctx_len) as bar:
            found = find_contexts(
                target.model,
                hooked,
                chosen,
                chunks,
                target.tokenizer,
                batch_size=group.settings.batch_size,
                exclusion=group.exclusion,
                on_tokens=bar.update,
            )
        for key, contexts in found.items():
            seed = key[-1]
            described[str(seed)] = [
                feature_record(latent, seed, arrays, matches[seed], contexts[int(latent)]) for latent in chosen[key]
            ]
    return described


def best_matches(seed: int, pairs: Pairs) -> dict[str, np.ndarray] | None:
    """For each latent of a seed, the best of its matches in the other seeds; None if there is no other.

    Returns:
        `cosine`, `partner` and `partner_seed`, each `(n_latents,)`.
    """
    best: dict[str, np.ndarray] | None = None
    for (first, second), arrays in sorted(pairs.items()):
        if seed not in (first, second):
            continue
        partner, cosine = arrays["partner"], arrays["cosine"]
        if seed == second:  # the matching is one to one: read it from the other side
            order = np.argsort(partner)
            partner, cosine = order.astype(np.int32), cosine[order]
        other = np.full(len(partner), second if seed == first else first)
        if best is None:
            best = {"cosine": cosine, "partner": partner, "partner_seed": other}
        else:
            is_better = cosine > best["cosine"]
            found = {"cosine": cosine, "partner": partner, "partner_seed": other}
            best = {what: np.where(is_better, found[what], best[what]) for what in best}
    return best


def feature_record(
    latent: int, seed: int, arrays: Arrays, match: dict[str, np.ndarray] | None, contexts: list[dict]
) -> dict[str, Any]:
    """What the report shows of one latent."""
    return {
        "latent": int(latent),
        "firing_rate": float(arrays[f"firing_rate_{seed}"][latent]),
        "max_activation": float(arrays[f"max_activation_{seed}"][latent]),
        "best_cosine": float(match["cosine"][latent]) if match else None,
        "partner": int(match["partner"][latent]) if match else None,
        "partner_seed": int(match["partner_seed"][latent]) if match else None,
        "is_fake": bool(arrays[f"is_fake_{seed}"][latent]),
        "random_rate": float(arrays[f"random_rate_{seed}"][latent]),
        "contexts": contexts,
    }


def are_known(path: Path, about: Mapping[str, Any]) -> bool:
    """Whether a features file has all of these weights and matches, and fakes by this many random tokens."""
    if not path.exists():
        return False
    known = read_record(path, remeasure(path))
    names = "weights_fingerprints", "matched_seeds"
    is_there = all(each in known.get(name, []) for name in names for each in about[name])
    return is_there and known.get("n_random_tokens") == about["n_random_tokens"]
