"""What is left to train of a cell: what is asked for, held against what lies finished or begun in its folders.

A cell grows by seeds and by layers. SAEs do not see each other, so those that are trained later have the weights of a
run that had all of them; what is finished is left as it is.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_utils.errors import InputError
from sae_utils.files import DamagedFileError, Record, being_removed, holds_something, read_record, removal, write_record
from sae_utils.paths import RUN_RECORD, run_files
from sae_utils.records import check_same_settings, differing_settings
from sae_utils.training.cells import Cell
from sae_utils.training.folders import CellFolders
from sae_utils.training.passes import Pass

OVERWRITE_REMEDY = "give --overwrite to train it anew, or another --checkpoint_dir"

OTHER_SOURCE = (
    "the data set is not the one it was trained on: it was changed, or more or less of a corpus is taken than then, "
    "which --text_tokens says and otherwise the smallest generated data set"
)


@dataclass(frozen=True)
class Job:
    """SAEs of a cell that are trained together: there is one for each layer and seed."""

    layers: tuple[int, ...]
    """Their layers, ascending."""

    seeds: tuple[int, ...]
    """Their seeds."""


def has_leftovers(folders: CellFolders) -> bool:
    """Whether something of an unfinished run lies there."""
    return folders.work_dir.exists() or being_removed(folders.work_dir).exists()


def next_job(
    folders: CellFolders, identity: Mapping[str, Any], seeds: Sequence[int], *, overwrite: bool = False
) -> Job | None:
    """SAEs to train next; None if all that are asked for are finished.

    Those of an interrupted run all go on together, whatever of them is asked for now: they share a state. Then come
    those that are missing, seeds that lack the same layers together.

    Args:
        folders: The cell's.
        identity: What decides its weights, with the layers that are asked for.
        seeds: Seeds that are asked for.
        overwrite: Train anew what is finished.

    Raises:
        InputError: If something there was made with other settings, or is not ours.
    """
    _check_are_ours(folders, seeds)
    if overwrite:
        return Job(tuple(identity["layers"]), tuple(seeds))
    begun = read_plan(folders) if folders.settings_path.exists() else None
    missing = _missing(folders, identity, seeds, begun)
    if not missing:
        return None
    if begun is None:
        return _jobs_of(missing)[0]
    _check_same(begun["settings"], identity, folders.work_dir)
    job = Job(tuple(begun["settings"]["layers"]), tuple(begun["seeds"]))
    if not any(seed in missing and set(job.layers) & set(missing[seed]) for seed in job.seeds):
        raise InputError(
            f"{folders.work_dir} was begun with --layers {' '.join(map(str, job.layers))} and seeds {list(job.seeds)}, "
            f"of which nothing is asked for; finish it with these layers and --num_seeds {max(job.seeds) + 1} first, "
            f"or give --overwrite"
        )
    return job


def without(job: Job, begun: Job) -> Iterator[Job]:
    """What is left of a job beside one that was begun."""
    if others := tuple(seed for seed in job.seeds if seed not in begun.seeds):
        yield Job(job.layers, others)
    same, layers = set(job.seeds) & set(begun.seeds), tuple(each for each in job.layers if each not in begun.layers)
    if same and layers:
        yield Job(layers, tuple(sorted(same)))


def jobs_from_nothing(
    folders: CellFolders, identity: Mapping[str, Any], seeds: Sequence[int], *, overwrite: bool = False
) -> list[Job]:
    """All jobs of a cell, as if nothing of them was begun; see `next_job`.

    Raises:
        InputError: If something finished was made with other settings, or is damaged.
    """
    if overwrite:
        return [Job(tuple(identity["layers"]), tuple(seeds))]
    begun = read_plan(folders) if folders.settings_path.exists() else None
    return _jobs_of(_missing(folders, identity, seeds, begun))


def finished_layers(folders: CellFolders, seed: int) -> set[int]:
    """Layers that a seed's folder has.

    Raises:
        DamagedFileError: If a record in it is damaged.
    """
    return {layer for run in _runs(folders.seed_dir(seed)) for layer in run["settings"]["layers"]}


def is_of(cell: Cell, plan: Record) -> bool:
    """Whether an unfinished run was begun with the settings of a cell, on whichever layers."""
    return not differing_settings(_shared(plan["settings"]), _shared(cell.identity()))


def read_plan(folders: CellFolders) -> Record:
    """What an unfinished cell was begun with.

    Raises:
        DamagedFileError: If its file is damaged.
    """
    remedy = f"{removal(folders.work_dir)}, and the same command begins anew"
    plan = read_record(folders.settings_path, remedy, settings=dict, seeds=list, passes=list)
    layers = plan["settings"].get("layers")
    numbers = itertools.chain(layers or [None], plan["seeds"], *itertools.chain(*plan["passes"]))
    if not all(isinstance(number, int) for number in numbers):
        raise DamagedFileError(folders.settings_path, "its layers, seeds or passes are not lists of numbers", remedy)
    return plan


def passes_of(plan: Sequence[Sequence[Sequence[int]]]) -> list[Pass]:
    """The passes as a plan has them."""
    return [Pass(tuple(layers), tuple(seeds)) for layers, seeds in plan]


def write_plan(
    path: Path,
    identity: Mapping[str, Any],
    seeds: Sequence[int],
    passes: Sequence[Pass],
    *,
    replaces_finished: bool = False,
) -> None:
    """Keep, beside the state, what a run that goes on must find again."""
    plan = [[list(each.layers), list(each.seeds)] for each in passes]
    about = {"settings": identity, "seeds": list(seeds), "passes": plan, "replaces_finished": replaces_finished}
    write_record(path, about)


def _missing(
    folders: CellFolders, identity: Mapping[str, Any], seeds: Sequence[int], begun: Record | None
) -> dict[int, tuple[int, ...]]:
    """Layers that are left to do, by seed; all that are asked for, if what stands is being replaced."""
    is_replacing = bool(begun and begun.get("replaces_finished"))
    if is_replacing and not differing_settings(_shared(begun["settings"]), _shared(identity)):
        return dict.fromkeys(seeds, tuple(identity["layers"]))  # --overwrite was given, and stopped
    missing = {seed: _missing_layers(folders, identity, seed) for seed in seeds}
    return {seed: layers for seed, layers in missing.items() if layers}


def _check_same(before: Mapping[str, Any], identity: Mapping[str, Any], where: Path) -> None:
    """Refuse to go on with what was made with other settings, or of another data set, whose hash says little.

    Raises:
        InputError: If a setting differs.
    """
    is_other_source = before["source_fingerprint"] != identity["source_fingerprint"]
    remedy = f"{OTHER_SOURCE}; {OVERWRITE_REMEDY}" if is_other_source else OVERWRITE_REMEDY
    check_same_settings(_shared(before), _shared(identity), where=where, remedy=remedy)


def _jobs_of(missing: Mapping[int, tuple[int, ...]]) -> list[Job]:
    """Seeds that lack the same layers together; of each seed, the layers it lacks."""
    lacks = dict.fromkeys(missing.values())
    return [Job(layers, tuple(seed for seed in missing if missing[seed] == layers)) for layers in lacks]


def _missing_layers(folders: CellFolders, identity: Mapping[str, Any], seed: int) -> tuple[int, ...]:
    """Layers that a seed's folder lacks, of those that are asked for.

    Raises:
        InputError: If what is there was made with other settings.
    """
    folder = folders.seed_dir(seed)
    for run in _runs(folder):
        _check_same(run["settings"], identity, folder)
    there = finished_layers(folders, seed)
    return tuple(layer for layer in identity["layers"] if layer not in there)


def _runs(folder: Path) -> Iterator[Record]:
    """The records of a seed's folder."""
    for path in run_files(folder):
        yield read_record(path, f"{removal(folder)}, and the same command trains its seed anew", settings=dict)


def _shared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that all SAEs of a cell have in common."""
    return {name: value for name, value in settings.items() if name != "layers"}


def _check_are_ours(folders: CellFolders, seeds: Sequence[int]) -> None:
    """Refuse folders under our names that something else made; not even --overwrite throws those away.

    Raises:
        InputError: If there is one.
    """
    work, finished = folders.work_dir, [folders.seed_dir(seed) for seed in seeds]
    foreign = [folder for folder in finished if folder.exists() and not (folder / RUN_RECORD).exists()]
    if foreign:
        raise InputError(f"{foreign[0]} exists and has no run.json; if you do not need it, move it away")
    if work.exists() and not folders.settings_path.exists() and holds_something(work):
        raise InputError(f"{work} exists and has no settings.json; if you do not need it, move it away")
