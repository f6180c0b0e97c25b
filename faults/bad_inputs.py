"""Command lines and inputs that are wrong: each is refused in one line with exit code 2, and nothing is lost.

Flags stand behind those of a good command, so that they count; or something is put in place first that makes a good
command a bad one.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import broken_inputs as broken
from folders import differences
from processes import PATIENCE_SEC, ROOT, Failure, Strike
from study import STEPS, Step, Study
from trials import REFUSED, SAME, Case, Trial, check_refused

HUGE = str(10**15)

VALUES = {
    "generation": {
        "--seed": ["x", "1.5"],
        "--temperature": ["0", "-1", "nan", "inf", "x"],
        "--top_p": ["0", "-0.1", "1.1", "nan", "inf", "x"],
        "--num_tokens": ["0", "-1", "1.5", HUGE, str(10**30)],
        "--max_length": ["0", "-3", "1", "5000", HUGE],
        "--batch_size": ["0", "-1", "x"],
        "--device": ["tpu", "cuda:99", "cuda", "cpu:x"],
        "--dtype": ["int8", "float", "''"],
        "--models": [
            "",
            "./nowhere",
            "''",
            "..",
            "texts.txt",
            "a/b/c",
            "EleutherAI/pythia-9b",
            "tiny ./tiny",
            "/",
            "~",
        ],
        "--output_dir": ["texts.txt", "texts.txt/below", "/proc/datasets"],
        "--nonsense": ["1"],
        "--m": ["1"],
        "nonsense": [""],
    },
    "training": {
        "--lr": ["0", "-1", "nan", "inf", "-inf", "1e300", "x"],
        "--k": ["0", "-1", "49", "1.5", HUGE],
        "--num_latents": ["0", "-1", HUGE],
        "--expansion_factor": ["0", "-1", "2"],
        "--num_seeds": ["0", "-1", HUGE],
        "--layers": ["-1", "7", "1 1", "", "x"],
        "--batch_size": ["0", "-1", HUGE],
        "--ctx_len": ["0", "-1", "5000", "1500", HUGE],
        "--max_tokens": ["0", "-1", "5"],
        "--eval_tokens": ["0", "-1", HUGE],
        "--shuffle_seed": ["x", "-1"],
        "--dataset_seed": ["9", "x"],
        "--dataset_temperature": ["2.0", "nan", "1e-05"],
        "--dataset_top_p": ["0.5", "nan"],
        "--grad_acc_steps": ["0", "-1", HUGE],
        "--micro_acc_steps": ["0", "-1", HUGE],
        "--optimizer": ["sgd"],
        "--save_every": ["0", "-1"],
        "--export": ["x"],
        "--wandb_mode": ["x", "online"],
        "--device": ["tpu", "cuda"],
        "--dtype": ["int8"],
        "--target_models": ["", "nowhere", "tiny ./tiny", "../nowhere", "texts.txt"],
        "--org_name": ["nowhere --target_models absent", "texts.txt --target_models absent"],
        "--source_models": ["nowhere", "other", "tiny tiny"],
        "--datasets_dir": ["nowhere", "texts.txt"],
        "--checkpoint_dir": ["texts.txt", "texts.txt/below", "/proc/checkpoints"],
        "--eval_only": [""],
        "--distribute_modules": [""],
        "--text_datasets": ["nowhere.txt", "nowhere", "nobody/nothing", "nobody/nothing:x", ".", "tiny", "''", "x.gz"],
    },
    "comparison": {
        "--random_tokens": ["0", "-1", "x"],
        "--batch_size": ["0", "-1"],
        "--checkpoint_dir": ["nowhere", "texts.txt", "datasets"],
        "--results_dir": ["texts.txt", "texts.txt/below", "/proc/results"],
        "--device": ["cuda"],
    },
}
"""By a step's name: flags and their values, as words of a shell."""

CORPORA: dict[str, Callable[[Path], object]] = {
    "empty.txt": lambda path: path.write_text(""),
    "blank_lines.txt": lambda path: path.write_text("\n\n\n"),
    "short.txt": lambda path: path.write_text("a\n"),
    "latin1.txt": lambda path: path.write_bytes("é\n".encode("latin-1") * 500),
    "zeros.txt": lambda path: path.write_bytes(b"\0" * 1000),
    "folder.txt": lambda path: path.mkdir(),
    "empty.jsonl": lambda path: path.write_text(""),
    "no_column.jsonl": lambda path: path.write_text('{"texts": "a"}\n'),
    "numbers.jsonl": lambda path: path.write_text('{"text": 1}\n{"text": 2}\n'),
    "lists.jsonl": lambda path: path.write_text('{"text": ["a"]}\n'),
    "nulls.jsonl": lambda path: path.write_text('{"text": null}\n'),
    "mixed.jsonl": lambda path: path.write_text('{"text": "a"}\n{"text": 1}\n'),
    "cut.jsonl": lambda path: path.write_text('{"text": "a"}\n{"text": "b'),
    "no_json.jsonl": lambda path: path.write_text("a\nb\n"),
    "no_objects.jsonl": lambda path: path.write_text("[1]\n2\n"),
    "latin1.jsonl": lambda path: path.write_bytes('{"text": "é"}\n'.encode("latin-1")),
    "empty.parquet": lambda path: path.write_bytes(b""),
    "garbage.parquet": lambda path: path.write_bytes(b"PAR1" + bytes(range(256)) + b"PAR1"),
    "table.csv": lambda path: path.write_text("text\na\n"),
    "empty_folder": lambda path: path.mkdir(),
    "foreign_folder": lambda path: (path.mkdir(), (path / "state.json").write_text("{}")),
    "tiny.txt": lambda path: path.write_text("called like the source model\n" * 100),
}
"""Corpora that cannot be trained on."""

OTHER_SETTINGS = [
    ("generating", "generation", "--max_length 30"),
    ("generated", "extension", "--max_length 30"),
    ("generated", "extension", "--dtype bfloat16"),
    ("training", "training", "--shuffle_seed 5"),
    ("training", "training", "--micro_acc_steps 2"),
    ("training", "training", "--k 5 --ctx_len 16"),
    ("trained", "training", "--ctx_len 16"),
    ("trained", "training", "--eval_tokens 64"),
]
"""State, step, flags: what was begun is not gone on with in another way."""

IN_PLACE: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    **{f"model: {name}": ("generation", "models", break_it) for name, break_it in broken.MODELS.items()},
    **{f"target: {name}": ("training", "packed", break_it) for name, break_it in broken.MODELS.items()},
    **{f"data set: {name}": ("training", "generated", break_it) for name, break_it in broken.DATA_SETS.items()},
    **{f"results: {name}": ("comparison", "trained", break_it) for name, break_it in broken.RESULTS.items()},
}
"""By a name: a step, the state it starts from, and what is done to that first."""

READ_ONLY = {
    "generation": ("models", "--output_dir", "kept"),
    "training": ("packed", "--checkpoint_dir", "kept"),
    "comparison": ("trained", "--results_dir", "kept"),
}
"""By a step: the state, and a flag with a folder that nobody may write into."""


def cases(study: Study, rounds: int, only: str = "") -> Iterator[Case]:
    """All bad inputs; more rounds give no others."""
    for step, flags in VALUES.items():
        for flag, values in flags.items():
            for value in values:
                words = (flag, *shlex.split(value))
                yield case(f"{step}/{' '.join(words).replace('/', ':')}", STEPS[step], STEPS[step].before, words)
    for name, make in CORPORA.items():
        put = partial(_put, name=name, make=make)
        yield case(f"corpus/{name}", STEPS["training"], "generated", ("--text_datasets", name), put)
    for state, step, flags in OTHER_SETTINGS:
        yield case(f"other settings/{state} {flags}", STEPS[step], state, tuple(flags.split()))
    for name, (step, state, break_it) in IN_PLACE.items():
        yield case(f"in place/{name}", STEPS[step], state, (), break_it)
    for step, (state, flag, place) in READ_ONLY.items():
        play_it = partial(write_where_nobody_may, step=STEPS[step], state=state, flags=(flag, place))
        yield Case(f"bad_inputs/read only/{step}", "bad input: read only", play_it, (state,))
    for name in ("generation", "packing", "comparison"):
        for where in ("head", "full"):
            talk = partial(talk_to_nobody, step=STEPS[name], where=where)
            yield Case(f"bad_inputs/output/{name} to {where}", "bad input: output", talk, (STEPS[name].before,))


def case(
    name: str, step: Step, state: str, flags: tuple[str, ...], put: Callable[[Path], object] | None = None
) -> Case:
    """A command that must be refused."""
    row = name.split("/")[0]
    return Case(
        f"bad_inputs/{name}",
        f"bad input: {row}",
        partial(refuse, step=step, state=state, flags=flags, put=put),
        (state,),
    )


def refuse(
    trial: Trial, *, step: Step, state: str, flags: tuple[str, ...], put: Callable[[Path], object] | None
) -> str:
    """One line, exit code 2, and all that was there is there still."""
    trial.start_from(state)
    if put:
        put(trial.place)
    before = trial.contents()
    line = check_refused(trial.run(step.script, [*step.flags, *flags]))
    if len(line.strip()) < len("train_sae.py: error: "):
        raise Failure(f"the line says nothing: {line!r}")
    trial.check_nothing_half_written(before)
    now = trial.contents()
    kept = {path: was for path, was in before.items() if ".locks" not in path}
    if wrong := differences({path: now[path] for path in kept if path in now}, kept):
        raise Failure(f"refused, and: {'; '.join(wrong[:5])}")
    return REFUSED


def write_where_nobody_may(trial: Trial, *, step: Step, state: str, flags: tuple[str, ...]) -> str:
    """A folder without permission to write, for a user who is not root."""
    trial.start_from(state)
    kept = trial.place / flags[1]
    kept.mkdir()
    if os.getuid() == 0:
        broken.give_away(trial.folder)
    kept.chmod(0o555)
    try:
        ending = trial.run(step.script, [*step.flags, *flags], Strike(is_nobody=os.getuid() == 0))
        if flags[1] not in check_refused(ending):
            raise Failure(f"{flags[1]} should be named, got {ending.err!r}")
    finally:
        kept.chmod(0o755)
    return REFUSED


def talk_to_nobody(trial: Trial, *, step: Step, where: str) -> str:
    """Standard output that is closed at once, as by `head`, or that takes nothing: no traceback, however it ends."""
    trial.start_from(step.before)
    words = [sys.executable, str(ROOT / step.script), *trial.study.filled(step.flags)]
    trial.note(shlex.join(words) + (" | head -c 0" if where == "head" else " > /dev/full"))
    output = subprocess.PIPE if where == "head" else open("/dev/full", "w")  # noqa: SIM115 - closed below
    with subprocess.Popen(words, cwd=trial.place, stdout=output, stderr=subprocess.PIPE, text=True) as process:
        (process.stdout or output).close()
        _, said = process.communicate(timeout=PATIENCE_SEC)
    if "Traceback" in said or "Exception ignored" in said or said.count("\n") > 1:
        raise Failure(f"exit code {process.returncode}, at most one line is to be said, got: {said.strip()[-400:]}")
    return SAME if process.returncode == 0 else REFUSED


def _put(place: Path, *, name: str, make: Callable[[Path], object]) -> None:
    make(place / name)
