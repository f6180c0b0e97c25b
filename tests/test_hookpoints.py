"""Modules inside layers are found by the names that families of models have for them."""

import pytest
from conftest import load
from transformers import GPTNeoXConfig, MambaConfig

from sae_utils.errors import InputError
from sae_utils.hookpoints import check_hookpoint, layer_names


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("neox", {"residual": "layers.1", "mlp_out": "layers.1.mlp", "attn_out": "layers.1.attention"}),
        ("llama", {"residual": "layers.1", "mlp_out": "layers.1.mlp", "attn_out": "layers.1.self_attn"}),
        ("gpt2", {"residual": "h.1", "mlp_out": "h.1.mlp", "attn_out": "h.1.attn"}),
    ],
)
def test_names_by_family(kind, names, request):
    """They lead to the modules, which sparsify hooks by these names."""
    model = load(request.getfixturevalue(kind)).model
    for hookpoint, name in names.items():
        assert layer_names(model, [1], hookpoint) == {1: name}
        model.base_model.get_submodule(name)


def test_a_model_without_such_modules_is_refused_before_it_is_loaded():
    check_hookpoint(GPTNeoXConfig(num_hidden_layers=2, hidden_size=16, num_attention_heads=2), "mlp_out")
    config = MambaConfig(num_hidden_layers=2, hidden_size=16)
    with pytest.raises(InputError, match="--hookpoint attn_out needs layers with a module called attention or"):
        check_hookpoint(config, "attn_out")
