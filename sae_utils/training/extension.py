"""Larger budgets that go on where smaller ones ended, from the state that was kept behind finished SAEs.

The learning rate does not depend on where training ends, and a smaller budget reads the beginning of what a larger one
reads: so what goes on from there has, bit for bit, the weights of a run that had the larger budget from the beginning.
"""

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from sae_utils.errors import InputError
from sae_utils.files import read_record, removal, remove_folder, written_folder
from sae_utils.paths import METRICS_FILE, RESUMABLE_SUFFIX
from sae_utils.records import differing_settings
from sae_utils.training.cells import Cell
from sae_utils.training.folders import CellFolders
from sae_utils.training.passes import RECORDS_FILE, Pass
from sae_utils.training.remaining import Job, passes_of, without, write_plan
from sae_utils.training.settings import TrainingSettings
from sae_utils.training.trainer import STATE_FILE
from sae_utils.training.wandb_runs import RUN_FILE

logger = logging.getLogger(__name__)

SETTINGS_FILE = "settings.json"
"""What the SAEs were trained with, beside their state."""


def check_can_extend(settings: TrainingSettings) -> None:
    """Refuse to keep a state from which no larger budget can go on.

    Raises:
        InputError: If the learning rate depends on where training ends.
    """
    if settings.optimizer != "signum":
        raise InputError(
            f"--keep_state is for going on with a larger budget, and with --optimizer {settings.optimizer} the "
            f"learning rate has fallen to 0 at the end of the smaller one; use signum, or train the larger one from "
            f"the beginning"
        )


def keep_state(folders: CellFolders, job: Job) -> None:
    """Put the state of a cell's SAEs aside, which are published, in place of removing it; each job has its own."""
    which = Pass(job.layers, job.seeds).name
    kept = folders.checkpoint_dir / f"{folders.name}_{which}{RESUMABLE_SUFFIX}"
    remove_folder(kept)
    for path in folders.work_dir.iterdir():
        if path.is_dir() and not (path / STATE_FILE).exists():
            remove_folder(path)
    for path in [folders.work_dir / RUN_FILE, *folders.work_dir.glob(f"*/{RECORDS_FILE}")]:
        path.unlink(missing_ok=True)
    os.replace(folders.work_dir, kept)


def take_up(cell: Cell, seeds: Sequence[int], folders: CellFolders) -> list[Pass] | None:
    """Begin a cell with the state of the largest smaller budget that was kept; None if there is none.

    Args:
        cell: What is to be trained.
        seeds: Its seeds.
        folders: Its folders, in which nothing is begun.

    Returns:
        The passes, which are those of the smaller budget.

    Raises:
        DamagedFileError: If a record of a kept state is damaged.
    """
    found = dict(kept_states(cell, seeds, folders))
    if not found:
        return None
    n_tokens, kept = max(found.items())
    passes = passes_of(read_settings(kept)["passes"])
    states = [path for each in passes for path in (kept / each.name).glob("*") if _is_state(path)]
    n_bytes = sum(path.stat().st_size for path in states)
    with written_folder(folders.work_dir, n_bytes=n_bytes) as scratch:
        for path in states:
            (scratch / path.parent.name).mkdir(exist_ok=True)
            shutil.copyfile(path, scratch / path.parent.name / path.name)
        write_plan(scratch / SETTINGS_FILE, cell.identity(), seeds, passes)
    logger.info("%s goes on from %s, after %s tokens", cell.name, kept, f"{n_tokens:,}")
    return passes


def parts_by_state(cell: Cell, job: Job, folders: CellFolders) -> list[Job]:
    """A job cut into those that a state is kept of, the largest first, and the rest; itself where there is none.

    A cell that has grown by layers or seeds has left a state for each time.

    Raises:
        DamagedFileError: If a record of a kept state is damaged.
    """
    there = [Job(tuple(plan["settings"]["layers"]), tuple(plan["seeds"])) for _, _, plan in _smaller(cell, folders)]
    parts = [each for each in there if set(each.layers) <= set(job.layers) and set(each.seeds) <= set(job.seeds)]
    if not parts:
        return [job]
    first = max(parts, key=lambda each: len(each.layers) * len(each.seeds))
    rest = [part for each in without(job, first) for part in parts_by_state(cell, each, folders)]
    return [first, *rest]


def kept_states(cell: Cell, seeds: Sequence[int], folders: CellFolders) -> Iterator[tuple[int, Path]]:
    """Training tokens and folder of every kept state that a cell can go on from."""
    for n_tokens, path, plan in _smaller(cell, folders):
        if plan["seeds"] == list(seeds) and plan["settings"]["layers"] == list(cell.settings.layers):
            yield n_tokens, path


def _smaller(cell: Cell, folders: CellFolders) -> Iterator[tuple[int, Path, dict]]:
    """Training tokens, folder and plan of every kept state of a smaller budget, of whichever layers and seeds."""
    if cell.settings.optimizer != "signum":
        return
    for path in sorted(folders.checkpoint_dir.glob(f"*{RESUMABLE_SUFFIX}/{SETTINGS_FILE}")):
        plan = read_settings(path.parent)
        of_state = {name: plan["settings"].get(name) for name in ("n_train_tokens", "layers")}
        is_smaller = (of_state["n_train_tokens"] or 0) < cell.budget.n_train_tokens
        if is_smaller and not differing_settings(plan["settings"], cell.identity() | of_state):
            yield of_state["n_train_tokens"], path.parent, plan


def read_settings(kept: Path) -> dict:
    """What a kept state was trained with, and in which passes.

    Raises:
        DamagedFileError: If its record is damaged.
    """
    remedy = f"{removal(kept)}, and larger budgets are trained from the beginning"
    return read_record(kept / SETTINGS_FILE, remedy, settings=dict, seeds=list, passes=list)


def _is_state(path: Path) -> bool:
    """Whether a file of a pass is what a run goes on from."""
    return path.name in (STATE_FILE, METRICS_FILE) or path.suffix == ".pt"
