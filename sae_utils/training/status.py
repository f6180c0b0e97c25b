"""What of a grid is there already, what is left, and how long that takes: the lines of a dry run."""

from collections.abc import Sequence
from dataclasses import dataclass

from sae_utils.files import read_record, removal
from sae_utils.progress import span
from sae_utils.rates import (
    TIMING_REMEDY,
    UNKNOWN_DEVICE,
    Rate,
    describe_rate,
    find_rate,
    on_machine,
    this_machine,
    unknown_rate,
)
from sae_utils.training.cells import Cell
from sae_utils.training.extension import kept_states, parts_by_state, read_settings
from sae_utils.training.folders import CellFolders, Checkpoints
from sae_utils.training.loop import next_job_of
from sae_utils.training.machines import Machines
from sae_utils.training.passes import RECORDS_FILE, Pass
from sae_utils.training.remaining import jobs_from_nothing, passes_of, read_plan, without
from sae_utils.training.speed import about_pass
from sae_utils.training.trainer import STATE_FILE


@dataclass(frozen=True)
class PassStatus:
    """How far a pass has got."""

    which: Pass
    """The pass."""

    n_done: int
    """Tokens that its SAEs were trained on, up to the last checkpoint."""

    n_tokens: int
    """Tokens that they are to be trained on."""

    rate: Rate | None
    """How fast such a pass was here last; None if that is not known."""

    @property
    def n_left(self) -> int:
        """Tokens that are left."""
        return self.n_tokens - self.n_done

    @property
    def left_sec(self) -> float | None:
        """How long they take."""
        if not self.n_left:
            return 0.0
        return None if self.rate is None else self.n_left / self.rate.tokens_per_sec

    def __str__(self) -> str:
        if not self.n_left:
            return f"{self.which} trained"
        begun = f" at {self.n_done:,} of {self.n_tokens:,} tokens" if self.n_done else ""
        if self.rate is None:
            return f"{self.which}{begun}"
        return f"{self.which}{begun}, about {span(self.left_sec)} ({describe_rate(self.rate)})"


def describe_status(cells: Sequence[Cell], seeds: Sequence[int], machines: Machines, checkpoints: Checkpoints) -> str:
    """What is finished, what was begun and how far, what is left, and how long it takes.

    Raises:
        InputError: If something there was made with other settings, or is damaged: the run would be refused, too.
    """
    lines, passes, n_left, on_the_way = [], [], 0, dict[str, str]()
    for cell in cells:
        of_cell = passes_left(cell, seeds, machines, checkpoints)
        n_missing = sum(len(each.which.layers) * len(each.which.seeds) for each in of_cell)
        n_of_cell = len(cell.settings.layers) * len(seeds)
        there = f"{max(0, n_of_cell - n_missing):,} of {n_of_cell:,} SAEs finished"
        if not of_cell:
            what = "finished"
        elif cell.name in on_the_way:
            what = f"{there}; kept on the way to {on_the_way[cell.name]}"
        else:
            what = f"{there}; {'; '.join(map(str, of_cell))}"
            passes += of_cell
            on_the_way |= {each.name: cell.name for each in cell.kept}
        lines.append(f"  {cell.name}: {what}")
        n_left += n_missing
    n_all = len(cells) * len(cells[0].settings.layers) * len(seeds)
    head = f"{max(0, n_all - n_left):,} of {n_all:,} SAEs are finished"
    if n_left:
        head += f", {n_left:,} left to train: {_how_long(passes, machines, checkpoints)}"
    return "\n".join([head, *lines])


def training_sec(
    cells: Sequence[Cell], seeds: Sequence[int], machines: Machines, checkpoints: Checkpoints
) -> float | None:
    """How long all that is left to train takes; None if that is not known of a pass."""
    on_the_way = {each.name for cell in cells for each in cell.kept}
    trained = [cell for cell in cells if cell.name not in on_the_way]
    times = [each.left_sec for cell in trained for each in passes_left(cell, seeds, machines, checkpoints)]
    return None if None in times else sum(times)


def passes_left(cell: Cell, seeds: Sequence[int], machines: Machines, checkpoints: Checkpoints) -> list[PassStatus]:
    """The passes in which what a cell lacks is trained: those that it was begun with, and then those that are planned.

    Raises:
        InputError: As training would.
    """
    checkpoints = checkpoints.for_plan(cell)
    folders = checkpoints.of(cell)
    job = next_job_of(cell, seeds, checkpoints)
    missing = jobs_from_nothing(folders, cell.identity(), seeds, overwrite=checkpoints.overwrite)
    found: list[PassStatus] = []
    if job is not None and folders.settings_path.exists() and not checkpoints.overwrite:
        begun = passes_of(read_plan(folders)["passes"])
        found += [_status(cell, each, _n_done(cell, each, folders), machines, checkpoints) for each in begun]
        missing = [part for each in missing for part in without(each, job)]
    if not checkpoints.overwrite:
        missing = [part for each in missing for part in parts_by_state(cell, each, folders)]
    for each in missing:
        part = cell.with_layers(each.layers)
        kept = {} if checkpoints.overwrite else dict(kept_states(part, each.seeds, folders))
        memory = part.memory(machines.device, is_replicated=machines.is_replicated)
        planned = (
            passes_of(read_settings(kept[max(kept)])["passes"])
            if kept
            else machines.plan_passes(memory, each.layers, each.seeds)
        )
        found += [_status(part, which, max(kept, default=0), machines, checkpoints) for which in planned]
    return found


def _n_done(cell: Cell, which: Pass, folders: CellFolders) -> int:
    """Tokens that the SAEs of a pass were trained on, by its files.

    Raises:
        DamagedFileError: If the record of its state is damaged.
    """
    folder = folders.pass_dir(which)
    if (folder / RECORDS_FILE).exists():
        return cell.budget.n_train_tokens
    if not (folder / STATE_FILE).exists():
        return 0
    remedy = f"{removal(folder)}, and the same command trains this pass anew"
    n_batches = read_record(folder / STATE_FILE, remedy, global_step=int)["global_step"]
    return n_batches * cell.settings.batch_size * cell.settings.ctx_len


def _status(cell: Cell, which: Pass, n_done: int, machines: Machines, checkpoints: Checkpoints) -> PassStatus:
    """A pass, with the last rate of the like."""
    about = about_pass(cell, which, machines)
    rate = None if about is None else find_rate(checkpoints.folder, about)
    return PassStatus(which, n_done, cell.budget.n_train_tokens, rate)


def _how_long(passes: Sequence[PassStatus], machines: Machines, checkpoints: Checkpoints) -> str:
    """How long all passes take, and on what that was measured; or how to find out."""
    machine, times = this_machine(machines.device), [each.left_sec for each in passes]
    if machine is None:
        return UNKNOWN_DEVICE
    if None not in times:
        return f"about {span(sum(times))} by rates measured last {on_machine(machine)}, the comparison not counted"
    return (
        f"{unknown_rate(checkpoints.folder, machine)}; {TIMING_REMEDY}, or start it, stop it by Ctrl-C after some "
        f"minutes, and ask again: it goes on from there"
    )
