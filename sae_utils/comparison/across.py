"""Are features the model's or the data's? Agreement of SAEs trained on two texts, beside that of SAEs of one text.

Features of the model come back from another text as often as from the same text with another seed. So for each target
and layer, and every two sources: agreement within each source across seeds, between them across seeds, and their ratio.
Pairs that share a seed are kept apart: they began as one, which alone makes latents alike.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sae_utils.comparison.matching import SHARED_ABOVE
from sae_utils.comparison.pairs import BETWEEN, WITHIN
from sae_utils.comparison.results import PairKey, Results, SaeKey, keys_of_pair, pair_key
from sae_utils.evaluation.intervals import interval_of, resampled_sums
from sae_utils.files import checksum_text, to_json

MEASURES = ("sfr", "mean_matched_cosine")
"""Numbers of pairs that are summed up."""

LEAST_SHARED = 10
"""Latents that must be shared within sources, above the floor, for their number to be compared: resamples do not tell
how rare is what is hardly ever, or never, drawn."""

LOWER, HIGHER, WITHIN_SPREAD, AT_FLOOR = "lower", "higher", "within_spread", "at_floor"
"""What can be said of the agreement between sources, held against that within them; see `contrast`."""


@dataclass(frozen=True)
class Agreed:
    """One number of several pairs of SAEs."""

    values: np.ndarray
    """Of each pair, `(n_pairs,)`."""

    resampled: np.ndarray
    """Their mean on resamples of the latents of every SAE, `(n_resamples,)`."""

    floor: float
    """Mean of the pairs' floors."""

    @property
    def mean(self) -> float:
        """Over pairs."""
        return float(self.values.mean())


def sum_up(results: Results) -> None:
    """Add to the results what their pairs say of every target, layer and two sources, where it is not known."""
    agreements: list[dict[str, Any]] = []
    contrasts: list[dict[str, Any]] = []
    by_place = itertools.groupby(
        sorted(results.pairs.values(), key=_place), key=lambda pair: (pair["target"], pair["layer"], pair["n_latents"])
    )
    for place, members in by_place:
        pairs = list(members)
        about = dict(zip(("target", "layer", "n_latents"), place, strict=True))
        about["of"] = checksum_text(to_json(sorted([*pair_key(each), *each["weights_fingerprints"]] for each in pairs)))
        known = [
            [each for each in those if {name: each.get(name) for name in about} == about]
            for those in (results.agreements, results.contrasts)
        ]
        if not known[0]:
            arrays = {pair_key(pair): results.pair_arrays(pair_key(pair)) for pair in pairs}
            known = [[about | each for each in those] for those in summaries(pairs, arrays)]
        agreements += known[0]
        contrasts += known[1]
    results.agreements, results.contrasts = agreements, contrasts


def summaries(
    pairs: Sequence[dict[str, Any]], arrays: Mapping[PairKey, Mapping[str, np.ndarray]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Agreements and contrasts of one target, layer and size.

    Args:
        pairs: Records of pairs.
        arrays: Of each, `partner` and `cosine`.

    Returns:
        One record for every two sources (or one twice) and kind of pair, see `agreement_record`; and one for every two
        sources and number in `MEASURES`, see `contrast`.
    """
    resampled = resample_pairs(pairs, arrays)
    agreed: dict[tuple[str, str, str], dict[str, Agreed]] = {}
    for key, members in itertools.groupby(sorted(pairs, key=_kind), key=_kind):
        those = list(members)
        agreed[key] = {
            name: Agreed(
                np.array([each[name] for each in those]),
                np.mean([resampled[pair_key(each)][name] for each in those], axis=0),
                float(np.mean([each[f"{name}_floor"] for each in those])),
            )
            for name in MEASURES
        }
    agreements = [
        {"source": source, "source_b": source_b, "kind": kind} | agreement_record(numbers)
        for (source, source_b, kind), numbers in agreed.items()
    ]
    contrasts = [
        {"source": source, "source_b": source_b, "measure": name}
        | contrast(
            [agreed[each, each, WITHIN][name] for each in (source, source_b)],
            numbers[name],
            least=LEAST_SHARED / pairs[0]["n_latents"] if name == "sfr" else 0.0,
        )
        for (source, source_b, kind), numbers in agreed.items()
        if kind == BETWEEN and all((each, each, WITHIN) in agreed for each in (source, source_b))
        for name in MEASURES
    ]
    return agreements, contrasts


def agreement_record(numbers: Mapping[str, Agreed]) -> dict[str, Any]:
    """Agreement of pairs of one kind.

    Returns:
        `n_pairs`; of each number its mean over pairs, `_interval` over latents, `_lowest` and `_highest` pair, and the
        mean of their `_floor`.
    """
    record: dict[str, Any] = {"n_pairs": len(numbers[MEASURES[0]].values)}
    for name, agreed in numbers.items():
        record |= {
            name: agreed.mean,
            f"{name}_interval": interval_of(agreed.resampled),
            f"{name}_lowest": float(agreed.values.min()),
            f"{name}_highest": float(agreed.values.max()),
            f"{name}_floor": agreed.floor,
        }
    return record


def contrast(within: Sequence[Agreed], between: Agreed, *, least: float = 0.0) -> dict[str, Any]:
    """Agreement between two sources held against that within them.

    Args:
        within: Of each source, SAEs of other seeds.
        between: One SAE of each source, of other seeds.
        least: Agreement within sources, above their floor, that is enough to be compared.

    Returns:
        - `within`: mean of the two sources' means; `between`;
        - `difference`: `between - within`; `ratio`: the same two, each above its floor, divided; None if `verdict` is
          `at_floor`;
        - `difference_interval`, `ratio_interval`: 95 %, latents of every SAE drawn anew; all its pairs go with it;
        - `verdict`: `at_floor` if what comes back within the sources is not above the floor by more than its interval,
          or by less than `least`, so that there is nothing to compare; `lower` or `higher` if the interval of the
          difference is without 0 and, beyond it, every pair between the sources is lower, or higher, than every pair
          within them; `within_spread` otherwise.
    """
    inside = float(np.mean([each.mean for each in within]))
    floor = float(np.mean([each.floor for each in within]))
    inside_resampled = np.mean([each.resampled for each in within], axis=0)
    difference = interval_of(between.resampled - inside_resampled)
    record: dict[str, Any] = {
        "within": inside,
        "between": between.mean,
        "difference": between.mean - inside,
        "difference_interval": difference,
        "ratio": None,
        "ratio_interval": None,
    }
    if interval_of(inside_resampled)[0] <= floor or inside - floor < least:
        return record | {"verdict": AT_FLOOR}
    values = np.concatenate([each.values for each in within])
    record["ratio"] = (between.mean - between.floor) / (inside - floor)
    record["ratio_interval"] = interval_of((between.resampled - between.floor) / (inside_resampled - floor))
    verdict = WITHIN_SPREAD
    if difference[1] < 0 and between.values.max() < values.min():
        verdict = LOWER
    elif difference[0] > 0 and between.values.min() > values.max():
        verdict = HIGHER
    return record | {"verdict": verdict}


def resample_pairs(
    pairs: Sequence[dict[str, Any]], arrays: Mapping[PairKey, Mapping[str, np.ndarray]]
) -> dict[PairKey, dict[str, np.ndarray]]:
    """Each pair's numbers on resamples of latents, `(n_resamples,)` each.

    The latents of an SAE are drawn once for all its pairs, those of other SAEs on their own; a pair's number is the
    mean over the latents drawn of its two SAEs, each with the cosine of its partner as it was matched.
    """
    cosines: dict[SaeKey, dict[PairKey, np.ndarray]] = {}
    for pair in pairs:
        key, (first, second) = pair_key(pair), keys_of_pair(pair)
        cosine = arrays[key]["cosine"]
        cosines.setdefault(first, {})[key] = cosine
        cosines.setdefault(second, {})[key] = cosine[np.argsort(arrays[key]["partner"])]
    found: dict[PairKey, dict[str, np.ndarray]] = {}
    for seed, sae in enumerate(sorted(cosines)):
        of_pairs = np.stack(list(cosines[sae].values()), axis=1)  # (n_latents, pairs)
        per_latent = np.stack([of_pairs > SHARED_ABOVE, of_pairs], axis=2)  # (n_latents, pairs, measures)
        means = resampled_sums(per_latent, seed=seed) / len(per_latent)  # (n_resamples, pairs, measures)
        for number, key in enumerate(cosines[sae]):
            known = found.setdefault(key, dict.fromkeys(MEASURES, 0.0))
            for which, name in enumerate(MEASURES):
                known[name] = known[name] + means[:, number, which] / 2
    return found


def _place(pair: dict[str, Any]) -> tuple:
    """Order of pairs: by target, layer and size, and then all that tells them apart."""
    return pair["target"], pair["layer"], pair["n_latents"], *pair_key(pair)[1:]


def _kind(pair: dict[str, Any]) -> tuple[str, str, str]:
    """Both sources of a pair, and what it has in common."""
    return pair["source"], pair["source_b"], pair["kind"]
