"""What sparsify's trainer is handed in place of parts of its own, so that its loop can be used unchanged."""

import contextlib
import io
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from sae_utils.sparse_coders import Muon, Trainer

logger = logging.getLogger(__name__)

BITSANDBYTES = "bitsandbytes.optim"
"""Where sparsify looks for another Adam."""


@contextlib.contextmanager
def adapted_sparsify(device: torch.device) -> Iterator[None]:
    """Replace four things that sparsify's trainer calls by what fits here, while it runs.

    Its progress bar counts batches; ours counts tokens. It gives DDP the process's number as the device, which fails on
    a CPU and on a second machine, and lets it keep gradients twice. Its Muon shares the update's work out among
    processes, so that each keeps other state; here each does all of it, and any number of processes can go on from one
    state. And it takes adam from bitsandbytes, with 8-bit state, where that can be imported: the same command would
    train other weights elsewhere.
    """
    module = sys.modules[Trainer.__module__]
    bar, ddp, muon = module.tqdm, module.DDP, module.Muon
    assert (ddp, muon) == (DistributedDataParallel, Muon), "sparsify's trainer is not the one this was written for"
    module.tqdm = lambda *args, **kwargs: bar(*args, **(kwargs | {"disable": True}))
    module.DDP = lambda sae, device_ids: ddp(
        sae, device_ids=[device.index] if device.type == "cuda" else None, gradient_as_bucket_view=True
    )
    module.Muon = lambda *args, **kwargs: muon(*args, **(kwargs | {"ddp": False}))
    bitsandbytes = sys.modules.pop(BITSANDBYTES, None)
    sys.modules[BITSANDBYTES] = None  # its import then fails as if it were not installed
    try:
        yield
    finally:
        module.tqdm, module.DDP, module.Muon = bar, ddp, muon
        del sys.modules[BITSANDBYTES]
        if bitsandbytes is not None:
            sys.modules[BITSANDBYTES] = bitsandbytes


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


class EveryToken(tuple):
    """A mask of tokens that keeps all: an empty index takes the whole tensor, and nobody has to ask how many it keeps.

    >>> int(torch.arange(6)[EveryToken(6)].sum()), EveryToken(6).sum().item()
    (15, 6)
    """

    def __new__(cls, n_tokens: int) -> "EveryToken":
        """The mask of this many tokens."""
        mask = super().__new__(cls)
        mask.n_tokens = n_tokens
        return mask

    def flatten(self, start_dim: int, end_dim: int) -> "EveryToken":
        """Itself: it has no shape."""
        return self

    def sum(self) -> "EveryToken":
        """Itself, to be asked for its `item`."""
        return self

    def item(self) -> int:
        """Tokens that are kept."""
        return self.n_tokens


class NothingExcluded(Tensor):
    """An empty list of excluded ids that knows, without a look at the ids of a batch, that none of them is in it."""

    @classmethod
    def __torch_function__(cls, function: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> Any:
        """`torch.isin(ids, self, invert=True)` keeps every token."""
        if function is torch.isin:
            assert kwargs == {"invert": True}, kwargs
            return EveryToken(args[0].numel())
        return super().__torch_function__(function, types, args, kwargs)
