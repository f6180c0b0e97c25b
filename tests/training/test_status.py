"""What a dry run of training says of what is finished, what was begun, what is left, and for how long."""

import re
from pathlib import Path

import pytest
from conftest import run_killed
from test_cli import TRAIN, all_bytes, generate, refused, train

import train_sae
from sae_utils.files import read_record, write_record
from sae_utils.training.passes import PassMemory

RATES = Path("checkpoints/.rates.json")
N_TOKENS = 1920
"""Tokens that an SAE is trained on, of 2,000 sampled."""


def status(capsys, *flags: str) -> list[str]:
    """The lines behind the plan of a dry run."""
    capsys.readouterr()
    train_sae.main([*TRAIN, "--train_only", "--dry_run", *flags])
    lines = capsys.readouterr().out.splitlines()
    return lines[next(i for i, line in enumerate(lines) if "SAEs are finished" in line) :]


def set_rates(tokens_per_sec: int) -> None:
    """As if this machine trained so fast."""
    entries = read_record(RATES, "")["rates"]
    changes = {"n_tokens": 5_000, "elapsed_sec": 5_000 / tokens_per_sec}
    write_record(RATES, {"rates": [entry | changes for entry in entries]})


def test_without_a_rate_the_line_says_how_to_get_one(tiny, capsys):
    generate("--num_tokens", "2000")
    head, cell = status(capsys)
    assert head.startswith("0 of 4 SAEs are finished, 4 left to train: how long that takes is not known, as ")
    assert f"{RATES} has no rate of the like on " in head and "stop it by Ctrl-C" in head
    assert cell == "  tiny_from_tiny: 0 of 4 SAEs finished; layers 0 1, seeds 0 1"
    assert not Path("checkpoints").exists()


def test_finished_and_missing_seeds_and_the_time_of_the_like(tiny, capsys):
    """A second source is trained as fast as the first, and a third seed alone otherwise."""
    generate("--num_tokens", "2000")
    generate("--num_tokens", "2000", "--seed", "1")
    train("--num_seeds", "2")
    set_rates(10)
    before = all_bytes(Path("checkpoints"))
    assert status(capsys) == ["4 of 4 SAEs are finished", "  tiny_from_tiny: finished"]
    head, cell = status(capsys, "--num_seeds", "3")
    assert head.startswith("4 of 6 SAEs are finished, 2 left to train: how long that takes is not known")
    assert cell == "  tiny_from_tiny: 4 of 6 SAEs finished; layers 0 1, seeds 2"
    head, cell = status(capsys, "--overwrite")
    assert re.fullmatch(
        r"0 of 4 SAEs are finished, 4 left to train: about 3\.2 min by rates measured last on .* with 1 thread, the "
        r"comparison not counted",
        head,
    )
    assert (
        cell
        == "  tiny_from_tiny: 0 of 4 SAEs finished; layers 0 1, seeds 0 1, about 3.2 min (10 tok/s over 5,000 tokens)"
    )
    assert all_bytes(Path("checkpoints")) == before, "a dry run writes nothing"


@pytest.mark.parametrize(("n_passes", "moment"), [(1, 14), (2, 20)])
def test_how_far_an_unfinished_cell_has_got(tiny, capsys, monkeypatch, n_passes, moment):
    """By its last checkpoint, from which it goes on."""
    generate("--num_tokens", "2000")
    if n_passes == 2:
        monkeypatch.setattr(PassMemory, "fitting", lambda memory, free: 2)
    argv = [*TRAIN, "--train_only", "--save_every", "5"]
    assert run_killed(train_sae.main, argv, moment), "killed too late to test anything"
    states = sorted(Path("checkpoints").glob("*.unfinished/*/state.json"))
    at = [read_record(path, "")["global_step"] * 2 * 32 for path in states]
    assert at, "killed before the first checkpoint"
    head, cell = status(capsys)
    assert head.startswith("0 of 4 SAEs are finished, 4 left to train")
    parts = cell.removeprefix("  tiny_from_tiny: 0 of 4 SAEs finished; ").split("; ")
    assert len(parts) == n_passes
    assert f"layers 0{' 1' * (n_passes == 1)}, seeds 0 1 at {at[0]:,} of {N_TOKENS:,} tokens" in parts[0]
    assert not RATES.exists(), "a killed pass leaves none"
    train_sae.main(argv)
    assert status(capsys)[0] == "4 of 4 SAEs are finished"


def test_what_is_left_is_what_takes_time(tiny, capsys):
    """A pass that has half of its steps behind it takes half as long."""
    generate("--num_tokens", "2000")
    train("--checkpoint_dir", "whole")
    argv = [*TRAIN, "--train_only", "--save_every", "5"]
    assert run_killed(train_sae.main, argv, 14)
    RATES.write_bytes((Path("whole") / RATES.name).read_bytes())
    set_rates(10)
    (state,) = Path("checkpoints").glob("*.unfinished/*/state.json")
    n_left = N_TOKENS - read_record(state, "")["global_step"] * 2 * 32
    _, cell = status(capsys)
    assert 0 < n_left < N_TOKENS and f", about {n_left / 10 / 60:.1f} min (10 tok/s" in cell


def test_what_is_added_to_an_unfinished_cell_comes_behind_it(tiny, capsys):
    """What was begun goes on with its own seeds and layers."""
    generate("--num_tokens", "2000")
    argv = [*TRAIN, "--train_only", "--save_every", "5"]
    assert run_killed(train_sae.main, [*argv, "--layers", "1"], 14)
    head, cell = status(capsys, "--num_seeds", "3")
    first, *others = cell.removeprefix("  tiny_from_tiny: 0 of 6 SAEs finished; ").split("; ")
    assert first.startswith("layers 1, seeds 0 1 at ") and others == ["layers 0 1, seeds 2", "layers 0, seeds 0 1"]
    assert head.startswith("0 of 6 SAEs are finished, 6 left")


def test_saes_on_the_way_take_no_time_of_their_own(tiny, capsys):
    generate("--num_tokens", "2000")
    keep = ["--keep_at", "640"]
    head, *cells = status(capsys, *keep)
    assert head.startswith("0 of 8 SAEs are finished, 8 left")
    assert cells[1] == "  tiny_from_tiny_tokens_640: 0 of 4 SAEs finished; kept on the way to tiny_from_tiny"
    train(*keep)
    assert status(capsys, *keep)[0] == "8 of 8 SAEs are finished"


def test_a_larger_budget_goes_on_from_a_kept_state(tiny, capsys):
    generate("--num_tokens", "2000")
    train("--max_tokens", "640", "--keep_state")
    larger = ["--max_tokens", "1280"]
    _, cell = status(capsys, *larger)
    assert cell.endswith(
        "tokens_1280: 0 of 4 SAEs finished; layers 0 1, seeds 0 1 at 640 of 1,280 tokens"
        + cell[cell.index(", about") :]
    )


def test_a_dry_run_refuses_what_the_run_would_refuse(tiny, capsys):
    generate("--num_tokens", "2000")
    train()
    said = {refused(capsys, train_sae.main, [*TRAIN, "--shuffle_seed", "5", *dry]) for dry in ([], ["--dry_run"])}
    assert len(said) == 1 and "shuffle_seed was 42 and is now 5" in said.pop()


def test_rates_are_in_no_record(tiny):
    """A record has to be the same when a run is repeated."""
    generate("--num_tokens", "2000")
    train("--num_seeds", "1")
    (entry,) = read_record(RATES, "")["rates"]
    assert (entry["of"]["n_saes"], entry["of"]["layers"], entry["of"]["n_latents"]) == (2, [0, 1], 48)
    assert 0 < entry["n_tokens"] == N_TOKENS - 64, "from the first step's end to the last one's"
    assert "elapsed_sec" not in Path("checkpoints/tiny_from_tiny_seed_0/run.json").read_text()
