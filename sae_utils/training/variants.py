"""Settings side by side: what is trained in another way on the same source stands under a name of its own.

The first SAEs of a target and a source have no more than these two in their folders' names. Others are told apart by
what they were trained with otherwise, such as `k_64`; what cannot be compared stays refused, such as another
`--ctx_len`, which makes other rows.
"""

import glob
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sae_utils.distributed import Workers
from sae_utils.errors import InputError
from sae_utils.files import read_record, removal
from sae_utils.paths import RUN_RECORD
from sae_utils.records import variant_name
from sae_utils.training.cells import Cell
from sae_utils.training.folders import CellFolders, Checkpoints
from sae_utils.training.remaining import read_plan


def name_variants(
    cells: Sequence[Cell], checkpoints: Checkpoints, workers: Workers, *, keep_at: Sequence[int] = ()
) -> list[Cell]:
    """The cells with the names under which they stand beside what is there, and behind each what it keeps on the way.

    The same in all processes.

    Args:
        cells: The grid.
        checkpoints: Where it is kept.
        workers: The processes that train together.
        keep_at: Training tokens at which SAEs are kept on the way; a cell of its own for each.

    Raises:
        InputError: If SAEs on the way are not those of a smaller budget, a number is not below the budget or less than
            a step, or a record there is damaged.
    """
    kept = [_smaller(cell, keep_at) for cell in cells]
    first: dict[tuple[str, str], Cell] = {}
    for cell in cells:
        first.setdefault((cell.target.name, cell.source.name), cell)
    found = (
        [
            [find_variant(each, first[cell.target.name, cell.source.name], checkpoints) for each in (cell, *smaller)]
            for cell, smaller in zip(cells, kept, strict=True)
        ]
        if workers.is_main
        else None
    )
    named: list[Cell] = []
    for cell, smaller, (variant, *variants) in zip(cells, kept, workers.agree(found), strict=True):
        on_the_way = [replace(each, variant=name) for each, name in zip(smaller, variants, strict=True)]
        named += [replace(cell, variant=variant, kept=tuple(on_the_way)), *on_the_way]
    return named


def _smaller(cell: Cell, keep_at: Sequence[int]) -> list[Cell]:
    """A cell with smaller budgets, ascending.

    Raises:
        InputError: If one of them is none.
    """
    settings, whole = cell.settings, cell.budget
    if keep_at and settings.optimizer != "signum":
        raise InputError(
            f"--keep_at needs a learning rate that stays as it is, and with --optimizer {settings.optimizer} it falls "
            f"to the end of the budget, so that SAEs on the way are not those of a smaller one; use signum, or train "
            f"each --max_tokens by itself"
        )
    budgets = {n: whole.cut_to(n, settings.chunks_per_step) for n in sorted(keep_at)}
    per_step = settings.chunks_per_step * whole.ctx_len
    if wrong := [n for n, each in budgets.items() if not per_step <= each.n_train_tokens < whole.n_train_tokens]:
        raise InputError(
            f"--keep_at must be at least one step ({per_step:,} tokens) and less than the {whole.n_train_tokens:,} "
            f"training tokens, got {' '.join(f'{n:,}' for n in wrong)}"
        )
    return [replace(cell, budget=each) for each in dict.fromkeys(budgets.values())]


def find_variant(cell: Cell, first: Cell, checkpoints: Checkpoints) -> str:
    """What sets a cell apart from the first of its target and source; empty if it is that one, or cannot stand by it.

    A budget sets apart only where it is asked for: one that follows from the smallest source would train a whole study
    anew because a source was added.

    Args:
        cell: A cell of the grid, or what it keeps on the way.
        first: The first of the grid with its target and source, from which it is set apart if none is there yet.
        checkpoints: Where they are kept.
    """
    there = settings_there(checkpoints.of(replace(cell, variant=""))) or first.identity()
    wanted = cell.identity()
    if there.get("n_train_tokens") != wanted["n_train_tokens"] and not cell.budget.is_chosen:
        return ""
    return variant_name(there, wanted) or ""


def settings_there(folders: CellFolders) -> dict[str, Any] | None:
    """What finished SAEs under a name were trained with, else what unfinished ones were begun with; None without any.

    Raises:
        DamagedFileError: If a record is damaged.
    """
    is_seed = re.compile(re.escape(folders.name) + r"_seed_\d+").fullmatch
    for path in sorted(folders.checkpoint_dir.glob(f"{glob.escape(folders.name)}_seed_*/{RUN_RECORD}")):
        if is_seed(path.parent.name):
            remedy = f"{removal(path.parent)}, and the same command trains its seed anew"
            return read_record(path, remedy, settings=dict)["settings"]
    return read_plan(folders)["settings"] if folders.settings_path.exists() else None
