"""A study of a few seconds on tiny random models, and the states that it goes through, each in a folder to start from.

A state is made by a step from another one, unbroken or struck half way. What a broken run must end with is the state
that the unbroken step leads to.
"""

import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from folders import contents, copy
from processes import GENERATE, ROOT, TRAIN, Ending, Strike, begin

sys.path.insert(0, str(ROOT / "tests"))
from conftest import CORPUS, make_model

GENERATE_FLAGS = ["--models", "./tiny", "--max_length", "40", "--batch_size", "8", "--quiet"]

TRAIN_FLAGS = [
    *("--org_name", ".", "--target_models", "tiny", "--source_models", "tiny", "--text_datasets", "{inputs}/texts.txt"),
    *("--dataset_seed", "42", "--layers", "1", "--num_latents", "48", "--k", "4", "--ctx_len", "32"),
    *("--save_every", "5", "--wandb_mode", "disabled", "--quiet"),
]
"""The corpus stands in one place for all trials: `datasets` names what it makes of a file by the file's path."""

MUCH = ["--text_datasets", "{inputs}/many_texts.txt"]
"""A corpus whose packed sequences are many pages of memory, so that a full disk meets them half written."""

N_TOKENS, N_TOKENS_EXTENDED = 1000, 2000

LITTLE_MEMORY = 150_000
"""Free bytes with which a cell is trained in two passes."""


@dataclass(frozen=True)
class Step:
    """A command that leads from one state to another."""

    name: str
    script: str
    flags: tuple[str, ...]
    before: str
    """State that it starts from."""

    after: str
    """State that an unbroken run leads to."""


STEPS = {
    step.name: step
    for step in (
        Step("generation", GENERATE, (*GENERATE_FLAGS, "--num_tokens", str(N_TOKENS)), "models", "generated"),
        Step("extension", GENERATE, (*GENERATE_FLAGS, "--num_tokens", str(N_TOKENS_EXTENDED)), "generated", "extended"),
        Step("packing", TRAIN, (*TRAIN_FLAGS, "--train_only", "--dry_run"), "generated", "packed"),
        Step("packing much", TRAIN, (*TRAIN_FLAGS, *MUCH, "--train_only", "--dry_run"), "generated", "much packed"),
        Step("training", TRAIN, (*TRAIN_FLAGS, "--train_only"), "packed", "trained"),
        Step(
            "comparison",
            TRAIN,
            (*TRAIN_FLAGS, "--eval_only", "--random_tokens", "500", "--export", "saelens"),
            "trained",
            "compared",
        ),
    )
}

SAMPLED_ANEW = Step("sampling anew", GENERATE, STEPS["extension"].flags, "models", "sampled anew")
"""The extended data set, sampled at once: likelihoods are computed in other batches, which shows in the last digits."""

ONE_TARGET = Step("one target", TRAIN, (*TRAIN_FLAGS, "--random_tokens", "500"), "packed", "one target done")
TWO_TARGETS = Step(
    "another target",
    TRAIN,
    (*ONE_TARGET.flags, "--target_models", "other", "--checkpoint_dir", "other_checkpoints"),
    ONE_TARGET.after,
    "two targets done",
)
"""Two grids that have their results in one folder, one after the other."""

LEADING_TO = {step.after: step for step in [*STEPS.values(), SAMPLED_ANEW, ONE_TARGET, TWO_TARGETS]}
"""By a state: the step that leads to it."""

BROKEN = {
    "generating": ("generation", Strike(3, of=r"/samples_\S+$")),
    "extending": ("extension", Strike(3, of=r"/samples_\S+$")),
    "swapping": ("extension", Strike(1, of=r"\.unfinished/dataset \S+$")),
    "training": ("training", Strike(3, of=r"/state.json$")),
    "between passes": ("training", Strike(2, of=r"/records.json$", free_memory=LITTLE_MEMORY)),
    "publishing": ("training", Strike(2, of=r"_seed_\d$")),
    "comparing": ("comparison", Strike(2, of=r"\.npz$")),
}
"""States of runs that were killed half way: the step, and before which write."""


@dataclass
class Measured:
    """What an unbroken run of a step takes."""

    sec: float
    """Time of a forked process."""

    n_durable: int
    """Durable writes."""


@dataclass
class Study:
    """The states, made on first use, and what the steps take."""

    folder: Path
    """Where states are kept."""

    is_real: bool = True
    """Whether states are made by processes of their own, started as a user does, instead of forked ones."""

    measured: dict[str, Measured] = field(default_factory=dict)
    _contents: dict[str, dict[str, str]] = field(default_factory=dict)

    def state(self, name: str) -> Path:
        """Folder of a state; to be copied, not to be worked in."""
        folder = self.folder / name.replace(" ", "_")
        if not folder.exists():
            scratch = self.folder / f"making_{folder.name}"
            if name == "models":
                _make_inputs(scratch, self.folder / "inputs")
            elif name in BROKEN:
                step, strike = BROKEN[name]
                copy(self.state(STEPS[step].before), scratch)
                self._make_broken(scratch, STEPS[step], strike)
            else:
                self._make_by_step(scratch, LEADING_TO[name])
            os.replace(scratch, folder)
        return folder

    def contents(self, name: str) -> dict[str, str]:
        """What lies in a state's folder."""
        if name not in self._contents:
            self._contents[name] = contents(self.state(name))
        return self._contents[name]

    def measure(self, step: Step) -> Measured:
        """Time and writes of an unbroken forked run, which must also end like the real one."""
        if step.name not in self.measured:
            folder = self.folder / f"measuring_{step.name}"
            copy(self.state(step.before), folder)
            ending = begin(step.script, self.filled(step.flags), folder, self.folder / f"measured_{step.name}").wait()
            assert ending.code == 0, ending.err
            assert contents(folder) == self.contents(step.after), f"two unbroken runs of {step.name} differ"
            self.measured[step.name] = Measured(ending.sec, ending.n_durable)
        return self.measured[step.name]

    def filled(self, flags: Iterable[str]) -> list[str]:
        """A command line with the folder of the inputs in it."""
        return [flag.replace("{inputs}", str(self.folder / "inputs")) for flag in flags]

    def _make_by_step(self, folder: Path, step: Step) -> None:
        copy(self.state(step.before), folder)
        output = self.folder / f"made_{step.after}"
        run = run_real if self.is_real else run_forked
        ending = run(step.script, self.filled(step.flags), folder, output)
        if not self.is_real:
            self.measured[step.name] = Measured(ending.sec, ending.n_durable)
        assert ending.code == 0, ending.err

    def _make_broken(self, folder: Path, step: Step, strike: Strike) -> None:
        output = self.folder / f"broken_{step.name}"
        ending = begin(step.script, self.filled(step.flags), folder, output, strike).wait()
        assert ending.code == -signal.SIGKILL, f"{step.name} was to be killed half way, and was not: {ending}"


def run_real(script: str, flags: list[str], folder: Path, output: Path) -> Ending:
    """Run a script in a process of its own, with all imports."""
    began, words = time.monotonic(), [sys.executable, str(ROOT / script), *flags]
    with output.with_suffix(".out").open("w") as out, output.with_suffix(".err").open("w") as err:
        code = subprocess.run(words, cwd=folder, stdout=out, stderr=err, check=False).returncode
    texts = (output.with_suffix(end).read_text() for end in (".out", ".err"))
    return Ending(code, *texts, time.monotonic() - began, 0, shlex.join(words))


def run_forked(script: str, flags: list[str], folder: Path, output: Path) -> Ending:
    """Run a script in a forked process."""
    return begin(script, flags, folder, output).wait()


def _make_inputs(folder: Path, models: Path) -> None:
    """Two models and a corpus, of which trials that leave them alone have links."""
    make_model(models / "tiny", "neox")
    make_model(models / "other", "llama")
    rng = random.Random(0)
    words = " ".join(CORPUS).split()
    for name, n_texts in (("texts.txt", 40), ("many_texts.txt", 4000)):
        texts = "".join(" ".join(rng.choices(words, k=12)) + "\n" for _ in range(n_texts))
        (models / name).write_text(texts, encoding="utf-8")
    folder.mkdir()
    for path in models.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)  # some trials are played by another user
    for path in models.iterdir():
        (folder / path.name).symlink_to(path)
