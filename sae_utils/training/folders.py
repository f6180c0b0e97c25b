"""Where SAEs are kept: the folders of one cell, while it is trained and when it is finished.

<target>_from_<source>.unfinished/settings.json           what the cell was begun with, and in which passes
                                  wandb.json              id of the W&B run
                                  <pass>/state*           resumable state of a pass
                                  <pass>/metrics.jsonl    its losses so far
                                  <pass>/records.json     measurements of its SAEs; a pass that has it is complete
                                  finished/               SAEs of complete passes
                                  previous/               what they replace, for the moment it takes
<target>_from_<source>_<pass>.resumable/                  settings and state of finished SAEs, where it was asked for
<target>_from_<source>_seed_<s>/                          finished SAEs, moved here in one step
                                  run_layers.<L>.json     record of layers that were added later; theirs is written last
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from sae_utils.errors import check_positive
from sae_utils.paths import UNFINISHED_SUFFIX, cell_name, seed_dir, series_name
from sae_utils.training.cells import Cell
from sae_utils.training.passes import Pass


@dataclass(frozen=True)
class CellFolders:
    """The folders of one cell."""

    checkpoint_dir: Path
    """Folder of all SAEs."""

    target: str
    """Short name of the target model."""

    source: str
    """Name of the source."""

    variant: str = ""
    """What sets the cell apart from the first one of its target and source; empty if it is that one."""

    works_in: str | None = None
    """Name of the cell that they are put together with; their own if None."""

    @property
    def series(self) -> str:
        """Under which its SAEs are listed."""
        return series_name(self.source, self.variant)

    @property
    def name(self) -> str:
        """Name that all of them start with."""
        return cell_name(self.target, self.series)

    @property
    def work_dir(self) -> Path:
        """Folder of the resumable state; it is gone when the cell is finished."""
        return self.checkpoint_dir / ((self.works_in or self.name) + UNFINISHED_SUFFIX)

    @property
    def settings_path(self) -> Path:
        """What the cell was begun with; there from the beginning to the end of its training."""
        return self.work_dir / "settings.json"

    def of_variant(self, variant: str) -> "CellFolders":
        """Those of SAEs that are kept on the way to this cell's, and put together with them."""
        return self if variant == self.variant else replace(self, variant=variant, works_in=self.name)

    def pass_dir(self, which: Pass) -> Path:
        """Folder of the state and the losses of one pass."""
        return self.work_dir / which.name

    def seed_dir(self, seed: int) -> Path:
        """Folder of the finished SAEs of a seed."""
        return seed_dir(self.checkpoint_dir, self.target, self.series, seed)

    def staged_dir(self, seed: int) -> Path:
        """Where a seed's folder is put together before it gets its final name."""
        return self.work_dir / "finished" / self.seed_dir(seed).name

    def staged_sae(self, layer: int, seed: int) -> Path:
        """Where an SAE waits in it."""
        return self.staged_dir(seed) / f"layers.{layer}"

    @property
    def previous_dir(self) -> Path:
        """Where finished folders are that are just being replaced."""
        return self.work_dir / "previous"

    def restore_previous(self) -> None:
        """Put back what a run set aside that was killed before it had put something in its place."""
        for folder in self.previous_dir.glob("*"):
            if not (self.checkpoint_dir / folder.name).exists():
                os.replace(folder, self.checkpoint_dir / folder.name)


@dataclass(frozen=True)
class Checkpoints:
    """How SAEs are kept."""

    folder: Path
    """Folder of all SAEs."""

    save_every: int = 1000
    """Optimizer steps between resumable checkpoints."""

    overwrite: bool = False
    """Train anew what stands there, instead of continuing it."""

    keeps_state: bool = False
    """Keep the state behind finished SAEs, so that a larger budget can go on from there."""

    def __post_init__(self) -> None:
        check_positive(save_every=self.save_every)

    def for_plan(self, cell: Cell) -> "Checkpoints":
        """As they are to be looked at for a cell: what is there is not of data that is not there yet."""
        return replace(self, overwrite=True) if cell.is_assumed else self

    def of(self, cell: Cell) -> CellFolders:
        """The folders of one cell."""
        return CellFolders(self.folder, cell.target.name, cell.source.name, cell.variant)
