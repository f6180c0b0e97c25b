"""What `make` and continuous integration do, in which order, and what they say meanwhile."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

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
    tests = "python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile"
    parts = ["ruff format --check .", "ruff check .", tests, "python -m pytest -m gpu"]
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


@pytest.mark.parametrize(("installation", "is_loud"), [("touch browser", False), ("exit 100", True)])
def test_ci_tests_with_triton_and_without_and_says_when_there_is_no_browser(installation, is_loud):
    """Users have one or the other; and a machine that lacks a browser tests less, which must not pass unseen."""
    Path(".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", ".ci/run")
    stub(Path("bin/make"), "")
    stub(Path("bin/id"), "echo 0")
    stub(Path("bin/apt-get"), f"test $1 = update || {installation}")
    stub(Path(".venv/bin/pip"), "")
    stub(Path(".venv/bin/python"), "test $1 != -c || test -e browser")
    env = os.environ | {"PATH": f"{Path('bin').resolve()}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([".ci/run"], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ("No Chromium" in done.stdout) == is_loud
    steps = ["make .venv/ready", "apt-get install", "pip uninstall", "python -m pytest", "pip install", "make test"]
    ran = [call for call in calls() if call.startswith((*steps, "make demo"))]
    assert [call[: len(step)] for call, step in zip(ran, [*steps, "make demo"], strict=True)] == [*steps, "make demo"]
    assert all("triton" in call for call in ran if call.startswith("pip"))
    timed = re.findall(r"^\d+ s: (.*)$", done.stdout, flags=re.MULTILINE)
    assert len(timed) == 6 and timed[-2:] == ["make test", "make demo"]
