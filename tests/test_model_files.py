import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from sae_utils.errors import InputError, MissingInputError
from sae_utils.model_files import model_folder, one_line, read_object, read_weights
from sae_utils.models import check_model, load_config


def fail(err: BaseException) -> None:
    """Raise an error as transformers would while it reads a tokenizer."""
    with one_line("model", "the tokenizer"):
        raise err


@pytest.mark.parametrize(
    "err", [Exception("not\nof\x1b[1m any kind"), KeyError("x"), RecursionError(), ImportError("a")]
)
def test_any_exception_becomes_one_line(err):
    """tokenizers raises plain ones."""
    Path("model").mkdir()
    with pytest.raises(InputError) as refusal:
        fail(err)
    line = str(refusal.value)
    assert line.startswith("the tokenizer of model 'model' could not be read from ")
    assert type(err).__name__ in line and "there is no tokenizer.json" in line
    assert line.isprintable()


@pytest.mark.parametrize("err", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), KeyboardInterrupt()])
def test_what_is_no_fault_of_the_model_passes(err):
    """Who waits for a full memory, or for Ctrl-C, must see it."""
    with pytest.raises(type(err)):
        fail(err)
    with pytest.raises(RuntimeError, match="allocate memory"):
        fail(RuntimeError("DefaultCPUAllocator: can't allocate memory"))


def test_refusal_inside_is_not_told_twice():
    with pytest.raises(InputError, match=r"^already one line$"):
        fail(InputError("already one line"))


def test_long_reasons_are_cut():
    Path("model").mkdir()
    with pytest.raises(InputError) as refusal:
        fail(ValueError("word " * 1000))
    assert len(str(refusal.value)) < 700


def test_files_that_git_lfs_has_not_fetched_are_named():
    """Cloned without git-lfs, a model looks whole."""
    Path("model").mkdir()
    Path("model/tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n")
    with pytest.raises(InputError, match=r"ValueError: x; git-lfs has not fetched tokenizer\.json"):
        fail(ValueError("x"))


def test_weights_are_read_as_transformers_reads_them(neox, tmp_path):
    """The first file of its list that is there, whatever lies beside it; names and shapes only."""
    folder = shutil.copytree(neox, tmp_path / "model")
    (folder / "pytorch_model.bin").write_text("not read")
    weights = read_weights(folder, load_config(str(folder)), "m")
    assert weights["gpt_neox.embed_in.weight"].shape == (320, 16)
    assert {weight.device.type for weight in weights.values()} == {"meta"}


def test_files_of_a_hub_id_are_known_where_the_hub_is_not_asked(neox, tmp_path, monkeypatch):
    """On a cluster's node without a network, what is in the cache is all there will be."""
    snapshot = tmp_path / "cache/models--some--model/snapshots/abc"
    shutil.copytree(neox, snapshot)
    (tmp_path / "cache/models--some--model/refs").mkdir()
    (tmp_path / "cache/models--some--model/refs/main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert model_folder("some/model") == snapshot
    check_model("some/model")
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(
        MissingInputError, match=r"model 'some/model' has no weights: .*abc has none of model\.safetensors"
    ):
        check_model("some/model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert model_folder("some/model") is None, "the hub may have what is not here"


def test_object_is_read_whatever_it_holds():
    Path("a.json").write_text(json.dumps({"a": [1, "é"]}))
    assert read_object(Path("a.json"), "m") == {"a": [1, "é"]}
