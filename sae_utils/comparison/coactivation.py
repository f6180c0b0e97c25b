"""What matched latents do on the held-out tokens of the sources of their SAEs, beside what untrained latents do."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_utils.comparison.floors import Floor, floor_of, untrained_sae
from sae_utils.comparison.groups import Group
from sae_utils.comparison.matching import SHARED_ABOVE
from sae_utils.comparison.measuring import converged
from sae_utils.comparison.pairs import SAME_SEED, Pair, pairs_of
from sae_utils.comparison.results import Results
from sae_utils.evaluation.codes import CodeSums, SharedSums, activation_correlation, firing_jaccard, sum_codes
from sae_utils.evaluation.intervals import mean_interval
from sae_utils.memory import USABLE_SHARE, free_bytes, release_memory, sae_bytes
from sae_utils.sources.packing import Chunks
from sae_utils.sparse_coders import SparseCoder

Loaded = dict[Hashable, tuple[str, SparseCoder]]
"""SAEs on the device, trained and untrained, with the layers they read."""

BYTES_PER_LATENT = 2 * 2 * 3 * 8
"""Of the sums of an SAE: on two sources, trained and untrained."""


@dataclass
class _Counted:
    """Sums of SAEs and of pairs of them over the tokens of one source."""

    codes: dict[Hashable, CodeSums] = field(default_factory=dict)
    shared: dict[tuple, SharedSums] = field(default_factory=dict)


def compare_codes(group: Group, results: Results) -> None:
    """Add what matched latents do on the same tokens to the records of the group's pairs, where it is not known."""
    pairs = [pair for pair in pairs_of(converged(group.saes, results)) if pair.key in results.pairs]
    todo = [pair for pair in pairs if results.pairs[pair.key].get("codes", {}).get("tokens") != _tokens(pair, group)]
    if not todo:
        return
    target = group.load_target()
    release_memory(group.settings.device)
    room = free_bytes(group.settings.device) * USABLE_SHARE - group.batch_bytes(group.saes, target)
    for some in _runs_that_fit(todo, int(room)):
        _compare_some(some, group, results)
        results.save()


def _compare_some(pairs: Sequence[Pair], group: Group, results: Results) -> None:
    """Pairs whose SAEs fit the device together."""
    target, device = group.load_target(), group.settings.device
    loaded = _load(pairs, device)
    floors = {pair.key: _floor(pair, loaded[pair.a.key][1], results, device) for pair in pairs}
    partners = _partners(pairs, floors, results, device)
    by_source: dict[str, _Counted] = {}
    held_out = {name: group.held_out(group.sources[name], target) for name in _sources_of(pairs)}
    with group.bar("codes", sum(map(_n_tokens, held_out.values()))) as bar:
        for name, chunks in held_out.items():
            there = {ends: partner for ends, (partner, sources) in partners.items() if name in sources}
            saes = {key: loaded[key] for ends in there for key in ends}
            counted = sum_codes(
                target.model,
                saes,
                there,
                chunks,
                batch_size=group.settings.batch_size,
                exclusion=group.exclusion,
                on_tokens=bar.update,
            )
            by_source[name] = _Counted(*counted)
    for pair in pairs:
        arrays = results.pair_arrays(pair.key)
        found = _on_all_tokens((pair.a.key, pair.b.key), _names(pair), partners, by_source)
        untrained = None
        if pair.kind != SAME_SEED:
            untrained = _on_all_tokens(_untrained(pair), _names(pair), partners, by_source)
        codes = {"tokens": _tokens(pair, group)} | codes_record(*found, arrays["cosine"], untrained)
        jaccard, correlation = (each.astype(np.float32) for each in found)
        arrays |= {"firing_jaccard": jaccard, "activation_correlation": correlation}
        results.write_pair(results.pairs[pair.key] | {"codes": codes}, arrays)
        results.take_in_pair(pair.key, pair.fingerprints)


def codes_record(
    jaccard: np.ndarray,
    correlation: np.ndarray,
    cosine: np.ndarray,
    untrained: tuple[np.ndarray, np.ndarray] | None,
) -> dict[str, Any]:
    """Means over matched latents of what they do.

    Args:
        jaccard: Of each matched pair, `(n_latents,)`; NaN where it is not defined.
        correlation: The same.
        cosine: Of their decoder rows, `(n_latents,)`.
        untrained: Both of the untrained SAEs; None for a pair with the same seed, whose untrained SAEs are one, so that
            they agree in everything.

    Returns:
        `firing_jaccard`, `activation_correlation`: over all pairs of which it is defined; `<name>_shared`: of those
        with a cosine > 0.7; `<name>_floor`: of the untrained SAEs; the first ones with `_interval`. None where it is
        defined of no pair.
    """
    record: dict[str, Any] = {}
    floors = untrained or (np.ones(1), np.ones(1))
    for name, values, floor in zip(
        ("firing_jaccard", "activation_correlation"), (jaccard, correlation), floors, strict=True
    ):
        record[name] = _mean(values)
        record[f"{name}_interval"] = mean_interval(values[np.isfinite(values)])
        record[f"{name}_shared"] = _mean(values[cosine > SHARED_ABOVE])
        record[f"{name}_floor"] = _mean(floor)
    return record


def _on_all_tokens(
    ends: tuple[Hashable, Hashable],
    sources: Sequence[str],
    partners: Mapping[tuple, tuple[Tensor, set[str]]],
    by_source: Mapping[str, _Counted],
) -> tuple[np.ndarray, np.ndarray]:
    """Jaccard index and correlation of two SAEs over the tokens of their sources together."""
    a, b = (_sum(by_source[name].codes[key] for name in sources) for key in ends)
    shared = _sum(by_source[name].shared[ends] for name in sources)
    partner = partners[ends][0]
    return firing_jaccard(a, b, shared, partner), activation_correlation(a, b, shared, partner)


def _runs_that_fit(pairs: Sequence[Pair], room: int) -> Iterator[list[Pair]]:
    """The pairs in their order, as many at a time as have SAEs that fit together, trained and untrained."""
    run: list[Pair] = []
    for pair in pairs:
        if run and _bytes_of([*run, pair]) > room:
            yield run
            run = []
        run.append(pair)
    yield run


def _bytes_of(pairs: Sequence[Pair]) -> int:
    """Memory of the SAEs of pairs, and of what is counted."""
    saes = {sae.key: sae for pair in pairs for sae in (pair.a, pair.b)}
    untrained = {key: pair.a for pair in pairs if pair.kind != SAME_SEED for key in _untrained(pair)}
    sizes = [(sae.record["d_model"], sae.record["n_latents"]) for sae in [*saes.values(), *untrained.values()]]
    n_sums = 2 * 2 * 2 * sum(pair.a.record["n_latents"] for pair in pairs)
    return sum(sae_bytes(*size) + BYTES_PER_LATENT * size[1] for size in sizes) + 8 * n_sums


def _load(pairs: Sequence[Pair], device: torch.device) -> Loaded:
    """The SAEs of pairs, and the untrained ones of their seeds."""
    loaded: Loaded = {}
    for pair in pairs:
        for sae in (pair.a, pair.b):
            if sae.key not in loaded:
                loaded[sae.key] = sae.hookpoint, sae.load(device)
        for key in () if pair.kind == SAME_SEED else _untrained(pair):
            if key not in loaded:
                hookpoint, sae = loaded[pair.a.key]
                loaded[key] = hookpoint, untrained_sae(sae.d_in, sae.cfg, key[-1], device=device)
    return loaded


def _partners(
    pairs: Sequence[Pair], floors: Mapping[tuple, Floor | None], results: Results, device: torch.device
) -> dict[tuple, tuple[Tensor, set[str]]]:
    """For two SAEs each, trained or untrained, which latents are matched, and on which sources' tokens they are met."""
    partners: dict[tuple, tuple[Tensor, set[str]]] = {}
    for pair in pairs:
        matched = {(pair.a.key, pair.b.key): results.pair_arrays(pair.key)["partner"]}
        if (floor := floors[pair.key]) is not None:
            matched[_untrained(pair)] = floor.partner
        for ends, partner in matched.items():
            known = partners.setdefault(ends, (torch.from_numpy(partner).long().to(device), set()))
            known[1].update(_names(pair))
    return partners


def _floor(pair: Pair, sae: SparseCoder, results: Results, device: torch.device) -> Floor | None:
    """The matching of the untrained SAEs; None if they are one."""
    return None if pair.kind == SAME_SEED else floor_of(sae, (pair.a.seed, pair.b.seed), results.folder, device)


def _untrained(pair: Pair) -> tuple[tuple, tuple]:
    """Keys of the untrained SAEs of a pair. Those of one size and layer serve all its pairs."""
    about = "untrained", pair.a.layer, pair.a.record["n_latents"], pair.a.record["k"]
    return (*about, pair.a.seed), (*about, pair.b.seed)


def _names(pair: Pair) -> list[str]:
    """Sources of a pair."""
    return list(dict.fromkeys([pair.a.source, pair.b.source]))


def _sources_of(pairs: Sequence[Pair]) -> list[str]:
    """Sources of several pairs."""
    return list(dict.fromkeys(name for pair in pairs for name in _names(pair)))


def _tokens(pair: Pair, group: Group) -> list[list[str]]:
    """Names and fingerprints of the sources whose held-out tokens a pair is compared on."""
    return [[name, group.sources[name].fingerprint] for name in _names(pair)]


def _n_tokens(chunks: Chunks) -> int:
    """Tokens of sequences."""
    return chunks.order.size * chunks.ctx_len


def _sum(parts: Iterator[Any]) -> Any:
    """Sums of several sources, added."""
    total = next(parts)
    for part in parts:
        total = total + part
    return total


def _mean(values: np.ndarray) -> float | None:
    """Mean of the values that are defined; None if none is."""
    known = values[np.isfinite(values)]
    return float(known.mean(dtype=np.float64)) if len(known) else None
