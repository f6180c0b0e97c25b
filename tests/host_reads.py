"""Counts what would make the host wait for a GPU, while everything is computed on a CPU."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

READS = {
    aten._local_scalar_dense: "a value is read: item, float, int, bool",
    aten.is_nonzero: "a value is read: bool",
    aten.equal: "equal",
    aten.nonzero: "nonzero",
    aten.masked_select: "masked_select",
    aten.bincount: "bincount",
    aten._unique2: "unique",
    aten.unique_dim: "unique",
    aten.unique_consecutive: "unique",
    aten.repeat_interleave: "repeat_interleave",
}
"""Operators whose result, or its shape, has to come from the device."""

CALLS = {
    torch.Tensor.tolist: "tolist",
    torch.Tensor.numpy: "numpy",
    torch.Tensor.cpu: "cpu",
    torch.Tensor.cuda: "cuda",
    torch.tensor: "torch.tensor",
    torch.as_tensor: "torch.as_tensor",
    torch.from_numpy: "torch.from_numpy",
}
"""Calls that bring tensors to the host, or make them there."""


class HostReads(TorchDispatchMode):
    """While open, `counts` grows by whatever would need the device's answer.

    Args:
        on_host: The tensors that a GPU run keeps on the host as well, such as Adam's step counters.
    """

    def __init__(self, on_host: Callable[[], Iterable[Tensor]] = tuple) -> None:
        super().__init__()
        self.on_host = on_host
        self.counts: Counter[str] = Counter()
        self.calls = _Calls(self.counts)

    def __enter__(self) -> "HostReads":
        self.calls.__enter__()
        return super().__enter__()

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        self.calls.__exit__(*exception)

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        packet = function.overloadpacket
        if packet in READS and args[0].data_ptr() not in [tensor.data_ptr() for tensor in self.on_host()]:
            self.counts[READS[packet]] += 1
        if packet in (aten.index, aten.index_put, aten.index_put_) and _is_by_mask(packet, args):
            self.counts["index by mask"] += 1
        return function(*args, **(kwargs or {}))


def _is_by_mask(packet: Any, args: tuple) -> bool:
    """Whether a mask selects, so that the number of its true entries is asked for.

    One number written where a mask is true is not: PyTorch fills it in without asking.
    """
    has_mask = any(each is not None and each.dtype in (torch.bool, torch.uint8) for each in args[1])
    is_fill = packet is not aten.index and args[2].numel() == 1
    return has_mask and not is_fill


class _Calls(TorchFunctionMode):
    """The part of `HostReads` that dispatch does not see."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function in CALLS:
            self.counts[CALLS[function]] += 1
        return function(*args, **(kwargs or {}))
