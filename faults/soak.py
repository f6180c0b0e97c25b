"""Generation and training for many minutes, with memory, open files and threads sampled: none of them may grow.

    python faults/soak.py                                 # 10 minutes
    python faults/soak.py --minutes 60 --record soak.json

Four processes, two at a time, started as a user starts them, on tiny random models: one long data set and one long
cell, then many small data sets and many small cells in a process each. Memory is what is a process's own, without the
files that it has mapped, which a system gives back when it needs room. After a warm-up, a line is laid through the
samples by least squares; what it rises by must stay below a limit. Exit code 1 if it does not, or if a process fails.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import psutil
from processes import GENERATE, ROOT, TRAIN

WARM_UP_SHARE = 0.3
"""Share of the time from the first finished step on that is not looked at: libraries keep things for good."""

MAX_MB_PER_MINUTE = 1.0
"""Most that memory may rise by in a minute, as the line says: 1.4 GB in a day."""

MAX_KB_PER_STEP = 0.5
"""The same for a step of training or a batch of samples, of which a faster machine does more in a minute. Memory grows
if it rises by more than both limits say."""

MAX_KB_PER_RESULT = 100.0
"""The same for a finished data set or cell."""

MAX_FILES = MAX_THREADS = 2.0
"""Most that open files and threads may rise by, over all of the time that is looked at."""

MIN_SAMPLES = 20
"""Fewer say nothing."""

MB = 2**20

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "WANDB_MODE": "disabled",
}


@dataclass(frozen=True)
class Sample:
    """A process at a moment."""

    sec: float
    """Since its start."""

    resident_mb: float
    """All memory that it has (RSS)."""

    own_mb: float
    """The same without mapped files and what is shared."""

    n_files: int
    """Open files."""

    n_threads: int
    """Threads."""

    n_steps: int
    """Batches or steps of training done, data sets or cells finished."""


@dataclass(frozen=True)
class Job:
    """A process that has enough to do."""

    name: str
    words: tuple[str, ...]
    """Script and flags."""

    counted: str
    """Pattern of files below the working folder; their lines are steps, or each is one if it is not of lines."""

    step: str
    """What is counted."""

    max_kb: float = MAX_KB_PER_STEP
    """Most that memory may rise by for each of them."""


@dataclass
class Curve:
    """What was sampled of a job."""

    job: Job
    samples: list[Sample] = field(default_factory=list)
    ended: str | None = None
    """None if it had to be stopped; empty if it was through; else how it ended and what it said."""


def main() -> int:
    """Run all jobs, print their curves, and say whether anything grew; the exit code."""
    args = parse_args()
    os.environ |= ENVIRONMENT
    folder = Path(tempfile.mkdtemp(prefix="soak_"))
    sec = 60 * args.minutes / 2
    jobs = make_jobs(folder, sec)
    curves = []
    for pair in (jobs[:2], jobs[2:]):
        print(f"{' and '.join(job.name for job in pair)}: {sec / 60:.1f} minutes in {folder}", flush=True)
        curves += watch(pair, folder, sec, args.every)
    verdicts = {curve.job.name: verdict(curve.samples, curve.job.max_kb, curve.ended) for curve in curves}
    for curve in curves:
        print(f"\n{describe(curve)}")
        print("  " + ("; ".join(verdicts[curve.job.name]) or "nothing grew"))
    if args.record:
        record = [asdict(curve) | {"grew": verdicts[curve.job.name]} for curve in curves]
        args.record.write_text(json.dumps(record, indent=2) + "\n")
    if any(verdicts.values()):
        print(f"\nFAILED; what was written is kept in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


def make_jobs(folder: Path, sec: float) -> list[Job]:
    """The jobs, with their inputs; each has about as much to do as a processor does in the time, or more."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from conftest import make_model

    n_small = max(20, int(sec))
    for name in ("tiny", *(f"small_{i}" for i in range(n_small))):
        make_model(folder / "models" / name, "neox") if name == "tiny" else (folder / "models" / name).symlink_to(
            "tiny"
        )
    write_corpus(folder / "long.txt", max(4000, int(300 * sec)))
    write_corpus(folder / "short.txt", 60)
    sampling = ("--max_length", "64", "--device", "cpu", "--quiet")
    small = [f"models/small_{i}" for i in range(n_small)]
    saes = (
        *("--layers", "0", "1", "--source_models"),
        *("--num_latents", "256", "--k", "8", "--ctx_len", "32", "--wandb_mode", "disabled", "--train_only", "--quiet"),
    )
    return [
        Job(
            "one long data set",
            (GENERATE, "--models", "models/tiny", "--n", str(10**9), "--batch_size", "64", *sampling),
            "datasets/tiny_*.unfinished/samples_*.arrow",
            "batches",
        ),
        Job(
            "one long cell",
            (TRAIN, *saes, "--target_models", "models/tiny", "--text_datasets", "long.txt", "--save_every", "200"),
            "checkpoints/tiny_*.unfinished/*/metrics.jsonl",
            "steps",
        ),
        Job(
            "many data sets",
            (GENERATE, "--models", *small, "--n", "64", *sampling),
            "datasets/small_*/generation.json",
            "data sets",
            MAX_KB_PER_RESULT,
        ),
        Job(
            "many cells",
            (TRAIN, *saes, "--target_models", *small, "--text_datasets", "short.txt"),
            "checkpoints/small_*_seed_0/run.json",
            "cells",
            MAX_KB_PER_RESULT,
        ),
    ]


def write_corpus(path: Path, n_texts: int, *, seed: int = 0) -> None:
    """A corpus of short texts."""
    from conftest import CORPUS

    rng, words = random.Random(seed), " ".join(CORPUS).split()
    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(" ".join(rng.choices(words, k=12)) + "\n" for _ in range(n_texts))


def watch(jobs: Sequence[Job], folder: Path, sec: float, every_sec: float) -> list[Curve]:
    """Run jobs side by side for so long, and sample them."""
    curves = [Curve(job) for job in jobs]
    processes, outputs, began = [], [], time.monotonic()
    for job in jobs:
        output = (folder / f"{job.name.replace(' ', '_')}.txt").open("w+")
        words = [sys.executable, str(ROOT / job.words[0]), *job.words[1:]]
        processes.append(psutil.Popen(words, cwd=folder, stdout=output, stderr=subprocess.STDOUT))
        outputs.append(output)
    while time.monotonic() - began < sec and not all(curve.ended is not None for curve in curves):
        time.sleep(every_sec)
        for curve, process, output in zip(curves, processes, outputs, strict=True):
            if curve.ended is None and process.poll() is None:
                curve.samples.append(sample(process, time.monotonic() - began, count(curve.job, folder)))
            elif curve.ended is None:
                output.seek(0)
                curve.ended = (
                    "" if process.returncode == 0 else f"exit code {process.returncode}: {output.read()[-300:]}"
                )
    for process, output in zip(processes, outputs, strict=True):
        if process.poll() is None:
            for each in [*process.children(recursive=True), process]:
                each.kill()
        process.wait()
        output.close()
    return curves


def sample(process: psutil.Process, sec: float, n_steps: int) -> Sample:
    """A process now, with those that it started."""
    family = [process, *process.children(recursive=True)]
    memory = [each.memory_info() for each in family]
    return Sample(
        sec,
        sum(each.rss for each in memory) / MB,
        sum(each.rss - getattr(each, "shared", 0) for each in memory) / MB,
        sum(each.num_fds() for each in family),
        sum(each.num_threads() for each in family),
        n_steps,
    )


def count(job: Job, folder: Path) -> int:
    """Steps that a job has done."""
    paths = list(folder.glob(job.counted))
    if not job.counted.endswith(".jsonl"):
        return len(paths)
    return sum(path.read_bytes().count(b"\n") for path in paths)


def verdict(samples: Sequence[Sample], max_kb: float = MAX_KB_PER_STEP, ended: str | None = None) -> list[str]:
    """What speaks against a process, one phrase each; nothing if it neither grew nor failed.

    Args:
        samples: All of them, in order.
        max_kb: Most that memory may rise by in a step.
        ended: How it ended and what it said, unless it was through or had to be stopped.
    """
    if ended:
        return [f"it failed: {ended}"]
    kept = after_warm_up(samples)
    if samples and (not kept or kept[-1].n_steps == kept[0].n_steps):
        return ["it did nothing in the time"]
    if len(kept) < MIN_SAMPLES:
        return [f"{len(kept)} samples after the warm-up are fewer than {MIN_SAMPLES}; give it more minutes"]
    found = []
    per_minute = 60 * slope([each.sec for each in kept], [each.own_mb for each in kept])
    per_step = 1024 * slope([each.n_steps for each in kept], [each.own_mb for each in kept])
    if per_minute > MAX_MB_PER_MINUTE and per_step > max_kb:
        found.append(f"memory grows by {per_minute:.2f} MB a minute, {per_step:.2f} kB a step")
    for name, limit in (("n_files", MAX_FILES), ("n_threads", MAX_THREADS)):
        rise = slope([each.sec for each in kept], [getattr(each, name) for each in kept]) * (kept[-1].sec - kept[0].sec)
        if rise > limit:
            found.append(f"{name.removeprefix('n_')} grow by {rise:.1f} in {kept[-1].sec - kept[0].sec:.0f} s")
    return found


def after_warm_up(samples: Sequence[Sample]) -> list[Sample]:
    """Samples that are looked at."""
    at_work = [each for each in samples if each.n_steps > 0]
    if not at_work:
        return []
    start = at_work[0].sec + WARM_UP_SHARE * (at_work[-1].sec - at_work[0].sec)
    return [each for each in at_work if each.sec >= start]


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Rise of the line with the least squared distances.

    >>> round(slope([0, 1, 2], [1, 3, 5]), 6)
    2.0
    """
    return float(np.polyfit(np.asarray(x, dtype=float), np.asarray(y, dtype=float), 1)[0])


def describe(curve: Curve, *, n_lines: int = 12, width: int = 40) -> str:
    """A curve as text: some of its samples, one a line, with a bar for the memory of its own."""
    samples, job = curve.samples, curve.job
    if not samples:
        return f"{job.name}: not sampled"
    largest = max(each.own_mb for each in samples)
    shown = [samples[i] for i in np.unique(np.linspace(0, len(samples) - 1, n_lines).round().astype(int))]
    lines = [f"{job.name}\n  {'sec':>6} {'RSS MB':>8} {'own MB':>8} {'files':>5} {'threads':>7} {job.step:>9}"]
    for each in shown:
        bar = "#" * round(width * each.own_mb / largest)
        lines.append(
            f"  {each.sec:6.0f} {each.resident_mb:8.1f} {each.own_mb:8.1f} {each.n_files:5} {each.n_threads:7} "
            f"{each.n_steps:9,}  {bar}"
        )
    kept = after_warm_up(samples)
    if len(kept) > 1 and kept[-1].n_steps > kept[0].n_steps:
        per_minute = 60 * slope([each.sec for each in kept], [each.own_mb for each in kept])
        per_step = 1000 * slope([each.n_steps for each in kept], [each.own_mb for each in kept])
        lines.append(f"  {per_minute:+.3f} MB a minute, {per_step:+.3f} MB per 1,000 {job.step}, after the warm-up")
    return "\n".join(lines)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.strip(), formatter_class=argparse.RawDescriptionHelpFormatter, usage="%(prog)s [flags]"
    )
    parser.add_argument("--minutes", type=float, default=10, help="of all together (default: 10)")
    parser.add_argument("--every", type=float, default=2.0, help="seconds between samples (default: 2)")
    parser.add_argument("--record", type=Path, help="JSON file for all samples")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
