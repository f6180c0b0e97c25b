import pytest
import torch

from sae_utils.distributed import Workers
from sae_utils.errors import InputError
from sae_utils.training.machines import Machines, check_shares
from sae_utils.training.passes import PassMemory

CPU = torch.device("cpu")
MEMORY = PassMemory(fixed=100, per_sae=50)


def planned(machines: Machines) -> list[str]:
    return [each.name for each in machines.plan_passes(MEMORY, [7, 15], [0, 1])]


def test_as_few_passes_as_the_memory_allows():
    assert planned(Machines(CPU, 400)) == ["layers_7_15_seeds_0_1"]  # 340 usable: four SAEs
    assert planned(Machines(CPU, 300)) == ["layers_7_seeds_0_1", "layers_15_seeds_0_1"]  # 255 usable: three


def test_memory_that_is_not_known_is_taken_to_suffice():
    """A plan for a GPU elsewhere; there it is found out."""
    assert planned(Machines(torch.device("cuda"), None)) == ["layers_7_15_seeds_0_1"]


def test_distributed_layers_are_planned_for_all_processes():
    """Each holds one layer's SAEs, so two layers fit where one process has room for two SAEs."""
    machines = Machines(CPU, 240, Workers(0, 2), distribute_modules=True)
    assert (machines.n_layers_together, machines.is_replicated) == (2, False)
    assert planned(machines) == ["layers_7_15_seeds_0_1"]
    assert Machines(CPU, 240, Workers(0, 2)).is_replicated


@pytest.mark.parametrize(
    ("n", "distribute", "batch_size", "n_layers", "message"),
    [
        (2, False, 3, 2, "must be a multiple of their number, got 3 for 2 processes"),
        (1, True, 2, 2, "needs several processes, started by torchrun, .* got 2 layers for 1 process$"),
        (2, True, 2, 3, "a multiple of theirs, got 3 layers for 2 processes"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(n, distribute, batch_size, n_layers, message):
    with pytest.raises(InputError, match=message):
        check_shares(batch_size, n_layers, n, distribute_modules=distribute)
