"""A short form of the fault suite, and that the suite and the soak notice what they are there for."""

import random
import re
import subprocess
from pathlib import Path

import families
import pytest
import soak
import trials
from damage import check_names, kinds
from folders import contents, differences
from processes import Ending, Failure, Strike
from study import STEPS, Study
from trials import FAILED, REFUSED, SAME, Case, Trial, check_refused, play

ROOT = Path(__file__).resolve().parent.parent
GENERATION = STEPS["generation"]

SHORT = [
    "kills/generation/0",
    "kills/extension/0",
    "kills/training/0",
    "kills/training/1",
    "kills/SIGINT/0",
    "bad_inputs/generation/--top_p 0",
    "bad_inputs/generation/--models ",
    "bad_inputs/training/--k 49",
    "bad_inputs/corpus/empty.txt",
    "bad_inputs/corpus/no_column.jsonl",
    "bad_inputs/other settings/generated --max_length 30",
    "bad_inputs/other settings/training --shuffle_seed 5",
    "concurrency/generation later/0",
    "concurrency/training later/0",
]
"""Trials of every family, as `make faults` plays them by the hundred."""


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    """States by forked processes alone, which takes a second and not ten."""
    return Study(tmp_path_factory.mktemp("states"), is_real=False)


@pytest.mark.parametrize("name", SHORT)
def test_short_form(study, tmp_path, name):
    """Nothing of ours is lost or wrong when a run is struck, starved or fed with nonsense."""
    (case,) = families.find_cases(study, only=name)
    trials.prepare([case], study)
    result = play(case, study, tmp_path, seed=0)
    assert result.outcome in (SAME, REFUSED), result.reason


# that faults are noticed


def ended(code: int, err: str = "") -> Ending:
    """A run that ended like this."""
    return Ending(code, "", err, 1.0, 0, "python train_sae.py")


TRACEBACK = 'Traceback (most recent call last):\n  File "/a/sae_utils/x.py", line 1, in f\nKeyError: 1\n'


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        (ended(0), "exit code 0, expected 2"),
        (ended(1, "x\n"), "exit code 1, expected 2"),
        (ended(-7), "exit code -7, expected 2"),
        (ended(2), "0 lines"),
        (ended(2, "a\nb\n"), "2 lines"),
        (ended(2, TRACEBACK), "traceback from sae_utils/x.py f: KeyError: 1"),
    ],
)
def test_what_is_not_one_line_with_exit_code_2_fails(ending, reason):
    with pytest.raises(Failure, match=reason):
        check_refused(ending)
    assert check_refused(ended(2, "train_sae.py: error: no\n")) == "train_sae.py: error: no"


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda place: (place / "datasets/.locks").mkdir(), "datasets/.locks/ is left over"),
        (lambda place: (place / "datasets/writing_x").write_text(""), "datasets/writing_x is left over"),
        (lambda place: next(place.rglob("*.arrow")).unlink(), "arrow is missing"),
        (lambda place: next(place.rglob("README.md")).write_text(""), "README.md differs"),
        (lambda place: next(place.rglob("generation.json")).write_text("{}"), "generation.json differs"),
    ],
)
def test_a_run_that_does_not_end_like_an_unbroken_one_fails(study, tmp_path, harm, reason):
    trial = Trial(tmp_path / "trial", study, random.Random(0))
    trial.start_from(GENERATION.after)
    assert trial.check_same(GENERATION, ended(0)) == SAME
    harm(trial.place)
    with pytest.raises(Failure, match=reason):
        trial.check_same(GENERATION, ended(0))


def test_a_script_that_does_otherwise_after_a_kill_is_caught(study, tmp_path, monkeypatch):
    """From the kill to the verdict with nothing pretended: only the script under test is broken."""
    from sae_utils.generation import job

    (case,) = families.find_cases(study, only="kills/generation/1")
    trials.prepare([case], study)
    assert play(case, study, tmp_path, seed=0).outcome == SAME
    write = job.write_data_card
    monkeypatch.setattr(job, "write_data_card", lambda folder, *rest: (write(folder, *rest), (folder / "x").touch()))
    result = play(case, study, tmp_path, seed=0)
    assert result.outcome == FAILED and "/x is left over" in result.reason
    assert "python generate_datasets.py" in (tmp_path / case.name / "commands.txt").read_text()


def test_a_slip_of_the_suite_is_a_failure_too(study, tmp_path):
    """Or a family that is broken would pass for one that found nothing."""

    def slip(trial: Trial) -> str:
        raise KeyError("x")

    result = play(Case("family/slip", "fault", slip), study, tmp_path, seed=0)
    assert result.outcome == FAILED
    assert trials.exit_code([result]) == 1
    assert trials.exit_code([]) == 1, "nothing tried is nothing shown"


def test_failures_are_counted_and_can_be_played_again(study, tmp_path):
    def fail(trial: Trial) -> str:
        raise Failure(f"a/b.json differs at {trial.rng.randint(0, 99)}")

    cases = [Case(f"family/{i}", "a fault", fail) for i in range(3)]
    cases.append(Case("family/good", "a fault", lambda trial: SAME))
    results = [play(case, study, tmp_path, seed=5) for case in cases]
    assert results == [play(case, study, tmp_path, seed=5) for case in cases], "the seed decides"
    assert trials.exit_code(results) == 1
    said = trials.describe_failures(results, tmp_path, seed=5)
    assert said.startswith("3 x a fault: a/b.json differs") and "--seed 5 --only family/0" in said
    assert trials.table(results).splitlines()[1].split() == ["a", "fault", "4", "1", "0", "3"]
    assert (tmp_path / "family/0/reason.txt").exists() and not (tmp_path / "family/good").exists()


def test_every_file_is_damaged_without_being_listed(tmp_path):
    """A file that a later version writes is covered the day it comes."""
    for path in (
        "checkpoints/tiny_from_texts_seed_0/new.bin",
        "checkpoints/tiny_from_tiny_seed_1/new.bin",
        "results/n",
    ):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
    assert kinds(tmp_path, ["checkpoints"]) == {
        "checkpoints:X_from_X_seed_#:new.bin": [
            "checkpoints/tiny_from_texts_seed_0/new.bin",
            "checkpoints/tiny_from_tiny_seed_1/new.bin",
        ]
    }


def test_a_message_must_name_the_file_or_its_folder():
    check_names("error: checkpoints/c_seed_0/run.json cannot be read", "checkpoints/c_seed_0/run.json")
    check_names("error: checkpoints/c_seed_0 is damaged", "checkpoints/c_seed_0/run.json")
    with pytest.raises(Failure, match="should be named"):
        check_names("error: something in checkpoints is damaged", "checkpoints/c_seed_0/run.json")


def test_only_what_may_differ_is_left_out_of_account(tmp_path):
    """Ids of W&B runs and the commit of the checkout; nothing else of these files."""
    found = []
    for i, (commit, n) in enumerate([("a", 1), ("b", 1), ("a", 2)]):
        (tmp_path / f"{i}").mkdir()
        (tmp_path / f"{i}/run.json").write_text(f'{{"git_commit": "{commit}", "n": {n}}}')
        found.append(contents(tmp_path / f"{i}"))
    assert differences(found[1], found[0]) == []
    assert differences(found[2], found[0]) == ["run.json differs"]


def test_a_process_is_killed_before_the_write_that_is_named(study, tmp_path):
    """The states of half-done runs rest on it."""
    trial = Trial(tmp_path / "trial", study, random.Random(0))
    trial.start_from(GENERATION.before)
    ending = trial.begin_step(GENERATION, Strike(2, of=r"/samples_\S+$")).wait()
    assert ending.code == -9
    assert len(list(trial.place.glob("datasets/*.unfinished/samples_*"))) == 1


def test_make_plays_the_suite_and_the_soak():
    for target, script in (("faults", "faults/suite.py"), ("soak", "faults/soak.py")):
        done = subprocess.run(["make", "-C", str(ROOT), "-n", target], capture_output=True, text=True, check=True)
        assert f"python {script}" in done.stdout


# soak


def samples(n: int = 100, **rises: float) -> list[soak.Sample]:
    """Samples two seconds apart, ten steps each, with memory that jitters; what rises, rises by so much a sample."""
    jitter = random.Random(0)
    level = {"own_mb": 300.0, "n_files": 4.0, "n_threads": 3.0, "n_steps": 0.0}
    rises = {"n_steps": 10.0} | rises
    curve = []
    for i in range(n):
        now = {name: start + i * rises.get(name, 0.0) for name, start in level.items()}
        now["own_mb"] += jitter.uniform(-0.5, 0.5)
        curve.append(soak.Sample(2.0 * i, 500.0, **now))
    return curve


@pytest.mark.parametrize(
    ("rises", "reason"),
    [
        ({"own_mb": 0.1}, "memory grows by 3.0. MB a minute"),
        ({"n_files": 0.1}, "files grow by"),
        ({"n_threads": 0.1}, "threads grow by"),
        ({"n_steps": 0.0}, "it did nothing"),
    ],
)
def test_growth_is_noticed(rises, reason):
    """The line through the samples, not their noise, decides."""
    assert soak.verdict(samples()) == []
    (found,) = soak.verdict(samples(**rises))
    assert re.search(reason, found), found


def test_growth_of_the_beginning_is_none():
    """Imports, packing, and what libraries keep for good are over after the warm-up."""
    imports = [soak.Sample(float(i), 500.0, 3.0 * i, 50, 9, 0) for i in range(100)]
    warming = [soak.Sample(100 + each.sec, 500.0, min(300.0, 100 + 20 * i), 4, 3, each.n_steps + 1)
               for i, each in enumerate(samples())]  # fmt: skip
    assert soak.verdict(imports + warming) == []


def test_a_process_that_fails_or_is_hardly_seen_is_no_success():
    assert soak.verdict(samples(), ended="") == [], "it was through"
    assert "it failed: exit code 1" in soak.verdict(samples(), ended="exit code 1: no")[0]
    assert "fewer than" in soak.verdict(samples(20))[0]
    assert "fewer than" in soak.verdict([])[0]


def test_the_curve_shows_memory_files_threads_and_steps():
    job = soak.Job("a job", ("x",), "*", "batches")
    text = soak.describe(soak.Curve(job, samples(own_mb=1.0)))
    assert "a job" in text and "batches" in text and "+30.0" in text
    lines = [line for line in text.splitlines() if line.endswith("#")]
    assert len(lines) == 12 and lines[0].count("#") < lines[-1].count("#") == 40
