"""Linear layers with weights in the layout that the processor multiplies fastest, for bfloat16 on a CPU.

oneDNN, which multiplies bfloat16 matrices for PyTorch on CPUs, brings a weight into blocks first. A decoding loop
multiplies few rows by the same weights thousands of times, so they are brought into blocks once. What comes right after
a product, an activation, a sum or a factor, oneDNN can do to its sums before it rounds them.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

TYPICAL_ROWS = 128
"""Rows that the layout is chosen for; others work as well."""

ACTIVATIONS = {
    "relu": ("relu", ""),
    "silu": ("swish", ""),
    "gelu": ("gelu", "none"),
    "gelu_new": ("gelu", "tanh"),
    "gelu_pytorch_tanh": ("gelu", "tanh"),
}
"""transformers' name of an activation, and oneDNN's with the formula it is computed by."""


class PackedLinear(nn.Module):
    """`nn.Linear` on a packed weight, for inference; the results are the same."""

    def __init__(self, *linears: nn.Linear, activation: str | None = None) -> None:
        """A copy of linear layers.

        Args:
            linears: Layers, all with biases or all without; of several with the same inputs the outputs stand one
                behind the other.
            activation: Follows the product; transformers' name, one of `ACTIVATIONS`.
        """
        super().__init__()
        weight = torch.cat([linear.weight.detach() for linear in linears])
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, TYPICAL_ROWS)
        has_bias = linears[0].bias is not None
        self.bias = torch.cat([linear.bias.detach() for linear in linears]) if has_bias else None
        self.activation = ("none", "") if activation is None else ACTIVATIONS[activation]

    def forward(self, x: Tensor, *, summand: Tensor | None = None, factor: Tensor | None = None) -> Tensor:
        """`(..., d_in)` to `(..., d_out)`; instead of an activation a summand or a factor of that shape may follow.

        Whatever follows is done before the product is rounded.
        """
        if summand is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(x, summand, self.packed, self.bias, "add")
        if factor is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(x, factor, self.packed, self.bias, "mul")
        name, formula = self.activation
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, name, [], formula)


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
