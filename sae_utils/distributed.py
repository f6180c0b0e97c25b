"""Several processes started by `torchrun`: who I am, and the few things all must agree on."""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor

from sae_utils.errors import InputError

TIMEOUT = timedelta(days=7)
"""How long processes wait for each other: a round of sampling may take hours, and a dead one is torchrun's to
notice."""


@dataclass(frozen=True)
class Launch:
    """What `torchrun` tells a process that it starts; the defaults are a process alone."""

    rank: int = 0
    """Number of this process among all, 0 .. n - 1."""

    n: int = 1
    """Number of processes, on all machines."""

    local_rank: int = 0
    """Number of this process on its machine, 0 .. n_local - 1."""

    n_local: int = 1
    """Number of processes on this machine."""

    @property
    def is_main(self) -> bool:
        """Whether this will be the main process of `Workers`."""
        return self.rank == 0


@dataclass(frozen=True)
class Workers:
    """The processes of this run."""

    rank: int = 0
    """Number of this process, 0 .. n - 1."""

    n: int = 1
    """Number of processes."""

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints, assembles and publishes."""
        return self.rank == 0

    def agree(self, value: Any) -> Any:
        """The main process's value, on all; waits for all."""
        if self.n == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in the order of their numbers, on all; waits for all."""
        if self.n == 1:
            return [value]
        values = [None] * self.n
        dist.all_gather_object(values, value)
        return values

    def check_alike(self, what: str, value: Any) -> None:
        """Refuse to go on where a process has something else under the same name; waits for all.

        Raises:
            InputError: In every process.
        """
        values = self.gather(value)
        if others := [rank for rank, each in enumerate(values) if each != values[0]]:
            raise InputError(
                f"{what} must be the same in all processes, and is {values[others[0]]} in process {others[0]} and "
                f"{values[0]} in process 0; give a folder that all machines share, or the same copy to each"
            )

    def sum_(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes, in place; waits for all."""
        if self.n > 1:
            dist.all_reduce(tensor)
        return tensor

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.n > 1:
            dist.barrier()


def find_launch() -> Launch:
    """How this process was started, before it has joined the others."""
    variables = {"rank": "RANK", "n": "WORLD_SIZE", "local_rank": "LOCAL_RANK", "n_local": "LOCAL_WORLD_SIZE"}
    return Launch(**{field: int(os.environ[name]) for field, name in variables.items() if name in os.environ})


def join_workers(*, on_gpus: bool = False) -> Workers:
    """Join the processes that `torchrun` started; without torchrun, this process is alone.

    Args:
        on_gpus: Whether tensors on GPUs will be exchanged, too, each process's on its current one.
    """
    n = find_launch().n
    if n == 1:
        return Workers()
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo", timeout=TIMEOUT)
    return Workers(dist.get_rank(), n)


def leave_workers() -> None:
    """End what `join_workers` began."""
    if dist.is_initialized():
        dist.destroy_process_group()
