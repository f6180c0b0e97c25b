"""What sparsify's trainer is handed in place of parts of its own, so that its loop can be used unchanged."""

import contextlib
import io
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from schedulefree import ScheduleFreeWrapper
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sae_utils.sparse_coders import Muon, Trainer

logger = logging.getLogger(__name__)

BITSANDBYTES = "bitsandbytes.optim"
"""Where sparsify looks for another Adam."""


class Replica(DistributedDataParallel):
    """An SAE whose gradients are averaged over processes in the last backward pass of an optimizer step.

    DDP does so in every one, and sends as much each time: gradients of a step's batches are added up first here.
    """

    def __init__(self, sae: nn.Module, *, n_backward: int, **options: Any) -> None:
        """Prepare it for a forward and a backward pass `n_backward` times a step; `options` are DDP's."""
        super().__init__(sae, **options)
        self._n_backward, self._n_forward = n_backward, 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The SAE's, which says what its backward pass does."""
        self._n_forward += 1
        self.require_backward_grad_sync = self._n_forward % self._n_backward == 0
        return super().forward(*args, **kwargs)


@contextlib.contextmanager
def adapted_sparsify(device: torch.device, *, n_backward: int = 1) -> Iterator[None]:
    """Replace five things that sparsify's trainer calls by what fits here, while it runs.

    Its progress bar counts batches; ours counts tokens. It gives DDP the process's number as the device, which fails on
    a CPU and on a second machine, lets it keep gradients twice, and has it send them in each of the `n_backward`
    backward passes of a step. Its Muon shares the update's work out among processes, so that each keeps other state;
    here each does all of it, and any number of processes can go on from one state. schedulefree, which it wraps around
    its optimizers, lets all weights and as many other numbers change places twice a step, by three operations on them
    each time; here the two tensors change names. And it takes adam from bitsandbytes, with 8-bit state, where that can
    be imported: the same command would train other weights elsewhere.
    """
    module = sys.modules[Trainer.__module__]
    bar, ddp, muon, swap = module.tqdm, module.DDP, module.Muon, ScheduleFreeWrapper.swap
    assert (ddp, muon) == (DistributedDataParallel, Muon), "sparsify's trainer is not the one this was written for"
    module.tqdm = lambda *args, **kwargs: bar(*args, **(kwargs | {"disable": True}))
    own = {"device_ids": [device.index] if device.type == "cuda" else None, "gradient_as_bucket_view": True}
    module.DDP = lambda sae, device_ids: Replica(sae, n_backward=n_backward, **own)
    module.Muon = lambda *args, **kwargs: muon(*args, **(kwargs | {"ddp": False}))
    ScheduleFreeWrapper.swap = staticmethod(exchange_)
    bitsandbytes = sys.modules.pop(BITSANDBYTES, None)
    sys.modules[BITSANDBYTES] = None  # its import then fails as if it were not installed
    try:
        with numbers_written_by_the_device():
            yield
    finally:
        module.tqdm, module.DDP, module.Muon = bar, ddp, muon
        ScheduleFreeWrapper.swap = staticmethod(swap)
        del sys.modules[BITSANDBYTES]
        if bitsandbytes is not None:
            sys.modules[BITSANDBYTES] = bitsandbytes


def exchange_(a: Tensor, b: Tensor) -> None:
    """Give two tensors of one shape each other's values, in place, without touching a number."""
    a.data, b.data = b.data, a.data


@contextlib.contextmanager
def numbers_written_by_the_device() -> Iterator[None]:
    """While open, a GPU writes single numbers itself that PyTorch would copy from the host.

    For such a copy it has to finish all that it was given, and meanwhile is given nothing. sparsify asks for two at
    every step of every SAE: a zero for each loss that is not wanted, and True for latents that have fired.
    """
    new_tensor, set_item = Tensor.new_tensor, Tensor.__setitem__

    def new_number(tensor: Tensor, data: Any, **kwargs) -> Tensor:
        return tensor.new_full((), data, **kwargs) if isinstance(data, float) else new_tensor(tensor, data, **kwargs)

    def set_flags(tensor: Tensor, index: Any, value: Any) -> None:
        if value is True and isinstance(index, Tensor) and index.dtype == torch.int64 and index.dim() == 1:
            tensor.index_fill_(0, index, value)
        else:
            set_item(tensor, index, value)

    Tensor.new_tensor, Tensor.__setitem__ = new_number, set_flags
    try:
        yield
    finally:
        Tensor.new_tensor, Tensor.__setitem__ = new_tensor, set_item


@contextlib.contextmanager
def captured_prints() -> Iterator[None]:
    """Send what sparsify prints to our debug log."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        for line in printed.getvalue().splitlines():
            logger.debug("sparsify: %s", line)


class BatchMask:
    """Which tokens of a batch SAEs are trained on, as far as sparsify asks: nobody has to wait for a device to count.

    sparsify asks once a batch how many tokens are kept, for counters that `SaeTrainer` sets right: the answer is 1. And
    it asks before every layer which ones, after our own hook of that layer has settled it.

    >>> mask = BatchMask()
    >>> mask.keep(None), int(torch.arange(6)[mask.flatten(0, 1)].sum())
    (None, 15)
    >>> mask.keep(torch.tensor([0, 4])), torch.arange(6)[mask.flatten(0, 1)].tolist(), mask.sum().item()
    (None, [0, 4], 1)
    """

    def __init__(self) -> None:
        self._index: tuple[Tensor, ...] = ()

    def keep(self, indices: Tensor | None) -> None:
        """Settle, for the next layer, which tokens are kept: int64 `(tokens,)`; all of them if None."""
        self._index = () if indices is None else (indices,)  # an empty index takes all of a tensor, without a copy

    def flatten(self, start_dim: int, end_dim: int) -> tuple[Tensor, ...]:
        """What to index the flattened batch with."""
        return self._index

    def sum(self) -> "BatchMask":
        """Itself, to be asked for its `item`."""
        return self

    def item(self) -> int:
        """One token."""
        return 1


class SharedBatchMask:
    """The same where processes exchange their masks, for which sparsify is handed a tensor, bool `(batch, seq)`.

    Until the first layer, a single token is kept, so that sparsify counts one.
    """

    def __init__(self, shape: torch.Size, device: torch.device) -> None:
        self.tensor = torch.zeros(shape, dtype=torch.bool, device=device)
        self.tensor[0, 0] = True

    def keep(self, indices: Tensor | None) -> None:
        """As `BatchMask.keep`, of this process's tokens."""
        self.tensor.fill_(indices is None)
        if indices is not None:
            self.tensor.view(-1)[indices] = True


class ExcludedTokens(Tensor):
    """An empty list of excluded ids: asked which ids of a batch are none of them, it asks the trainer for a mask."""

    make_mask: Callable[[Tensor], BatchMask | Tensor] | None = None
    """Makes a mask of ids, int64 `(batch, seq)`, while training goes on."""

    @classmethod
    def __torch_function__(cls, function: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> Any:
        """`torch.isin(ids, self, invert=True)` is a mask of the trainer's."""
        if function is torch.isin:
            ids, excluded = args
            assert kwargs == {"invert": True}, kwargs
            return excluded.make_mask(ids)
        return super().__torch_function__(function, types, args, kwargs)
