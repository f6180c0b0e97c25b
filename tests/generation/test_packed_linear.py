import pytest
import torch
from conftest import load

from sae_utils.generation.packed_linear import PackedLinear, can_pack, pack_linears_


@pytest.mark.parametrize("kind", ["neox", "llama", "gpt2"])
def test_a_packed_model_computes_the_same(kind, request):
    """It is a layout of weights: a sample may not depend on whether the machine has it."""
    model = load(request.getfixturevalue(kind)).model.bfloat16()
    if not can_pack(model):
        pytest.skip("this processor or this PyTorch has no bfloat16 products of packed matrices")
    ids = torch.arange(3, 27).reshape(4, 6)
    with torch.inference_mode():
        expected = model(ids).logits
        pack_linears_(model)
        assert torch.equal(model(ids).logits, expected)
    has_linears = kind != "gpt2"  # GPT-2 keeps its weights transposed, in a layer of another class, but for the head
    assert sum(isinstance(module, PackedLinear) for module in model.modules()) > (1 if has_linears else 0)


def test_other_number_formats_stay_as_they_are(llama):
    model = load(llama).model
    pack_linears_(model)
    assert not any(isinstance(module, PackedLinear) for module in model.modules())
