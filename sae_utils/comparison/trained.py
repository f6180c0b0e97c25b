"""SAEs that stand finished on disk, with all that is needed to measure them: found by their `run.json`."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sae_utils.errors import MissingInputError
from sae_utils.records import read_json
from sae_utils.sparse_coders import SparseCoder


@dataclass(frozen=True)
class TrainedSae:
    """One finished SAE."""

    folder: Path
    """Its own folder, `<target>_from_<source>_seed_<s>/layers.<L>`."""

    run: dict[str, Any]
    """The `run.json` beside it."""

    record: dict[str, Any]
    """Its record in there."""

    weights_fingerprint: str
    """Short hash of its weights' file."""

    @property
    def key(self) -> tuple[str, str, int, int]:
        """Target, source, layer and seed."""
        return self.record["target"], self.record["source"], self.layer, self.seed

    @property
    def layer(self) -> int:
        """Decoder layer whose output it encodes."""
        return self.record["layer"]

    @property
    def seed(self) -> int:
        """Seed of its initialisation."""
        return self.record["seed"]

    @property
    def hookpoint(self) -> str:
        """Name of that layer inside `model.base_model`."""
        return self.run["hookpoints"][f"layers.{self.layer}"]

    @property
    def eval_shape(self) -> tuple[str, str, int, int]:
        """Target, its number format, sequence length and held-out tokens: SAEs that agree are measured together."""
        settings = self.run["settings"]
        return self.run["target_reference"], settings["dtype"], settings["ctx_len"], settings["n_eval_tokens"]

    def load(self, device: torch.device) -> SparseCoder:
        """The SAE in evaluation form."""
        return SparseCoder.load_from_disk(self.folder, device=device).requires_grad_(False)


def find_trained(seed_dirs: Sequence[Path]) -> list[TrainedSae]:
    """The SAEs in finished folders, by target, source, layer and seed."""
    found = [each for folder in seed_dirs for each in _read_folder(folder)]
    return sorted(found, key=lambda sae: sae.key)


def find_all_trained(checkpoint_dir: Path) -> list[TrainedSae]:
    """Every finished SAE below a folder.

    Raises:
        MissingInputError: If there is none.
    """
    folders = sorted(path.parent for path in checkpoint_dir.glob("*_seed_*/run.json"))
    if not folders:
        raise MissingInputError(
            f"{checkpoint_dir.absolute()} holds no finished SAEs; train some first, without --eval_only"
        )
    return find_trained(folders)


def _read_folder(folder: Path) -> list[TrainedSae]:
    """The SAEs of one seed's folder."""
    run = read_json(folder / "run.json")
    return [
        TrainedSae(
            path := folder / f"layers.{record['layer']}",
            run,
            record | {"path": str(path)},
            _fingerprint_file(path / "sae.safetensors"),
        )
        for record in run["saes"]
    ]


def _fingerprint_file(path: Path) -> str:
    """Short hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
