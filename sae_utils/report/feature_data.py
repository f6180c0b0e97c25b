"""The feature browser's data: one compact JSON object per SAE, for the page's script to read.

Tokens are numbered in a table per SAE and activations of 0 are left out: a tenth of the size of the features file.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from sae_utils.paths import cell_name
from sae_utils.report.findings import Comparison, Findings

SIGNIFICANT_DIGITS = 4
"""Of activations and rates in the page; the files have them all."""


@dataclass(frozen=True)
class SaeFeatures:
    """The features of an SAE."""

    label: str
    """What the page calls the SAE."""

    name: str
    """What tells it from all others, also those of other results."""

    text: str
    """JSON of ASCII that a script element can hold: an object of

    `nLatents`; `howChosen`; `tokens`, the different tokens; `features`, each with `latent`, `rate`, `max`, `cosine`,
    `partner`, `partnerSeed`, `partnerSae` (index of its SAE, None if the partner is not in the page), `fake`,
    `randomRate`, `sources` and `contexts`: `[token numbers, [position, activation, position, ...], peak]`. Of `sources`
    each is `[name, share of its SAEs in which the latent comes back, firing rate there]`, the SAE's own first; what is
    not known is None.
    """


def browser_data(findings: Findings) -> list[SaeFeatures]:
    """Every SAE whose features are in `details`, in the order of the records."""
    shown = [
        (comparison, seed)
        for comparison in findings.comparisons
        if comparison.features is not None
        for seed in comparison.seeds
        if comparison.features["seeds"].get(str(seed))
    ]
    index_of = {_key(comparison, seed): index for index, (comparison, seed) in enumerate(shown)}
    latents_of = {
        _key(comparison, seed): {feature["latent"] for feature in comparison.features["seeds"][str(seed)]}
        for comparison, seed in shown
    }
    return [_one_sae(findings, comparison, seed, index_of, latents_of) for comparison, seed in shown]


def _one_sae(
    findings: Findings, comparison: Comparison, seed: int, index_of: dict[tuple, int], latents_of: dict[tuple, set[int]]
) -> SaeFeatures:
    """The features of one SAE."""
    numbers: dict[str, int] = {}
    features, in_sources = [], _in_sources(findings, comparison, seed)
    for feature in comparison.features["seeds"][str(seed)]:
        other = _key(comparison, feature["partner_seed"])
        features.append(
            {
                "latent": feature["latent"],
                "rate": _short(feature["firing_rate"]),
                "max": _short(feature["max_activation"]),
                "cosine": _short(feature["best_cosine"]),
                "partner": feature["partner"],
                "partnerSeed": feature["partner_seed"],
                "partnerSae": index_of.get(other) if feature["partner"] in latents_of.get(other, ()) else None,
                "fake": feature["is_fake"],
                "randomRate": _short(feature["random_rate"]),
                "sources": [
                    [name, *(None if array is None else _short(float(array[feature["latent"]])) for array in arrays)]
                    for name, *arrays in in_sources
                ],
                "contexts": [_one_context(context, numbers) for context in feature["contexts"]],
            }
        )
    data = {
        "nLatents": comparison.features["n_latents"],
        "howChosen": comparison.features["how_chosen"],
        "tokens": list(numbers),
        "features": features,
    }
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")  # or </script> ends it
    name = f"{cell_name(comparison.target, comparison.source)}_seed_{seed}_layers.{comparison.layer}"
    return SaeFeatures(f"{findings.label(comparison)}, seed {seed}", name, text)


def _in_sources(
    findings: Findings, comparison: Comparison, seed: int
) -> list[tuple[str, np.ndarray | None, np.ndarray | None]]:
    """Of every source its name, how often latents come back in its SAEs, and how often they fire on its tokens."""
    own, arrays = comparison.dataset, comparison.arrays
    found = [(own, arrays.get(f"stability_{seed}"), arrays.get(f"firing_rate_{seed}"))]
    variant = comparison.saes[0].get("variant", "")
    for name in findings.eval_sources:
        if name != own:
            series = f"{name}_{variant}" if variant else name
            names = f"found_in_{series}_{seed}", f"firing_rate_on_{name}_{seed}"
            found.append((name, *map(arrays.get, names)))
    return [each for each in found if any(array is not None for array in each[1:])] if len(found) > 1 else []


def _one_context(context: dict[str, Any], numbers: dict[str, int]) -> list:
    """A context with its tokens numbered; tokens that are new get the next numbers."""
    active = [
        value
        for position, activation in enumerate(context["activations"])
        if activation
        for value in (position, _short(activation))
    ]
    return [[numbers.setdefault(token, len(numbers)) for token in context["tokens"]], active, context["peak"]]


def _key(comparison: Comparison, seed: int | None) -> tuple:
    return comparison.target, comparison.source, comparison.layer, seed


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{SIGNIFICANT_DIGITS}g}")
