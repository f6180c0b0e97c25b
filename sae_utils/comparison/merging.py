"""Studies that were made on several machines, put together: SAEs of several folders, and what is known of them.

Each machine brings its folder of SAEs, and its results if it has any. SAEs are known by their weights: what another
folder says of the same weights is taken over, and only the rest is measured.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sae_utils.comparison.results import PairKey, Results, SaeKey, pair_key, read_results, sae_key
from sae_utils.comparison.trained import TrainedSae
from sae_utils.errors import InputError
from sae_utils.files import written_whole
from sae_utils.paths import series_name
from sae_utils.records import differing_settings, variant_name

Record = dict[str, Any]

OF_A_RUN = {"layers"}
"""Settings in which SAEs under one name may differ: which of them were trained together."""


def told_apart(saes: Sequence[TrainedSae]) -> list[TrainedSae]:
    """SAEs of several folders, each under a name of its own, and those that are there twice once.

    The first under a name keeps it; others that were trained in another way get what sets them apart behind it, as if
    they had been trained into one folder.

    Raises:
        InputError: If two of one name cannot stand side by side, or are the same with other weights.
    """
    first: dict[tuple[str, str], TrainedSae] = {}
    named: dict[SaeKey, TrainedSae] = {}
    for sae in saes:
        known = first.setdefault(sae.key[:2], sae)
        variant = variant_name(*(_settings(each) for each in (known, sae)))
        if variant is None:
            different = "; ".join(differing_settings(_settings(known), _settings(sae)))
            raise InputError(
                f"{known.folder.parent} and {sae.folder.parent} have one name, so their results would be taken for "
                f"each other, and were trained with settings that cannot stand side by side ({different}); compare "
                f"each in a --results_dir of its own"
            )
        sae = replace(sae, series=series_name(sae.series, variant)) if variant else sae
        twin = named.setdefault(sae.key, sae)
        if twin.weights_fingerprint != sae.weights_fingerprint:
            raise InputError(
                f"{twin.folder} and {sae.folder} are the same SAE with other weights; leave one of them out"
            )
    return sorted(named.values(), key=lambda sae: sae.key)


def take_over(results: Results, saes: Sequence[TrainedSae], folder: Path) -> None:
    """Add what another results folder knows of the weights of these SAEs, where it is not known here.

    Args:
        results: What is known here of these SAEs.
        saes: Those that the run is about.
        folder: The other results folder, which stays as it is.

    Raises:
        InputError: If it has no results, or they are damaged.
    """
    there = read_results(folder)
    if not there.saes:
        raise InputError(f"{folder} has no results to be taken over; leave it out of --results_dir, or give another")
    by_weights = {(record["layer"], record["weights_fingerprint"]): record for record in there.saes.values()}
    here: dict[SaeKey, SaeKey] = {}
    for sae in saes:
        if theirs := by_weights.get((sae.layer, sae.weights_fingerprint)):
            here[sae_key(theirs)] = sae.key
            _take_over_sae(results, sae.key, there, theirs)
    for pair in there.pairs.values():
        _take_over_pair(results, here, there, pair)
    for floor in sorted((folder / "details" / "floors").glob("*.npz")):
        own = results.folder / "details" / "floors" / floor.name
        if not own.exists():
            with written_whole(own, n_bytes=floor.stat().st_size) as file:
                shutil.copyfile(floor, file.scratch)


def _settings(sae: TrainedSae) -> dict[str, Any]:
    """What an SAE was trained with, but for the others that were trained with it."""
    return {name: value for name, value in sae.run["settings"].items() if name not in OF_A_RUN}


def _take_over_sae(results: Results, key: SaeKey, there: Results, theirs: Record) -> None:
    """Add what is known of one SAE: measurements, and the arrays that belong to them."""
    ours = results.saes[key]
    merged = ours | {
        "evaluations": _united(ours["evaluations"], theirs["evaluations"], "eval_source", "eval_fingerprint"),
        "probes": _united(ours["probes"], theirs.get("probes", []), "name", "fingerprint"),
        "random_tokens": ours["random_tokens"] or theirs["random_tokens"],
        "stability": ours["stability"] or theirs.get("stability"),
        "is_diverged": theirs["is_diverged"] if ours["is_diverged"] is None else ours["is_diverged"],
    }
    if merged == ours:
        return
    ending = f"_{key[3]}"
    known = results.arrays(*key[:3])
    arrays = {name: array for name, array in there.arrays(*sae_key(theirs)[:3]).items() if name.endswith(ending)}
    if new := {name: array for name, array in arrays.items() if name not in known}:
        results.add_arrays(*key[:3], **new)
    results.saes[key] = merged
    results.changed.add(key[:2])


def _take_over_pair(results: Results, here: Mapping[SaeKey, SaeKey], there: Results, pair: Record) -> None:
    """Add what is known of a pair, if both of its SAEs are here, in the same order."""
    target, source, layer, seed, source_b, seed_b = pair_key(pair)
    a, b = (here.get(key) for key in ((target, source, layer, seed), (target, source_b, layer, seed_b)))
    if a is None or b is None or a[1:] > b[1:]:
        return
    key: PairKey = (*a, b[1], b[3])
    if key in results.pairs or not there.is_current(pair):
        return
    names = "target", "source", "layer", "seed", "source_b", "seed_b"
    record = pair | dict(zip(names, key, strict=True))
    results.write_pair(record, there.pair_arrays(pair_key(pair)))
    results.pairs[key] = record
    results.changed |= {a[:2], b[:2]}


def _united(ours: Sequence[Record], theirs: Sequence[Record], name: str, fingerprint: str) -> list[Record]:
    """Measurements of both, ours where both have one; those under one name are of one thing."""
    known = {each[name] for each in ours}
    both = [*ours, *(each for each in theirs if each[name] not in known)]
    assert all(fingerprint in each for each in both), "a measurement that does not say what it is of"
    return sorted(both, key=lambda each: each[name])
