"""Linear layers with weights in the layout that the processor multiplies fastest, for bfloat16 on a CPU.

oneDNN, which multiplies bfloat16 matrices for PyTorch on CPUs, brings a weight into blocks first. A decoding loop
multiplies few rows by the same weights thousands of times, so they are brought into blocks once.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

TYPICAL_ROWS = 128
"""Rows that the layout is chosen for; others work as well."""


class PackedLinear(nn.Module):
    """`nn.Linear` on a packed weight, for inference; the results are the same."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), TYPICAL_ROWS)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """`(..., d_in)` to `(..., d_out)`."""
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


def can_pack(model: PreTrainedModel) -> bool:
    """Whether this processor and this PyTorch multiply the model's matrices in packed form."""
    has_operators = hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.backends.mkldnn.is_available()
    is_bfloat16 = model.dtype == torch.bfloat16 and model.device.type == "cpu"
    return is_bfloat16 and has_operators and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def pack_linears_(model: PreTrainedModel) -> None:
    """Pack a model's linear layers, in place, where that is possible; elsewhere the model stays as it is.

    The model then computes what it did and can no longer be saved: packed weights are in no state dict.
    """
    if not can_pack(model):
        return
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear:
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, PackedLinear(module))
