"""SAEs that stand finished on disk, with all that is needed to measure them: found by their `run.json`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sae_utils.errors import InputError, MissingInputError
from sae_utils.exclusion import Exclusion, exclusion_of
from sae_utils.files import (
    DamagedFileError,
    Record,
    check_file,
    check_files,
    checksum_file,
    read_record,
    reading,
    removal,
)
from sae_utils.paths import RUN_RECORD, run_files, seed_dir, series_name
from sae_utils.records import LATER_SETTINGS
from sae_utils.sources.joining import PACKING_RULE
from sae_utils.sparse_coders import SparseCoder

WEIGHTS_FILE = "sae.safetensors"
"""An SAE's weights, inside its folder."""


OWN_SETTINGS = {"source", "source_fingerprint", "excluded_ids", "layers", "micro_acc_steps", "n_eval_tokens"}
"""Settings that SAEs whose agreement is asked for may differ in."""


@dataclass(frozen=True)
class TrainedSae:
    """One finished SAE."""

    folder: Path
    """Its own folder, `<target>_from_<source>_seed_<s>/layers.<L>`."""

    run: Record
    """The `run.json` beside it."""

    record: Record
    """Its record in there."""

    weights_fingerprint: str
    """Short hash of its weights' file."""

    series: str
    """Under which it is listed: its source, and what sets it apart from others of that source."""

    @property
    def path(self) -> str:
        """Its folder, as results name it."""
        return str(self.folder)

    @property
    def key(self) -> tuple[str, str, int, int]:
        """Target, series, layer and seed."""
        return self.record["target"], self.series, self.layer, self.seed

    @property
    def source(self) -> str:
        """Name of the data set that it was trained on."""
        return self.record["source"]

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
    def exclusion(self) -> Exclusion:
        """Positions that it does not see."""
        return exclusion_of(self.run["settings"]["exclude"], self.run["settings"]["excluded_ids"])

    @property
    def eval_shape(self) -> tuple[str, str, int, int, Exclusion]:
        """What SAEs must have in common to be measured together.

        The target, its number format, sequence length, held-out tokens, and the positions that are left out.
        """
        settings = self.run["settings"]
        tokens = settings["ctx_len"], settings["n_eval_tokens"]
        return self.run["target_reference"], settings["dtype"], *tokens, self.exclusion

    @property
    def alike(self) -> tuple:
        """What SAEs must have in common, beside target and layer, for their agreement to mean something.

        All that decides the weights but the source and the seed.
        """
        settings = LATER_SETTINGS | self.run["settings"]
        return tuple((name, str(settings[name])) for name in sorted(set(settings) - OWN_SETTINGS))

    def load(self, device: torch.device) -> SparseCoder:
        """The SAE in evaluation form.

        Raises:
            DamagedFileError: If its files cannot be read.
        """
        with reading(self.folder, remedy_for(self.folder.parent)):
            return SparseCoder.load_from_disk(self.folder, device=device).requires_grad_(False)


@dataclass(frozen=True)
class Damaged:
    """A finished folder that was left out, and why."""

    folder: Path
    """The folder of a seed."""

    reason: str
    """One line that names the file and what to do."""


def find_trained(seed_dirs: Sequence[Path]) -> list[TrainedSae]:
    """The SAEs in finished folders, by target, source, layer and seed.

    Raises:
        DamagedFileError: If one is damaged.
    """
    found = [each for folder in seed_dirs for each in _read_folder(folder)]
    return sorted(found, key=lambda sae: sae.key)


def find_all_trained(*checkpoint_dirs: Path) -> tuple[list[TrainedSae], list[Damaged]]:
    """Every finished SAE below folders, in their order, and what is left out because it is damaged.

    Raises:
        MissingInputError: If one of the folders has none that can be read.
    """
    found = [_find_below(folder) for folder in checkpoint_dirs]
    return [sae for saes, _ in found for sae in saes], [each for _, damaged in found for each in damaged]


def check_none_left_out(damaged: Sequence[Damaged]) -> None:
    """Let a run end as failed that left something out, once all else is done.

    Raises:
        InputError: If anything was left out.
    """
    if damaged:
        raise InputError(f"left out, all others are measured: {' | '.join(each.reason for each in damaged)}")


def remedy_for(seed_folder: Path) -> str:
    """What to do about a folder of finished SAEs that is damaged."""
    again = f"{removal(seed_folder)} and train its seed again with the command that made it"
    return f"bring back a copy of it, or {again}"


def _find_below(checkpoint_dir: Path) -> tuple[list[TrainedSae], list[Damaged]]:
    """Every finished SAE below a folder, and the folders that are left out because they are damaged."""
    saes: list[TrainedSae] = []
    damaged: list[Damaged] = []
    for folder in sorted(path for path in checkpoint_dir.glob("*_seed_*") if path.is_dir()):
        if not (folder / RUN_RECORD).exists() and not any(folder.glob("layers.*")):
            continue
        try:
            saes += find_trained([folder])
        except InputError as err:
            damaged.append(Damaged(folder, str(err)))
    if not saes:
        check_none_left_out(damaged)
        raise MissingInputError(
            f"{checkpoint_dir.absolute()} holds no finished SAEs; train some first, without --eval_only"
        )
    return sorted(saes, key=lambda sae: sae.key), damaged


def _read_folder(folder: Path) -> list[TrainedSae]:
    """The SAEs of one seed's folder, those of layers that were added later among them."""
    remedy = remedy_for(folder)
    return [
        _read_sae(path, run, record, remedy)
        for path in run_files(folder) or [folder / RUN_RECORD]
        for run in [_read_run(path, remedy)]
        for record in run["saes"]
    ]


def _read_run(path: Path, remedy: str) -> Record:
    """The record of a run, if this version can measure what it trained."""
    run = read_record(path, remedy, settings=dict, hookpoints=dict, saes=list, dataset=str, target_reference=str)
    if (rule := run["settings"].get("packing_rule", 1)) != PACKING_RULE:
        raise InputError(
            f"{path.parent} was trained on rows that were packed by rule {rule}, and this version packs by rule "
            f"{PACKING_RULE}, so the tokens held out from it are other ones; train it anew, with --overwrite"
        )
    for name in ("dtype", "ctx_len", "n_eval_tokens", "exclude", "excluded_ids"):
        run["settings"][name]
    check_files(path.parent, run.get("checksums", {}), remedy)
    return run


def _read_sae(run_path: Path, run: Record, record: Record, remedy: str) -> TrainedSae:
    """One SAE that a run has recorded, if its files are those that its record was made of."""
    folder = run_path.parent
    with reading(run_path, remedy):
        layer, seed = int(record["layer"]), int(record["seed"])
        series = series_name(record["source"], record.get("variant", ""))
        expected = seed_dir(folder.parent, record["target"], series, seed)
    # The names make up paths of what is written later: none may lead out of the folders that were given.
    if expected.name != folder.name or expected.parent != folder.parent:
        raise DamagedFileError(run_path, f"it is of {expected.name!r}, and lies in {folder.name!r}", remedy)
    path = folder / f"layers.{layer}"
    for name, checksum in record.get("checksums", {}).items():
        if name != WEIGHTS_FILE:
            check_file(path / name, checksum, remedy)
    with reading(path / WEIGHTS_FILE, remedy):
        fingerprint = checksum_file(path / WEIGHTS_FILE)
    recorded = record.get("checksums", {}).get(WEIGHTS_FILE)
    if recorded not in (None, fingerprint):
        found = f"its checksum was {recorded} and is now {fingerprint}"
        raise DamagedFileError(path / WEIGHTS_FILE, found, remedy)
    sae = TrainedSae(path, run, record, fingerprint, series)
    if recorded is None:  # an earlier version's: whether it can be read is all there is to find out
        sae.load("cpu")
    return sae
