"""Nothing by itself: the matrix products of a model's passes alone, for the others' records.

A pass takes at least as long as the products of its layers' weights with what comes in, at the rate at which the device
multiplies matrices of just these shapes. The share of that in what a pass really takes is what can still be gained.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from machine import median_sec
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from sae_utils.generation.packed_linear import PackedLinear

PRODUCTS = (nn.Linear, Conv1D, PackedLinear)
"""Layers that multiply by a weight."""


def products_sec(model: nn.Module, run: Callable[[], object], n_runs: int = 3) -> float:
    """Seconds of the products that the model does with its weights while `run` runs, done alone and in their order."""
    done = products_of(model, run)
    numbers: dict[tuple, Tensor] = {}
    for _, shape, dtype in done:
        numbers.setdefault((shape, dtype), torch.randn(shape, device=model.device).to(dtype))

    @torch.inference_mode()
    def repeat() -> None:
        for layer, shape, dtype in done:
            layer(numbers[shape, dtype])

    return median_sec(repeat, model.device, n_runs)


def products_of(model: nn.Module, run: Callable[[], object]) -> list[tuple[nn.Module, torch.Size, torch.dtype]]:
    """Layers that multiply by a weight while `run` runs, with the shape and number format of what they are given."""
    done = []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        done.append((layer, inputs[0].shape, inputs[0].dtype))

    layers = [module for module in model.modules() if isinstance(module, PRODUCTS)]
    handles = [layer.register_forward_pre_hook(note) for layer in layers]
    run()
    for handle in handles:
        handle.remove()
    return done
