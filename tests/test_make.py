"""What `make` does, in which order, and what it says meanwhile."""

import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def make(*words: str) -> subprocess.CompletedProcess[str]:
    """Run `make` in the project; nothing that an outer `make` was told reaches it."""
    env = {name: os.environ[name] for name in os.environ.keys() - {"MAKEFLAGS", "TORCH_INDEX_URL"}}
    return subprocess.run(["make", "-C", str(ROOT), *words], env=env, capture_output=True, text=True)


def stub(path: Path, script: str) -> None:
    """A program of this name that only notes down how it was called, and runs a line of shell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\necho "${{0##*/}} $*" >> "{Path("calls").resolve()}"\n{script}\n')
    path.chmod(0o755)


def calls() -> list[str]:
    return Path("calls").read_text().splitlines()


def test_pip_looks_for_pytorch_where_it_is_told_to():
    """The ordinary build is gigabytes, of no use without a GPU."""
    target, variable = re.search(r"`make (demo) (TORCH_INDEX_URL=\S+)`", README).groups()
    dry = ("--dry-run", "--always-make", "VENV=fresh", target)
    assert f"--extra-index-url {variable.removeprefix('TORCH_INDEX_URL=')} " in make(*dry, variable).stdout
    for plain in (make(*dry).stdout, make(*dry, "TORCH_INDEX_URL=").stdout):
        assert "pip install" in plain and "index" not in plain


def test_make_test_ends_with_the_gpu_and_says_how_long_each_part_took():
    """A plain run hides GPUs: without the last part, nothing would test them."""
    for name in ("ruff", "python"):
        stub(Path("venv/bin") / name, "")
    Path("venv/ready").touch()
    parts = ["ruff format --check .", "ruff check .", "python -m pytest", "python -m pytest -m gpu"]
    done = make("test", f"VENV={Path('venv').resolve()}")
    assert calls() == parts
    assert re.findall(r"^\d+ s: .*/bin/(.*)$", done.stdout, flags=re.MULTILINE) == parts
    assert done.returncode == 0


def test_make_test_stops_at_what_fails():
    """The time that is said afterwards must not pass for success."""
    stub(Path("venv/bin/ruff"), "test $1 = format")
    Path("venv/ready").touch()
    assert make("test", f"VENV={Path('venv').resolve()}").returncode != 0
    assert calls() == ["ruff format --check .", "ruff check ."]
