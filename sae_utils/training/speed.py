"""How fast passes were trained on a device, and how long a pass takes by that."""

from typing import Any

from sae_utils.devices import dtype_name
from sae_utils.rates import this_machine
from sae_utils.training.cells import Cell
from sae_utils.training.machines import Machines
from sae_utils.training.passes import Pass


def about_pass(cell: Cell, which: Pass, machines: Machines) -> dict[str, Any] | None:
    """What decides how many tokens a second a pass is trained on; None for a GPU that is not here.

    Tokens are those of the training sequences, as in the budget.
    """
    machine, settings = this_machine(machines.device), cell.settings
    if machine is None:
        return None
    return {
        **machine,
        "n_processes": machines.workers.n,
        "distribute_modules": machines.distribute_modules,
        "target": cell.target.name,
        "dtype": dtype_name(cell.target.dtype),
        "layers": list(which.layers),
        "n_saes": len(which.layers) * len(which.seeds),
        "n_latents": cell.target.n_latents,
        "k": settings.k,
        "optimizer": settings.optimizer,
        "ctx_len": settings.ctx_len,
        "batch_size": settings.batch_size,
        "grad_acc_steps": settings.grad_acc_steps,
        "micro_acc_steps": settings.micro_acc_steps,
    }
