"""Time and memory of matching two dictionaries one to one: ours beside SciPy's dense solver, and ours at full size.

    python benchmarks/matching.py --record benchmarks/results/matching_cpu.json                 # 2,048 to 8,192
    python benchmarks/matching.py --sizes 40960 --record benchmarks/results/matching_cpu.json   # minutes, 5 GB

Two kinds of dictionaries: "half shared", of which half the rows come back with noise (cosine 0.9) in another order and
half do not; and "random", like untrained SAEs, whose cosines are all small and near one another. Every measurement has
a process of its own, whose peak of resident memory is reported: PyTorch, the dictionaries and all else included. SciPy
is left out where all cosines in float64 would not fit the machine.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from itertools import product
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from machine import add_record, device_name, peak_resident_bytes

from sae_utils.comparison.matching import match_rows
from sae_utils.records import versions

NOISE = 0.48
"""Noise added to unit rows, in units of their norm: cosine 1 / sqrt(1 + 0.48^2) = 0.9 with the row without it."""


def main() -> None:
    """Measure every combination, each in a process of its own, and print a line for each."""
    args = parse_args()
    if args.only:
        print(json.dumps(measure(args.only, args.kinds[0], args.sizes[0], args.d_models[0], args.device, args.threads)))
        return
    rows = []
    for size, d_model, kind, name in product(args.sizes, args.d_models, args.kinds, ["ours", "scipy"]):
        if name == "ours" or size <= args.scipy_up_to:
            rows.append(run_alone(args, name, kind, size, d_model))
            print(describe(rows[-1]), flush=True)
    if args.record:
        add_results(args, rows)


def describe(row: dict) -> str:
    """One line."""
    shape = f"{row['n_latents']:,} x {row['d_model']:,}"
    cost = f"{row['sec']:8.1f} s {row['peak_memory_bytes'] / 1e9:6.2f} GB"
    return f"{row['solver']:6} {row['kind']:12} {shape:>15} {cost}   total cosine {row['total_cosine']:,.3f}"


def run_alone(args: argparse.Namespace, name: str, kind: str, size: int, d_model: int) -> dict:
    """One measurement in a fresh process."""
    options = {"only": name, "kinds": kind, "sizes": size, "d_models": d_model}
    options |= {"device": args.device, "threads": args.threads}
    flags = [text for option, value in options.items() for text in (f"--{option}", str(value))]
    done = subprocess.run([sys.executable, __file__, *flags], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(name: str, kind: str, n_latents: int, d_model: int, device: str, n_threads: int) -> dict:
    """Seconds from two dictionaries to their matching, and the peak of this process's memory so far."""
    torch.set_num_threads(n_threads)
    a, b = (rows.to(device) for rows in make_dictionaries(kind, n_latents, d_model))
    steps: list[str] = []

    def note(line: str) -> None:
        steps.append(f"{time.perf_counter() - start:.1f} s: {line}")

    solvers: dict[str, Callable] = {
        "ours": lambda: match_rows(a, b, on_status=note).cosine,
        "scipy": lambda: match_dense(a, b),
    }
    start = time.perf_counter()
    cosine = solvers[name]()
    row = {
        "solver": name,
        "kind": kind,
        "n_latents": n_latents,
        "d_model": d_model,
        "sec": round(time.perf_counter() - start, 2),
        "peak_memory_bytes": peak_resident_bytes(),
        "total_cosine": round(float(cosine.sum(dtype="float64")), 3),
        "load_average": round(os.getloadavg()[0], 2),
        "steps": steps,
    }
    if torch.device(device).type == "cuda":
        row["peak_gpu_memory_bytes"] = torch.cuda.max_memory_allocated()
    return row


def match_dense(a: Tensor, b: Tensor) -> np.ndarray:
    """All cosines at once, and SciPy's solver."""
    cosines = (normalize(a, dim=1) @ normalize(b, dim=1).T).cpu().numpy()
    return cosines[linear_sum_assignment(cosines, maximize=True)]


def make_dictionaries(kind: str, n_latents: int, d_model: int) -> tuple[Tensor, Tensor]:
    """Two dictionaries `(n_latents, d_model)` of unit rows."""
    generator = torch.Generator().manual_seed(0)
    a, b = (normalize(torch.randn(n_latents, d_model, generator=generator), dim=1) for _ in range(2))
    if kind == "half shared":
        b[: n_latents // 2] = a[: n_latents // 2] + NOISE * b[: n_latents // 2]
        b = b[torch.randperm(n_latents, generator=generator)]
    return a, b


def add_results(args: argparse.Namespace, rows: list[dict]) -> None:
    """Add these rows to the record."""
    record = {
        "command": "python " + shlex.join(sys.argv),
        "device": device_name(torch.device(args.device)),
        "threads": args.threads,
        "results": rows,
        "versions": versions() | {package: metadata.version(package) for package in ("scipy", "ortools")},
    }
    add_record(args.record, record)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[2048, 4096, 8192], help="latents per dictionary")
    parser.add_argument("--d_models", type=int, nargs="+", default=[2048], help="dimensions of a row")
    kinds = ["half shared", "random"]
    parser.add_argument("--kinds", nargs="+", default=kinds, choices=kinds, help="what the dictionaries have in common")
    parser.add_argument("--scipy_up_to", type=int, default=8192, help="largest size that SciPy is given")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", choices=["ours", "scipy"], help="one measurement in this process, printed as JSON")
    parser.add_argument("--record", type=Path, help="JSON file that the result is added to")
    return parser.parse_args()


if __name__ == "__main__":
    main()
