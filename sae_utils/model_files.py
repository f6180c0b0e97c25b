"""What lies in a model's folder: read, or refused in one line that names the file.

Of weights, only names and shapes are read, which stand at the beginning of their files.
"""

import contextlib
import json
import re
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import is_offline_mode
from safetensors import safe_open
from torch import Tensor
from transformers import PretrainedConfig
from transformers.utils import cached_file

from sae_utils.errors import InputError, MissingInputError
from sae_utils.memory import is_out_of_memory

JSON_FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
"""Small files that hold an object each, where they are there."""

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Where transformers looks for weights; the first that is there is the one it reads."""

LFS_POINTER = b"version https://git-lfs"
"""How the small text begins that stands in for a file which git-lfs has not fetched."""

OLD_FORMAT = b"\x80\x02"
"""How PyTorch's files began before version 1.6: as a pickle, and not as a zip archive."""

TOKENIZER = "the tokenizer"
"""What a tokenizer is called where it could not be read."""

COLOURS = re.compile(r"\x1b\[[\d;]*m")
"""What turns a terminal's colours on and off, inside other libraries' messages."""

MAX_REASON = 300
"""Characters of somebody else's exception that are shown."""

SHOWN_NAMES = 3
"""Names of a list that are shown; the others are counted."""


@contextlib.contextmanager
def one_line(reference: str, part: str) -> Iterator[None]:
    """Turn what other libraries raise while they read a part of a model into one line.

    Running out of memory passes as it is: it is no fault of the model's, and others wait for it.

    Args:
        reference: The model.
        part: What is read, as the line begins.

    Raises:
        MissingInputError: For an OSError: the part is not there, or is not what it should be.
        InputError: For everything else.
    """
    try:
        yield
    except InputError:
        raise
    except OSError as err:
        raise MissingInputError(_unread(reference, part, str(err).strip().split("\n")[0])) from err
    # The one place for all exceptions: a list of them would not be whole. tokenizers raises plain ones, and what a
    # damaged file makes of transformers' code can be any.
    except Exception as err:
        if is_out_of_memory(err):
            raise
        words = COLOURS.sub("", str(err)).split()
        raise InputError(_unread(reference, part, f"{type(err).__name__}: {' '.join(words)}")) from err


def check_json_files(reference: str) -> None:
    """Refuse a model folder whose small files cannot be read; a hub id passes.

    transformers takes a damaged generation_config.json for none, and other tokens for EOS with it.

    Raises:
        InputError: If one of `JSON_FILES` holds no JSON object.
    """
    for name in JSON_FILES:
        path = Path(reference) / name
        if path.is_file():
            read_object(path, reference)


def read_object(path: Path, reference: str) -> dict[str, Any]:
    """The JSON object in a file of a model.

    Raises:
        InputError: If there is none in it.
    """
    _check_content(path, reference)
    with one_line(reference, path.name):
        found = json.loads(path.read_bytes())
    if not isinstance(found, dict):
        raise InputError(
            f"{path.name} of model {reference!r} must hold a JSON object, found {json.dumps(found)[:40]}; copy it "
            f"again from where the model came from"
        )
    return found


def model_folder(reference: str) -> Path | None:
    """The folder that a model's files are read from; None if the hub may have others than are here."""
    folder = Path(reference)
    if folder.is_dir():
        return folder
    if not is_offline_mode():
        return None
    with one_line(reference, "config.json"):
        return Path(cached_file(reference, "config.json")).parent


def read_weights(folder: Path, config: PretrainedConfig, reference: str) -> dict[str, Tensor] | None:
    """Every weight in a model folder, on the device without memory, by name; None if that takes reading them all.

    Raises:
        InputError: If there are none, or a file is not there or damaged.
    """
    names = (config.transformers_weights,) if getattr(config, "transformers_weights", None) else WEIGHT_FILES
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise MissingInputError(
            f"model {reference!r} has no weights: {folder.absolute()} has none of {', '.join(names)}; copy them there, "
            f"or give a folder made with save_pretrained"
        )
    weights = {}
    for path in _shards(found, reference) if found.suffix == ".json" else [found]:
        held = _read_names(path, reference)
        if held is None:
            return None
        weights |= held
    return weights


def first_of(names: Collection[str]) -> str:
    """The first names in their order, and how many more there are.

    >>> first_of(["d", "c", "b", "a"])
    'a, b, c and 1 more'
    """
    first = ", ".join(sorted(names)[:SHOWN_NAMES])
    return first if len(names) <= SHOWN_NAMES else f"{first} and {len(names) - SHOWN_NAMES} more"


def _shards(index: Path, reference: str) -> list[Path]:
    """The files that an index names."""
    named = read_object(index, reference).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise InputError(
            f"{index.name} of model {reference!r} must have a weight_map with the file of every weight, and has none; "
            f"copy it again from where the model came from"
        )
    paths = [index.with_name(name) for name in sorted(set(map(str, named.values())))]
    if gone := [path.name for path in paths if not path.is_file()]:
        raise MissingInputError(
            f"model {reference!r} lacks {len(gone)} of the {len(paths)} files that {index.name} names "
            f"({first_of(gone)}); copy them to {index.absolute().parent}"
        )
    return paths


def _read_names(path: Path, reference: str) -> dict[str, Tensor] | None:
    """The weights in one file, on the device without memory; None if that takes reading them all."""
    _check_content(path, reference)
    with one_line(reference, path.name):
        if path.suffix == ".safetensors":
            # A file that is shorter or longer than it says is refused. PyTorch would set memory aside for all of it.
            with safe_open(path, framework="numpy") as file:
                shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - no dict
            return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        if zipfile.is_zipfile(path):
            held = torch.load(path, map_location="meta", mmap=True, weights_only=True)
            if isinstance(held, dict):
                return held
        with open(path, "rb") as file:
            if file.read(len(OLD_FORMAT)) == OLD_FORMAT:
                return None
    raise InputError(
        f"{path.name} of model {reference!r} is cut, or holds no weights of PyTorch's ({path.absolute()}, "
        f"{path.stat().st_size:,} bytes); copy it again from where the model came from"
    )


def _check_content(path: Path, reference: str) -> None:
    """Refuse a file that has a name and nothing else."""
    if _is_pointer(path):
        raise InputError(
            f"{path.name} of model {reference!r} is a pointer of git-lfs, not the file; run `git lfs pull` in "
            f"{path.absolute().parent}"
        )
    if path.stat().st_size == 0:
        raise InputError(
            f"{path.name} of model {reference!r} is empty ({path.absolute()}); copy it again from where the model came "
            f"from"
        )


def _is_pointer(path: Path) -> bool:
    """Whether git-lfs has left its pointer in a file's place."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


def _unread(reference: str, part: str, reason: str) -> str:
    """Why a part of a model was not read, where it was looked for, and what to do."""
    reason = reason if len(reason) <= MAX_REASON else f"{reason[:MAX_REASON]}..."
    folder = Path(reference)
    if not folder.is_dir():
        return (
            f"model {reference!r} could not be loaded; looked in {folder.absolute()} and the Hugging Face hub; to use "
            f"a local copy, give the path of a folder made with save_pretrained ({part}: {reason})"
        )
    if part == TOKENIZER and not (folder / "tokenizer.json").is_file():
        reason += "; there is no tokenizer.json"
    pointers = [path.name for path in sorted(folder.iterdir()) if _is_pointer(path)]
    if pointers:
        reason += f"; git-lfs has not fetched {', '.join(pointers)}"
    return (
        f"{part} of model {reference!r} could not be read from {folder.absolute()} ({reason}); copy it again from "
        f"where the model came from, or give a folder made with save_pretrained"
    )
