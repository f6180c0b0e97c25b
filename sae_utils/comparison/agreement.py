"""How much of one SAE comes back in another: latents matched one to one, and the shares that they have in common."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from sae_utils.comparison.floors import Floor
from sae_utils.comparison.matching import SHARED_ABOVE, Matching, match_rows, share_above
from sae_utils.comparison.subspaces import overlap_both_ways
from sae_utils.errors import InputError
from sae_utils.evaluation.intervals import mean_interval, share_interval
from sae_utils.sparse_coders import SparseCoder

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Cosines at which the shared feature ratio is reported: one threshold is an opinion."""

RATE_EDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Firing rates at which bins begin: decades, as rates spread over several."""


@dataclass(frozen=True)
class Dictionary:
    """The directions of one SAE."""

    encoder: Tensor
    """`(n_latents, d_model)`, row i reads latent i."""

    decoder: Tensor
    """`(n_latents, d_model)`, row i is what latent i writes."""

    def __post_init__(self) -> None:
        if self.encoder.ndim != 2 or self.encoder.shape != self.decoder.shape:
            raise InputError(
                "encoder and decoder of an SAE must both be (n_latents, d_model), "
                f"got {tuple(self.encoder.shape)} and {tuple(self.decoder.shape)}"
            )


@dataclass(frozen=True)
class Agreement:
    """What is measured on one pair of SAEs."""

    record: dict[str, Any]
    """By name; see `compare_dictionaries`."""

    matching: Matching
    """Of the decoder rows."""


def directions(sae: SparseCoder) -> Dictionary:
    """Encoder and decoder rows of a sparsify SAE, detached, not copied."""
    return Dictionary(sae.encoder.weight.detach(), sae.W_dec.detach())


def compare_dictionaries(
    a: Dictionary,
    b: Dictionary,
    floor: Floor,
    *,
    rates_a: np.ndarray | None = None,
    rates_b: np.ndarray | None = None,
    on_status: Callable[[str], None] = lambda line: None,
) -> Agreement:
    """How much of one dictionary comes back in the other. Nothing depends on the order or the norms of the rows.

    Decoder rows are matched one to one so that the total cosine is largest; exchanging `a` and `b` gives the same
    numbers, and exchanges `<name>` and `<name>_b`. In the record:

    - `sfr`: share of pairs whose cosine is > 0.7; `sfr_at`: > 0.5 ... 0.9.
    - `mean_matched_cosine`: over all pairs, which is PW-MCC; `mean_matched_cosine_live`: over pairs whose latents both
      fire. None if there is none.
    - `sfr_both`: encoder rows are matched as well, on their own; share of latents of `a` that have the same partner in
      both matchings and there a cosine >= 0.7 in both. Stricter than `sfr`, and not comparable with it.
    - `sfr_top1`, `sfr_top1_b`: share of the latents of `a`, and of `b`, whose highest cosine with any latent of the
      other is > 0.7; several may have the same.
    - `sfr_live`: pairs of the decoder matching whose cosine is > 0.7 and whose latents both fire, divided by the most
      such pairs that there could be, the smaller of the two numbers of latents that fire. Latents that never fire
      take part in the matching: they keep the random directions of their seeds, too far from all others to take a
      partner with a cosine > 0.7 away. None if a dictionary has no latent that fires, or no rates are given.
    - `by_firing_rate`: `sfr`, `mean_matched_cosine` and `n_latents` of the latents of both that fire in a range of
      rates, each with the cosine of its pair; empty if no rates are given.
    - `unstable`: see `subspaces.overlap_both_ways`; of latents that fire and that are not among those of `sfr_top1`.
    - `sfr_floor`, `sfr_top1_floor`, `mean_matched_cosine_floor`: `floor`'s.
    - `<name>_interval` of shares and means: `[low, high]`, how far the number may be off because it was counted on so
      many latents; see `sae_utils/evaluation/intervals.py`. The units are the matched pairs; of `sfr_live`, the latents
      that it is a share of; of `sfr_top1`, the latents. None for fewer than two. The two SAEs stay the same: how much
      another two seeds would differ is not in it.

    Args:
        a: First SAE.
        b: Second SAE, of the same size.
        floor: Of SAEs of this size and these seeds; the same serves all layers and sources.
        rates_a: float `(n_latents,)`, firing rates of the latents of `a` on its evaluation tokens; None if not known.
        rates_b: The same for `b`.
        on_status: Called with a line now and then.

    Raises:
        InputError: If sizes of dictionaries, floor and rates do not agree.

    Source: `sfr`, Cho et al. 2025, FaithfulSAE, "shared feature ratio", and `sfr_top1`, scripts/feat_match.py there;
    `sfr_both`, Paulo & Belrose 2025, "Sparse autoencoders trained on the same data learn different features"; PW-MCC,
    Song et al. 2025, arXiv:2505.20254, but signed, as in the authors' code, where the paper has absolute values.
    """
    n_latents = len(a.decoder)
    _check_lengths(n_latents, floor_cosine=floor.cosine, rates_a=rates_a, rates_b=rates_b)
    decoder = match_rows(a.decoder, b.decoder, on_status=lambda line: on_status(f"decoder rows: {line}"))
    encoder = match_rows(a.encoder, b.encoder, on_status=lambda line: on_status(f"encoder rows: {line}"))
    live_a, live_b = (None if rates is None else rates > 0 for rates in (rates_a, rates_b))
    record = {
        "n_latents": n_latents,
        "sfr": share_above(decoder.cosine, SHARED_ABOVE),
        "sfr_both": share_in_both(encoder, decoder),
        "mean_matched_cosine": float(decoder.cosine.mean(dtype=np.float64)),
        "sfr_at": {str(threshold): share_above(decoder.cosine, threshold) for threshold in THRESHOLDS},
        "sfr_top1": share_above(decoder.best, SHARED_ABOVE),
        "sfr_top1_b": share_above(decoder.best_b, SHARED_ABOVE),
        "sfr_live": share_of_live(decoder, live_a, live_b),
        "n_live": None if live_a is None else int(live_a.sum()),
        "n_live_b": None if live_b is None else int(live_b.sum()),
        "sfr_floor": floor.sfr,
        "sfr_top1_floor": floor.sfr_top1,
        "mean_matched_cosine_floor": floor.mean_cosine,
    }
    of_live = cosines_of_live(decoder, live_a, live_b)
    record["mean_matched_cosine_live"] = float(of_live.mean(dtype=np.float64)) if len(of_live) else None
    record["by_firing_rate"] = by_firing_rate(decoder, rates_a, rates_b)
    record["unstable"] = overlap_both_ways(
        a.decoder[_not_again(decoder.best, live_a)], b.decoder[_not_again(decoder.best_b, live_b)]
    )
    record |= intervals_of(record, decoder.cosine, floor.cosine)
    record["mean_matched_cosine_live_interval"] = mean_interval(of_live)
    return Agreement(record, decoder)


def share_in_both(encoder: Matching, decoder: Matching) -> float:
    """Share of latents with the same partner by encoder and by decoder rows, and both cosines >= 0.7."""
    is_same = encoder.partner == decoder.partner
    return float((is_same & (encoder.cosine >= SHARED_ABOVE) & (decoder.cosine >= SHARED_ABOVE)).mean())


def share_of_live(decoder: Matching, live_a: np.ndarray | None, live_b: np.ndarray | None) -> float | None:
    """`sfr_live` of `compare_dictionaries`."""
    if live_a is None or live_b is None or not (live_a.any() and live_b.any()):
        return None
    is_shared = live_a & live_b[decoder.partner] & (decoder.cosine > SHARED_ABOVE)
    return float(is_shared.sum() / min(live_a.sum(), live_b.sum()))


def cosines_of_live(decoder: Matching, live_a: np.ndarray | None, live_b: np.ndarray | None) -> np.ndarray:
    """Cosines of the matched pairs whose latents both fire, `(any,)`; none if it is not known which do."""
    if live_a is None or live_b is None:
        return decoder.cosine[:0]
    return decoder.cosine[live_a & live_b[decoder.partner]]


def by_firing_rate(
    decoder: Matching, rates_a: np.ndarray | None, rates_b: np.ndarray | None
) -> dict[str, dict[str, float | int]]:
    """`by_firing_rate` of `compare_dictionaries`: by the rate at which a bin begins, as text, or `never`.

    The first bin of those that fire, `0`, goes up to the next edge, and the last one to 1.

    >>> by_firing_rate(
    ...     Matching(np.array([1, 0]), np.array([0.75, 0.25]), np.ones(2), np.ones(2)),
    ...     rates_a=np.array([0.002, 0.0]),
    ...     rates_b=np.array([0.3, 0.004]),
    ... )["0.001"]
    {'n_latents': 2, 'sfr': 1.0, 'mean_matched_cosine': 0.75}
    """
    if rates_a is None or rates_b is None:
        return {}
    rates = np.concatenate([rates_a, rates_b[decoder.partner]])
    cosine = np.concatenate([decoder.cosine, decoder.cosine])
    bins = np.where(rates > 0, 1 + np.digitize(rates, RATE_EDGES), 0)
    names = ["never", "0", *map(str, RATE_EDGES)]
    return {
        name: {
            "n_latents": int(is_in.sum()),
            "sfr": share_above(cosine[is_in], SHARED_ABOVE),
            "mean_matched_cosine": float(cosine[is_in].mean(dtype=np.float64)),
        }
        for number, name in enumerate(names)
        if (is_in := bins == number).any()
    }


def intervals_of(record: Mapping[str, Any], cosine: np.ndarray, floor_cosine: np.ndarray) -> dict[str, Any]:
    """`<name>_interval` of the shares and means over all latents of `compare_dictionaries`, and of `sfr_live`.

    Args:
        record: The numbers themselves.
        cosine: Of the matched decoder rows, `(n_latents,)`.
        floor_cosine: The same of the untrained SAEs.
    """

    def of_share(share: float | None, n: int) -> list[float] | None:
        return None if share is None else share_interval(round(share * n), n)

    n_latents = record["n_latents"]
    names = ("sfr", "sfr_both", "sfr_top1", "sfr_top1_b", "sfr_floor", "sfr_top1_floor")
    shares = {name: of_share(record[name], n_latents) for name in names}
    n_live = min(record["n_live"] or 0, record["n_live_b"] or 0)
    intervals = shares | {
        "sfr_at": {threshold: of_share(share, n_latents) for threshold, share in record["sfr_at"].items()},
        "sfr_live": of_share(record["sfr_live"], n_live),
        "mean_matched_cosine": mean_interval(cosine),
        "mean_matched_cosine_floor": mean_interval(floor_cosine),
    }
    return {f"{name}_interval": interval for name, interval in intervals.items()}


def _not_again(best: np.ndarray, live: np.ndarray | None) -> np.ndarray:
    """Which latents are not found in the other SAE, and fire as far as that is known; their numbers."""
    return np.flatnonzero((best <= SHARED_ABOVE) & (True if live is None else live))


def _check_lengths(n_latents: int, **arrays: np.ndarray | None) -> None:
    """Refuse arrays of another number of latents."""
    for name, array in arrays.items():
        if array is not None and array.shape != (n_latents,):
            raise InputError(f"{name} must have one value per latent, ({n_latents},), got {array.shape}")
