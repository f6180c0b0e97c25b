"""What a dry run of sampling says of what is there, what is left, and for how long."""

from pathlib import Path

import pytest
from test_cli import all_bytes, generate

import generate_datasets
from sae_utils.files import read_record, write_record

RATES = Path("datasets/.rates.json")


def last_line(capsys, *flags: str) -> str:
    """Of a dry run."""
    capsys.readouterr()
    generate_datasets.main(["--models", "./tiny", "--max_length", "40", "--dry_run", *flags])
    return capsys.readouterr().out.splitlines()[-1]


def set_rate(tokens_per_sec: int) -> None:
    """As if this machine sampled so fast."""
    (entry,) = read_record(RATES, "")["rates"]
    write_record(RATES, {"rates": [entry | {"n_tokens": 10_000, "elapsed_sec": 10_000 / tokens_per_sec}]})


def test_without_a_rate_the_line_says_how_to_get_one(tiny, capsys):
    line = last_line(capsys, "--n", "300")
    assert "already there: 0 samples, 0 tokens; left to sample: 300 samples, how long that takes is not known" in line
    assert f"{RATES} has no rate of the like on " in line and "sample a few first" in line
    assert not Path("datasets").exists()


def test_a_first_try_gives_the_time_of_the_rest(tiny, capsys):
    generate("--n", "10")
    n_tokens = read_record(Path("datasets/tiny_42_1.0_0.9/generation.json"), "")["n_tokens"]
    (entry,) = read_record(RATES, "")["rates"]
    assert (entry["n_tokens"], entry["n_samples"], entry["n_together"]) == (n_tokens, 10, 10)
    set_rate(50)
    line = last_line(capsys, "--num_tokens", f"{n_tokens + 180_000}")
    assert f"already there: 10 samples, {n_tokens:,} tokens; left to sample: 180,000 tokens, about 1.0 h by" in line
    assert "50 tok/s over 10,000 tokens, 10 samples together, on " in line


@pytest.mark.parametrize("there", ["more of it", "another seed"])
def test_samples_left_are_as_long_as_those_that_are_known(tiny, capsys, there):
    """Those that are there, or those that the rate was measured on."""
    generate("--n", "10", *(["--seed", "1"] if there == "another seed" else []))
    (entry,) = read_record(RATES, "")["rates"]
    write_record(RATES, {"rates": [entry | {"elapsed_sec": entry["n_tokens"] / 10}]})  # 10 tok/s
    n_left = 90 if there == "more of it" else 100
    minutes = n_left * entry["n_tokens"] / 10 / 10 / 60
    line = last_line(capsys, "--n", "100")
    shown = f"{minutes * 60:.0f} s" if minutes < 1 else f"{minutes:.1f} min"
    assert f"left to sample: {n_left} samples, about {shown} by 10 tok/s" in line


def test_what_is_finished_is_said_to_be(tiny, capsys):
    generate("--n", "10")
    before = all_bytes(Path("datasets"))
    assert last_line(capsys, "--n", "5") == "  already there: all of it; nothing is left to sample"
    assert "already there: 0 samples" in last_line(capsys, "--n", "5", "--overwrite")
    assert all_bytes(Path("datasets")) == before, "a dry run writes nothing"


def test_another_length_or_format_has_another_rate(tiny, capsys):
    """bfloat16 is several times as fast as float32 on some machines, and as slow on others."""
    generate("--n", "10")
    other = ["--seed", "1", "--n", "300"]
    assert "about" in last_line(capsys, *other)
    assert "is not known" in last_line(capsys, *other, "--dtype", "bfloat16")
    assert "is not known" in last_line(capsys, *other, "--max_length", "50")


def test_a_damaged_rate_is_named_and_nothing_else_is_lost(tiny, capsys):
    generate("--n", "10")
    RATES.write_text("{")
    generate_datasets.main(["--models", "./tiny", "--max_length", "40", "--dry_run", "--n", "20"])
    said = capsys.readouterr()
    assert f"{RATES} is damaged (" in said.err and "how long that takes is not known" in said.out
