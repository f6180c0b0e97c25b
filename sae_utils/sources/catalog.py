"""Sources of training: data sets found on disk, checked, and turned into packed sequences for a target model."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from sae_utils.errors import InputError, MissingInputError, check_positive
from sae_utils.generated_data import RECORD_FILE
from sae_utils.models import fingerprint_tokenizer
from sae_utils.paths import DatasetKey, find_datasets, short_name
from sae_utils.sources.assumed import assumed_source
from sae_utils.sources.controls import control_name, shuffle_rows, shuffled, to_be_shuffled
from sae_utils.sources.corpora import (
    TEXT_COLUMN,
    corpus_name,
    explained,
    fingerprint_texts,
    is_hub_id,
    load_texts,
    made_again,
)
from sae_utils.sources.documents import sampled_documents, shown, tokenized_documents
from sae_utils.sources.excerpts import Excerpt
from sae_utils.sources.ids import check_tokenizer
from sae_utils.sources.joining import find_delimiters
from sae_utils.sources.origins import Source, open_source, read_generated
from sae_utils.sources.packs import Packed, Packs
from sae_utils.sources.pieces import Ruler
from sae_utils.sources.streams import IDS_COLUMN, open_stream

logger = logging.getLogger(__name__)


MARGIN = 1 / 16
"""How many more tokens are taken of a corpus than the smallest generated data set has, as a share of these.

As many tokens may fill a few rows fewer, and the smallest source decides for all.
"""


@dataclass(frozen=True)
class SourceChoice:
    """Which sources are asked for."""

    datasets_dir: Path
    """Folder of the generated data sets."""

    packs: Packs
    """Where packed sequences are kept."""

    models: tuple[str, ...] = ()
    """Hub ids or folders of the models whose generated data sets are taken, and references to such data sets."""

    seed: int = 4
    """Seed that these were generated with."""

    temperature: float = 1.0
    """Temperature that they were generated with."""

    top_p: float = 0.9
    """Nucleus mass that they were generated with."""

    corpora: tuple[str, ...] = ()
    """Files, folders or hub ids of corpora."""

    text_tokens: int | None = None
    """Tokens to take of each corpus, at least; None for about as many as the smallest generated data set has."""

    controls: tuple[str, ...] = ()
    """Controls that are made of sources, see `to_be_shuffled`."""

    fetched: Mapping[str, DatasetKey] = field(default_factory=dict)
    """Data sets that those references are to, which have a seed, temperature and nucleus mass of their own."""

    def __post_init__(self) -> None:
        names = [self.key_of(model).model for model in self.models] + [corpus_name(each) for each in self.corpora]
        check_distinct(names, "--source_models and --text_datasets")
        controls = list(map(control_name, to_be_shuffled(self.controls, names)))
        check_distinct(names + controls, "--source_models, --text_datasets and --controls")
        check_positive(text_tokens=self.text_tokens)
        if not names:
            raise InputError("nothing to train on: --source_models is empty and no --text_datasets are given")

    def key_of(self, model: str) -> DatasetKey:
        """Which data set is taken of a model, or by a reference."""
        return self.fetched.get(model) or DatasetKey(short_name(model), self.seed, self.temperature, self.top_p)


def check_distinct(names: Sequence[str], flag: str) -> None:
    """Refuse two models or corpora whose results would share one folder.

    Raises:
        InputError: If a name is there twice.
    """
    if len(set(names)) != len(names):
        raise InputError(f"{flag} must have different short names, got {' '.join(names)}; results would share a folder")


def find_sources(choice: SourceChoice, ruler: Ruler, *, is_plan: bool = False) -> list[Source]:
    """The generated data sets of the source models, the corpora, read as far as they are needed, and their controls.

    Args:
        choice: Which are asked for.
        ruler: What tokens of corpora are counted in.
        is_plan: Whether a generated data set need not be there.

    Raises:
        InputError: If one is missing or cannot be read.
    """
    find = find_or_assume if is_plan else find_source
    generated = [find(choice.datasets_dir, choice.key_of(model), model) for model in choice.models]
    n_tokens, known = choice.text_tokens, [source.n_tokens for source in generated if source.missing is None]
    if n_tokens is None and known:
        n_tokens = math.ceil(min(known) * (1 + MARGIN))
    found = generated + [find_beginning(each, n_tokens, ruler, choice.packs) for each in choice.corpora]
    twice = to_be_shuffled(choice.controls, [source.name for source in found])
    return [each for source in found for each in ([source, shuffled(source)] if source.name in twice else [source])]


def find_source(datasets_dir: Path, key: DatasetKey, model: str) -> Source:
    """The generated data set that was asked for.

    Args:
        datasets_dir: Folder of the generated data sets.
        key: Which one.
        model: Hub id or folder of the model that should have written it, for the error message.

    Raises:
        MissingInputError: If it is not there; the message lists the data sets of this model that are, with the flags
            that select them, or the command that makes one.
    """
    folder = datasets_dir / key.folder
    if not (folder / RECORD_FILE).exists():
        if folder.exists():
            raise MissingInputError(
                f"{folder} has no {RECORD_FILE}; bring back a copy of that, or move the folder away and sample it anew"
            )
        raise MissingInputError(_missing_source(datasets_dir, key, model))
    return read_generated(folder)


def find_or_assume(datasets_dir: Path, key: DatasetKey, model: str) -> Source:
    """`find_source`, or what it will be if it is not there."""
    if (datasets_dir / key.folder).exists():
        return find_source(datasets_dir, key, model)
    return assumed_source(datasets_dir, key, _missing_source(datasets_dir, key, model))


def find_beginning(reference: str, n_tokens: int | None, ruler: Ruler, packs: Packs) -> Source:
    """The first texts of a corpus that together have so many tokens as a source; all of it for None.

    Raises:
        MissingInputError: If it is not there.
        InputError: If it cannot be read, is empty, or all is asked for of a hub's, whose size nobody knows.
    """
    if n_tokens is None and is_hub_id(reference):
        raise InputError(
            f"--text_datasets {reference} may be of any size, and without a generated data set nothing says how much "
            f"of it is needed; give --text_tokens"
        )
    if n_tokens is None and open_stream(reference).column == TEXT_COLUMN:
        return find_corpus(reference, packs)
    beginning = Excerpt(reference, packs.texts_folder, packs.quiet).take(n_tokens, ruler)
    tokenizer = None
    if beginning.tokenizer is not None:
        check_tokenizer(reference, beginning.tokenizer, ruler.fingerprint)
        tokenizer = ruler.fingerprint
    return beginning_of(reference, beginning.n_rows, beginning.fingerprint, beginning.column, tokenizer)


def beginning_of(reference: str, n_rows: int, fingerprint: str, column: str, tokenizer: str | None) -> Source:
    """The first rows of a corpus as a source, as they once were; they are looked at when rows are made of them.

    Args:
        reference: File, folder or hub id of the corpus.
        n_rows: How many.
        fingerprint: Of them.
        column: What they are: `text` or `input_ids`.
        tokenizer: Fingerprint of the tokenizer that ids are of; None for texts.
    """
    name = corpus_name(reference)
    return Source(name, reference, n_rows, None, fingerprint, tokenizer, column=column, is_beginning=True)


def find_corpus(reference: str, packs: Packs) -> Source:
    """All texts of a corpus as a source.

    Raises:
        MissingInputError: If it is not there.
        InputError: If it cannot be read or has no texts.
    """
    rows = load_texts(reference, packs.texts_folder)
    if len(rows) == 0:
        raise InputError(f"--text_datasets {reference} has no text in it")
    with explained(reference, made_again(packs.texts_folder)):
        fingerprint = fingerprint_texts(rows)
    return Source(corpus_name(reference), reference, len(rows), None, fingerprint, column=TEXT_COLUMN)


def pack_source(
    source: Source, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, ctx_len: int, packs: Packs
) -> Packed:
    """A source as rows of `ctx_len` tokens in a target's own ids, packed on first use and mapped from then on.

    The sampled ids are used as they are when both tokenizers give ids the same meaning (compared by content). Otherwise
    the texts are tokenized with the target's tokenizer, which is logged. Either way the same rule makes documents into
    rows (`joining.py`).

    Args:
        source: What is packed.
        tokenizer: The target's.
        config: The target's.
        ctx_len: Tokens per row.
        packs: Where packed sequences are kept.

    Raises:
        InputError: If the source does not fill one row, or has ids that the target does not know.
    """
    if source.base is not None:
        return shuffle_rows(pack_source(source.base, tokenizer, config, ctx_len, packs))
    check_reads(source, tokenizer, config)
    target, delimiters = fingerprint_tokenizer(tokenizer), find_delimiters(tokenizer, config)

    def documents() -> Iterator[list[np.ndarray]]:
        found = _documents(source, Ruler(tokenizer, delimiters), packs)
        for some in shown(found, f"packing {source.name}", source.n_samples, quiet=packs.quiet):
            _check_known(some, config.vocab_size, source)
            yield some

    name = f"{source.name}_{source.fingerprint}_{target}_{ctx_len}"
    return packs.get(name, documents, delimiters, ctx_len, reference=source.reference)


def check_reads(source: Source, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> None:
    """Refuse a corpus of ids that mean something else to a target: it has no texts to tokenize again.

    Raises:
        InputError: If it is one.
    """
    if source.column == IDS_COLUMN and source.tokenizer_fingerprint != fingerprint_tokenizer(tokenizer):
        raise InputError(
            f"--text_datasets {source.reference} holds token ids alone, which fit one tokenizer, and that of "
            f"{config.name_or_path} is another; give its texts, or --target_models of one tokenizer"
        )


def _documents(source: Source, ruler: Ruler, packs: Packs) -> Iterator[list[np.ndarray]]:
    """The documents of a source in a target's own ids."""
    if source.is_beginning:
        return Excerpt(source.reference, packs.texts_folder, packs.quiet).documents(
            source.n_samples, source.fingerprint, ruler
        )
    if source.tokenizer_fingerprint == ruler.fingerprint:
        return sampled_documents(open_source(source), source.eos_ids)
    if source.is_generated:
        logger.warning(
            "%s: its tokenizer is not the target's, so its texts are tokenized again; token counts are the target's",
            source.name,
        )
        texts = open_source(source)
    else:
        logger.info("%s: tokenizing %s texts with the target's tokenizer", source.name, f"{source.n_samples:,}")
        texts = load_texts(source.reference, packs.texts_folder)
    return tokenized_documents(texts.select_columns([TEXT_COLUMN]), ruler.tokenizer)


def _check_known(documents: Sequence[np.ndarray], vocab_size: int, source: Source) -> None:
    """Refuse ids that a target has no embedding for, before they reach it: on a GPU they end the process."""
    ids = np.concatenate(documents)
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        raise InputError(
            f"{source.reference} has token ids from {ids.min()} to {ids.max()}, and the target knows 0 .. "
            f"{vocab_size - 1}; it is not of this model: "
            + ("sample it anew" if source.is_generated else "give another corpus")
        )


def _missing_source(datasets_dir: Path, key: DatasetKey, model: str) -> str:
    """What to say when a data set is not there."""
    found = find_datasets(datasets_dir, key.model)
    asked = f"no data set {datasets_dir / key.folder}"
    if not found:
        return (
            f"{asked}, and none of {key.model} at all; make it with: python generate_datasets.py --models {model} "
            f"--seed {key.seed} --temperature {key.temperature} --top_p {key.top_p} --output_dir {datasets_dir}"
        )
    choices = "; ".join(
        f"{each.folder} (--dataset_seed {each.seed} --dataset_temperature {each.temperature} "
        f"--dataset_top_p {each.top_p})"
        for each in found
    )
    return f"{asked}; of {key.model} there is: {choices}"
