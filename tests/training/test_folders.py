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
    variant = CellFolders(Path("checkpoints"), "pythia-2.8b", "prose", "k_64")
    assert variant.seed_dir(3) == Path("checkpoints/pythia-2.8b_from_prose_k_64_seed_3")
    assert variant.work_dir == Path("checkpoints/pythia-2.8b_from_prose_k_64.unfinished")


def test_what_is_kept_on_the_way_is_put_together_with_the_rest():
    """It is published when the whole is, and must be there until then."""
    kept = FOLDERS.of_variant("tokens_640")
    assert kept.work_dir == FOLDERS.work_dir
    assert kept.staged_dir(3) == FOLDERS.work_dir / "finished/pythia-2.8b_from_prose_tokens_640_seed_3"
    assert kept.seed_dir(3) == Path("checkpoints/pythia-2.8b_from_prose_tokens_640_seed_3")
    assert FOLDERS.of_variant("") is FOLDERS


def test_what_was_set_aside_comes_back_where_nothing_is_in_its_place():
    """Killed between the two moves of a replacement: the finished SAEs must not be lost."""
    for seed in (0, 1):
        (FOLDERS.previous_dir / FOLDERS.seed_dir(seed).name / "old").mkdir(parents=True)
    (FOLDERS.seed_dir(1) / "new").mkdir(parents=True)
    FOLDERS.restore_previous()
    assert (FOLDERS.seed_dir(0) / "old").exists() and (FOLDERS.seed_dir(1) / "new").exists()


def test_checkpoints_that_are_never_written_are_refused():
    with pytest.raises(InputError, match="--save_every must be at least 1, got 0"):
        Checkpoints(Path("checkpoints"), save_every=0)
