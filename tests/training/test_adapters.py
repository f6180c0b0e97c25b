"""What sparsify's trainer is handed in place of parts of its own."""

import torch
import torch.distributed as dist
from schedulefree import ScheduleFreeWrapper
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sae_utils.training.adapters import Replica, adapted_sparsify, exchange_, numbers_written_by_the_device


class Operations(TorchDispatchMode):
    """Takes down which operations tensors go through."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def test_single_numbers_are_written_by_operations_of_the_device():
    """A GPU would have to finish everything before a copy from the host, at every step of every SAE.

    What is copied passes below what a CPU can watch, so the operations are named that copy nothing.
    """
    outputs, fired = torch.ones(3, 4, dtype=torch.bfloat16), torch.zeros(8, dtype=torch.bool)
    latents = torch.zeros(5, dtype=torch.int64)
    with numbers_written_by_the_device(), Operations() as operations:
        zero = outputs.new_tensor(0.0)
        fired[latents] = True
    assert operations.names == ["new_full", "index_fill_"]
    assert (zero.shape, zero.dtype, zero.tolist()) == ((), torch.bfloat16, 0.0)


def test_numbers_are_the_same_as_ever():
    """And all that is written otherwise stays as it was, inside and afterwards."""

    def written() -> list[list]:
        fired, rows = torch.zeros(6, dtype=torch.bool), torch.zeros(3, 2, dtype=torch.bool)
        fired[torch.tensor([4, 1, 4])] = True
        fired[torch.tensor([False] * 5 + [True])] = True
        rows[torch.tensor([2])] = True
        rows[0, 1] = True
        return [each.tolist() for each in (fired, rows, fired.double().new_tensor(0.5), rows.new_tensor([1, 0]))]

    before = written()
    with numbers_written_by_the_device():
        assert written() == before
    assert written() == before
    assert before[0] == [False, True, False, False, True, True]


def test_weights_and_another_array_change_places_without_being_read():
    """schedulefree does it twice a step, number by number: six times over all weights, which on a GPU takes longer than
    the step itself needs for some of its products."""
    weights, other = nn.Parameter(torch.tensor([1.0, torch.nan])), torch.tensor([2.0, -0.0])
    places = weights.data_ptr(), other.data_ptr()
    with Operations() as operations:
        exchange_(weights, other)
    assert set(operations.names) <= {"detach"}
    assert (weights.data_ptr(), other.data_ptr()) == places[::-1]
    assert (weights.tolist(), other[0].tolist()) == ([2.0, -0.0], 1.0)


def test_schedulefree_is_itself_again_after_training():
    before = ScheduleFreeWrapper.swap
    with adapted_sparsify(torch.device("cpu")):
        assert ScheduleFreeWrapper.swap is exchange_
    assert ScheduleFreeWrapper.swap is before


def test_gradients_are_averaged_once_a_step():
    """In every backward pass they would go over the network as often as a batch is cut, or batches are put together."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        layer = nn.Linear(3, 2)
        replica, sent = Replica(layer, n_backward=3, gradient_as_bucket_view=True), []

        def send(state: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
            sent.append(bucket.buffer().clone())
            return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0])

        replica.register_comm_hook(None, send)
        for step in range(2):
            for i in range(3):
                assert len(sent) == step
                replica(torch.full((1, 3), float(i + step))).sum().backward()
            assert layer.weight.grad.tolist() == [[3.0 + 3 * step] * 3] * 2, "of all three"
            layer.zero_grad()
        assert len(sent) == 2
    finally:
        dist.destroy_process_group()
