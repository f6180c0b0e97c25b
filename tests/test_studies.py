"""Studies: their scripts run end to end with tiny sizes, and what they publish is made of what was recorded."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import make_model
from test_docs import STUDY_ON_CPU

ROOT = Path(__file__).resolve().parent.parent
STUDIES = ROOT / "studies"
OWN_TEXT = STUDIES / "own_text"

TINY = {
    "CODE": str(ROOT),
    "PYTHON": sys.executable,
    "N_TOKENS": "16384",
    "N_SEEDS": "2",
    "LAYERS": "1",
    "EVAL_TOKENS": "1024",
    "RANDOM_TOKENS": "1000",
}


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(script: Path, *flags: str, **variables: str) -> str:
    """Run a script of a study as a reader would; what it said."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    done = subprocess.run(["bash", str(script), *flags], env=env | variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("script", sorted(STUDIES.rglob("*.sh")), ids=lambda path: path.name)
def test_scripts_parse(script):
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.slow
def test_part_a_runs():
    """From texts to pages: whoever repeats it for hours must not meet a slip at their end."""
    tiny = {"PACKAGES": "--taught fsspec --foreign tqdm", "EPOCHS": "0.1", "BUDGETS": "8192"}
    run(OWN_TEXT / "small_model.sh", "work", **TINY, **tiny)
    page = Path("work/results_512/report.html").read_text(encoding="utf-8")
    for source in ("coder", "sibling", "taught", "held_out", "foreign", "random_ids", "coder-shuffled"):
        assert f">{source}</th>" in page
    assert "<dd>8,192</dd>" in page and (Path("work/results_256") / "report.html").exists()


@pytest.mark.slow
def test_part_b_runs():
    """With two models of other tokenizers, so that one text is tokenized again."""
    make_model(Path("models/own"), "neox")
    make_model(Path("models/gemma"), "llama")
    Path("human.jsonl").write_text('{"text": "she sells sea shells by the sea shore"}\n' * 4000)
    sizes = {"MODELS": "models", "TARGET": "own", "OTHER": "gemma", "HUMAN_TEXT": "human.jsonl", "BUDGETS": "8192"}
    run(OWN_TEXT / "smollm2.sh", "work", **TINY, **sizes)
    page = Path("work/results/report.html").read_text(encoding="utf-8")
    assert "Tokenized again" in page and all(
        f">{name}</th>" in page for name in ("own", "gemma", "human", "own-shuffled")
    )


@pytest.mark.slow
def test_the_setting_of_faithfulsae_runs():
    """Its own sizes take days; here the script, its flags and what it hands on are tried."""
    make_model(Path("tiny"), "neox")
    Path("pile.jsonl").write_text('{"text": "the quick brown fox jumps over the lazy dog"}\n' * 400)
    few = {"CONTROL": "pile.jsonl", "BUDGETS": "256", "NUM_SEEDS": "2", "N_PROCESSES": "1"}
    run(
        STUDIES / "faithful/run.sh",
        **STUDY_ON_CPU | few | {"TRAIN_FLAGS": "--num_latents 48 --k 4 --random_tokens 2000 --quiet"},
    )
    made = {path.name for path in Path("checkpoints").iterdir()}
    cells = ("tiny_from_tiny", "tiny_from_pile", "tiny_from_tiny_tokens_256", "tiny_from_pile_tokens_256")
    assert {f"{cell}_seed_{seed}" for cell in cells for seed in (0, 1)} <= made


def test_every_file_of_a_study_is_listed():
    """A reader looks there for what to run."""
    listed = set(re.findall(r"`([\w.]+\.(?:sh|py|txt))`", (OWN_TEXT / "README.md").read_text(encoding="utf-8")))
    assert listed == {path.name for path in OWN_TEXT.iterdir() if path.suffix in (".sh", ".py", ".txt")}


def test_what_is_published_is_made_of_what_was_recorded():
    """From a fresh clone: the same figures and tables, byte for byte, and the text has the tables as they are."""
    recorded = sorted(path.name.removesuffix(".json.xz") for path in (OWN_TEXT / "recorded").glob("*.json.xz"))
    assert recorded
    command = [sys.executable, str(OWN_TEXT / "report.py"), "pages", "--to", "made"]
    subprocess.run(command, check=True, capture_output=True)
    text = (OWN_TEXT / "README.md").read_text(encoding="utf-8")
    for folder in ("figures", "tables"):
        there = {path.name: path.read_bytes() for path in (OWN_TEXT / folder).iterdir()}
        assert {path.name: path.read_bytes() for path in Path("made", folder).iterdir()} == there
    for name in recorded:
        assert (OWN_TEXT / "tables" / f"{name}.md").read_text(encoding="utf-8") in text
        assert Path("pages", name, "report.html").exists()
