"""What the tests may see of the machine, and what they say about what they leave out."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import HIDDEN_GPUS, NO_GPUS, selects_gpu_tests_only

TESTS = Path(__file__).parent


def test_tests_see_no_gpu_nor_does_what_they_start():
    """Without `--device`, scripts take the GPU and bfloat16, where runs that should give the same bytes do not."""
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert not torch.cuda.is_available()
    code = "import os; print(repr(os.environ['CUDA_VISIBLE_DEVICES']))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "''\n"


@pytest.mark.parametrize(
    ("marks", "is_shown"),
    [
        ("", False),
        ("gpu", True),
        ("not gpu", False),
        ("slow", False),
        ("gpu and slow", True),
        ("gpu and not slow", True),
        ("gpu or slow", False),
        ("(gpu and slow) or (gpu and not slow)", True),
    ],
)
def test_gpus_are_shown_to_a_run_of_nothing_but_their_tests(marks, is_shown):
    """`gpu or slow` would run slow tests on the GPU that are meant for a CPU."""
    assert selects_gpu_tests_only(marks) == is_shown


def run_of(source: str, *flags: str) -> tuple[list[str], int]:
    """Lines that say what was skipped, in a run of these tests where a GPU could be seen; exit status."""
    Path("test_it.py").write_text(source)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "conftest", "-q", "--color=yes", *flags, "test_it.py"],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "0", "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"},
        capture_output=True,
        text=True,
    )
    return re.findall("^.*SKIPPED.*$", done.stdout, flags=re.MULTILINE), done.returncode


def loud(line: str) -> str:
    return f"\x1b[33m\x1b[1m{line}\x1b[0m"


@pytest.mark.slow
def test_what_was_skipped_is_said_with_its_reason():
    """A run without a browser looks like one with it, but for the letters among the dots."""
    source = """
import os, pytest

@pytest.mark.skip(reason="no browser")
@pytest.mark.parametrize("page", range(3))
def test_page(page): ...

@pytest.mark.gpu
def test_gpu():
    assert False, "runs where no GPU is"

def test_cpu():
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
"""
    lines = [loud("SKIPPED 3 tests: no browser"), loud(f"SKIPPED 1 test: {HIDDEN_GPUS}")]
    assert run_of(source) == (lines, 0)
    assert run_of(source, "-m", "not gpu") == (lines[:1], 0)


@pytest.mark.slow
def test_a_run_of_the_tests_of_a_gpu_sees_them():
    """And, where there is none, ends well and says so."""
    source = """
import os, pytest

pytestmark = pytest.mark.gpu
assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"

def test_gpu(): ...
"""
    lines, code = run_of(source, "-m", "gpu")
    assert lines in ([], [loud(f"SKIPPED 1 test: {NO_GPUS}")])
    assert code == 0
