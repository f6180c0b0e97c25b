"""Features beside the page: which there are, what is in them, and what becomes of those of earlier reports."""

import json
from pathlib import Path

from sae_utils.report.feature_data import SaeFeatures
from sae_utils.report.feature_files import CALL, feature_files, file_name, remove_unused, write_features

SAES = [SaeFeatures(f"seed {seed}", f"tiny_seed_{seed}_layers.7", f'{{"features":[{seed}]}}') for seed in range(3)]


def names(folder: Path) -> list[str]:
    """Files in the folder of features."""
    return sorted(path.name for path in (folder / "features").iterdir())


def test_a_file_hands_its_name_and_the_features_to_the_page(tmp_path):
    write_features(tmp_path, SAES[:1])
    (path,) = feature_files(tmp_path)
    text = path.read_text()
    assert text.startswith(CALL) and text.endswith(");\n")
    found = json.loads(f"[{text[len(CALL) : -len(');') - 1]}]")
    assert found == [file_name(SAES[0]), {"features": [0]}]
    assert tmp_path / found[0] == path


def test_other_features_have_another_name():
    """Or a page that stayed open, or was copied without its folder, would show features that are not its own."""
    other = SaeFeatures(SAES[0].label, SAES[0].name, '{"features":[9]}')
    assert file_name(other) != file_name(SAES[0])
    assert file_name(other).rsplit(".", 2)[0] == file_name(SAES[0]).rsplit(".", 2)[0] == "features/tiny_seed_0_layers.7"


def test_files_of_earlier_reports_go_and_those_of_others_stay(tmp_path):
    """Ours begin as only ours do, wherever their names are from; what a killed run was writing goes, too."""
    write_features(tmp_path, SAES)
    folder = tmp_path / "features"
    (folder / "mine.js").write_text("let features = 1;")
    (folder / "notes.txt").write_text(CALL)
    (folder / "writing_tiny_seed_9.js").write_text("addFea")
    remove_unused(tmp_path, SAES[1:2])
    assert names(tmp_path) == ["mine.js", "notes.txt", Path(file_name(SAES[1])).name]
    assert feature_files(tmp_path) == [tmp_path / file_name(SAES[1])]


def test_a_folder_that_is_not_needed_is_gone(tmp_path):
    remove_unused(tmp_path, [])
    write_features(tmp_path, SAES)
    remove_unused(tmp_path, [])
    assert not (tmp_path / "features").exists() and feature_files(tmp_path) == []
