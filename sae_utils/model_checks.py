"""Models found unfit before they cost anything: configuration, weights and tokenizer, each refused in one line.

Planning asks all of this at every start, so no weights are read: their names and shapes stand at the beginning of their
files, and are held against the model by transformers' own loading, on PyTorch's device without memory. What loading
itself reports (`check_loaded`) has the last word. What transformers does not know is loaded, and what it cannot find it
initialises at random; neither is said by an exception.
"""

import inspect
import re
import unicodedata
from collections.abc import Collection, Mapping
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    DynamicCache,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sae_utils.errors import InputError
from sae_utils.model_files import TOKENIZER, first_of, model_folder, one_line, read_weights

SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
"""What everything here reads of a configuration."""

DECODER_PARTS = frozenset({"attn_config", "ffn_config"})
"""Configurations inside a configuration (of MPT, of DBRX) that describe the one decoder, not a second model."""

LOOKS_AHEAD = frozenset({"big_bird", "megatron-bert", "reformer", "rembert", "roformer", "xlm", "xlnet"})
"""Model types that see the tokens behind a token unless `is_decoder` is set, and whose modules have no `is_causal`."""

BUFFERS = re.compile(
    r"(^|\.)((attn|attention)\.(masked_)?bias|causal_mask|inv_freq|position_ids|embed_positions\.weights"
    r"|decoder\.version)$"
)
"""Names in old checkpoints (GPT-2, GPT-J, GPT-Neo, Pythia, OPT on the hub) that are no weights: masks and positions,
which are computed today. transformers knows some of them for some families."""

TRIED_IDS = 256
"""Ids that a tokenizer is tried on, about as many."""

LEAST_READ_BACK = 0.5
"""Share of them that must be read back as the text that they are: unknown words, unusual normalisation and pieces that
are only read with their neighbours are no fault."""


def check_own_code(raw: Mapping[str, Any], reference: str) -> None:
    """Refuse a model that comes with its own code, which is never run, where transformers has none for it.

    Args:
        raw: What its config.json holds.
        reference: The model.

    Raises:
        InputError: If only that code could run it.
    """
    if "auto_map" in raw and raw.get("model_type") not in CONFIG_MAPPING:
        raise InputError(
            f"model {reference!r} needs code of its own (auto_map in its config.json, model type "
            f"{raw.get('model_type')!r}), and code that comes with a model is not run; give a model of a family that "
            f"transformers knows"
        )


def check_config(config: PretrainedConfig, raw: Mapping[str, Any], reference: str) -> None:
    """Refuse, from the configuration alone, what is no decoder that predicts the next token.

    Args:
        config: As transformers understands it, with a default for whatever is missing.
        raw: What config.json holds.
        reference: The model.

    Raises:
        InputError: If it is an encoder-decoder, several models in one, has no language model's head, keeps a state in
            place of a cache, is not causal, or lacks one of its sizes.
    """
    parts = [name for name in config.sub_configs if name not in DECODER_PARTS]
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    looks_ahead = config.model_type in LOOKS_AHEAD and not getattr(config, "is_decoder", False)
    if getattr(config, "is_encoder_decoder", False):
        fault = "is an encoder-decoder"
    elif parts:
        fault = f"is made of several models ({', '.join(parts)})"
    elif model_class is None:
        fault = "has no head that predicts the next token"
    elif model_class._is_stateful:
        fault = f"keeps a state in place of keys and values ({model_class.__name__})"
    elif looks_ahead:
        fault = "lets tokens see those behind them"
    else:
        _check_sizes(config, raw, reference)
        return
    raise InputError(
        f"model {reference!r} must be a causal language model of attention layers, and its type {config.model_type!r} "
        f"{fault}; give a decoder, such as GPT-NeoX or Llama"
    )


def check_decoder(model: PreTrainedModel, reference: str) -> None:
    """Refuse a model whose tokens see what comes after them, as those of BERT with a language model's head do.

    Args:
        model: The model; its weights may be on the device without memory.
        reference: Where it is loaded from.

    Raises:
        InputError: If an attention of it is not causal.
    """
    if any(getattr(module, "is_causal", True) is False for module in model.modules()):
        raise InputError(
            f"model {reference!r} must be a causal language model, and in a {type(model).__name__} with this "
            f"config.json tokens see those behind them; give a decoder, such as GPT-NeoX or Llama"
        )


def check_sampling(config: PretrainedConfig, reference: str) -> None:
    """Refuse a model that cannot be sampled from token by token, with rows that leave the batch.

    Raises:
        InputError: If it takes no key-value cache (GPT-1), or one with layers that cannot drop rows (LFM2).
    """
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    takes = inspect.signature(model_class.forward).parameters
    has_rows = all(hasattr(layer, "batch_select_indices") for layer in DynamicCache(config=config).layers)
    if not has_rows or not {"past_key_values", "logits_to_keep"} <= takes.keys():
        raise InputError(
            f"model {reference!r} cannot be sampled from: {model_class.__name__} does not keep keys and values for "
            f"every layer in transformers' own cache; give a decoder that does, such as GPT-NeoX or Llama"
        )


def check_weights(model: PreTrainedModel, reference: str) -> None:
    """Refuse weights that are not the model's, from what stands at the beginning of their files.

    Args:
        model: The model on the device without memory.
        reference: Where it is loaded from. Of a hub id, the files are known before loading only where the hub is not
            asked.

    Raises:
        InputError: If there are no weights, a file of them is damaged, or `check_loaded` refuses them.
    """
    folder = model_folder(reference)
    weights = read_weights(folder, model.config, reference) if folder else None
    if weights is None or getattr(model.config, "quantization_config", None) is not None:
        return  # packed numbers have other names and shapes, which only their library can read
    with one_line(reference, "weights"):
        _, info = type(model).from_pretrained(
            None,
            config=model.config,
            state_dict=weights,
            dtype=torch.float32,
            device_map={"": "meta"},
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    check_loaded(info, model, reference)


def check_loaded(info: Mapping[str, Any], model: PreTrainedModel, reference: str) -> None:
    """Refuse weights that do not fill a model exactly.

    Args:
        info: What transformers says of loading: `missing_keys`, `unexpected_keys`, `mismatched_keys`.
        model: What was loaded. A model without a head has no place for one, and needs none.
        reference: Where from.

    Raises:
        InputError: If a weight is missing, left over, or has another shape.
    """
    unexpected = [name for name in info["unexpected_keys"] if not BUFFERS.search(name) and _belongs_to(name, model)]
    shapes = [f"{name}: {_shape(found)} and not {_shape(wanted)}" for name, found, wanted in info["mismatched_keys"]]
    groups = {"missing": info["missing_keys"], "of another shape": shapes, "without a place": unexpected}
    faults = [f"{len(names)} {fault} ({first_of(names)})" for fault, names in groups.items() if names]
    if faults:
        raise InputError(
            f"the weights of model {reference!r} are not those of its config.json: {'; '.join(faults)}; give a folder "
            f"made with save_pretrained, as it was saved"
        )


def check_eos(configured: Any, reference: str) -> None:
    """Refuse what cannot end a text; transformers checks nothing of generation_config.json.

    Args:
        configured: Its `eos_token_id`, None if it has none.
        reference: The model.

    Raises:
        InputError: If it is neither an id nor a list of ids.
    """
    ids = configured if isinstance(configured, list) else [configured]
    if configured is not None and not all(type(each) is int for each in ids):
        raise InputError(
            f"generation_config.json of model {reference!r} must have one id or a list of them as eos_token_id, found "
            f"{configured!r}; copy it again from where the model came from"
        )


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, vocab_size: int, reference: str) -> None:
    """Refuse a tokenizer that reads no text, or one of another model.

    Args:
        tokenizer: The tokenizer.
        vocab_size: Ids that the model has embeddings for.
        reference: The model.

    Raises:
        InputError: If its ids are not read as text and back, or go beyond the model's.
    """
    added = tokenizer.get_added_vocab()
    ids = sorted(token_id for token, token_id in tokenizer.get_vocab().items() if token not in added)
    remedy = "copy tokenizer.json and tokenizer_config.json of this model into its folder"
    if not ids:
        raise InputError(
            f"the tokenizer of model {reference!r} has no vocabulary, as transformers makes one up where its files are "
            f"missing; {remedy}"
        )
    with one_line(reference, TOKENIZER):
        tried = [tokenizer.decode([token_id]) for token_id in ids[:: max(1, len(ids) // TRIED_IDS)]]
        tried = [text for text in tried if _letters(text) and "\N{REPLACEMENT CHARACTER}" not in text]
        read = [text for text in tried if _letters(_again(tokenizer, text)) == _letters(text)]
    if len(set(read)) < 2 or len(read) < LEAST_READ_BACK * len(tried):
        raise InputError(
            f"the tokenizer of model {reference!r} must read ids as text, and the text as the same again, and does so "
            f"for {len(read)} of {len(tried)} that it was tried on ({len(set(read))} different texts); {remedy}"
        )
    # Tokens that were added to a vocabulary may lie beyond the embeddings and do no harm, as no text has them: Gemma 3
    # 270M has 262,144 embeddings, and <image_soft_token>, for pictures, is its id 262,144. The BOS and EOS are read.
    used = {"ids up to": ids[-1], "the BOS": tokenizer.bos_token_id, "the EOS": tokenizer.eos_token_id}
    for what, token_id in used.items():
        if token_id is not None and token_id >= vocab_size:
            raise InputError(
                f"the tokenizer of model {reference!r} has {what} {token_id}, and the model (vocab_size in its "
                f"config.json) has ids below {vocab_size}; {remedy}"
            )


def _check_sizes(config: PretrainedConfig, raw: Mapping[str, Any], reference: str) -> None:
    """Refuse a configuration without its sizes: transformers takes those of its first model of that type instead."""
    for name in SIZES:
        own_name, value = config.attribute_map.get(name, name), getattr(config, name, None)
        # Bloom's width, for one, has a third name; so what differs from the default was said somewhere.
        is_unsaid = not {name, own_name} & raw.keys() and value == getattr(type(config), own_name, None)
        if is_unsaid or type(value) is not int or value < 1:
            found = "it is missing" if is_unsaid else f"found {value!r}"
            raise InputError(
                f"config.json of model {reference!r} must have {own_name} as a whole number of at least 1, {found}; "
                f"copy it again from where the model came from"
            )


def _belongs_to(name: str, model: PreTrainedModel) -> bool:
    """Whether a weight without a place should have had one; a head has none in a model without heads."""
    if model.base_model is not model:
        return True
    children = {child for child, _ in model.named_children()}
    return name.split(".")[0] in children | {model.base_model_prefix}


def _shape(shape: Collection[int]) -> str:
    """A shape as it is written."""
    return f"({', '.join(map(str, shape))})"


def _again(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """A text after it was made ids and these text."""
    return tokenizer.decode(tokenizer.encode(text, add_special_tokens=False))


def _letters(text: str) -> str:
    """A text without what honest tokenizers change: spaces, case, and ways to write one letter."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())
