"""Corpora of token ids: which tokenizer they are of, as far as that can be known."""

import json
import logging
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HTTPError
from transformers import AutoTokenizer

from sae_utils.errors import InputError, first_line
from sae_utils.files import READING_ERRORS
from sae_utils.generated_data import RECORD_FILE
from sae_utils.models import fingerprint_tokenizer
from sae_utils.sources.corpora import is_hub_id

logger = logging.getLogger(__name__)

SAELENS_FILE = "sae_lens.json"
"""What SAELens' PretokenizeRunner leaves beside what it tokenized; `tokenizer_name` is in it."""


def find_tokenizer(reference: str, revision: str | None) -> dict[str, str]:
    """What files beside a corpus say of the tokenizer that its ids are of.

    Returns:
        Its `fingerprint`, where that is recorded (`generation.json`) or it can be loaded; its `name`, where SAELens has
        recorded it; nothing where nothing is said.
    """
    if (record := _read_beside(reference, RECORD_FILE, revision)) and isinstance(record.get("settings"), dict):
        return {"fingerprint": str(record["settings"].get("tokenizer_fingerprint"))}
    record = _read_beside(reference, SAELENS_FILE, revision)
    if not record or not record.get("tokenizer_name"):
        return {}
    name = str(record["tokenizer_name"])
    try:
        return {"name": name, "fingerprint": fingerprint_tokenizer(AutoTokenizer.from_pretrained(name))}
    except READING_ERRORS as err:
        logger.info("the tokenizer %s could not be loaded (%s)", name, first_line(err))
        return {"name": name}


def check_tokenizer(reference: str, found: dict[str, str], target: str) -> None:
    """Refuse ids of another tokenizer than the target's, and say where nobody knows.

    Args:
        reference: The corpus.
        found: What is known of its tokenizer.
        target: Fingerprint of the target's.

    Raises:
        InputError: If they are of another.
    """
    called = f" {found['name']}" if "name" in found else ""
    if "fingerprint" not in found:
        said = (
            f"says that its tokenizer is{called}, which cannot be had here"
            if called
            else "does not say of which tokenizer"
        )
        logger.warning("%s holds token ids and %s; they are taken for the target's", reference, said)
    elif found["fingerprint"] != target:
        raise InputError(
            f"--text_datasets {reference} holds ids of the tokenizer{called} {found['fingerprint']}, and the target's "
            f"is {target}; give its texts, or targets of that tokenizer"
        )


def _read_beside(reference: str, name: str, revision: str | None) -> dict | None:
    """A JSON object in a corpus' folder, beside its file, or in its repository; None if there is none."""
    path = Path(reference).expanduser()
    try:
        if is_hub_id(reference):
            repository = reference.partition(":")[0]
            options = {"repo_type": "dataset", "revision": revision}
            path = Path(huggingface_hub.hf_hub_download(repository, name, **options))
        else:
            path = (path if path.is_dir() else path.parent) / name
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, HTTPError):  # not there, or no JSON: then it says nothing
        return None
    return content if isinstance(content, dict) else None
