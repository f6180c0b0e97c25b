import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import generate_datasets
import train_sae
from sae_utils.command_line import MAX_HELP_WIDTH, WAITING, add_running_flags, make_parser, run_script
from sae_utils.errors import InputError

ROOT = Path(__file__).resolve().parent.parent

SCRIPTS = {"generate_datasets.py": generate_datasets, "train_sae.py": train_sae}


def help_of(script: str, monkeypatch, columns: int) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(columns))
    return SCRIPTS[script].build_parser().format_help().splitlines()


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_readable_on_80_columns(script, monkeypatch):
    """What most people need stands first, and no line is broken by the terminal."""
    lines = help_of(script, monkeypatch, 80)
    assert max(map(len, lines)) <= 80
    assert lines[2] == SCRIPTS[script].__doc__.splitlines()[0]
    assert sum(line.startswith("    python ") for line in lines[3:9]) == 3
    wide = help_of(script, monkeypatch, 300)
    assert max(map(len, wide)) <= MAX_HELP_WIDTH
    assert "None" not in " ".join(lines), "a default that says nothing"


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_commands_in_help_parse(script):
    text = SCRIPTS[script].__doc__.replace("\\\n", " ")
    commands = [shlex.split(line, comments=True) for line in re.findall(r"^    python (.*)$", text, flags=re.MULTILINE)]
    assert len(commands) == 3
    for name, *flags in commands:
        assert name == script
        SCRIPTS[script].build_parser().parse_args(flags)


def test_both_scripts_have_the_same_running_flags():
    """Learned once: the same names, words and defaults."""
    shared = make_parser("")
    add_running_flags(shared)
    flags = {action.dest: (action.help, action.default) for action in shared._actions}
    for module in SCRIPTS.values():
        own = {action.dest: (action.help, action.default) for action in module.build_parser()._actions}
        assert own | flags == own


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ({}, ["PASSIVE", "1000"]),
        ({"GOMP_SPINCOUNT": "7"}, ["PASSIVE", "7"]),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, ["ACTIVE", "None"]),
    ],
)
def test_threads_wait_asleep_unless_told_otherwise(told, found, monkeypatch):
    """OpenMP looks when PyTorch is imported, which no script may have done by then."""
    for name in WAITING:
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    code = (
        "import os, sys, generate_datasets, train_sae; from sae_utils.command_line import make_parser, run_script; "
        "names = 'OMP_WAIT_POLICY', 'GOMP_SPINCOUNT'; "
        "show = lambda args: print(*map(os.environ.get, names), 'torch' in sys.modules); "
        "run_script(make_parser('test'), show, [], when_stopped=str)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert shown.split() == [*found, "False"]


def test_a_script_ends_with_one_line_when_something_has_to_be_changed(capsys):
    def refuse(args: argparse.Namespace) -> None:
        raise InputError("--k must be at least 1, got 0")

    parser = make_parser("text")
    with pytest.raises(SystemExit) as stop:
        run_script(parser, refuse, [], when_stopped=lambda args: "stopped")
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"{parser.prog}: error: --k must be at least 1, got 0\n"


def test_a_stopped_script_says_how_to_go_on(capsys):
    def stop(args: argparse.Namespace) -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stopped:
        run_script(make_parser("text"), stop, [], when_stopped=lambda args: "the same command goes on")
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "the same command goes on\n"
