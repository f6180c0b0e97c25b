"""sparsify as it is imported here: nothing printed, and a decoder that suits the device of its tensors."""

import inspect
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import sparsify.sparse_coder
import sparsify.trainer
import sparsify.utils
import torch

from sae_utils import sparse_coders
from sae_utils.sparse_coders import Trainer, decode_where_it_is

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


PRIVATE_NAMES = {
    sparsify.trainer: ["tqdm", "DDP", "Muon", "resolve_widths"],
    sparsify.sparse_coder: ["decoder_impl"],
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
