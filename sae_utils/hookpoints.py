"""Where in a decoder layer activations are encoded, and what the modules are called in families of models."""

import copy
from collections.abc import Sequence

import torch
from transformers import AutoModel, PretrainedConfig, PreTrainedModel

from sae_utils.errors import InputError
from sae_utils.models import find_layers

HOOKPOINTS = {
    "residual": (),
    "mlp_out": ("mlp", "feed_forward"),
    "attn_out": ("attention", "self_attn", "attn"),
}
"""Where activations are encoded, with what families of models call the modules inside a layer whose outputs they are;
the residual stream is the output of the layer itself."""


def layer_names(model: PreTrainedModel, layers: Sequence[int], hookpoint: str = "residual") -> dict[int, str]:
    """Names, inside `model.base_model`, of the modules whose outputs are encoded, by decoder layer.

    Args:
        model: A decoder, or its trunk.
        layers: Decoder layers.
        hookpoint: A name of `HOOKPOINTS`.

    Raises:
        InputError: If the layers have no such module.
    """
    list_name, modules = find_layers(model)
    names = {layer: f"{list_name}.{layer}" for layer in layers}
    if hookpoint == "residual":
        return names
    found = [name for name in HOOKPOINTS[hookpoint] if hasattr(modules[0], name)]
    if not found:
        parts = ", ".join(name for name, _ in modules[0].named_children())
        raise InputError(
            f"--hookpoint {hookpoint} needs layers with a module called {' or '.join(HOOKPOINTS[hookpoint])}, and "
            f"those of {type(model).__name__} have {parts}"
        )
    return {layer: f"{name}.{found[0]}" for layer, name in names.items()}


def check_hookpoint(config: PretrainedConfig, hookpoint: str) -> None:
    """Refuse a hookpoint that a model's layers do not have; nothing is loaded.

    Raises:
        InputError: If they do not.
    """
    with torch.device("meta"):
        layer_names(AutoModel.from_config(copy.deepcopy(config)), [0], hookpoint)
