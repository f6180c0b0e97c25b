"""What must be on a machine before anything is loaded there."""

import inspect
import os
import sys
import sysconfig
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from conftest import pretend_gpus
from test_cli import TRAIN, generate, refused

import train_sae
from sae_utils import dependencies
from sae_utils.dependencies import check_compiler, check_sparsify
from sae_utils.errors import InputError
from sae_utils.sparse_coders import SparseCoder, TrainConfig, Trainer

SPARSIFY = r"eai-sparsify>=1\.3\.2,<1\.4"
"""As a pattern."""


@pytest.fixture
def triton(monkeypatch):
    """A machine on which sparsify would use Triton, with neither a compiler nor anything else on PATH."""
    Path("packages/triton").mkdir(parents=True)
    Path("packages/triton/__init__.py").touch()
    monkeypatch.syspath_prepend("packages")
    monkeypatch.delenv("SPARSIFY_DISABLE_TRITON", raising=False)
    for variable in ("CC", "CPATH", "C_INCLUDE_PATH"):
        monkeypatch.delenv(variable, raising=False)
    Path("bin").mkdir()
    monkeypatch.setenv("PATH", str(Path("bin").absolute()))
    Path("include").mkdir()
    Path("include/Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_paths", lambda scheme: {"include": "include"})


def install(name: str) -> Path:
    path = Path("bin", name)
    path.touch(mode=0o755)
    return path


@pytest.mark.parametrize("found", ["1.3.2", "1.3.3", "1.3.10"])
def test_versions_of_sparsify_that_have_what_is_needed_are_let_pass(monkeypatch, found):
    """Whose trainer takes several seeds in a pass, and whose SAEs take the variance of a whole batch."""
    monkeypatch.setattr(dependencies, "_version", {"eai-sparsify": found}.get)
    check_sparsify()


@pytest.mark.parametrize("found", ["0.0.1", "1.2.2", "1.3.0", "1.3.1", "1.3.2rc1", "1.4.0", "2.0"])
def test_other_versions_of_sparsify_are_refused_with_what_is_needed(monkeypatch, found):
    """They would train other weights, or stop in the first step with an argument that they do not know."""
    monkeypatch.setattr(dependencies, "_version", {"eai-sparsify": found}.get)
    needs = f"^eai-sparsify {found} is installed, and this project, .* needs {SPARSIFY}; run: pip install '{SPARSIFY}'$"
    with pytest.raises(InputError, match=needs):
        check_sparsify()


def test_the_installed_sparsify_has_what_the_bound_stands_for():
    """A release within the bound that drops one of these is found here, not by a user."""
    assert "total_variance" in inspect.signature(SparseCoder.forward).parameters
    assert {"init_seeds", "hookpoints", "exclude_tokens", "distribute_modules"} <= {
        each.name for each in fields(TrainConfig)
    }
    assert "get_saes_by_layer_name" in vars(sys.modules[Trainer.__module__]), "several seeds of a layer in one pass"


@pytest.mark.parametrize("name", ["gcc", "clang"])
def test_a_compiler_and_headers_are_enough(triton, name):
    with pytest.raises(InputError, match="here neither gcc nor clang is on PATH; run: conda install"):
        check_compiler()
    install(name)
    check_compiler()


def test_the_compiler_that_is_chosen_must_be_there(triton, monkeypatch):
    """Triton takes $CC as it is, and does not fall back."""
    install("gcc")
    monkeypatch.setenv("CC", "x86_64-conda-linux-gnu-cc")
    with pytest.raises(InputError, match="here the compiler CC=x86_64-conda-linux-gnu-cc is not there; run"):
        check_compiler()
    install("x86_64-conda-linux-gnu-cc")
    check_compiler()


def test_headers_may_lie_where_compilers_look(triton, monkeypatch):
    install("gcc")
    Path("include").rename("elsewhere")
    with pytest.raises(InputError, match=r"here include has no Python\.h; run: .* apt install gcc python3-dev"):
        check_compiler()
    monkeypatch.setenv("CPATH", f"nowhere{os.pathsep}elsewhere")
    check_compiler()


def test_nothing_is_asked_for_where_sparsify_does_without_triton(triton, monkeypatch):
    with monkeypatch.context() as disabled:
        disabled.setenv("SPARSIFY_DISABLE_TRITON", "1")
        check_compiler()
    with pytest.raises(InputError):
        check_compiler()
    monkeypatch.setitem(sys.modules, "triton", None)  # as if it were not installed
    check_compiler()


@pytest.mark.parametrize("flags", [[], ["--dry_run"], ["--eval_only"]])
def test_training_on_a_gpu_stops_before_anything_is_looked_up(triton, monkeypatch, capsys, flags):
    """Not in the first step, after minutes, in fifty lines; there is neither a model nor a data set here."""
    pretend_gpus(monkeypatch, 1)
    error = refused(capsys, train_sae.main, [*TRAIN, "--device", "cuda", *flags])
    assert "sparsify's decoder is compiled by Triton, which needs a C compiler and Python's headers" in error
    assert "or set SPARSIFY_DISABLE_TRITON=1 (slower)" in error


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_plan_needs_no_compiler_where_there_is_no_gpu(tiny, triton, monkeypatch, capsys, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    generate("--num_tokens", "3000")
    train_sae.main([*TRAIN, "--dry_run", "--device", device])
    assert "1 pass (layers 0 1, seeds 0 1)" in capsys.readouterr().out
