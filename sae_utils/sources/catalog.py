"""Sources of training: data sets found on disk, checked, and turned into packed sequences for a target model."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from datasets import Dataset
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from sae_utils.errors import InputError, MissingInputError
from sae_utils.generated_data import (
    RECORD_FILE,
    Form,
    OtherSamplesError,
    cut_to_form,
    open_samples,
    read_generation_record,
)
from sae_utils.models import fingerprint_tokenizer
from sae_utils.paths import DatasetKey, find_datasets, short_name
from sae_utils.sources.corpora import TEXT_COLUMN, corpus_name, explained, fingerprint_texts, load_texts
from sae_utils.sources.documents import sampled_documents, tokenized_documents
from sae_utils.sources.joining import find_delimiters
from sae_utils.sources.packs import Packed, Packs

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A data set to train on."""

    name: str
    """What files and tables call it: the short name of the model that wrote it, or the corpus' name."""

    reference: str
    """Folder of a generated data set; file, folder or hub id of a corpus."""

    n_samples: int
    """Texts in it."""

    n_tokens: int | None
    """Tokens in it, as sampled; None for a corpus, which has none of its own."""

    fingerprint: str
    """Hash of its token ids, or of a corpus' texts."""

    tokenizer_fingerprint: str | None = None
    """Hash of the vocabulary its ids belong to; None for a corpus."""

    eos_ids: tuple[int, ...] = ()
    """Tokens that may end a sample; none for a corpus."""

    last_text: str | None = None
    """Text of the last sample, if a token budget cut it."""

    @property
    def is_generated(self) -> bool:
        """Whether it was sampled from a model and so has ids of its own."""
        return self.tokenizer_fingerprint is not None

    def is_tokenized_again(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Whether its ids mean something else to a target, so that its texts are read with the target's tokenizer."""
        return self.is_generated and self.tokenizer_fingerprint != fingerprint_tokenizer(tokenizer)

    @property
    def form(self) -> Form:
        """How much of a generated data set it is."""
        return Form(self.n_samples, self.n_tokens, self.fingerprint, self.last_text)

    @property
    def label(self) -> str:
        """Name of its folder, file or hub id, with what tells it from others of the same name."""
        return Path(self.reference).name


@dataclass(frozen=True)
class SourceChoice:
    """Which sources are asked for."""

    datasets_dir: Path
    """Folder of the generated data sets."""

    packs: Packs
    """Where packed sequences are kept."""

    models: tuple[str, ...] = ()
    """Hub ids or folders of the models whose generated data sets are taken."""

    seed: int = 4
    """Seed that these were generated with."""

    temperature: float = 1.0
    """Temperature that they were generated with."""

    top_p: float = 0.9
    """Nucleus mass that they were generated with."""

    corpora: tuple[str, ...] = ()
    """Files, folders or hub ids of text corpora."""

    def __post_init__(self) -> None:
        names = [short_name(model) for model in self.models] + [corpus_name(each) for each in self.corpora]
        check_distinct(names, "--source_models and --text_datasets")
        if not names:
            raise InputError("nothing to train on: --source_models is empty and no --text_datasets are given")


def check_distinct(names: Sequence[str], flag: str) -> None:
    """Refuse two models or corpora whose results would share one folder.

    Raises:
        InputError: If a name is there twice.
    """
    if len(set(names)) != len(names):
        raise InputError(f"{flag} must have different short names, got {' '.join(names)}; results would share a folder")


def find_sources(choice: SourceChoice) -> list[Source]:
    """The generated data sets of the source models, and the text corpora.

    Raises:
        InputError: If one is missing or cannot be read.
    """
    generated = [
        find_source(
            choice.datasets_dir, DatasetKey(short_name(model), choice.seed, choice.temperature, choice.top_p), model
        )
        for model in choice.models
    ]
    return generated + [find_corpus(each, choice.packs) for each in choice.corpora]


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


def find_corpus(reference: str, packs: Packs) -> Source:
    """A text corpus as a source.

    Raises:
        MissingInputError: If it is not there.
        InputError: If it cannot be read or has no texts.
    """
    rows = load_texts(reference, packs.texts_folder)
    if len(rows) == 0:
        raise InputError(f"--text_datasets {reference} has no text in it")
    with explained(reference, packs.texts_folder):
        fingerprint = fingerprint_texts(rows)
    return Source(corpus_name(reference), reference, len(rows), None, fingerprint)


def read_generated(folder: Path) -> Source:
    """A generated data set as a source.

    Raises:
        DamagedFileError: If its record is damaged.
    """
    record, key = read_generation_record(folder), DatasetKey.from_folder(folder.name)
    if key is None:
        raise InputError(f"{folder} is not called as data sets are (MODEL_SEED_TEMPERATURE_TOP-P); give its name back")
    return Source(
        name=key.model,
        reference=str(folder),
        n_samples=record["n_samples"],
        n_tokens=record["n_tokens"],
        fingerprint=record["fingerprint"],
        tokenizer_fingerprint=record["settings"]["tokenizer_fingerprint"],
        eos_ids=tuple(record["settings"]["eos_ids"]),
        last_text=(record["cut_sample"] or {}).get("text"),
    )


def cut_source(source: Source, form: Form) -> Source | None:
    """A generated data set as it was before it was extended; None if it does not begin so.

    Raises:
        DamagedFileError: If its samples cannot be read.
    """
    if form == source.form:
        return source
    shorter = replace(source, **asdict(form))
    try:
        open_source(shorter)
    except OtherSamplesError:
        return None
    return shorter


def open_source(source: Source) -> Dataset:
    """The samples of a generated data set, or of the beginning of it that a source is.

    Raises:
        DamagedFileError: If they are not the ones that were sampled.
    """
    folder = Path(source.reference)
    return cut_to_form(open_samples(folder, read_generation_record(folder)), source.form, folder)


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
    target = fingerprint_tokenizer(tokenizer)
    is_own = source.tokenizer_fingerprint == target

    def documents() -> Iterator[list[np.ndarray]]:
        for some in sampled_documents(open_source(source), source.eos_ids) if is_own else tokenized():
            _check_known(some, config.vocab_size, source)
            yield some

    def tokenized() -> Iterator[list[np.ndarray]]:
        if source.is_generated:
            logger.warning(
                "%s: its tokenizer is not the target's, so its texts are tokenized again; token counts are the "
                "target's",
                source.name,
            )
            texts = open_source(source)
        else:
            logger.info("%s: tokenizing %s texts with the target's tokenizer", source.name, f"{source.n_samples:,}")
            texts = load_texts(source.reference, packs.texts_folder)
        return tokenized_documents(texts.select_columns([TEXT_COLUMN]), tokenizer)

    name = f"{source.name}_{source.fingerprint}_{target}_{ctx_len}"
    return packs.get(name, documents, find_delimiters(tokenizer, config), ctx_len, reference=source.reference)


def _check_known(documents: Sequence[np.ndarray], vocab_size: int, source: Source) -> None:
    """Refuse ids that a target has no embedding for, before they reach it: on a GPU they end the process."""
    ids = np.concatenate(documents)
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        raise InputError(
            f"{source.reference} has token ids from {ids.min()} to {ids.max()}, and the target knows 0 .. "
            f"{vocab_size - 1}; it is not the data set of this model: sample it anew"
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
