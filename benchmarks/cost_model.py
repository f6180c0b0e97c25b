"""What a plan foretells beside what was taken: hours, memory and disk of sampling, training and comparing.

    python benchmarks/cost_model.py /tmp/costs --record benchmarks/results/cost_model_cpu.json
    python benchmarks/cost_model.py /tmp/smol --model .cache/SmolLM2-135M-Instruct --n 16 --max_length 64 --rows 16

Every step runs in a process of its own, after steps of the like were timed: of sampling and training by --time_steps,
of the comparison by a first one in another folder. Memory is what becomes resident beyond what the plan itself has;
disk is the most that the step's own folder holds. Without --model, random weights of Pythia-70m's shape are taken.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import add_record, device_name
from peaks import DiskPeak, MemoryPeak

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import generate_datasets
import train_sae
from sae_utils.comparison.cost import comparison_bytes, work_sec
from sae_utils.devices import choose_dtype
from sae_utils.disk import DiskUse
from sae_utils.distributed import Workers
from sae_utils.generation.job import GenerationJob, check_jobs
from sae_utils.generation.sampling import SamplingSettings
from sae_utils.generation.shards import Goal
from sae_utils.rates import RATES_FILE
from sae_utils.records import versions
from sae_utils.training.folders import Checkpoints
from sae_utils.training.grid import plan_grid
from sae_utils.training.machines import find_machines
from sae_utils.training.room import grid_disk, memory_of
from sae_utils.training.status import training_sec

CPU = torch.device("cpu")


def main() -> None:
    """Take every step, and print what was foretold of it and what it took."""
    args = parse_args()
    if args.one:
        print(json.dumps(take(*args.one)))
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    model = args.folder / "models" / (args.model.name if args.model else "pythia-70m")
    if not model.exists():
        model.parent.mkdir(parents=True, exist_ok=True)
        if args.model:
            model.symlink_to(args.model.resolve())
        else:
            subprocess.run([sys.executable, Path(__file__).with_name("random_model.py"), model.name, model], check=True)
    results = {}
    for step, argv in steps(args, model).items():
        prepare(step, argv)
        results[step] = {"flags": shlex.join(argv)} | in_a_process("--one", step, shlex.join(argv))
        print(step, json.dumps(results[step], indent=1), flush=True)
    if args.record:
        add_record(args.record, record_of(args, model.name, results))


def steps(args: argparse.Namespace, model: Path) -> dict[str, list[str]]:
    """The flags of every step."""
    datasets = str(args.folder / "datasets")
    sample = ["--models", str(model), "--n", str(args.n), "--max_length", str(args.max_length), "--seed", "4"]
    sample += ["--batch_size", str(args.rows), "--output_dir", datasets]
    train = ["--org_name", str(model.parent), "--target_models", model.name, "--source_models", model.name]
    train += ["--datasets_dir", datasets, "--num_latents", str(args.latents), "--ctx_len", str(args.max_length)]
    train += ["--layers", *map(str, args.layers), "--num_seeds", str(args.seeds), "--max_tokens", str(args.tokens)]
    train += ["--eval_tokens", str(args.eval_tokens), "--random_tokens", str(args.eval_tokens)]
    train += ["--batch_size", "4", "--save_every", str(args.save_every), "--wandb_mode", "disabled"]
    train += ["--optimizer", args.optimizer]
    train += ["--checkpoint_dir", str(args.folder / "checkpoints"), "--results_dir", str(args.folder / "results")]
    common = ["--device", "cpu", "--dtype", args.dtype, "--quiet"]
    return {"sampling": [*sample, *common], "training": [*train, *common], "comparison": [*train, *common]}


def prepare(step: str, argv: list[str]) -> None:
    """Have a rate of the like."""
    if step == "comparison":
        results = Path(argv[argv.index("--results_dir") + 1])
        first = results.with_name("first_results")
        run = [each if each != str(results) else str(first) for each in argv]
        in_a_process("--one", "comparison first", shlex.join(run))
        results.mkdir(exist_ok=True)
        shutil.copyfile(first / RATES_FILE, results / RATES_FILE)
    else:
        in_a_process("--one", f"{step} timed", shlex.join([*argv, "--dry_run", "--time_steps"]))


def in_a_process(*argv: str) -> dict:
    """What a process of this script prints last; errors go through."""
    done = subprocess.run([sys.executable, __file__, ".", *argv], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def take(step: str, argv: str) -> dict:
    """One step: what is foretold of it, and what it takes."""
    flags, (step, *timed) = shlex.split(argv), step.split()
    run: Callable = generate_datasets.main if step == "sampling" else train_sae.main
    own = {"training": ["--train_only"], "comparison": ["--eval_only"]}.get(step, [])
    if timed:
        run([*flags, *own])
        return {}
    foretold, folder = {"sampling": of_sampling, "training": of_training, "comparison": of_comparison}[step](flags)
    with MemoryPeak(CPU) as memory, DiskPeak(folder) as disk:
        began = time.perf_counter()
        run([*flags, *own])
        sec = time.perf_counter() - began
    measured = {"sec": sec, "memory_bytes": memory.n_bytes, "disk_peak_bytes": disk.n_peak - disk.n_before}
    measured["disk_final_bytes"] = disk.n_final - disk.n_before
    ratios = {name: round(foretold[name] / value, 3) for name, value in measured.items()}
    return {"foretold": foretold, "measured": measured, "foretold_over_measured": ratios}


def of_sampling(flags: list[str]) -> tuple[dict, Path]:
    """What is foretold of sampling, and where it writes."""
    args = generate_datasets.build_parser().parse_args(flags)
    chosen = SamplingSettings(args.seed, args.temperature, args.top_p, args.max_length), Goal(args.n, None)
    dtype = choose_dtype(args.dtype, CPU)
    job = GenerationJob(args.models[0], args.output_dir, *chosen, args.batch_size, CPU, dtype, overwrite=False)
    (checked,) = check_jobs([job], Workers())
    return as_numbers(checked.expected.left_sec, checked.memory_bytes, checked.disk), args.output_dir


def of_training(flags: list[str]) -> tuple[dict, Path]:
    """The same of training."""
    args = train_sae.build_parser().parse_args(flags)
    train_sae.split_folders(args)
    cells, checkpoints = cells_of(args), Checkpoints(args.checkpoint_dir, args.save_every)
    grid = range(args.num_seeds), find_machines(CPU, Workers(), distribute_modules=False)
    sec, disk = training_sec(cells, *grid, checkpoints), grid_disk(cells, *grid, checkpoints)
    return as_numbers(sec, memory_of(cells[0], *grid), disk), args.checkpoint_dir


def of_comparison(flags: list[str]) -> tuple[dict, Path]:
    """The same of the comparison."""
    args = train_sae.build_parser().parse_args(flags)
    train_sae.split_folders(args)
    (work,) = train_sae.work_of_grid(cells_of(args), range(args.num_seeds), CPU, args)
    n_bytes = work.result_bytes
    numbers = {"sec": work_sec(work, args.results_dir, CPU), "memory_bytes": comparison_bytes(work)}
    return numbers | {"disk_peak_bytes": n_bytes, "disk_final_bytes": n_bytes}, args.results_dir


def cells_of(args: argparse.Namespace) -> list:
    """The grid of some flags."""
    settings, dtype = train_sae.training_settings(args), choose_dtype(args.dtype, CPU)
    return plan_grid(train_sae.grid_choice(args), settings, dtype, CPU, Workers())


def as_numbers(sec: float, n_bytes: int, disk: DiskUse) -> dict:
    """What is foretold, under the names of what is measured."""
    return {
        "sec": sec,
        "memory_bytes": n_bytes,
        "disk_peak_bytes": disk.n_peak,
        "disk_final_bytes": disk.n_final,
    }


def record_of(args: argparse.Namespace, shape: str, results: dict) -> dict:
    """What is kept of all steps."""
    return {
        "command": "python " + shlex.join(sys.argv),
        "device": device_name(CPU),
        "n_threads": torch.get_num_threads(),
        "shape": shape,
        "note": args.note,
        "results": results,
        "versions": versions(),
    }


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to work; empty, or not there")
    parser.add_argument("--model", type=Path, help="folder of a model; not given, random weights of Pythia-70m's shape")
    parser.add_argument("--n", type=int, default=64, help="samples")
    parser.add_argument("--max_length", type=int, default=128, help="tokens of a sample, and of a training sequence")
    parser.add_argument("--rows", type=int, default=32, help="samples decoded together")
    parser.add_argument("--latents", type=int, default=8192)
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=100_000, help="tokens that SAEs are trained on, at most")
    parser.add_argument("--eval_tokens", type=int, default=1024, help="tokens that are held out, and random ones")
    parser.add_argument("--save_every", type=int, default=10, help="steps between checkpoints; writing them takes time")
    parser.add_argument("--optimizer", choices=["signum", "adam", "muon"], default="signum")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--note", default="", help="what else went on, for the record")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--record", type=Path, help="JSON file that the result is added to")
    return parser.parse_args()


if __name__ == "__main__":
    main()
