"""Do SAEs trained from different seeds find the same features? Latents matched one to one, and the shares shared."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_utils.comparison.matching import Matching, match_rows
from sae_utils.errors import InputError
from sae_utils.evaluation.intervals import mean_interval, share_interval
from sae_utils.sparse_coders import SparseCoder, SparseCoderConfig

SHARED_ABOVE = 0.7
"""Cosine above which two latents count as the same feature. Source: Cho et al. 2025; Paulo & Belrose 2025."""

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Cosines at which the shared feature ratio is reported: one threshold is an opinion."""


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
class Floor:
    """Agreement of two untrained SAEs: what initialisation and size give for free."""

    sfr: float
    mean_cosine: float
    cosine: np.ndarray
    """float32 `(n_latents,)`: decoder cosine of each latent of the first with its partner in the second."""


@dataclass(frozen=True)
class Agreement:
    """What is measured on one pair of SAEs."""

    record: dict[str, Any]
    """`n_latents`, `sfr`, `sfr_both`, `mean_matched_cosine`, `sfr_at`, `sfr_live`, `n_live`, `n_live_b`, `sfr_floor`,
    `mean_matched_cosine_floor`, and the interval of each share and mean; see `compare_dictionaries`."""

    partner: np.ndarray
    """int32 `(n_latents,)`: the latent of the second SAE whose decoder row is matched to each latent of the first."""

    cosine: np.ndarray
    """float32 `(n_latents,)`: cosine of the two decoder rows."""

    floor_cosine: np.ndarray
    """float32 `(n_latents,)`: `Floor.cosine`."""


def directions(sae: SparseCoder) -> Dictionary:
    """Encoder and decoder rows of a sparsify SAE, detached, not copied."""
    return Dictionary(sae.encoder.weight.detach(), sae.W_dec.detach())


def compare_dictionaries(
    a: Dictionary,
    b: Dictionary,
    floor: Floor,
    *,
    live_a: np.ndarray | None = None,
    live_b: np.ndarray | None = None,
    on_status: Callable[[str], None] = lambda line: None,
) -> Agreement:
    """How much of one dictionary comes back in the other. Nothing depends on the order or the norms of the rows.

    Decoder rows are matched one to one so that the total cosine is largest; exchanging `a` and `b` gives the same
    numbers. In the record:

    - `sfr`: share of pairs whose cosine is > 0.7; `sfr_at`: > 0.5 ... 0.9; `mean_matched_cosine`: over all pairs.
    - `sfr_both`: encoder rows are matched as well, on their own; share of latents of `a` that have the same partner in
      both matchings and there a cosine >= 0.7 in both. Stricter than `sfr`, and not comparable with it.
    - `sfr_live`: pairs of the decoder matching whose cosine is > 0.7 and whose latents both fire, divided by the most
      such pairs that there could be, the smaller of the two numbers of latents that fire. Latents that never fire
      take part in the matching: they keep the random directions of their seeds, too far from all others to take a
      partner with a cosine > 0.7 away. None if a dictionary has no latent that fires, or no masks are given.
    - `sfr_floor`, `mean_matched_cosine_floor`: `floor`'s.
    - `<name>_interval` of each of these: `[low, high]`, how far the number may be off because it was counted on so many
      latents; see `sae_utils/evaluation/intervals.py`. The units are the matched pairs; of `sfr_live`, the latents that
      it is a share of. None for fewer than two. The two SAEs stay the same: how much another two seeds would differ is
      not in it.

    Args:
        a: First SAE.
        b: Second SAE, of the same size.
        floor: From `untrained_floor`; depends on size and seeds alone, so the same serves all layers and sources.
        live_a: bool `(n_latents,)`, latents of `a` that fire on the evaluation tokens; None if not known.
        live_b: The same for `b`.
        on_status: Called with a line now and then.

    Raises:
        InputError: If sizes of dictionaries, floor and masks do not agree.

    Source: `sfr`, Cho et al. 2025, FaithfulSAE, "shared feature ratio"; `sfr_both`, Paulo & Belrose 2025, "Sparse
    autoencoders trained on the same data learn different features".
    """
    n_latents = len(a.decoder)
    _check_lengths(n_latents, floor_cosine=floor.cosine, live_a=live_a, live_b=live_b)
    decoder = match_rows(a.decoder, b.decoder, on_status=lambda line: on_status(f"decoder rows: {line}"))
    encoder = match_rows(a.encoder, b.encoder, on_status=lambda line: on_status(f"encoder rows: {line}"))
    record = {
        "n_latents": n_latents,
        "sfr": share_above(decoder.cosine, SHARED_ABOVE),
        "sfr_both": share_in_both(encoder, decoder),
        "mean_matched_cosine": float(decoder.cosine.mean(dtype=np.float64)),
        "sfr_at": {str(threshold): share_above(decoder.cosine, threshold) for threshold in THRESHOLDS},
        "sfr_live": share_of_live(decoder, live_a, live_b),
        "n_live": None if live_a is None else int(live_a.sum()),
        "n_live_b": None if live_b is None else int(live_b.sum()),
        "sfr_floor": floor.sfr,
        "mean_matched_cosine_floor": floor.mean_cosine,
    }
    record |= intervals_of(record, decoder.cosine, floor.cosine)
    return Agreement(record, decoder.partner.astype(np.int32), decoder.cosine, floor.cosine)


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
        device: Where the SAEs were trained: a GPU draws other numbers than a CPU from the same seed.
        on_status: Called with a line now and then.
    """
    first, second = (untrained_decoder(d_model, config, seed, device=device) for seed in seeds)
    cosine = match_rows(first, second, on_status=lambda line: on_status(f"untrained decoder rows: {line}")).cosine
    return Floor(share_above(cosine, SHARED_ABOVE), float(cosine.mean(dtype=np.float64)), cosine)


def untrained_decoder(
    d_model: int, config: SparseCoderConfig, seed: int, *, device: torch.device | str = "cpu"
) -> Tensor:
    """Decoder rows `(n_latents, d_model)` that training starts from. Global random state is as before afterwards.

    Source: EleutherAI/sparsify, `Trainer.__init__`; the same seeding and construction.
    """
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        return SparseCoder(d_model, config, device, dtype=torch.float32).W_dec.detach()


def share_above(cosine: np.ndarray, threshold: float) -> float:
    """Share of pairs whose cosine is greater than the threshold.

    >>> share_above(np.array([0.9, 0.7, 0.2, 0.8]), 0.7)
    0.5
    """
    return float((cosine > threshold).mean())


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


def intervals_of(record: Mapping[str, Any], cosine: np.ndarray, floor_cosine: np.ndarray) -> dict[str, Any]:
    """`<name>_interval` of every share and mean of `compare_dictionaries`.

    Args:
        record: The numbers themselves.
        cosine: Of the matched decoder rows, `(n_latents,)`.
        floor_cosine: The same of the untrained SAEs.
    """

    def of_share(share: float | None, n: int) -> list[float] | None:
        return None if share is None else share_interval(round(share * n), n)

    n_latents = record["n_latents"]
    shares = {name: of_share(record[name], n_latents) for name in ("sfr", "sfr_both", "sfr_floor")}
    n_live = min(record["n_live"] or 0, record["n_live_b"] or 0)
    intervals = shares | {
        "sfr_at": {threshold: of_share(share, n_latents) for threshold, share in record["sfr_at"].items()},
        "sfr_live": of_share(record["sfr_live"], n_live),
        "mean_matched_cosine": mean_interval(cosine),
        "mean_matched_cosine_floor": mean_interval(floor_cosine),
    }
    return {f"{name}_interval": interval for name, interval in intervals.items()}


def summarise_pairs(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | int | None]]:
    """Mean and spread over the pairs of seeds of one cell.

    Args:
        records: `Agreement.record` of each pair.

    Returns:
        By the name of each share or cosine of the record (those of `sfr_at` as `sfr_at_0.5`): `mean`; `std`, the
        sample standard deviation, None for fewer than two pairs; `min`; `max`; `n_pairs`. Pairs of which a number is
        not defined are left out of it; a name without any pair left is left out.
    """
    flat = [
        {name: value for name, value in record.items() if isinstance(value, float)}
        | {f"sfr_at_{threshold}": value for threshold, value in record["sfr_at"].items()}
        for record in records
    ]
    names = list(dict.fromkeys(name for row in flat for name in row))
    return {name: _spread([row[name] for row in flat if name in row]) for name in names}


def _spread(values: Sequence[float]) -> dict[str, float | int | None]:
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "min": min(values),
        "max": max(values),
        "n_pairs": len(values),
    }


def _check_lengths(n_latents: int, **arrays: np.ndarray | None) -> None:
    """Refuse arrays of another number of latents."""
    for name, array in arrays.items():
        if array is not None and array.shape != (n_latents,):
            raise InputError(f"{name} must have one value per latent, ({n_latents},), got {array.shape}")
