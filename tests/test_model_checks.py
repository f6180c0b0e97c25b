"""Models that are unfit, each refused in one line before anything is worked on, and their fit neighbours."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import load, make_model, train_tokenizer
from safetensors.torch import load_file, save_file
from test_cli import TRAIN, generate, refused
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers import models as token_models
from tokenizers.trainers import UnigramTrainer
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    GPTNeoXForCausalLM,
    PreTrainedTokenizerFast,
)

import generate_datasets
import train_sae
from sae_utils import model_checks
from sae_utils.errors import InputError
from sae_utils.expansion import DictionarySize
from sae_utils.model_checks import check_loaded, check_sampling, check_tokenizer
from sae_utils.models import check_model, load_causal_lm, load_config, load_tokenizer, load_trunk
from sae_utils.training.grid import find_targets
from sae_utils.training.settings import TrainingSettings

CPU, FLOAT32 = torch.device("cpu"), torch.float32

SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
SHAPE |= {"vocab_size": 300, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
COMPOSITES = ("gemma3", "llava", "clip")

Change = Callable[[Path], object]
"""What is done to a model's folder."""


# changes of a folder


def without(*names: str) -> Change:
    return lambda folder: [(folder / name).unlink() for name in names]


def with_file(name: str, content: str) -> Change:
    return lambda folder: (folder / name).write_text(content)


def with_json(name: str, **values) -> Change:
    """Fields changed; those that are None are taken out."""

    def change(folder: Path) -> None:
        path = folder / name
        fields = (json.loads(path.read_text()) if path.exists() else {}) | values
        path.write_text(json.dumps({field: value for field, value in fields.items() if value is not None}))

    return change


def with_config(**values) -> Change:
    return with_json("config.json", **values)


def with_weights(change_them: Callable[[dict], dict]) -> Change:
    def change(folder: Path) -> None:
        weights = change_them(load_file(folder / "model.safetensors"))
        save_file({name: weight.clone() for name, weight in weights.items()}, folder / "model.safetensors")

    return change


def without_weights(part: str) -> Change:
    return with_weights(lambda held: {name: weight for name, weight in held.items() if part not in name})


def with_layer_again(name: str, other: str) -> Change:
    return with_weights(lambda held: held | {n.replace(name, other): weight for n, weight in held.items() if name in n})


def with_kind(kind: str, **fields) -> Change:
    """The configuration of another family, as transformers saves it, small in case it is not refused."""
    shape = {size: SHAPE[size] for size in model_checks.SIZES}
    shape = {f"{part}_config": shape for part in ("text", "vision")} if kind in COMPOSITES else shape
    return lambda folder: AutoConfig.for_model(kind, **(shape | fields)).save_pretrained(folder)


def with_vocabulary(**fields) -> Change:
    """Fields of the model inside tokenizer.json."""

    def change(folder: Path) -> None:
        path = folder / "tokenizer.json"
        held = json.loads(path.read_text())
        path.write_text(json.dumps(held | {"model": held["model"] | fields}))

    return change


def with_larger_tokenizer(folder: Path) -> None:
    train_tokenizer(bos="<|endoftext|>", eos="<|endoftext|>", vocab_size=400).save_pretrained(folder)


# the fit ones


GROUPED = {"num_key_value_heads": 2}
FAMILIES = {
    "gpt_neox": {},
    "llama": GROUPED,
    "gpt2": {},
    "gpt_neo": {"num_heads": 4, "num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 2},
    "qwen2": GROUPED,
    "qwen3": GROUPED | {"head_dim": 4},
    "gemma": GROUPED | {"head_dim": 4},
    "gemma2": GROUPED | {"head_dim": 4},
    "gemma3_text": GROUPED | {"head_dim": 4},
    "mistral": GROUPED,
    "mixtral": GROUPED | {"num_local_experts": 4},
    "phi": {},
    "phi3": GROUPED,
    "olmo": GROUPED,
    "olmo2": GROUPED,
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 16},
    "bloom": {},
    "falcon": {},
    "mpt": {},
    "starcoder2": GROUPED,
    "stablelm": GROUPED,
    "codegen": {"rotary_dim": 2},
    "gpt_bigcode": {},
    "gpt_neox_japanese": {"intermediate_multiple_size": 2},
}


def make_family(kind: str, folder: Path = Path("model"), **fields) -> Path:
    """A small model of a family of transformers, with a tokenizer."""
    config = AutoConfig.for_model(kind, **(SHAPE | FAMILIES.get(kind, {}) | fields))
    with torch.random.fork_rng():
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    train_tokenizer(bos="<s>", eos="</s>", vocab_size=300).save_pretrained(folder)
    return folder


def check_fit(folder: Path) -> None:
    """A model that is planned with and loaded, whole and as a trunk, and can be sampled from."""
    check_sampling(load_config(str(folder)), str(folder))
    load_causal_lm(str(folder), CPU, FLOAT32)
    load_trunk(str(folder), CPU, FLOAT32)


@pytest.mark.parametrize("kind", FAMILIES)
def test_families_pass(kind):
    """Every one of them worked before anything was refused."""
    check_fit(make_family(kind))


MASK, NUMBER, FREQUENCIES = torch.ones(1, 1, 8, 8, dtype=torch.bool), torch.tensor(-1e9), torch.ones(2)
OLD_BUFFERS = {
    "gpt_neox": {
        "gpt_neox.layers.0.attention.bias": MASK,
        "gpt_neox.layers.0.attention.masked_bias": NUMBER,
        "gpt_neox.layers.0.attention.rotary_emb.inv_freq": FREQUENCIES,
    },
    "gpt2": {"transformer.h.0.attn.bias": MASK, "transformer.h.0.attn.masked_bias": NUMBER},
    "gptj": {"transformer.h.0.attn.bias": MASK, "transformer.h.0.attn.masked_bias": NUMBER},
    "gpt_neo": {
        "transformer.h.0.attn.attention.bias": MASK,
        "transformer.h.0.attn.attention.masked_bias": NUMBER,
    },
    "codegen": {"transformer.h.0.attn.causal_mask": MASK},
    "llama": {"model.layers.0.self_attn.rotary_emb.inv_freq": FREQUENCIES},
    "falcon": {"transformer.h.0.self_attention.maybe_rotary.inv_freq": FREQUENCIES},
    "opt": {"model.decoder.version": FREQUENCIES},
}


@pytest.mark.parametrize("kind", OLD_BUFFERS)
def test_masks_and_positions_of_old_checkpoints_pass(kind):
    """The models of Pythia's day on the hub carry them, and today's transformers computes them."""
    folder = make_family(kind)
    with_weights(lambda held: held | OLD_BUFFERS[kind])(folder)
    check_fit(folder)


@pytest.mark.parametrize("kind", ["gpt2", "bloom", "opt"])
def test_names_without_the_family_in_front_pass(kind):
    """As GPT-2's own file on the hub has them."""
    folder = make_family(kind)
    prefix = AutoModelForCausalLM.from_config(load_config(str(folder))).base_model_prefix + "."
    with_weights(lambda held: {name.removeprefix(prefix): weight for name, weight in held.items()})(folder)
    check_fit(folder)


def test_tied_head_need_not_be_in_the_file():
    """Nor does it harm there."""
    folder = make_family("llama", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    check_fit(folder)
    with_weights(lambda held: held | {"lm_head.weight": held["model.embed_tokens.weight"]})(folder)
    check_fit(folder)


def test_head_alone_is_enough_for_a_tied_model_and_not_for_its_trunk():
    """A trunk has no head to take its embeddings from, and transformers would make them up."""
    folder = make_family("llama", tie_word_embeddings=True)
    with_weights(lambda held: {name.replace("model.embed_tokens", "lm_head"): held[name] for name in held})(folder)
    load_causal_lm(str(folder), CPU, FLOAT32)
    with pytest.raises(InputError, match=r"1 missing \(embed_tokens.weight\)"):
        settings = TrainingSettings(layers=(0,), k=4, ctx_len=32)
        find_targets([str(folder)], DictionarySize(num_latents=48), settings, FLOAT32, is_on_gpu=False)


def test_trunk_needs_no_head(llama, tmp_path):
    """Nor a place for one; but it is a language model whose features are asked about, which cannot do without."""
    folder = shutil.copytree(llama, tmp_path / "model")
    load_trunk(str(folder), CPU, FLOAT32)
    without_weights("lm_head")(folder)
    load_trunk(str(folder), CPU, FLOAT32)
    with pytest.raises(InputError, match=r"1 missing \(lm_head.weight\)"):
        check_model(str(folder))


def as_bin(folder: Path, *, is_old: bool = False) -> None:
    """The weights in PyTorch's own format, of today or as it was before 2020."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not is_old)


def as_old_bin(folder: Path) -> None:
    as_bin(folder, is_old=True)


def in_shards(folder: Path) -> None:
    """The weights in several files, with an index."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="10KB")
    assert len(list(folder.glob("model-*"))) > 2


LFS_POINTER = (
    "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1\nsize 33384567\n"
)
HUB_CODE = {"AutoConfig": "own.Config", "AutoModel": "own.Model", "AutoModelForCausalLM": "own.ForCausalLM"}


def after(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes]


@pytest.mark.parametrize(
    "change",
    [
        as_bin,
        as_old_bin,
        in_shards,
        with_weights(lambda held: {name: weight.double() for name, weight in held.items()}),
        with_file("pytorch_model.bin", LFS_POINTER),  # what is not read may be anything
        without("generation_config.json"),
        with_config(auto_map=HUB_CODE),  # Falcon, MPT: transformers has their code by now
        with_json("tokenizer_config.json", tokenizer_class="Own", auto_map={"AutoTokenizer": ["own.Own", None]}),
        with_config(bos_token_id=None),
        without("tokenizer_config.json"),
    ],
)
def test_other_forms_of_a_folder_pass(neox, tmp_path, change, monkeypatch):
    """Nobody is asked whether to trust what comes with a model."""
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("a question was asked"))
    folder = shutil.copytree(neox, tmp_path / "model")
    change(folder)
    check_fit(folder)


# the unfit ones


def damaged(name: str, *, words: str = "") -> dict[str, tuple[str, Change, str]]:
    """Files of which nothing can be made; `words` is what follows the name."""
    contents = {
        "empty": "",
        "text": "not found",
        "cut": '{"a": "',
        "a list": "[]",
        "null": "null",
        "a pointer": LFS_POINTER,
    }
    return {f"{name} is {what}": ("neox", with_file(name, text), words or name) for what, text in contents.items()}


def shard(change: Callable[[Path], object]) -> Change:
    """Something done to one of several files of weights."""
    return after(in_shards, lambda folder: change(sorted(folder.glob("model-*"))[1]))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


UNFIT = {
    # weights
    "a weight is missing": (
        "neox",
        without_weights("layers.1.mlp.dense_h_to_4h.weight"),
        "1 missing (gpt_neox.layers.1",
    ),
    "the head is missing": ("neox", without_weights("embed_out"), "1 missing (lm_head.weight)"),
    "a layer is missing": ("llama", without_weights("layers.1."), "9 missing (model.layers.1.input_layernorm.weight, "),
    "a layer too many": ("neox", with_layer_again("layers.1.", "layers.2."), "12 without a place (gpt_neox.layers.2."),
    "a layer of GPT-2 too many": ("gpt2", with_layer_again("h.1.", "h.2."), "without a place (transformer.h.2."),
    "a layer too few in the configuration": ("neox", with_config(num_hidden_layers=1), "12 without a place"),
    "a bias too many": (
        "llama",
        with_weights(lambda held: held | {"model.layers.0.self_attn.q_proj.bias": torch.ones(16)}),
        "1 without a place (model.layers.0.self_attn.q_proj.bias)",
    ),
    "another shape": (
        "llama",
        with_weights(lambda held: held | {"model.layers.1.mlp.up_proj.weight": torch.ones(63, 16)}),
        "1 of another shape (model.layers.1.mlp.up_proj.weight: (63, 16) and not (64, 16))",
    ),
    "another vocabulary": (
        "neox",
        with_config(vocab_size=999),
        "2 of another shape (gpt_neox.embed_in.weight: (320, 16)",
    ),
    "other names": ("llama", with_weights(lambda held: {f"x.{name}": held[name] for name in held}), "21 missing"),
    "no weights in the file": ("neox", with_weights(lambda held: {}), "28 missing"),
    "a weight of a .bin is missing": (
        "neox",
        after(without_weights("layers.1.mlp.dense_h_to_4h.weight"), as_bin),
        "1 missing",
    ),
    # files of weights
    "no weights": ("neox", without("model.safetensors"), "has no weights: "),
    "weights are a dead link": (
        "neox",
        after(without("model.safetensors"), lambda folder: (folder / "model.safetensors").symlink_to("nowhere")),
        "has no weights: ",
    ),
    "weights are empty": ("neox", with_file("model.safetensors", ""), "model.safetensors of model 'bad' is empty"),
    "weights are text": (
        "neox",
        with_file("model.safetensors", "<!DOCTYPE html> not found"),
        "model.safetensors of model",
    ),
    "weights are cut": (
        "neox",
        lambda folder: cut(folder / "model.safetensors"),
        "model.safetensors of model 'bad' could",
    ),
    "weights are a pointer": (
        "neox",
        with_file("model.safetensors", LFS_POINTER),
        "is a pointer of git-lfs, not the file",
    ),
    "a shard is missing": (
        "neox",
        shard(Path.unlink),
        "lacks 1 of the 5 files that model.safetensors.index.json names",
    ),
    "a shard is cut": ("neox", shard(cut), "model-00002-of-00005.safetensors of model 'bad' could not be read"),
    "a shard is a pointer": (
        "neox",
        shard(lambda path: path.write_text(LFS_POINTER)),
        "model-00002-of-00005.safetensors",
    ),
    "the index is text": (
        "neox",
        after(in_shards, with_file("model.safetensors.index.json", "x")),
        "index.json of model",
    ),
    "the index is empty": (
        "neox",
        after(in_shards, with_file("model.safetensors.index.json", "{}")),
        "have a weight_map",
    ),
    ".bin is text": (
        "neox",
        after(without("model.safetensors"), with_file("pytorch_model.bin", "x")),
        "holds no weights",
    ),
    ".bin is cut": (
        "neox",
        after(as_bin, lambda folder: cut(folder / "pytorch_model.bin")),
        "pytorch_model.bin of model",
    ),
    ".bin is a list": (
        "neox",
        after(without("model.safetensors"), lambda folder: torch.save([1], folder / "pytorch_model.bin")),
        "holds no weights",
    ),
    ".bin holds other objects": (
        "neox",
        after(without("model.safetensors"), lambda folder: torch.save({"a": Path()}, folder / "pytorch_model.bin")),
        "pytorch_model.bin of model 'bad' could not be read",
    ),
    # configuration
    **damaged("config.json"),
    **damaged("generation_config.json"),
    "no model type": ("neox", with_config(model_type=None), "config.json of model 'bad' could not be read"),
    "an unknown model type": ("neox", with_config(model_type="gpt_five"), "has model type `gpt_five`"),
    "code of its own": ("neox", with_config(model_type="own", auto_map=HUB_CODE), "needs code of its own (auto_map"),
    "no width": ("neox", with_config(hidden_size=None), "must have hidden_size as a whole number"),
    "no number of heads": (
        "gpt2",
        with_config(n_head=None),
        "must have n_head as a whole number of at least 1, it is missing",
    ),
    "no layers": (
        "neox",
        with_config(num_hidden_layers=0),
        "num_hidden_layers as a whole number of at least 1, found 0",
    ),
    "a width in words": ("neox", with_config(hidden_size="16"), "Field 'hidden_size' expected int, got str"),
    "another activation": ("neox", with_config(hidden_act="nope"), "config.json of model 'bad' could not be read"),
    "EOS in words": ("neox", with_json("generation_config.json", eos_token_id="x"), "as eos_token_id, found 'x'"),
    # tokenizer
    "no tokenizer": ("neox", without("tokenizer.json", "tokenizer_config.json"), "has no vocabulary"),
    "no tokenizer of GPT-2": ("gpt2", without("tokenizer.json", "tokenizer_config.json"), "has no vocabulary"),
    "no tokenizer of Llama": (
        "llama",
        without("tokenizer.json", "tokenizer_config.json"),
        "there is no tokenizer.json",
    ),
    **damaged("tokenizer.json", words="the tokenizer of model 'bad' could not be read"),
    **damaged("tokenizer_config.json"),
    "no vocabulary": ("neox", with_vocabulary(vocab={}, merges=[]), "has no vocabulary"),
    "an unknown kind of vocabulary": (
        "neox",
        with_vocabulary(type="Nope"),
        "the tokenizer of model 'bad' could not be read",
    ),
    "no decoder": (
        "neox",
        with_json("tokenizer.json", decoder=None),
        "must read ids as text, and the text as the same",
    ),
    "one text for all ids": (
        "neox",
        with_json("tokenizer.json", decoder={"type": "Replace", "pattern": {"Regex": ".+"}, "content": "?"}),
        "must read ids as text, and the text as the same again",
    ),
    "ids beyond the model's": ("neox", with_larger_tokenizer, "has ids up to 399, and the model"),
    "a BOS beyond the model's": ("neox", with_json("tokenizer_config.json", bos_token="<new>"), "has the BOS 320"),
    "an EOS beyond the model's": ("neox", with_json("tokenizer_config.json", eos_token="<new>"), "has the EOS 320"),
    # other models
    **{
        f"a {kind}": ("neox", with_kind(kind), words)
        for words, kinds in {
            "is an encoder-decoder": ("bart", "t5", "whisper"),
            "is made of several models": COMPOSITES,
            "has no head that predicts the next token": ("vit", "distilbert"),
            "keeps a state in place of keys and values": ("mamba", "rwkv", "recurrent_gemma", "jamba", "qwen3_next"),
            "lets tokens see those behind them": ("big_bird", "reformer"),
            "with this config.json tokens see those behind them": ("bert", "roberta", "electra"),
        }.items()
        for kind in kinds
    },
    "an xlnet": ("neox", with_kind("xlnet", d_head=4), "lets tokens see those behind them"),
    "a Gemma that embeds texts": (
        "neox",
        with_kind("gemma3_text", use_bidirectional_attention=True),
        "see those behind them",
    ),
}
"""What is wrong, the model that it is done to, how, and what the line says."""


def make_bad(case: str, request: pytest.FixtureRequest) -> str:
    """An unfit model in `bad`; what the line on it says."""
    kind, change, message = UNFIT[case]
    shutil.copytree(request.getfixturevalue(kind), "bad")
    change(Path("bad"))
    return message


@pytest.mark.parametrize("case", UNFIT)
def test_unfit_model_is_one_line_before_another_is_sampled(tiny, case, request, capsys):
    """A night's sampling from the first model must not be what it takes to learn of the second.

    And where it is loaded without a plan, to be measured again, it is refused by the same rules.
    """
    message = make_bad(case, request)
    capsys.readouterr()
    assert message in refused(
        capsys, generate_datasets.main, ["--models", "./tiny", "./bad", "--n", "2", "--max_length", "8", "--quiet"]
    )
    assert not Path("datasets").exists()
    with pytest.raises(InputError):
        load_causal_lm("bad", CPU, FLOAT32)


@pytest.mark.parametrize(
    "case", ["a weight is missing", "no weights", "config.json is cut", "no tokenizer", "a bert", "a mamba", "a gemma3"]
)
def test_unfit_target_is_one_line_before_another_is_trained_on(tiny, case, request, capsys):
    generate("--num_tokens", "300")
    message = make_bad(case, request)
    capsys.readouterr()
    assert message in refused(capsys, train_sae.main, [*TRAIN, "--target_models", "tiny", "bad"])
    assert not Path("checkpoints").exists()


@pytest.mark.parametrize("case", ["a weight is missing", "a layer too many", "another shape", "other names", "as_old"])
def test_what_loading_reports_has_the_last_word(case, request, monkeypatch):
    """Planning sees no file of a hub id, nor the names in PyTorch's old format: then only loading can tell."""
    if case == "as_old":
        shutil.copytree(request.getfixturevalue("neox"), "bad")
        after(without_weights("layers.1.mlp.dense_h_to_4h.weight"), as_old_bin)(Path("bad"))
    else:
        make_bad(case, request)
        monkeypatch.setattr(model_checks, "model_folder", lambda reference: None)
    check_model("bad")
    for load_it in (load_causal_lm, load_trunk):
        with pytest.raises(InputError, match=r"the weights of model 'bad' are not those of its config\.json"):
            load_it("bad", CPU, FLOAT32)


@pytest.mark.parametrize(
    ("kind", "fields"), [("openai-gpt", {}), ("lfm2", {"layer_types": ["conv", "full_attention"]}), ("minimax", {})]
)
def test_model_without_a_common_cache_is_not_sampled_from(kind, fields, capsys):
    """GPT-1 would see one token at a time, and say nothing of it; the others fail at the first row that leaves."""
    make_family(kind, Path("bad"), **fields)
    capsys.readouterr()
    message = "model 'bad' cannot be sampled from: "
    assert message in refused(
        capsys, generate_datasets.main, ["--models", "./bad", "--n", "2", "--max_length", "8", "--quiet"]
    )


def test_weights_are_not_read_to_plan(neox, tmp_path, monkeypatch):
    """A model of 100 GB is planned with in a second, and no random number is used up."""
    monkeypatch.setattr(GPTNeoXForCausalLM, "to", lambda *args: pytest.fail("weights were moved"))
    state = torch.get_rng_state()
    folder = shutil.copytree(neox, tmp_path / "model")
    with open(folder / "model.safetensors", "r+b") as file:  # the same names and shapes, in a file with a hole
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    rows = 10**9
    for name in ("gpt_neox.embed_in.weight", "embed_out.weight"):
        header[name]["shape"][0] = rows
    start = 0
    for held in (header[name] for name in header if name != "__metadata__"):
        length = 4 * int(torch.tensor(held["shape"]).prod())
        held["data_offsets"] = [start, start + length]
        start += length
    packed = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(packed).to_bytes(8, "little") + packed)
        file.truncate(8 + len(packed) + start)
    with_config(vocab_size=rows)(folder)
    check_model(str(folder))
    assert torch.equal(torch.get_rng_state(), state)


# tokenizers


def word_pieces() -> Tokenizer:
    """BERT's kind: pieces of words, without case."""
    words = ["[UNK]", "[CLS]", "[SEP]", "#", "the", "quick", "fox", "##s", "##es", "jump", "##ed", ".", "2"]
    tokenizer = Tokenizer(token_models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    return tokenizer


def sentence_pieces() -> Tokenizer:
    """Llama's and Gemma's kind: spaces are letters, unknown letters are bytes."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = ["<unk>", "<s>", "</s>", *bytes_, "▁", "t", "h", "e", "▁t", "he", "▁the", "f", "o", "x", "é"]
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he")]
    model = token_models.BPE({p: i for i, p in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def unigrams() -> Tokenizer:
    """T5's kind, with letters made plain."""
    tokenizer = Tokenizer(token_models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = UnigramTrainer(vocab_size=60, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>")
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog ﬁrst of all"] * 9, trainer)
    return tokenizer


def words() -> Tokenizer:
    """A toy: whole words."""
    tokenizer = Tokenizer(
        token_models.WordLevel({"<unk>": 0, "A": 1, "the": 2, "fox": 3, "don't": 4}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


@pytest.mark.parametrize("make", [word_pieces, sentence_pieces, unigrams, words])
def test_other_kinds_of_tokenizers_pass(make):
    """Pieces, bytes, spaces that come and go, letters that are made plain: none of it is a fault."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=make())
    check_tokenizer(tokenizer, len(tokenizer), "m")


def test_added_token_beyond_the_embeddings_passes(neox):
    """Gemma 3 270M has one, for pictures, which no text has; a vocabulary that goes beyond them is another model's."""
    tokenizer = load_tokenizer(str(neox))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image_soft_token>"]})
    assert tokenizer.convert_tokens_to_ids("<image_soft_token>") == 320
    check_tokenizer(tokenizer, 320, "m")
    with pytest.raises(InputError, match=r"has ids up to 319, and the model .* has ids below 319"):
        check_tokenizer(tokenizer, 319, "m")


def test_every_family_of_transformers_is_one_or_the_other():
    """A name in the list of those that look ahead which transformers does not have would refuse nothing."""
    assert set(CONFIG_MAPPING) >= model_checks.LOOKS_AHEAD


def test_report_of_loading_is_told_in_short(neox):
    model = AutoModel.from_config(load_config(str(neox)))
    info = {
        "missing_keys": set("dcba"),
        "unexpected_keys": {"embed_out.weight"},
        "mismatched_keys": {("x", (1, 2), (3,))},
    }
    with pytest.raises(InputError) as refusal:
        check_loaded(info, model, "m")
    assert str(refusal.value).startswith(
        "the weights of model 'm' are not those of its config.json: 4 missing (a, b, c and 1 more); 1 of another shape "
        "(x: (1, 2) and not (3)); give"
    )
    assert load(make_model(Path("whole"), "neox")).bos_id == 0
