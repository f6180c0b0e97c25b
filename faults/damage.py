"""Damaged files, each in every way: noticed and named, repaired, or of no consequence.

Which files there are is found by walking the folders of runs killed half way and of finished ones, so that a new file
is covered the day it comes. Files whose names differ in numbers only are of one kind; every file is damaged, and every
kind in every way.
"""

import json
import random
import re
import shlex
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from folders import copy, differences
from processes import GENERATE, TRAIN, Failure
from study import SAMPLED_ANEW, STEPS, Step, Study
from trials import REFUSED, SAME, UNREAD, Case, Trial, check_no_traceback, check_refused

N_BIT_FLIPS = 2
"""Positions in a file of each kind."""


MAY_GO = re.compile(r"\.locks/|writing_|\.tmp$|\.unfinished/.*(metrics\.jsonl|state[^/]*|whole\.arrow)$|/$")
"""What a run may remove or write anew before it is refused: locks, scraps, checkpoints that newer ones follow."""


DRAWN_FROM, REPORT_RECORD = r"results/details/.+\.npz", "results/report.json"
"""Archives, whose bytes are not all guarded by checksums of the format, such as times; and the record of the bytes from
which page and figures were drawn, which are compared themselves."""


@dataclass(frozen=True)
class Scenario:
    """Folders whose files are damaged, and who reads them afterwards."""

    name: str
    state: str
    """What stands there."""

    folders: tuple[str, ...]
    """Whose files are damaged."""

    step: Step
    """What is run then; on the undamaged state it ends in the step's `after`."""

    is_ours: bool = True
    """Whether files are ours; of a model, other bytes may make another model."""


SCENARIOS = (
    Scenario("unfinished data set", "generating", ("datasets",), STEPS["generation"]),
    Scenario("unfinished extension", "extending", ("datasets",), STEPS["extension"]),
    Scenario("data set while swapped", "swapping", ("datasets",), STEPS["extension"]),
    Scenario("finished data set, extended", "generated", ("datasets",), STEPS["extension"]),
    Scenario("finished data set, again", "generated", ("datasets",), STEPS["generation"]),
    Scenario("finished data set, trained on", "generated", ("datasets",), STEPS["training"]),
    Scenario("packed sequences", "packed", ("datasets/.packed",), STEPS["training"]),
    Scenario("packed sequences, compared", "trained", ("datasets/.packed",), STEPS["comparison"]),
    Scenario("training", "training", ("checkpoints",), STEPS["training"]),
    Scenario("between passes", "between passes", ("checkpoints",), STEPS["training"]),
    Scenario("publishing", "publishing", ("checkpoints",), STEPS["training"]),
    Scenario("finished SAEs, compared", "trained", ("checkpoints",), STEPS["comparison"]),
    Scenario("finished SAEs, again", "trained", ("checkpoints",), STEPS["training"]),
    Scenario("half a comparison", "comparing", ("results", "checkpoints/saelens"), STEPS["comparison"]),
    Scenario("results", "compared", ("results", "checkpoints/saelens"), STEPS["comparison"]),
    Scenario("model", "models", ("tiny",), STEPS["generation"], is_ours=False),
)


def cases(study: Study, rounds: int, only: str = "") -> Iterator[Case]:
    """All damages: of each kind of file all ways, on its files in turn; and of each file at least one.

    A kind that the same command has met in an earlier scenario gets one way only, and each of its files.
    """
    met: set[tuple[str, str]] = set()
    for scenario in SCENARIOS:
        start = f"damage/{scenario.name}"
        if not (only.startswith(start) or start.startswith(only.rstrip("/"))):
            continue
        for kind, paths in kinds(study.state(scenario.state), scenario.folders).items():
            ways = [way for _ in range(rounds) for way in ways_for(paths[0])]
            for i in range(len(paths) if (scenario.step.name, kind) in met else max(len(ways), len(paths))):
                path, way = paths[i % len(paths)], ways[i % len(ways)]
                yield Case(
                    f"damage/{scenario.name}/{kind}/{way} {i}",
                    f"damage: {scenario.name}",
                    partial(damage, scenario=scenario, path=path, way=way),
                    needs_of(scenario),
                )
            met.add((scenario.step.name, kind))


def needs_of(scenario: Scenario) -> tuple[str, ...]:
    """States of the study that a scenario needs."""
    return scenario.state, *(step.after for step in leads_to(scenario))


def leads_to(scenario: Scenario) -> list[Step]:
    """Steps with whose states a scenario may end: an extended data set may have been sampled from its first token."""
    return [scenario.step, SAMPLED_ANEW] if scenario.step == STEPS["extension"] else [scenario.step]


def kinds(folder: Path, parts: Sequence[str]) -> dict[str, list[str]]:
    """Paths of the files in parts of a folder, by their kinds."""
    found = defaultdict(list)
    for part in parts:
        for path in sorted((folder / part).rglob("*")):
            if path.is_file():
                relative = str(path.relative_to(folder))
                found[kind_of(relative)].append(relative)
    return dict(found)


def kind_of(path: str) -> str:
    """A path without what differs between files of one kind: numbers, hashes, names of models, corpora and figures.

    >>> kind_of("checkpoints/tiny_from_texts_seed_1/layers.0/cfg.json")
    'checkpoints:X_from_X_seed_#:layers.#:cfg.json'
    >>> kind_of("results/figures/seed_agreement.png")
    'results:figures:X.png'
    """
    named = re.sub(r"(?<![a-z])(tiny|texts)(?=_)|(?<=/figures/)\w+", "X", path)
    return re.sub(r"[0-9a-f]{16,}|\d[\d.]*\d|\d", "#", named).replace("/", ":")


def ways_for(path: str) -> list[str]:
    """Names of the ways in which a file can be damaged."""
    texts = [name for name in WAYS if name.startswith("says ")] if path.endswith((".json", ".jsonl")) else []
    others = [name for name in WAYS if not name.startswith("says ") and name not in ("bit flipped", "letter changed")]
    letters = ["letter changed"] if path.endswith(".arrow") else []
    return [*others, *["bit flipped"] * N_BIT_FLIPS, *letters, *texts]


def flip_bit(path: Path, rng: random.Random) -> None:
    """One bit of a file, anywhere."""
    data = bytearray(path.read_bytes())
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def change_letter(path: Path, rng: random.Random) -> None:
    """One bit of a letter in the longest text of a file, which so stays one that can be read; not of its beginning."""
    data = bytearray(path.read_bytes())
    longest = max(re.finditer(rb"[A-Za-z ]+", data), key=lambda found: len(found[0]))
    letters = [i for i in range(*longest.span()) if data[i] != ord(" ")]
    data[rng.choice(letters)] ^= 1
    path.write_bytes(data)


def replace_by_folder(path: Path, rng: random.Random) -> None:
    """A folder in its place."""
    path.unlink()
    path.mkdir()


WAYS: dict[str, Callable[[Path, random.Random], object]] = {
    "cut to half": lambda path, rng: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "cut to nothing": lambda path, rng: path.write_bytes(b""),
    "garbage": lambda path, rng: path.write_bytes(rng.randbytes(max(1, path.stat().st_size))),
    "removed": lambda path, rng: path.unlink(),
    "a folder": replace_by_folder,
    "bit flipped": flip_bit,
    "letter changed": change_letter,
    "says {}": lambda path, rng: path.write_text("{}\n"),
    "says []": lambda path, rng: path.write_text("[]\n"),
    "says null": lambda path, rng: path.write_text("null\n"),
}


def damage(trial: Trial, *, scenario: Scenario, path: str, way: str) -> str:
    """A damaged file, the command that reads it, and what the command advises."""
    trial.start_from(scenario.state)
    part = trial.place / path.split("/")[0]
    if part.is_symlink():  # inputs that all trials share
        source = part.resolve()
        part.unlink()
        copy(source, part)
    WAYS[way](trial.place / path, trial.rng)
    trial.note(f"# {path}: {way}")
    before = trial.contents()
    ending = trial.begin_step(scenario.step).wait()
    check_no_traceback(ending)
    if ending.code == 0:
        return check_unharmed(trial, scenario, path, way, before)
    line = check_refused(ending)
    check_names(line, path)
    check_nothing_lost(trial, scenario, path, before)
    if scenario.is_ours:
        check_others_measured(trial, scenario, path)
        follow(trial, line, scenario, path)
    return REFUSED


def check_unharmed(trial: Trial, scenario: Scenario, path: str, way: str, before: dict[str, str]) -> str:
    """The outcome of a run that ended well beside a damaged file.

    Raises:
        Failure: If any other file is not what an unbroken run gives, or the damaged one is another one again.
    """
    now, found = trial.contents(), []
    for step in leads_to(scenario):
        expected = trial.study.contents(step.after)
        everything = now.keys() | expected.keys() | before.keys()
        inside = {name for name in everything if name.rstrip("/") == path}
        if not scenario.is_ours:  # the record says which model it was: what counts is what it said
            if way == "bit flipped":
                return UNREAD  # as good a model as any
            inside |= {name for name in everything if not name.endswith(".arrow")}
        follows = {REPORT_RECORD} if re.fullmatch(DRAWN_FROM, path) else set()
        wrong = differences(now, expected, but_for=inside | follows)
        if not wrong and all(now.get(name) == expected.get(name) for name in inside):
            return SAME
        if not wrong and (not scenario.is_ours or all(now.get(name) == before.get(name) for name in inside)):
            return UNREAD
        found.append(wrong or [f"{path} is neither what it was nor what it should be"])
    raise Failure(f"exit code 0 with other files: {'; '.join(found[0][:8])}")


def check_names(line: str, path: str) -> None:
    """Refuse a message from which nobody learns which file it is about.

    Raises:
        Failure: If it names neither the file nor its folder.
    """
    names = [Path(path).name, *(str(parent) for parent in Path(path).parents if len(parent.parts) > 1)]
    if path.startswith("tiny/"):
        names.append("tiny")
    if not any(name in line for name in names):
        raise Failure(f"{path} should be named, got {line!r}")


def check_nothing_lost(trial: Trial, scenario: Scenario, path: str, before: dict[str, str]) -> None:
    """Refuse that anything but the damaged file is gone or changed, unless into what an unbroken run makes of it.

    Raises:
        Failure: If something is.
    """
    trial.check_nothing_half_written(before)
    now, after = trial.contents(), trial.study.contents(scenario.step.after)
    lost = [
        name
        for name, was in before.items()
        if name.rstrip("/") != path and not MAY_GO.search(name) and now.get(name) not in (was, after.get(name))
    ]
    if lost:
        raise Failure(f"beside {path}, gone or changed: {', '.join(lost[:5])}")


def check_others_measured(trial: Trial, scenario: Scenario, path: str) -> None:
    """Refuse that one damaged SAE keeps others from being measured.

    Raises:
        Failure: If an SAE of another seed or source is not in the results.
    """
    if scenario.step != STEPS["comparison"] or not path.startswith("checkpoints/") or "saelens" in path:
        return
    results = trial.place / "results/metrics.json"
    measured = json.loads(results.read_text())["saes"] if results.exists() else []
    folders = {Path(record["path"]).parent.name for record in measured}
    others = {folder.name for folder in (trial.place / "checkpoints").glob("*_seed_*")} - {Path(path).parts[1]}
    if missing := sorted(others - folders):
        raise Failure(f"{path} is damaged, and others are not measured either: {', '.join(missing)}")


def follow(trial: Trial, line: str, scenario: Scenario, path: str) -> None:
    """Do what a message advises, if it is something that can be done, and look at what comes of it.

    Raises:
        Failure: If that does not end as an unbroken run does.
    """
    flags = advised(trial, line, scenario.step)
    if flags is None:
        return
    ending = trial.run(scenario.step.script, [*scenario.step.flags, *flags])
    is_anew = len(leads_to(scenario)) > 1 and "--overwrite" in flags
    try:
        trial.check_same(leads_to(scenario)[is_anew], ending)
    except Failure as failure:
        raise Failure(f"what was advised does not help: {line!r}, and then: {failure}") from None


def advised(trial: Trial, line: str, step: Step) -> list[str] | None:
    """Carry out what a message advises; flags to add to the same command, or None if it advises nothing to be done.

    The command that made something may be another one than the one that refused it; it is given before that.
    """
    done = False
    if "the generate_datasets.py command that made it and --overwrite" in line and step.script != GENERATE:
        give(trial, GENERATE, [*STEPS["generation"].flags, "--overwrite"])
        done = True
    for command in re.findall(r"python (?:generate_datasets|train_sae)\.py [^;`]+", line):
        _, script, *flags = shlex.split(command)
        give(trial, script, flags)
        done = True
    for command in re.findall(r"\brm (?:-rf? )?[^\s,;`'\"]+", line):
        trial.note(command)
        removed = subprocess.run(shlex.split(command), cwd=trial.place, capture_output=True, text=True, check=False)
        if removed.returncode:
            raise Failure(f"what was advised cannot be done: {removed.stderr.strip()!r}, in {line!r}")
        done = True
    if "train its seed again with the command that made it" in line:
        give(trial, TRAIN, STEPS["training"].flags)
    if done:
        return []
    return ["--overwrite"] if "--overwrite" in line else None


def give(trial: Trial, script: str, flags: Sequence[str]) -> None:
    """Give a command that a message advises.

    Raises:
        Failure: If it does not end well.
    """
    ending = trial.run(script, flags)
    check_no_traceback(ending)
    if ending.code != 0:
        raise Failure(f"what was advised cannot be done: {ending.last_words}")
