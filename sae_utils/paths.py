"""Names of the folders on disk, made and read in one place so that both scripts agree."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

UNFINISHED_SUFFIX = ".unfinished"
"""Ending of a folder that is still being worked on; nothing reads such a folder as a result."""

RESUMABLE_SUFFIX = ".resumable"
"""Ending of a folder with the state behind finished SAEs, from which a larger budget can go on."""

METRICS_FILE = "metrics.jsonl"
"""Training losses beside the state and, at the end, beside the SAEs: one JSON object per step."""

RUN_RECORD = "run.json"
"""Record of the run that made a seed's folder."""

_NUMBER = r"\d+(?:\.\d+)?(?:e[+-]?\d+)?"
_DATASET_NAME = re.compile(rf"(?P<model>.+)_(?P<seed>\d+)_(?P<temperature>{_NUMBER})_(?P<top_p>{_NUMBER})")


@dataclass(frozen=True)
class DatasetKey:
    """What tells one generated data set of a model from another, and makes up its folder's name."""

    model: str
    """Short name of the model: the last part of its hub id or folder."""

    seed: int
    """Seed of the sampling streams."""

    temperature: float
    """Softmax temperature."""

    top_p: float
    """Nucleus mass kept at each step."""

    @property
    def folder(self) -> str:
        """Folder name, such as `pythia-1.4b_42_1.0_0.9`.

        >>> DatasetKey("pythia-1.4b", 42, 1, 0.9).folder
        'pythia-1.4b_42_1.0_0.9'
        """
        return f"{self.model}_{self.seed}_{float(self.temperature)}_{float(self.top_p)}"

    @classmethod
    def from_folder(cls, folder: str) -> "DatasetKey | None":
        """The key that makes this folder name, or None if no key does.

        >>> DatasetKey.from_folder("pythia-1.4b_42_1.0_0.9")
        DatasetKey(model='pythia-1.4b', seed=42, temperature=1.0, top_p=0.9)
        >>> DatasetKey.from_folder("tiny_42_1e-05_0.9").temperature  # as Python writes 0.00001
        1e-05
        >>> DatasetKey.from_folder("pythia-1.4b_42_1.0_0.9.unfinished") is None
        True
        """
        match = _DATASET_NAME.fullmatch(folder)
        if match is None:
            return None
        key = cls(match["model"], int(match["seed"]), float(match["temperature"]), float(match["top_p"]))
        return key if key.folder == folder else None


def short_name(model: str) -> str:
    """Last part of a hub id or a folder path: what files and tables call the model.

    >>> short_name("EleutherAI/pythia-1.4b"), short_name("models/smollm2/")
    ('pythia-1.4b', 'smollm2')
    """
    return Path(model).name if Path(model).name not in ("", ".", "..") else Path(model).resolve().name


def find_datasets(datasets_dir: Path, model: str) -> list[DatasetKey]:
    """Finished generated data sets of a model below `datasets_dir`, in the order of their folder names."""
    if not datasets_dir.is_dir():
        return []
    keys = [DatasetKey.from_folder(folder.parent.name) for folder in sorted(datasets_dir.glob("*/generation.json"))]
    return [key for key in keys if key is not None and key.model == model]


def cell_name(target: str, source: str) -> str:
    """Name of one cell of the target x source grid: everything trained on it starts with this."""
    return f"{target}_from_{source}"


def series_name(source: str, variant: str) -> str:
    """Under which SAEs of a source are listed: its name, and what sets those apart that are trained in another way.

    >>> series_name("prose", ""), series_name("prose", "k_64")
    ('prose', 'prose_k_64')
    """
    return f"{source}_{variant}" if variant else source


def seed_dir(checkpoint_dir: Path, target: str, source: str, seed: int) -> Path:
    """Folder of the SAEs that one initialisation seed gave: `<target>_from_<source>_seed_<seed>`."""
    return checkpoint_dir / f"{cell_name(target, source)}_seed_{seed}"


def added_name(name: str, layers: Iterable[int]) -> str:
    """What a file of a seed's folder is called for layers that are added to it.

    >>> added_name("run.json", (11, 12))
    'run_layers.11.12.json'
    """
    stem, _, ending = name.rpartition(".")
    return f"{stem}_layers.{'.'.join(map(str, layers))}.{ending}"


def run_files(folder: Path) -> list[Path]:
    """The records of a seed's folder: of the run that made it, then of those that added layers; none if it has none."""
    first = folder / RUN_RECORD
    return [first, *sorted(folder.glob(added_name(RUN_RECORD, "*")))] if first.exists() else []


def losses_files(folder: Path) -> list[Path]:
    """The losses in a seed's folder, likewise."""
    return [folder / METRICS_FILE, *sorted(folder.glob(added_name(METRICS_FILE, "*")))]
