"""Bytes on the disk of SAEs: when they are finished, and at most while they are trained.

A checkpoint holds the weights, what the optimizer keeps of them and counters of latents; the old one stands until the
new one is complete. The last checkpoint of each pass, and the SAEs of passes that are complete, wait in the working
folder until the cell is published; then losses are written once more, for each seed its own.
"""

from collections.abc import Sequence

from sae_utils.disk import DiskUse
from sae_utils.memory import sae_bytes
from sae_utils.training.cells import Cell
from sae_utils.training.folders import Checkpoints
from sae_utils.training.passes import OPTIMIZER_COPIES, Pass

CHECKPOINTS_AT_ONCE = 2
"""The old one stands until the new one is complete."""

COUNTER_BYTES = 8
"""Of each latent: tokens since it fired."""

LOSS_BYTES = 85
"""An SAE's losses of a step in `metrics.jsonl`, about."""

STEP_BYTES = 20
"""The rest of a step's line there: the number of tokens."""

SEED_BYTES = 6_500
"""Records, card and settings of a seed's folder beside its SAEs and losses, about."""


def job_disk(cell: Cell, passes: Sequence[Pass], checkpoints: Checkpoints) -> DiskUse:
    """What training SAEs of a cell writes, from nothing to their final folders; of one process or of all together.

    Args:
        cell: The cell, with what it keeps on the way.
        passes: In which they are trained.
        checkpoints: How they are kept.
    """
    has_state = bool(n_checkpoints(cell, checkpoints))
    n_at_once = min(CHECKPOINTS_AT_ONCE, n_checkpoints(cell, checkpoints))
    n_kept, waiting, peak, states = len(cell.kept), 0, 0, 0
    for each in passes:
        state, saes, losses = state_bytes(cell, each), saes_bytes(cell, each), losses_bytes(cell, each)
        peak = max(peak, waiting + losses + n_kept * saes + max(n_at_once * state, has_state * state + saes))
        waiting += has_state * state + (1 + n_kept) * saes + losses
        states += has_state * state + losses
    n_seeds = len({seed for each in passes for seed in each.seeds})
    published = waiting - states + _published_losses(cell, passes) + (1 + n_kept) * n_seeds * SEED_BYTES
    return DiskUse(max(peak, states + published), published + checkpoints.keeps_state * states)


def n_checkpoints(cell: Cell, checkpoints: Checkpoints) -> int:
    """Checkpoints that an unbroken run of a pass writes; one that is stopped writes one more."""
    n_steps = n_steps_of(cell)
    ends_between = checkpoints.keeps_state and n_steps % checkpoints.save_every != 0
    return n_steps // checkpoints.save_every + ends_between


def n_steps_of(cell: Cell) -> int:
    """Optimizer steps of a cell."""
    return cell.budget.n_train_chunks // cell.settings.chunks_per_step


def state_bytes(cell: Cell, which: Pass) -> int:
    """A checkpoint of a pass."""
    copies = 1 + OPTIMIZER_COPIES[cell.settings.optimizer]
    target = cell.target
    return n_saes_of(which) * (copies * sae_bytes(target.d_model, target.n_latents) + COUNTER_BYTES * target.n_latents)


def saes_bytes(cell: Cell, which: Pass) -> int:
    """The finished SAEs of a pass."""
    return n_saes_of(which) * sae_bytes(cell.target.d_model, cell.target.n_latents)


def losses_bytes(cell: Cell, which: Pass) -> int:
    """The losses of a pass."""
    return n_steps_of(cell) * (STEP_BYTES + n_saes_of(which) * LOSS_BYTES)


def n_saes_of(which: Pass) -> int:
    """SAEs of a pass."""
    return len(which.layers) * len(which.seeds)


def _published_losses(cell: Cell, passes: Sequence[Pass]) -> int:
    """The losses in the seeds' own folders, up to each budget that is kept."""
    n_saes, seeds = sum(map(n_saes_of, passes)), {seed for each in passes for seed in each.seeds}
    n_steps = sum(map(n_steps_of, (cell, *cell.kept)))
    return n_steps * (len(seeds) * STEP_BYTES + n_saes * LOSS_BYTES)
