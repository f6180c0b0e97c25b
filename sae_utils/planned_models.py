"""Models that are planned for before their files are there: of a plan, config.json says enough."""

import logging

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModel, AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerBase
from transformers import PreTrainedTokenizerFast as FastTokenizer

from sae_utils.model_files import WEIGHT_FILES, model_folder
from sae_utils.models import check_architecture, check_model, check_trunk, load_config, load_tokenizer

logger = logging.getLogger(__name__)

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
"""A folder with none of these has no tokenizer."""


class StandInTokenizer(FastTokenizer):
    """In the place of a tokenizer that is not there: it calls every token by its number."""


def check_to_be_run(reference: str, *, is_plan: bool) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """`check_model`; of a plan, also where a folder has no weights at all, which is said.

    Raises:
        InputError: As `check_model`.
    """
    if not (is_plan and lacks_weights(reference)):
        return check_model(reference)
    config, folder = load_config(reference), model_folder(reference)
    check_architecture(AutoModelForCausalLM, config, reference)
    has_tokenizer = any((folder / name).is_file() for name in TOKENIZER_FILES)
    lacks = "weights" if has_tokenizer else "weights and no tokenizer"
    logger.warning(
        "%s has no %s: planned by its config.json alone, and a run is refused until it has", reference, lacks
    )
    return config, load_tokenizer(reference) if has_tokenizer else stand_in_tokenizer(config)


def check_trunk_to_be_run(config: PretrainedConfig, reference: str, *, is_plan: bool) -> None:
    """`check_trunk`, as above.

    Raises:
        InputError: As `check_trunk`.
    """
    if is_plan and lacks_weights(reference):
        check_architecture(AutoModel, config, reference)
    else:
        check_trunk(config, reference)


def lacks_weights(reference: str) -> bool:
    """Whether a model's folder has a configuration and no file of weights; of a hub that is asked, nobody knows."""
    folder = model_folder(reference)
    if folder is None:
        return False
    named = getattr(load_config(reference), "transformers_weights", None)
    return not any((folder / name).is_file() for name in ([named] if named else WEIGHT_FILES))


def stand_in_tokenizer(config: PretrainedConfig) -> StandInTokenizer:
    """A tokenizer with the ids of a configuration, whose BOS and EOS are where that says, or the first id."""
    words = {str(i): i for i in range(config.vocab_size)}
    eos, bos = (_first_id(getattr(config, name, None)) for name in ("eos_token_id", "bos_token_id"))
    eos = str(0 if eos is None else eos)
    return StandInTokenizer(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token=eos)),
        eos_token=eos,
        bos_token=eos if bos is None else str(bos),
    )


def _first_id(value: int | list[int] | None) -> int | None:
    """A configuration may name several."""
    return value[0] if isinstance(value, list) else value
