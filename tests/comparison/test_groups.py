"""SAEs measured together: on which tokens, and how many at a time."""

import json
import math
import shutil
from pathlib import Path

from conftest import edit_record
from grid_files import EVAL_ONLY, compare, settings
from test_cli import refused

import generate_datasets
import train_sae
from sae_utils.comparison import groups
from sae_utils.comparison.groups import group_saes
from sae_utils.comparison.trained import find_all_trained
from sae_utils.comparison.whereabouts import find_sources_of
from sae_utils.sources.packing import open_chunks


def test_changed_data_are_refused(grid, capsys):
    """Held-out tokens of other data may be in what was trained on."""
    argv = ["--models", "./tiny", "--num_tokens", "3000", "--max_length", "30", "--quiet", "--overwrite"]
    generate_datasets.main(argv)
    capsys.readouterr()
    error = refused(capsys, train_sae.main, EVAL_ONLY)
    assert "tiny_from_tiny_seed_0/layers.0 was trained on datasets/tiny_42_1.0_0.9 with the fingerprint" in error
    assert "bring the data back, or train again with --overwrite" in error


def test_lost_data_are_refused(grid, capsys):
    shutil.rmtree("datasets/tiny_42_1.0_0.9")
    error = refused(capsys, train_sae.main, EVAL_ONLY)
    assert "the data set datasets/tiny_42_1.0_0.9 is gone" in error


def test_two_data_sets_of_one_name_are_refused(grid, capsys):
    """Their columns in the matrix of sources would be one."""
    folder, moved = Path("datasets/tiny_42_1.0_0.9"), Path("datasets/tiny_43_1.0_0.9")
    generate_datasets.main(
        ["--models", "./tiny", "--seed", "43", "--num_tokens", "2500", "--max_length", "40", "--quiet"]
    )
    fingerprint = json.loads((moved / "generation.json").read_text())["fingerprint"]
    path = Path("checkpoints/tiny_from_tiny_seed_1/run.json")
    edit_record(path, dataset=str(moved), dataset_fingerprint=fingerprint)
    capsys.readouterr()
    error = refused(capsys, train_sae.main, EVAL_ONLY)
    assert f"{folder} and {moved} are both called tiny" in error


def test_saes_that_were_measured_leave_memory_before_the_next_come(grid, monkeypatch):
    """Or a device that holds n of them would have to hold 2 n."""
    monkeypatch.setattr(groups, "free_bytes", lambda device: 0)
    saes = find_all_trained(Path("checkpoints"))[0]
    (group,), parts = group_saes(saes, find_sources_of(saes, settings().where), settings()), []
    for hooked in group.in_memory(saes, group.load_target()):
        assert [len(part) for part in parts] == [0] * len(parts)
        assert len(hooked) == 1
        parts.append(hooked)
    assert len(parts) == 12


def test_room_is_left_for_what_a_batch_needs(grid, monkeypatch):
    """Filled with SAEs alone, a device has no place for the logits of a large vocabulary."""
    saes = find_all_trained(Path("checkpoints"))[0]
    (group,) = group_saes(saes, find_sources_of(saes, settings().where), settings())
    target = group.load_target()
    n_tokens, vocab = 2 * 32, len(target.tokenizer)
    logits, pieces = 2 * 4 * n_tokens * vocab, 5 * 4 * n_tokens * vocab
    outputs, latents = (2 * 4 + 6 * 8) * n_tokens * 16, 2 * 4 * n_tokens * 48
    assert group.batch_bytes(saes, target) == logits + pieces + outputs + latents
    needed = group.batch_bytes(saes, target) + 3 * (6_400 + 24_576)  # for three SAEs and their counts
    for n_bytes, n_together in ((needed - 1, 2), (needed, 3)):
        monkeypatch.setattr(groups, "free_bytes", lambda device, n_bytes=n_bytes: math.ceil(n_bytes / 0.85))
        assert len(next(group.in_memory(saes, target))) == n_together


def test_a_source_shorter_than_what_is_held_out_is_used_whole(grid, caplog):
    """No sequence may be counted twice, and the number of tokens says how many there were."""
    saes = [sae for sae in find_all_trained(Path("checkpoints"))[0] if sae.seed == 0]
    for sae in saes:
        sae.run["settings"]["n_eval_tokens"] = 10**6
    results = compare(saes, Path("others"), settings())
    for record in results.saes.values():
        for each in record["evaluations"]:
            (packed,) = Path("datasets/.packed").glob(f"{each['eval_source']}_*_32.npy")
            assert each["n_tokens"] == int((open_chunks(packed).tokens[:, 1:] != 0).sum()), "but first and bos"
    assert "has fewer tokens than were held out of others" in caplog.text
