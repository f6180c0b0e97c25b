from pathlib import Path

import pytest
import torch
from conftest import CONFIGS, load, make_model, train_tokenizer
from host_reads import HostReads
from transformers import AutoConfig, AutoModel, LlamaConfig, PreTrainedTokenizerFast

from sae_utils.errors import InputError, MissingInputError
from sae_utils.exclusion import Exclusion
from sae_utils.models import (
    UNMASKED,
    check_fits_context,
    check_layers,
    cut_after_,
    find_bos_id,
    find_layers,
    fingerprint_model,
    fingerprint_tokenizer,
    fingerprint_trunk,
    load_causal_lm,
    load_config,
    load_tokenizer,
    load_trunk,
    resolve_reference,
    skip_masks_,
)
from sae_utils.training.cells import Cell, Target
from sae_utils.training.loop import load_target
from sae_utils.training.machines import Machines
from sae_utils.training.settings import TrainingSettings


@pytest.mark.parametrize(("kind", "name"), [("neox", "layers"), ("llama", "layers"), ("gpt2", "h")])
def test_layers_are_found_in_every_family(kind, name):
    model = AutoModel.from_config(CONFIGS[kind](50, n_layers=3))
    found_name, layers = find_layers(model)
    assert (found_name, len(layers)) == (name, 3)


@pytest.mark.parametrize("kind", ["neox", "llama", "gpt2"])
def test_cut_model_gives_the_same_activations(kind, request):
    """Bit for bit: what is cut away comes after what is hooked."""
    folder = str(request.getfixturevalue(kind))
    whole, cut = (load_trunk(folder, torch.device("cpu"), torch.float32) for _ in range(2))
    cut_after_(cut, 0)
    assert len(find_layers(cut)[1]) == 1
    ids = torch.arange(20).reshape(2, 10)
    assert torch.equal(layer_output(whole, ids), layer_output(cut, ids))


def layer_output(model, ids):
    """Output of layer 0."""
    seen = []
    handle = find_layers(model)[1][0].register_forward_hook(
        lambda module, inputs, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.no_grad():
        model(ids)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("kind", ["neox", "llama", "gpt2"])
def test_activations_are_computed_without_asking_for_masks(kind, request):
    """The same to the last bit as with transformers' own masks, and the host need not wait for the device."""
    model = load_trunk(str(request.getfixturevalue(kind)), torch.device("cpu"), torch.float32)
    assert model.config._attn_implementation == UNMASKED
    ids = torch.arange(80).reshape(2, 40)
    with HostReads() as reads:
        unmasked = layer_output(model, ids)
    assert not reads.counts
    model.set_attn_implementation("sdpa")
    assert torch.equal(layer_output(model, ids), unmasked)


@pytest.mark.parametrize(("kind", "is_skipped"), [("mistral", False), ("gemma3_text", False), ("qwen2", True)])
def test_windows_keep_their_masks(kind, is_skipped):
    """A window that is forgotten shows in long sequences only."""
    shape = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 4}
    shape |= {"num_key_value_heads": 2, "intermediate_size": 32} | ({} if kind == "qwen2" else {"sliding_window": 8})
    model = AutoModel.from_config(AutoConfig.for_model(kind, **shape))
    skip_masks_(model)
    assert (model.config._attn_implementation == UNMASKED) == is_skipped


def test_missing_layers_are_refused(neox):
    with pytest.raises(InputError, match=r"--layers must be in 0 .. 1 for .*, got 2 7; the model has 2 layers"):
        check_layers([0, 2, 7], load_config(str(neox)), str(neox))


def test_local_folder_comes_before_the_hub(tmp_path, neox):
    """`EleutherAI/pythia-1.4b` in the working folder is that model: no hub is asked."""
    Path("EleutherAI").mkdir()
    Path("EleutherAI/pythia-1.4b").symlink_to(neox)
    assert Path(resolve_reference("pythia-1.4b", org_name="EleutherAI")) == Path("EleutherAI/pythia-1.4b")
    assert load(Path("EleutherAI/pythia-1.4b")).bos_id == 0
    assert resolve_reference("pythia-1.4b", org_name=str(tmp_path / "EleutherAI")).endswith("EleutherAI/pythia-1.4b")


def test_missing_model_is_one_line_that_says_where_it_looked():
    with pytest.raises(MissingInputError, match=r"'EleutherAI/pythia-9b' could not be loaded; looked in .*hub.*folder"):
        load_config(resolve_reference("pythia-9b", org_name="EleutherAI"))
    with pytest.raises(MissingInputError, match=r"'./nothing' is not a model folder: .*nothing has no config.json"):
        resolve_reference("./nothing")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("weights.bin", r"'weights.bin' is not a model folder: .*weights.bin is a file; give a folder"),
        ("./weights.bin", r"'./weights.bin' is not a model folder: .*weights.bin is a file"),
        ("empty", r"'empty' is not a model folder: .*empty has no config.json"),
        ("", r"'' is not a model folder: "),
        ("~nobody_of_this_name/model", r"is not a model folder: .*nobody_of_this_name/model has no config.json"),
        ("a/b/c", r"'a/b/c' is not a model folder: "),
    ],
)
def test_what_can_be_no_model_is_refused_without_asking_the_hub(name, message):
    """Without a network, its answer takes half a minute to fail to come."""
    Path("weights.bin").touch()
    Path("empty").mkdir()
    with pytest.raises(MissingInputError, match=message):
        resolve_reference(name)


def test_eos_stands_for_bos_only_where_it_did_in_training(gpt2):
    source = load(gpt2)
    assert source.tokenizer.bos_token_id is None
    assert source.bos_id == source.tokenizer.eos_token_id
    unknown = LlamaConfig(bos_token_id=5, eos_token_id=1)
    with pytest.raises(
        InputError, match=r"tokenizer of some/model has no BOS token \(model type 'llama', EOS '</s>'\)"
    ):
        find_bos_id(train_tokenizer(bos=None, eos="</s>"), unknown, "some/model")


def test_context_is_checked(neox):
    with pytest.raises(InputError, match="--ctx_len must fit the context of m, 2048 tokens, got 4096; lower --ctx_len"):
        check_fits_context(4096, load_config(str(neox)), flag="--ctx_len", reference="m")


def test_model_fingerprint_sees_weights_and_nothing_else(tmp_path, neox):
    same = load(make_model(tmp_path / "copy", "neox"))
    other = load(make_model(tmp_path / "other", "neox", seed=1))
    original = fingerprint_model(load(neox).model)
    assert original == fingerprint_model(same.model)
    assert original != fingerprint_model(other.model)


@pytest.mark.parametrize("kind", ["neox", "llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whole_model_has_the_fingerprint_of_what_training_took_of_it(kind, dtype, request):
    """Else SAEs would be measured on a model that is not the one they were trained on, or never on any."""
    folder = str(request.getfixturevalue(kind))
    whole = load_causal_lm(folder, torch.device("cpu"), dtype).model
    before = fingerprint_model(whole)
    for last_layer in (0, 1):
        target = Target(folder, dtype, load_tokenizer(folder), load_config(folder), 48, Exclusion(), trunk_bytes=0)
        cell = Cell(target, None, None, TrainingSettings(layers=tuple(range(last_layer + 1))), None)
        assert fingerprint_trunk(whole, last_layer) == fingerprint_model(
            load_target(cell, Machines(torch.device("cpu"), None))
        )
    assert fingerprint_trunk(whole, 0) != fingerprint_trunk(whole, 1)
    assert fingerprint_model(whole) == before, "the model is whole again"


def test_tokenizers_are_compared_by_content(tmp_path, neox, llama):
    """Pythia-1.4b and 2.8b share a tokenizer under two names: their ids must not be tokenized again."""
    tokenizer = load(neox).tokenizer
    tokenizer.save_pretrained(tmp_path / "renamed")
    renamed = PreTrainedTokenizerFast.from_pretrained(tmp_path / "renamed")
    assert fingerprint_tokenizer(tokenizer) == fingerprint_tokenizer(renamed)
    assert fingerprint_tokenizer(tokenizer) != fingerprint_tokenizer(load(llama).tokenizer)
