"""Sampling on a CPU that does something else as well: how threads wait for each other, and how many there should be.

    python benchmarks/busy.py --model .cache/SmolLM2-135M-Instruct --record benchmarks/results/busy_cpu.json

Threads of OpenMP, which PyTorch computes with, wait for each other by turning in circles unless they are told to sleep.
Counted are tokens per second of each of the processes that sample at the same time, in rounds that alternate.

briefly          as both scripts run, with GOMP_SPINCOUNT=1000 as well: awake for some microseconds, then asleep
asleep           OMP_WAIT_POLICY=PASSIVE alone
turning          as PyTorch runs if it is told nothing
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

POLICIES = {
    "briefly": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"},
    "asleep": {"OMP_WAIT_POLICY": "PASSIVE"},
    "turning": {},
}
"""What is told to each process."""

SITUATIONS = {
    "one process, all threads": (1, False),
    "two processes, all threads each": (2, False),
    "two processes, half the threads each": (2, True),
}
"""Processes that sample at the same time, and whether they share out the threads."""


def main() -> None:
    """Time every way of waiting in every situation."""
    args = parse_args()
    if args.worker:
        print(json.dumps(sampled_per_sec(args)))
        return
    rates: dict[str, dict[str, list[float]]] = {name: {policy: [] for policy in POLICIES} for name in SITUATIONS}
    for _ in range(args.rounds):
        for situation, (n_processes, is_shared) in SITUATIONS.items():
            for policy, told in POLICIES.items():
                n_threads = max(1, args.threads // n_processes) if is_shared else args.threads
                found = run_together(n_processes, n_threads, told)
                rates[situation][policy].append(sum(found))
                print(f"{situation}, {policy}: {' + '.join(f'{each:,.1f}' for each in found)} tok/s", flush=True)
    medians = {
        name: {policy: round(statistics.median(each), 1) for policy, each in of.items()} for name, of in rates.items()
    }
    for situation, of in medians.items():
        print(f"{situation:38} " + ", ".join(f"{policy} {rate:,.1f} tok/s" for policy, rate in of.items()))
    if args.record:
        write_record(args, {"tokens_per_sec": medians, "all_tokens_per_sec": rates})


def run_together(n_processes: int, n_threads: int, told: dict[str, str]) -> list[float]:
    """Tokens per second of processes that begin at the same time."""
    silent = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, __file__, *sys.argv[1:], "--worker", "--threads", str(n_threads)]
    begin = {"BUSY_BEGIN": str(time.time() + START_SEC)}
    workers = [
        subprocess.Popen(
            command, env=silent | told | begin, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        for _ in range(n_processes)
    ]
    return [json.loads(worker.communicate()[0]) for worker in workers]


def sampled_per_sec(args: argparse.Namespace) -> float:
    """Decoding steps of one batch for some seconds, as tokens per second; all processes begin at the same moment."""
    import torch

    from sae_utils.generation.sampling import Batch, SamplingSettings, attention_kernels, pace_of, prepare_for_sampling_
    from sae_utils.models import load_causal_lm

    torch.set_num_threads(args.threads)
    device = torch.device("cpu")
    source = load_causal_lm(args.model, device, getattr(torch, args.dtype))
    prepare_for_sampling_(source.model)
    settings = SamplingSettings(top_p=0.9, max_length=args.length)
    time.sleep(max(0.0, float(os.environ["BUSY_BEGIN"]) - time.time()))
    n_tokens, start = 0, time.perf_counter()
    with torch.inference_mode(), attention_kernels(device):
        while (elapsed_sec := time.perf_counter() - start) < args.sec:
            batch = Batch(source, range(args.rows), settings, pace_of(device), is_fixed=True)
            while batch.position < settings.max_length and time.perf_counter() - start < args.sec:
                batch.advance()
                n_tokens += args.rows
    return n_tokens / elapsed_sec


def write_record(args: argparse.Namespace, results: dict) -> None:
    """Add the result to a file of records."""
    from machine import add_record, cpu_name

    from sae_utils.records import versions

    record = {
        "command": "python " + shlex.join(sys.argv),
        "device": cpu_name(),
        "threads": args.threads,
        "results": results,
        "versions": versions(),
    }
    add_record(args.record, record)


START_SEC = 15
"""By then every process has loaded its model."""


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of a model")
    parser.add_argument("--rows", type=int, default=32, help="samples of a batch")
    parser.add_argument("--length", type=int, default=256, help="tokens of a sample")
    parser.add_argument("--sec", type=float, default=20, help="seconds of every measurement")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", type=Path, help="JSON file that the result is added to")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
