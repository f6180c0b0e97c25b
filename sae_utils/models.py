"""Finding, loading, cutting and identifying language models and their tokenizers."""

import contextlib
import copy
import hashlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from sae_utils.errors import InputError, MissingInputError
from sae_utils.model_checks import (
    check_config,
    check_decoder,
    check_eos,
    check_loaded,
    check_own_code,
    check_tokenizer,
    check_weights,
)
from sae_utils.model_files import TOKENIZER, check_json_files, one_line, read_object

logger = logging.getLogger(__name__)

EOS_STARTS_DOCUMENTS = frozenset({"gpt2", "gpt_neo", "gpt_neox", "gptj", "codegen"})
"""Model types trained on documents separated by EOS alone, so that EOS stands where others have BOS."""

UNMASKED = "sdpa_unmasked"
"""Under which transformers knows PyTorch's attention without masks of its own."""


@dataclass(frozen=True)
class LoadedModel:
    """A language model ready to run, with what identifies it."""

    reference: str
    """Hub id or folder it was loaded from."""

    model: PreTrainedModel
    """The model in evaluation mode on its device, parameters frozen."""

    tokenizer: PreTrainedTokenizerBase
    """Its tokenizer."""

    bos_id: int
    """Token that starts every sample."""

    eos_ids: tuple[int, ...]
    """Tokens that end a sample, ascending."""


def full_name(name: str, *, org_name: str | None = None) -> str:
    """A model's name with its organisation, unless it already is a folder or a whole hub id.

    >>> full_name("pythia-1.4b", org_name="EleutherAI"), full_name("openai-community/gpt2", org_name="EleutherAI")
    ('EleutherAI/pythia-1.4b', 'openai-community/gpt2')
    """
    is_whole = org_name is None or "/" in name or (Path(name) / "config.json").is_file()
    return name if is_whole else f"{org_name}/{name}"


def resolve_reference(name: str, *, org_name: str | None = None) -> str:
    """Where a model is to be loaded from; a folder is found before any hub.

    A plain name means `<org_name>/<name>`, which may be a folder itself; a name with a slash is a folder or a whole
    hub id and is taken as it is.

    Raises:
        MissingInputError: If the name can only be a folder (it starts with `.`, `/` or `~`) and there is none.
    """
    reference = full_name(name, org_name=org_name)
    folder = Path(os.path.expanduser(reference))  # noqa: PTH111 - leaves `~nobody` as it stands, and does not raise
    if (folder / "config.json").is_file():
        return str(folder)
    if folder.exists() or reference[:1] in ("", ".", "/", "~") or reference.count("/") > 1:
        found = "is a file" if folder.is_file() else "has no config.json"
        raise MissingInputError(
            f"model {reference!r} is not a model folder: {folder.resolve()} {found}; give a folder made with "
            f"save_pretrained, or a hub id"
        )
    return reference


def check_model(reference: str) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """Configuration and tokenizer of a language model that was found fit; its weights are not loaded.

    Raises:
        InputError: If it is missing, damaged, or no causal language model; see `sae_utils/model_checks.py`.
    """
    config = load_config(reference)
    generation = Path(reference) / "generation_config.json"
    if generation.is_file():
        check_eos(read_object(generation, reference).get("eos_token_id"), reference)
    _check_weights(AutoModelForCausalLM, config, reference)
    tokenizer = load_tokenizer(reference)
    check_tokenizer(tokenizer, config.vocab_size, reference)
    return config, tokenizer


def check_trunk(config: PretrainedConfig, reference: str) -> None:
    """Refuse, before any weights are loaded, what `load_trunk` would refuse.

    Raises:
        InputError: If it has no list of layers, or weights are missing or damaged.
    """
    _check_weights(AutoModel, config, reference)


def check_architecture(auto: type, config: PretrainedConfig, reference: str) -> PreTrainedModel:
    """A model on the device without memory, whose layers are found.

    Raises:
        InputError: If it cannot be built, is no decoder, or has no list of layers.
    """
    with one_line(reference, "config.json"), torch.device("meta"):
        model = auto.from_config(copy.deepcopy(config), trust_remote_code=False)
    check_decoder(model, reference)
    find_layers(model)
    return model


def load_config(reference: str) -> PretrainedConfig:
    """Configuration of a causal language model, without its weights.

    Raises:
        MissingInputError: If it is in no local folder and the hub does not give it.
        InputError: If it is damaged, or describes something else.
    """
    check_json_files(reference)
    with one_line(reference, "config.json"):
        raw, _ = PretrainedConfig.get_config_dict(reference)
    check_own_code(raw, reference)
    config = _from_pretrained(AutoConfig, reference, "config.json")
    check_config(config, raw, reference)
    return config


def load_tokenizer(reference: str) -> PreTrainedTokenizerBase:
    """Tokenizer of a model.

    Raises:
        MissingInputError: If it is in no local folder and the hub does not give it.
        InputError: If it is damaged.
    """
    return _from_pretrained(AutoTokenizer, reference, TOKENIZER)


def load_causal_lm(reference: str, device: torch.device, dtype: torch.dtype) -> LoadedModel:
    """Load a whole language model with its head.

    Raises:
        MissingInputError: If it is in no local folder and the hub does not give it.
        InputError: If it is unfit, see `check_model`, or nothing says which token starts a document.
    """
    _, tokenizer = check_model(reference)
    model = _load_weights(AutoModelForCausalLM, reference, device, dtype)
    bos_id = find_bos_id(tokenizer, model.config, reference)
    return LoadedModel(reference, model, tokenizer, bos_id, find_eos_ids(tokenizer, model))


def load_trunk(reference: str, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """Load a language model without its head, for its activations; it keeps no key-value cache.

    Raises:
        MissingInputError: If it is in no local folder and the hub does not give it.
        InputError: If it is unfit, see `check_trunk`.
    """
    check_trunk(load_config(reference), reference)
    model = _load_weights(AutoModel, reference, device, dtype)
    model.config.use_cache = False
    skip_masks_(model)
    return model


@torch.no_grad()
def skip_masks_(model: PreTrainedModel) -> None:
    """Let a model attend to all earlier tokens without asking, at every pass, whether something has to be masked.

    transformers looks at the positions for several texts packed in one row, for which the host has to wait for a GPU.
    An attention that it knows no masks for is asked nothing. Models with windows, and all that compute something else
    without masks on transformers' own example, stay as they are.
    """
    layer_types = getattr(model.config, "layer_types", None)
    has_windows = (
        set(layer_types) != {"full_attention"} if layer_types else getattr(model.config, "sliding_window", None)
    )
    if has_windows or model.config._attn_implementation != "sdpa":
        return
    AttentionInterface.register(UNMASKED, sdpa_attention_forward)
    example = model.dummy_inputs["input_ids"].to(model.device)
    masked = model(example, use_cache=False)[0]
    model.set_attn_implementation(UNMASKED)
    if not torch.equal(model(example, use_cache=False)[0], masked):
        model.set_attn_implementation("sdpa")


def find_bos_id(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, reference: str) -> int:
    """The token that starts a document for this model.

    Returns:
        The tokenizer's BOS; if it has none, its EOS, provided the model was trained with EOS between documents: its
        type is in `EOS_STARTS_DOCUMENTS`, or its configuration names one token as both BOS and EOS.

    Raises:
        InputError: If there is no BOS and nothing says that EOS stands for it.
    """
    if tokenizer.bos_token_id is not None:
        return tokenizer.bos_token_id
    eos_id = tokenizer.eos_token_id
    one_token = eos_id is not None and getattr(config, "bos_token_id", None) == eos_id
    if eos_id is not None and (one_token or config.model_type in EOS_STARTS_DOCUMENTS):
        return eos_id
    raise InputError(
        f"the tokenizer of {reference} has no BOS token (model type {config.model_type!r}, EOS "
        f"{tokenizer.eos_token!r}), so there is nothing to sample from; set bos_token in its tokenizer_config.json to "
        f"the token that started documents in training"
    )


def find_eos_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> tuple[int, ...]:
    """Every token that ends a text: the tokenizer's EOS and those of the model's generation settings, ascending.

    Raises:
        InputError: If the settings name something else than ids.
    """
    configured = getattr(model.generation_config, "eos_token_id", None)
    check_eos(configured, model.name_or_path)
    ids = set(configured if isinstance(configured, list) else [configured]) | {tokenizer.eos_token_id}
    return tuple(sorted(ids - {None}))


def context_length(config: PretrainedConfig) -> int | None:
    """Longest sequence the model was built for, in tokens; None if its configuration does not say."""
    return getattr(config, "max_position_embeddings", None)


def check_fits_context(length: int, config: PretrainedConfig, *, flag: str, reference: str) -> None:
    """Refuse sequences longer than the model was built for.

    Raises:
        InputError: If `length` exceeds the model's context.
    """
    longest = context_length(config)
    if longest is not None and length > longest:
        raise InputError(f"{flag} must fit the context of {reference}, {longest} tokens, got {length}; lower {flag}")


def find_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The decoder layers of any decoder, such as `("layers", ...)` for GPT-NeoX and Llama or `("h", ...)` for GPT-2.

    Returns:
        The list's name inside `model.base_model`, and the list.

    Raises:
        InputError: If no list of modules, or more than one, is as long as the configuration says.
    """
    n_layers = model.config.num_hidden_layers
    lists = [
        (name, module)
        for name, module in model.base_model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]
    if len(lists) != 1:
        raise InputError(
            f"{type(model).__name__} must have one list of {n_layers} layers, found {[name for name, _ in lists]}; "
            f"this architecture is not supported"
        )
    return lists[0]


def cut_after_(model: PreTrainedModel, last_layer: int) -> None:
    """Drop, in place, every decoder layer after `last_layer`; the outputs of those that stay do not change.

    Raises:
        InputError: If the model has no such layer.
    """
    check_layers([last_layer], model.config, model.name_or_path)
    _, layers = find_layers(model)
    del layers[last_layer + 1 :]
    model.config.num_hidden_layers = len(layers)
    if getattr(model.config, "layer_types", None) is not None:
        model.config.layer_types = model.config.layer_types[: len(layers)]


@contextlib.contextmanager
def cut_for_now(model: PreTrainedModel, last_layer: int) -> Iterator[None]:
    """`cut_after_` for as long as a `with` block lasts."""
    _, layers = find_layers(model)
    dropped, config = list(layers)[last_layer + 1 :], model.config
    n_layers, layer_types = config.num_hidden_layers, getattr(config, "layer_types", None)
    cut_after_(model, last_layer)
    try:
        yield
    finally:
        layers.extend(dropped)
        config.num_hidden_layers = n_layers
        if layer_types is not None:
            config.layer_types = layer_types


def model_bytes(config: PretrainedConfig, dtype: torch.dtype) -> int:
    """Memory of all of a model's weights, from its configuration alone."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    return sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize


def trunk_bytes(config: PretrainedConfig, dtype: torch.dtype, last_layer: int) -> int:
    """Memory of a model's weights without its head and without the layers after `last_layer`; nothing is loaded."""
    with torch.device("meta"):
        model = AutoModel.from_config(copy.deepcopy(config))
    cut_after_(model, last_layer)
    return sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize


def check_layers(layers: list[int], config: PretrainedConfig, reference: str) -> None:
    """Refuse layers that a model does not have.

    Raises:
        InputError: If a layer is not in 0 .. num_hidden_layers - 1.
    """
    n_layers = config.num_hidden_layers
    if wrong := [layer for layer in layers if not 0 <= layer < n_layers]:
        raise InputError(
            f"--layers must be in 0 .. {n_layers - 1} for {reference}, got {' '.join(map(str, wrong))}; the model has "
            f"{n_layers} layers"
        )


def fingerprint_model(model: PreTrainedModel) -> str:
    """Short hash of a model's weights as loaded: names, number formats, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def fingerprint_trunk(model: PreTrainedModel, last_layer: int) -> str:
    """`fingerprint_model` of a loaded model without its head and without the layers after `last_layer`.

    What training takes down of its target (`target_fingerprint` in run.json), found again in the whole model.

    Raises:
        InputError: If the model has no such layer.
    """
    with cut_for_now(model, last_layer):
        return fingerprint_model(model.base_model)


def fingerprint_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Short hash of what ids mean to a tokenizer: its vocabulary with added tokens, its BOS and its EOS.

    Two tokenizers with one fingerprint read the same ids as the same text, whatever they are called.
    """
    digest = hashlib.sha256()
    for token, token_id in sorted(tokenizer.get_vocab().items()):
        digest.update(f"{token_id} {token}\n".encode())
    digest.update(f"{tokenizer.bos_token_id} {tokenizer.eos_token_id}".encode())
    return digest.hexdigest()[:16]


def _check_weights(auto: type, config: PretrainedConfig, reference: str) -> None:
    """Refuse a model whose layers are not found, or whose weights are not its own."""
    check_weights(check_architecture(auto, config, reference), reference)


def _load_weights(auto: type, reference: str, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """A model on its device, frozen, with exactly the weights that are in its files."""
    options = {"dtype": dtype, "output_loading_info": True, "ignore_mismatched_sizes": True}
    model, info = _from_pretrained(auto, reference, "the weights", **options)
    check_loaded(info, model, reference)
    return model.to(device).eval().requires_grad_(False)


def _from_pretrained(auto: type, reference: str, part: str, **options):
    """Load a part of a model with transformers, in whose place none of the model's own code is run, nor asked about."""
    with one_line(reference, part):
        return auto.from_pretrained(reference, trust_remote_code=False, **options)
