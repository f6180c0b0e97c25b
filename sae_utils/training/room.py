"""Whether the memory and the disk there are can hold what a grid needs, known before anything is loaded."""

from collections.abc import Sequence

from sae_utils.disk import NOTHING, DiskUse, check_space, describe_bytes, free_disk_bytes
from sae_utils.errors import InputError
from sae_utils.training.cells import Cell
from sae_utils.training.checkpoint_size import job_disk
from sae_utils.training.folders import Checkpoints
from sae_utils.training.machines import Machines
from sae_utils.training.passes import Pass
from sae_utils.training.remaining import Job, jobs_from_nothing

GB = 1e9


def check_room(cells: Sequence[Cell], seeds: Sequence[int], machines: Machines, checkpoints: Checkpoints) -> None:
    """Refuse a grid of which not one SAE fits the device, or whose SAEs do not fit the disk.

    Raises:
        InputError: If something does not fit; the message has what is needed and what is free.
    """
    for cell in cells:
        _check_memory(cell, machines)
    n_bytes = grid_disk(cells, seeds, machines, checkpoints).n_peak
    check_space(checkpoints.folder, n_bytes, f"SAEs and checkpoints in {checkpoints.folder}")


def grid_disk(cells: Sequence[Cell], seeds: Sequence[int], machines: Machines, checkpoints: Checkpoints) -> DiskUse:
    """What training all that is left writes, cell after cell; what is begun has a part of it on the disk already."""
    use, on_the_way = NOTHING, {each.name for cell in cells for each in cell.kept}
    for cell in cells:
        if cell.name not in on_the_way:
            for job in _jobs(cell, seeds, checkpoints):
                use = use.then(disk_of(cell.with_layers(job.layers), job.seeds, machines, checkpoints))
    return use


def disk_of(cell: Cell, seeds: Sequence[int], machines: Machines, checkpoints: Checkpoints) -> DiskUse:
    """What training a cell writes, from nothing."""
    return job_disk(cell, planned_passes(cell, seeds, machines), checkpoints)


def memory_of(cell: Cell, seeds: Sequence[int], machines: Machines) -> int:
    """Memory that training a cell takes in a process."""
    passes = planned_passes(cell, seeds, machines)
    n_together = max(len(each.layers) * len(each.seeds) for each in passes)
    return cell.memory(machines.device, is_replicated=machines.is_replicated).of(
        -(-n_together // machines.n_layers_together)
    )


def planned_passes(cell: Cell, seeds: Sequence[int], machines: Machines) -> list[Pass]:
    """The passes of a cell, from nothing."""
    return machines.plan_passes(
        cell.memory(machines.device, is_replicated=machines.is_replicated), cell.settings.layers, seeds
    )


def describe_room(cells: Sequence[Cell], seeds: Sequence[int], machines: Machines, checkpoints: Checkpoints) -> str:
    """What training all that is left takes of memory and disk, in a line of a dry run."""
    if not any(_jobs(cell, seeds, checkpoints) for cell in cells):
        return "training: nothing is left"
    memory = max(memory_of(cell, seeds, machines) for cell in cells)
    use, free = grid_disk(cells, seeds, machines, checkpoints), describe_bytes(free_disk_bytes(checkpoints.folder))
    return f"training all that is left: at most {memory / GB:.2f} GB of memory in a process; {use}, of {free} free"


def _check_memory(cell: Cell, machines: Machines) -> None:
    """Refuse SAEs that are too large one by one; what is free now is all that there will be."""
    needed = cell.memory(machines.device, is_replicated=machines.is_replicated).of(1)
    if machines.free_bytes is not None and needed > machines.free_bytes:
        raise InputError(
            f"{cell.name}: one SAE of {cell.target.n_latents:,} latents beside the model needs about "
            f"{needed / GB:.2f} GB of memory on {machines.device}, and {machines.free_bytes / GB:.2f} GB are free; "
            f"lower --num_latents, --batch_size or --ctx_len, or raise --micro_acc_steps"
        )


def _jobs(cell: Cell, seeds: Sequence[int], checkpoints: Checkpoints) -> list[Job]:
    """What is left to train of a cell, from nothing."""
    checkpoints = checkpoints.for_plan(cell)
    folders = checkpoints.of(cell)
    return jobs_from_nothing(folders, cell.identity(), seeds, overwrite=checkpoints.overwrite)
