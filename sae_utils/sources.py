"""Source data sets for training: found on disk, checked, and turned into packed sequences for a target model."""

import logging
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from sae_utils.errors import InputError, MissingInputError
from sae_utils.models import fingerprint_tokenizer
from sae_utils.packing import Chunks, open_chunks, pack_tokens, sampled_ids
from sae_utils.paths import DatasetKey, find_datasets
from sae_utils.records import read_json
from sae_utils.sparse_coders import chunk_and_tokenize

logger = logging.getLogger(__name__)

PACKED_FOLDER = ".packed"
"""Folder of packed sequences inside the data sets' folder; safe to delete, made again when needed."""


@dataclass(frozen=True)
class Source:
    """A finished generated data set to train on."""

    name: str
    """Short name of the model that wrote it."""

    folder: Path
    """Where it stands."""

    n_samples: int
    """Samples in it."""

    n_tokens: int
    """Tokens in it, as sampled."""

    fingerprint: str
    """Hash of its token ids."""

    tokenizer_fingerprint: str
    """Hash of the vocabulary its ids belong to."""

    bos_id: int
    """Token that starts every sample."""


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
    record_path = folder / "generation.json"
    if not record_path.exists():
        raise MissingInputError(_missing_source(datasets_dir, key, model))
    record = read_json(record_path)
    return Source(
        name=key.model,
        folder=folder,
        n_samples=record["n_samples"],
        n_tokens=record["n_tokens"],
        fingerprint=record["fingerprint"],
        tokenizer_fingerprint=record["settings"]["tokenizer_fingerprint"],
        bos_id=record["settings"]["bos_id"],
    )


def pack_source(source: Source, tokenizer: PreTrainedTokenizerBase, ctx_len: int, datasets_dir: Path) -> Chunks:
    """Sequences of `ctx_len` tokens of a source in a target's own ids, packed on first use and mapped from then on.

    The sampled ids are used as they are when both tokenizers give ids the same meaning (compared by content). Otherwise
    the texts are tokenized again with the target's tokenizer, which is logged.

    Raises:
        InputError: If the source does not fill one sequence.
    """
    target = fingerprint_tokenizer(tokenizer)
    path = datasets_dir / PACKED_FOLDER / f"{source.folder.name}_{source.fingerprint}_{target}_{ctx_len}.npy"
    if path.exists():
        return open_chunks(path)
    rows = Dataset.load_from_disk(str(source.folder))
    if target == source.tokenizer_fingerprint:
        eos_id = tokenizer.eos_token_id
        n_tokens = sum(map(len, sampled_ids(rows, bos_id=source.bos_id, eos_id=eos_id)))
        _check_fills_one(n_tokens, ctx_len, source)
        return pack_tokens(sampled_ids(rows, bos_id=source.bos_id, eos_id=eos_id), ctx_len, n_tokens // ctx_len, path)
    logger.warning(
        "%s: its tokenizer is not the target's, so its texts are tokenized again; token counts are the target's",
        source.name,
    )
    _check_fills_one(source.n_tokens, ctx_len, source)
    retokenized = retokenize(rows, tokenizer, ctx_len).with_format("numpy")
    return pack_tokens((row["input_ids"] for row in retokenized), ctx_len, len(retokenized), path)


def retokenize(rows: Dataset, tokenizer: PreTrainedTokenizerBase, ctx_len: int) -> Dataset:
    """Texts in a target's ids, in sequences of `ctx_len`, samples separated by the target's EOS.

    Source: `chunk_and_tokenize` in EleutherAI/sparsify, `data.py`; called, with all its defaults but the length.

    Raises:
        InputError: If the texts do not fill one sequence.
    """
    try:
        return chunk_and_tokenize(
            rows.select_columns(["text"]), tokenizer, max_seq_len=ctx_len, num_proc=1, load_from_cache_file=False
        )
    except ValueError as err:
        if "Not enough data" not in str(err):
            raise
        raise InputError(f"a source does not fill one sequence of --ctx_len {ctx_len}; generate more") from err


def _check_fills_one(n_tokens: int, ctx_len: int, source: Source) -> None:
    """Refuse a source that is shorter than one sequence."""
    if n_tokens < ctx_len:
        raise InputError(
            f"{source.folder} gives {n_tokens:,} training tokens, less than one sequence of --ctx_len {ctx_len}; "
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
