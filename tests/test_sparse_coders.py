"""sparsify as it is imported here: nothing printed, and a decoder that suits the device of its tensors."""

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import sparsify.fused_encoder
import sparsify.sparse_coder
import sparsify.trainer
import sparsify.utils
import torch
from schedulefree import ScheduleFreeWrapper
from sparsify.fused_encoder import fused_encoder

from sae_utils import sparse_coders
from sae_utils.sparse_coders import Trainer, decode_where_it_is, encode_where_it_is

ROOT = Path(__file__).resolve().parent.parent

TRAINS_ON_A_CPU = """
import sys, types, torch

def xformers_embedding_bag(*tensors):
    raise RuntimeError("0 active drivers ([]). There should only be one.")

# As when `import triton` works, whether or not Triton is installed.
sys.modules["sparsify.xformers"] = types.ModuleType("sparsify.xformers")
sys.modules["sparsify.xformers"].xformers_embedding_bag = xformers_embedding_bag
from sae_utils.sparse_coders import SparseCoder, SparseCoderConfig, decode_on_gpu
assert decode_on_gpu.__name__ == "triton_decode", decode_on_gpu
sae = SparseCoder(8, SparseCoderConfig(num_latents=16, k=2))
sae(torch.ones(3, 8)).fvu.backward()
assert sae.W_dec.grad is not None
"""


def test_saes_on_a_cpu_work_where_triton_can_be_imported():
    """PyTorch's ordinary wheel brings Triton along: every training on a CPU died with "0 active drivers"."""
    done = subprocess.run([sys.executable, "-c", TRAINS_ON_A_CPU], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_device_of_the_decoder_chooses(monkeypatch):
    """A GPU keeps sparsify's faster decoder, and one process may use both devices."""
    monkeypatch.setattr(sparse_coders, "decode_on_gpu", lambda *tensors: "on the GPU")
    assert decode_where_it_is(None, None, SimpleNamespace(is_cuda=True)) == "on the GPU"
    weights = torch.arange(12.0).view(3, 4)  # (d_model, n_latents)
    on_cpu = decode_where_it_is(torch.tensor([[1, 3]]), torch.tensor([[2.0, 10.0]]), weights)
    assert on_cpu.tolist() == [[2.0 * 1 + 10 * 3, 2.0 * 5 + 10 * 7, 2.0 * 9 + 10 * 11]]


@pytest.mark.parametrize("n_at_once", [1, 2 * 3 * 5, 7 * 3 * 5, 2**19])
@pytest.mark.parametrize("activation", ["topk", "groupmax"])
def test_gradients_in_parts_are_sparsifys_to_the_last_bit(monkeypatch, n_at_once, activation):
    """16 tokens, k 3, d_model 5: a token at a time, two, seven with two left over, and all of them."""
    monkeypatch.setattr(sparse_coders, "SHARES_AT_ONCE", n_at_once)
    torch.manual_seed(0)
    shapes = {"x": (16, 5), "weight": (12, 5), "bias": (12,)}
    drawn = {name: torch.randn(shape) for name, shape in shapes.items()}

    def gradients(encode: Callable) -> list[torch.Tensor]:
        given = [each.clone().requires_grad_() for each in drawn.values()]
        found = encode(*given, 3, activation)
        (found.top_acts * torch.arange(48.0).view(16, 3).sin()).sum().backward()
        return [found.top_acts, found.top_indices, found.pre_acts, *(each.grad for each in given)]

    for ours, theirs in zip(gradients(encode_where_it_is), gradients(fused_encoder), strict=True):
        assert torch.equal(ours, theirs)


def test_parts_are_the_same_with_several_threads():
    """Of a size at which PyTorch divides the work among them: 24 parts."""
    torch.manual_seed(0)
    x, weight, values = torch.randn(700, 288), torch.randn(512, 288), torch.randn(700, 64) * 1e-4
    indices = torch.rand(700, 512).topk(64).indices
    whole = torch.zeros_like(weight)
    whole.index_add_(0, indices.flatten(), (values[:, :, None] * x[:, None]).flatten(0, 1))
    n_threads = torch.get_num_threads()
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            assert torch.equal(sparse_coders.encoder_gradient(values, indices, x, weight), whole)
    finally:
        torch.set_num_threads(n_threads)


def test_only_gradients_that_are_asked_for_are_computed():
    """Activations of the model ask for none, and frozen weights neither."""
    x, weight, bias = torch.ones(4, 5), torch.ones(6, 5), torch.ones(6, requires_grad=True)
    encode_where_it_is(x, weight, bias, 2, "topk").top_acts.sum().backward()
    assert weight.grad is None and float(bias.grad.sum()) == 8


def test_a_gpu_keeps_sparsifys_encoder(monkeypatch):
    monkeypatch.setattr(sparse_coders, "encode_on_gpu", lambda *given: given)
    weight = SimpleNamespace(is_cuda=True)
    assert encode_where_it_is("x", weight, "bias", 2, "topk") == ("x", weight, "bias", 2, "topk")


PRIVATE_NAMES = {
    sparsify.trainer: ["tqdm", "DDP", "Muon", "resolve_widths"],
    sparsify.sparse_coder: ["decoder_impl", "fused_encoder"],
    sparsify.fused_encoder.FusedEncoder: ["forward", "backward"],
    ScheduleFreeWrapper: ["swap"],
    sparsify.utils: ["decoder_impl", "eager_decode"],
    sparse_coders.Muon: ["step"],
    sparse_coders.SparseCoder: ["encode", "decode", "load_from_disk", "load_many"],
    Trainer: ["fit", "save", "maybe_all_reduce"],
}
"""What is replaced, overridden or called of sparsify, though nothing promises that it stays."""

USED_IN_FIT = [
    "self.global_step += 1",  # the moment at which a step is complete
    "torch.isin(x, self.exclude_tokens, invert=True)",
    "tokens_mask.sum().item()",
    "mask = mask.flatten(0, 1)",
    "outputs = outputs[mask]",
    "self.maybe_all_reduce(out.fvu.detach())",
    "raw.b_dec.data = mean.to(raw.dtype)",
    "total_variance=total_variance,",
    "self.dataset.select(range(n, len(self.dataset)))",
    "DDP(sae, device_ids=[dist.get_rank()])",
    "counts[did_fire[name]] = 0",
]
USED_IN_INIT = [
    "from bitsandbytes.optim import Adam8bit as Adam",
    "self.exclude_tokens = torch.tensor(",
    "self.num_tokens_since_fired = {",
    "self.lr_schedulers = ",
    "self.optimizers = ",
    "self.saes[name] = SparseCoder(",
]


def test_what_we_lean_on_in_sparsify_is_there():
    """Its loop is used unchanged; a version that does these things otherwise would train something else, unnoticed."""
    for owner, names in PRIVATE_NAMES.items():
        assert [name for name in names if not hasattr(owner, name)] == []
    for method, lines in ((Trainer.fit, USED_IN_FIT), (Trainer.__init__, USED_IN_INIT)):
        source = inspect.getsource(method)
        assert [line for line in lines if line not in source] == []
