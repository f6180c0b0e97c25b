"""Sources of training: data sets found on disk, checked, and turned into packed sequences for a target model."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from sae_utils.errors import InputError, MissingInputError
from sae_utils.models import fingerprint_tokenizer
from sae_utils.paths import DatasetKey, find_datasets, short_name
from sae_utils.records import read_json
from sae_utils.sources.corpora import TEXT_COLUMN, corpus_name, fingerprint_texts, load_texts, tokenize_texts
from sae_utils.sources.packing import Chunks, open_chunks, pack_tokens, sampled_ids

logger = logging.getLogger(__name__)

PACKED_FOLDER = ".packed"
"""Folder of packed sequences inside the data sets' folder; safe to delete, made again when needed."""


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

    bos_id: int | None = None
    """Token that starts every sample; None for a corpus."""

    @property
    def is_generated(self) -> bool:
        """Whether it was sampled from a model and so has ids of its own."""
        return self.tokenizer_fingerprint is not None

    @property
    def label(self) -> str:
        """Name of its folder, file or hub id, with what tells it from others of the same name."""
        return Path(self.reference).name


@dataclass(frozen=True)
class SourceChoice:
    """Which sources are asked for."""

    datasets_dir: Path
    """Folder of the generated data sets, where packed sequences are kept as well."""

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
    return generated + [find_corpus(choice.datasets_dir, each) for each in choice.corpora]


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
    if not (folder / "generation.json").exists():
        raise MissingInputError(_missing_source(datasets_dir, key, model))
    return _read_generated(folder)


def source_at(reference: str, datasets_dir: Path) -> Source:
    """The source that a finished run names: a generated data set's folder, or a corpus.

    Raises:
        MissingInputError: If it is not there.
    """
    folder = Path(reference)
    if (folder / "generation.json").exists():
        return _read_generated(folder)
    if DatasetKey.from_folder(folder.name) and not folder.exists():
        raise MissingInputError(f"the data set {folder} is gone; SAEs that were trained on it cannot be measured")
    return find_corpus(datasets_dir, reference)


def find_corpus(datasets_dir: Path, reference: str) -> Source:
    """A text corpus as a source.

    Raises:
        MissingInputError: If it is not there.
        InputError: If it cannot be read or has no texts.
    """
    rows = load_texts(reference, datasets_dir / PACKED_FOLDER / "texts")
    if len(rows) == 0:
        raise InputError(f"--text_datasets {reference} has no text in it")
    return Source(corpus_name(reference), reference, len(rows), None, fingerprint_texts(rows))


def pack_source(source: Source, tokenizer: PreTrainedTokenizerBase, ctx_len: int, datasets_dir: Path) -> Chunks:
    """Sequences of `ctx_len` tokens of a source in a target's own ids, packed on first use and mapped from then on.

    The sampled ids are used as they are when both tokenizers give ids the same meaning (compared by content). Otherwise
    the texts are tokenized with the target's tokenizer, which is logged.

    Raises:
        InputError: If the source does not fill one sequence.
    """
    target = fingerprint_tokenizer(tokenizer)
    path = datasets_dir / PACKED_FOLDER / f"{source.name}_{source.fingerprint}_{target}_{ctx_len}.npy"
    if path.exists():
        return open_chunks(path)
    if source.tokenizer_fingerprint == target:
        rows = Dataset.load_from_disk(source.reference)
        eos_id = tokenizer.eos_token_id
        n_tokens = sum(map(len, sampled_ids(rows, bos_id=source.bos_id, eos_id=eos_id)))
        _check_fills_one(n_tokens, ctx_len, source)
        return pack_tokens(sampled_ids(rows, bos_id=source.bos_id, eos_id=eos_id), ctx_len, n_tokens // ctx_len, path)
    if source.is_generated:
        logger.warning(
            "%s: its tokenizer is not the target's, so its texts are tokenized again; token counts are the target's",
            source.name,
        )
        rows = Dataset.load_from_disk(source.reference).select_columns([TEXT_COLUMN])
    else:
        logger.info("%s: tokenizing %s texts with the target's tokenizer", source.name, f"{source.n_samples:,}")
        rows = load_texts(source.reference, datasets_dir / PACKED_FOLDER / "texts")
    tokenized = tokenize_texts(rows, tokenizer, ctx_len).with_format("numpy")
    return pack_tokens((row["input_ids"] for row in tokenized), ctx_len, len(tokenized), path)


def _read_generated(folder: Path) -> Source:
    """A generated data set as a source."""
    record, key = read_json(folder / "generation.json"), DatasetKey.from_folder(folder.name)
    return Source(
        name=key.model,
        reference=str(folder),
        n_samples=record["n_samples"],
        n_tokens=record["n_tokens"],
        fingerprint=record["fingerprint"],
        tokenizer_fingerprint=record["settings"]["tokenizer_fingerprint"],
        bos_id=record["settings"]["bos_id"],
    )


def _check_fills_one(n_tokens: int, ctx_len: int, source: Source) -> None:
    """Refuse a source that is shorter than one sequence."""
    if n_tokens < ctx_len:
        raise InputError(
            f"{source.reference} gives {n_tokens:,} training tokens, less than one sequence of --ctx_len {ctx_len}; "
            f"lower --ctx_len, or generate more"
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
