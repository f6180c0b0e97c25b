"""Folders of several machines are compared together, and what is known of their SAEs is not measured again."""

import json
import shutil
from copy import copy
from pathlib import Path

import pytest
from test_cli import TRAIN, all_bytes, generate, refused, times, train

import train_sae
from sae_utils.comparison import measuring, pairs
from sae_utils.report.findings import read_findings

COMPARE = [*TRAIN, "--random_tokens", "500", "--layers", "1"]
PROSE = ["--text_datasets", "prose.txt", "--text_tokens", "1000000000"]


@pytest.fixture
def two_machines(tiny) -> list[str]:
    """One has trained on the model's own text, the other on a corpus, as one grid; each has compared its own."""
    generate("--num_tokens", "2000")
    Path("prose.txt").write_text("\n".join(f"the quick brown fox number {i} jumps over it" for i in range(400)))
    train("--layers", "1", *PROSE)
    for name, cells in (("a", "tiny_from_tiny_seed_*"), ("b", "tiny_from_prose_seed_*")):
        for folder in Path("checkpoints").glob(cells):
            shutil.copytree(folder, Path(name) / folder.name)
        train_sae.main([*COMPARE, *PROSE, "--eval_only", "--checkpoint_dir", name, "--results_dir", f"results_{name}"])
    return ["--eval_only", *PROSE, "--checkpoint_dir", "a", "b", "--results_dir"]


def test_what_is_known_is_taken_over_and_the_rest_measured(two_machines, monkeypatch):
    """The same bytes as if nothing was known; only what neither machine could know is computed."""
    train_sae.main([*COMPARE, *two_machines, "from_nothing"])
    measured, matched = [], []
    monkeypatch.setattr(measuring, "measure_reconstruction", watching(measuring.measure_reconstruction, measured, 1))
    monkeypatch.setattr(pairs, "match_pair", watching(pairs.match_pair, matched, 0))
    before = {name: all_bytes(Path(name)) for name in ("results_a", "results_b")}
    train_sae.main([*COMPARE, *two_machines, "merged", "results_a", "results_b"])
    assert [len(saes) for saes in measured] == [2, 2]  # those of each source, on the other
    assert {pair.kind for pair in matched} == {"between", "same_seed"}  # within each they are known
    names = "metrics.json", "metrics.csv"
    assert [Path("merged", name).read_bytes() for name in names] == [
        Path("from_nothing", name).read_bytes() for name in names
    ]
    assert {name: all_bytes(Path(name)) for name in before} == before
    dates = times("merged")
    train_sae.main([*COMPARE, *two_machines, "merged", "results_a", "results_b"])
    assert times("merged") == dates


def watching(function, calls: list, which: int):
    """The function, which notes one of its arguments as it is when it is called."""

    def watched(*args, **kwargs):
        calls.append(copy(args[which]))
        return function(*args, **kwargs)

    return watched


def test_the_same_name_with_another_setting_gets_one_of_its_own(tiny):
    """Each machine has the first SAEs of its folder under the plain name."""
    generate("--num_tokens", "2000")
    train("--layers", "1", "--checkpoint_dir", "a")
    train("--layers", "1", "--k", "8", "--checkpoint_dir", "b")
    train_sae.main([*COMPARE, "--eval_only", "--checkpoint_dir", "a", "b"])
    findings = read_findings(Path("results"))
    assert findings.sources == ["tiny", "tiny_k_8"]
    assert [[sae["k"] for sae in each.saes] for each in findings.comparisons] == [[4, 4], [8, 8]]
    assert json.loads(Path("results/metrics.json").read_text())["saes"][2]["path"] == "b/tiny_from_tiny_seed_0/layers.1"


def test_what_is_there_twice_is_compared_once(tiny):
    generate("--num_tokens", "2000")
    train("--layers", "1")
    shutil.copytree("checkpoints", "copy")
    train_sae.main([*COMPARE, "--eval_only", "--checkpoint_dir", "checkpoints", "copy"])
    assert len(json.loads(Path("results/metrics.json").read_text())["saes"]) == 2


def test_what_would_be_taken_for_each_other_is_refused(tiny, capsys):
    generate("--num_tokens", "2000")
    train("--layers", "1", "--num_seeds", "1", "--checkpoint_dir", "a")
    train("--layers", "1", "--num_seeds", "1", "--ctx_len", "16", "--checkpoint_dir", "b")
    argv = [*COMPARE, "--eval_only", "--checkpoint_dir", "a", "b"]
    capsys.readouterr()
    assert "b/tiny_from_tiny_seed_0 have one name" in (error := refused(capsys, train_sae.main, argv))
    assert "ctx_len was 32 and is now 16" in error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--checkpoint_dir", "a", "b"], "--checkpoint_dir takes several folders only with --eval_only, got b"),
        (["--results_dir", "a", "b"], "--results_dir takes several folders only with --eval_only, got b"),
    ],
)
def test_several_folders_are_for_comparing(tiny, capsys, flags, message):
    assert message in refused(capsys, train_sae.main, [*COMPARE, *flags])


def test_a_folder_without_results_is_refused(tiny, capsys):
    generate("--num_tokens", "2000")
    train("--layers", "1", "--num_seeds", "1")
    capsys.readouterr()
    argv = [*COMPARE, "--eval_only", "--results_dir", "results", "nothing"]
    assert "nothing has no results to be taken over" in refused(capsys, train_sae.main, argv)
