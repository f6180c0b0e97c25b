"""Where SAEs are trained: a device per process, the memory that it had left, and how processes share the work."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from sae_utils.distributed import Workers
from sae_utils.errors import InputError
from sae_utils.memory import free_bytes
from sae_utils.training.passes import Pass, PassMemory, plan_passes


@dataclass(frozen=True)
class Machines:
    """The processes that train together, seen from one of them.

    Nothing here but the kind of device, which draws the first weights, shows in the weights other than by rounding.
    """

    device: torch.device
    """Where this process computes."""

    free_bytes: int | None
    """Memory that the main process's device had left; None for a GPU that is not here."""

    workers: Workers = field(default_factory=Workers)
    """The processes."""

    distribute_modules: bool = False
    """Whether each process trains some of the layers, instead of all on a part of each batch."""

    @property
    def n_layers_together(self) -> int:
        """Processes that the layers of a pass are distributed over, equally many each."""
        return self.workers.n if self.distribute_modules else 1

    @property
    def is_replicated(self) -> bool:
        """Whether several processes hold the same SAEs and average their gradients."""
        return self.workers.n > 1 and not self.distribute_modules

    def plan_passes(self, memory: PassMemory, layers: Sequence[int], seeds: Sequence[int]) -> list[Pass]:
        """As few passes as fit the memory there is; one if that is not known."""
        n_fit = len(layers) * len(seeds) if self.free_bytes is None else memory.fitting(self.free_bytes)
        return plan_passes(layers, seeds, n_fit, n_layers_together=self.n_layers_together)


def check_shares(batch_size: int, n_layers: int, n_processes: int, *, distribute_modules: bool) -> None:
    """Refuse what cannot be shared out evenly.

    Raises:
        InputError: If the sequences of a batch, or the layers, cannot be divided among the processes.
    """
    if batch_size % n_processes:
        raise InputError(
            f"--batch_size counts the sequences of all processes and must be a multiple of their number, got "
            f"{batch_size} for {n_processes} processes"
        )
    if distribute_modules and (n_processes == 1 or n_layers % n_processes):
        raise InputError(
            f"--distribute_modules needs several processes, started by torchrun, and a number of --layers that is a "
            f"multiple of theirs, got {n_layers} layers for {n_processes} process{'es' if n_processes > 1 else ''}"
        )


def find_machines(device: torch.device, workers: Workers, *, distribute_modules: bool) -> Machines:
    """The device of this process and the others, with the memory that the main one's has left now.

    All get one number, as it decides how they divide the work.
    """
    return Machines(device, workers.agree(free_bytes(device)), workers, distribute_modules)
