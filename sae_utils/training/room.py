"""Whether the memory and the disk there are can hold what a grid needs, known before anything is loaded."""

from collections.abc import Sequence

from sae_utils.disk import check_space
from sae_utils.errors import InputError
from sae_utils.memory import sae_bytes
from sae_utils.training.cells import Cell
from sae_utils.training.folders import Checkpoints
from sae_utils.training.machines import Machines
from sae_utils.training.passes import OPTIMIZER_COPIES
from sae_utils.training.remaining import Job, jobs_from_nothing

GB = 1e9

CHECKPOINTS_AT_ONCE = 2
"""The old one stands until the new one is complete."""


def check_room(cells: Sequence[Cell], seeds: Sequence[int], machines: Machines, checkpoints: Checkpoints) -> None:
    """Refuse a grid of which not one SAE fits the device, or whose SAEs do not fit the disk.

    Raises:
        InputError: If something does not fit; the message has what is needed and what is free.
    """
    for cell in cells:
        _check_memory(cell, machines)
    jobs = [(cell, job) for cell in cells for job in _jobs(cell, seeds, checkpoints)]
    if jobs:
        n_bytes = sum(_finished_bytes(cell, job) for cell, job in jobs)
        n_bytes += max(_state_bytes(cell, job) for cell, job in jobs)
        check_space(checkpoints.folder, n_bytes, f"SAEs and checkpoints in {checkpoints.folder}")


def _check_memory(cell: Cell, machines: Machines) -> None:
    """Refuse SAEs that are too large one by one; what is free now is all that there will be."""
    needed = cell.memory(is_replicated=machines.is_replicated).of(1)
    if machines.free_bytes is not None and needed > machines.free_bytes:
        raise InputError(
            f"{cell.name}: one SAE of {cell.target.n_latents:,} latents beside the model needs about "
            f"{needed / GB:.2f} GB of memory on {machines.device}, and {machines.free_bytes / GB:.2f} GB are free; "
            f"lower --num_latents, --batch_size or --ctx_len, or raise --micro_acc_steps"
        )


def _jobs(cell: Cell, seeds: Sequence[int], checkpoints: Checkpoints) -> list[Job]:
    """What is left to train of a cell, from nothing: what is begun has a part of it on the disk already."""
    folders = checkpoints.of(cell)
    return jobs_from_nothing(folders, cell.identity(), seeds, overwrite=checkpoints.overwrite)


def _finished_bytes(cell: Cell, job: Job) -> int:
    """Size of a job's finished SAEs."""
    return len(job.layers) * len(job.seeds) * sae_bytes(cell.target.d_model, cell.target.n_latents)


def _state_bytes(cell: Cell, job: Job) -> int:
    """Size of a job's resumable state: weights and what the optimizer keeps of them."""
    copies = 1 + OPTIMIZER_COPIES[cell.settings.optimizer]
    return CHECKPOINTS_AT_ONCE * copies * _finished_bytes(cell, job)
