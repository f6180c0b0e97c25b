from pathlib import Path

import pytest

from sae_utils.errors import InputError
from sae_utils.training.folders import CellFolders, Checkpoints
from sae_utils.training.passes import Pass

FOLDERS = CellFolders(Path("checkpoints"), "pythia-2.8b", "prose")


def test_names():
    """Documented ones: other people's scripts find SAEs by them."""
    assert FOLDERS.seed_dir(3) == Path("checkpoints/pythia-2.8b_from_prose_seed_3")
    assert FOLDERS.work_dir == Path("checkpoints/pythia-2.8b_from_prose.unfinished")
    assert FOLDERS.pass_dir(Pass((7, 15), (0,))) == FOLDERS.work_dir / "layers_7_15_seeds_0"
    assert FOLDERS.staged_dir(3) == FOLDERS.work_dir / "finished/pythia-2.8b_from_prose_seed_3"
    assert Checkpoints(Path("checkpoints")).of("pythia-2.8b", "prose") == FOLDERS


def test_only_the_cells_own_folders_are_removed():
    """What `--overwrite` throws away is not had again."""
    others = [FOLDERS.seed_dir(2), CellFolders(FOLDERS.checkpoint_dir, "pythia-2.8b", "other").work_dir]
    for folder in [FOLDERS.work_dir, FOLDERS.seed_dir(0), *others]:
        folder.mkdir(parents=True)
    FOLDERS.remove([0, 1])
    assert sorted(FOLDERS.checkpoint_dir.iterdir()) == sorted(others)


def test_checkpoints_that_are_never_written_are_refused():
    with pytest.raises(InputError, match="--save_every must be at least 1, got 0"):
        Checkpoints(Path("checkpoints"), save_every=0)
