"""SAEs that are kept on the way are those of smaller budgets, bit for bit, and keeping them changes nothing."""

import json
from pathlib import Path

import pytest
from conftest import run_killed
from test_cli import TRAIN, all_bytes, compared, generate, refused, times, train

import train_sae

SIGNUM = ["--lr", "0.01", "--layers", "1"]


def with_names(folder: str, *names: str) -> dict[str, dict]:
    """What was trained, by folder, without what says where it lies."""
    return {name: compared(Path(folder) / name) for name in names}


def same_saes(found: str, expected: str, name: str, expected_name: str) -> None:
    """Weights, losses and numbers, but for the name that says what they are beside."""
    (a, b) = (compared(Path(where) / each) for where, each in ((found, name), (expected, expected_name)))
    for record in (*a["run.json"]["saes"], *b["run.json"]["saes"]):
        del record["variant"]
    a["README.md"] = a["README.md"].replace(name.encode(), expected_name.encode())
    assert a == b


@pytest.mark.parametrize("flags", [[], ["--exclude", "first", "norm:1.1"], ["--grad_acc_steps", "2"]])
def test_what_is_kept_is_what_a_smaller_budget_gives(tiny, flags):
    """In all that is recorded; and the SAEs of the end are those of a run that kept nothing."""
    generate("--num_tokens", "2000")
    train(*SIGNUM, *flags, "--keep_at", "650", "1.3e3")
    for n_tokens in (640, 1280):
        train(*SIGNUM, *flags, "--max_tokens", str(n_tokens), "--checkpoint_dir", f"only_{n_tokens}")
        for seed in (0, 1):
            kept = f"tiny_from_tiny_tokens_{n_tokens}_seed_{seed}"
            same_saes("checkpoints", f"only_{n_tokens}", kept, f"tiny_from_tiny_seed_{seed}")
    train(*SIGNUM, *flags, "--checkpoint_dir", "nothing_kept")
    names = ["tiny_from_tiny_seed_0", "tiny_from_tiny_seed_1"]
    assert with_names("checkpoints", *names) == with_names("nothing_kept", *names)
    assert not list(Path("checkpoints").glob("*.unfinished"))


@pytest.mark.parametrize("moments", [(2, 4), (7, 6, 9), (14, 10, 8, 4), (20, 3)])
def test_killed_on_the_way(tiny, moments):
    """SIGKILL before, between and behind what is kept; the end is that of an unbroken run."""
    generate("--num_tokens", "2000")
    flags = [*SIGNUM, "--num_seeds", "1", "--keep_at", "640", "1280", "--save_every", "8"]
    train(*flags)
    for moment in moments:
        argv = [*TRAIN, *flags, "--train_only", "--checkpoint_dir", "killed"]
        assert run_killed(train_sae.main, argv, moment), "killed too late to test anything"
    train(*flags, "--checkpoint_dir", "killed")
    names = [path.name for path in Path("checkpoints").glob("*_seed_*")]
    assert len(names) == 3
    assert with_names("killed", *names) == with_names("checkpoints", *names)


def test_what_is_kept_is_compared_like_any_other(tiny):
    """Agreement at each number of tokens, and nothing done anew when the command comes again."""
    generate("--num_tokens", "2000")
    argv = [*TRAIN, *SIGNUM, "--random_tokens", "500", "--keep_at", "640", "1280"]
    train_sae.main(argv)
    metrics = json.loads(Path("results/metrics.json").read_text())
    assert {(sae["source"], sae["n_train_tokens"]) for sae in metrics["saes"]} == {
        ("tiny", 1920),
        ("tiny_tokens_640", 640),
        ("tiny_tokens_1280", 1280),
    }
    assert {(pair["source"], pair["source_b"]) for pair in metrics["pairs"]} == {
        (source, source) for source in ("tiny", "tiny_tokens_640", "tiny_tokens_1280")
    }
    dates = times("checkpoints", "results")
    train_sae.main(argv)
    assert times("checkpoints", "results") == dates


def test_a_point_of_a_curve_is_measured_on_its_own_source(tiny):
    """The SAEs of the largest budget on every source; an SAE with other settings is no point of their curve."""
    generate("--num_tokens", "2000")
    argv = [*TRAIN, *SIGNUM, "--controls", "shuffled", "--num_seeds", "1", "--random_tokens", "500"]
    train_sae.main([*argv, "--keep_at", "640"])
    train_sae.main([*argv, "--k", "2", "--max_tokens", "640"])
    metrics = json.loads(Path("results/metrics.json").read_text())
    measured = {sae["source"]: [each["eval_source"] for each in sae["evaluations"]] for sae in metrics["saes"]}
    everywhere = ["tiny", "tiny-shuffled"]
    assert measured == {
        "tiny": everywhere,
        "tiny-shuffled": everywhere,
        "tiny_tokens_640": ["tiny"],
        "tiny-shuffled_tokens_640": ["tiny-shuffled"],
        "tiny_k_2_tokens_640": everywhere,
        "tiny-shuffled_k_2_tokens_640": everywhere,
    }
    assert all(sae["random_tokens"] for sae in metrics["saes"])


def test_what_was_not_kept_is_trained_by_itself(tiny):
    """Asked for when the way is over; and layers that are added later have theirs as well."""
    generate("--num_tokens", "2000")
    train(*SIGNUM, "--num_seeds", "1")
    before = all_bytes(Path("checkpoints"))
    train("--lr", "0.01", "--layers", "0", "1", "--num_seeds", "1", "--keep_at", "640")
    train("--lr", "0.01", "--layers", "0", "1", "--num_seeds", "1", "--max_tokens", "640", "--checkpoint_dir", "only")
    found, expected = all_bytes(Path("checkpoints")), all_bytes(Path("only"))
    assert "| 1 |" in before.pop("tiny_from_tiny_seed_0/README.md").decode(), "the card of all layers takes its place"
    assert {name: found[name] for name in before} == before
    for layer in (0, 1):
        kept = found[f"tiny_from_tiny_tokens_640_seed_0/layers.{layer}/sae.safetensors"]
        assert kept == expected[f"tiny_from_tiny_seed_0/layers.{layer}/sae.safetensors"]


def test_overwriting_replaces_what_was_kept(tiny):
    generate("--num_tokens", "2000")
    flags = ["--layers", "1", "--num_seeds", "1", "--keep_at", "640"]
    train(*flags)
    before = with_names("checkpoints", "tiny_from_tiny_tokens_640_seed_0")
    train(*flags, "--overwrite")
    assert with_names("checkpoints", "tiny_from_tiny_tokens_640_seed_0") == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--keep_at", "640", "--optimizer", "adam"], "with --optimizer adam it falls to the end of the budget"),
        (["--keep_at", "63"], "--keep_at must be at least one step (64 tokens) and less than the 1,920"),
        (["--keep_at", "1e6"], "less than the 1,920 training tokens, got 1,000,000"),
        (["--keep_state", "--optimizer", "muon"], "with --optimizer muon the learning rate has fallen to 0"),
    ],
)
def test_what_cannot_be_kept_is_refused(tiny, capsys, flags, message):
    generate("--num_tokens", "2000")
    capsys.readouterr()
    assert message in refused(capsys, train_sae.main, [*TRAIN, *flags])


@pytest.mark.parametrize("number", ["0.5", "many", "nan", "inf"])
def test_what_is_no_number_of_tokens_is_refused(capsys, number):
    with pytest.raises(SystemExit, match="2"):
        train_sae.main([*TRAIN, "--keep_at", "1e6", number])
    assert f"argument --keep_at: must be numbers of tokens, such as 1e6, got {number}" in capsys.readouterr().err
