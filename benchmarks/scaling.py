"""Training with 1, 2 and 4 processes of one thread each: tokens per second, and what each process sends per step.

    python benchmarks/scaling.py --record benchmarks/results/scaling_cpu.json

A model of Pythia-70m's shape with random weights, an SAE on each of four layers. In every round all contenders run one
after the other, each in processes of its own, and the median counts. Warm-up steps are not timed.

strong        the same batch for any number of processes, which hold all SAEs and average gradients
weak          the same part of a batch for every process; with the most processes the two are one
distributed   --distribute_modules: each process trains some of the layers on the whole of the strong batch

Counted are the bytes that a process hands to collective operations of torch.distributed, per optimizer step;
`payload_bytes` is the formula for them, and `sent_bytes` what a ring sends of them.
"""

import argparse
import contextlib
import json
import os
import pickle
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from machine import add_record, cpu_name
from random_model import random_model
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from sae_utils.distributed import join_workers, leave_workers
from sae_utils.models import cut_after_, find_layers
from sae_utils.records import versions
from sae_utils.sources.packing import Chunks
from sae_utils.sparse_coders import SparseCoderConfig, TrainConfig
from sae_utils.training.trainer import SaeTrainer

WARM_UP_STEPS = 2
"""Steps that are neither timed nor counted: the first sets biases and broadcasts weights."""

VOCAB = 50_000


@dataclass(frozen=True)
class Shape:
    """What is trained, as far as it decides what is sent."""

    d_model: int
    n_latents: int
    n_layers: int
    n_seeds: int
    batch_tokens: int
    """Tokens of a batch, of all processes together."""

    activation_bytes: int
    """Bytes of a number of the model's activations."""


def payload_bytes(shape: Shape, n_processes: int, *, distribute_modules: bool) -> dict[str, int]:
    """Bytes that a process hands to each kind of collective operation per step of one batch.

    Processes that hold the same SAEs add up gradients (float32) and which latents have fired (a byte each); those that
    divide the layers gather their parts of each layer's activations and masks. All add up statistics of each layer:
    a count of 8 bytes, a mean, and a variance.
    """
    n_saes, d_model = shape.n_layers * shape.n_seeds, shape.d_model
    of_layers = shape.n_layers * (8 + 4 * d_model + 4)
    if distribute_modules:
        own_tokens = shape.batch_tokens // n_processes
        gathered = shape.n_layers * own_tokens * (d_model * shape.activation_bytes + 1)
        return {"all_gather": gathered, "all_reduce": of_layers}
    weights = 2 * d_model * shape.n_latents + shape.n_latents + d_model
    fired_and_losses = n_saes * (shape.n_latents + 4)
    return {"all_reduce": of_layers + fired_and_losses, "gradients": 4 * n_saes * weights}


def sent_bytes(payload: dict[str, int], n_processes: int) -> float:
    """What a process sends of a payload if collective operations go round in a ring.

    Of a sum every process sends each of the n parts once to be added up, but for one, and once as the result; of what
    is gathered, every process hands on all parts but one.
    """
    gathered = payload.get("all_gather", 0) * (n_processes - 1)
    summed = sum(n_bytes for name, n_bytes in payload.items() if name != "all_gather")
    return gathered + summed * 2 * (n_processes - 1) / n_processes


def main() -> None:
    """Run every contender in turn, and print rates and traffic."""
    args = parse_args()
    if args.worker:
        work(args)
        return
    most = max(args.processes)
    contenders = [
        *((f"strong {n}", n, args.batch_size, False) for n in args.processes),
        *((f"weak {n}", n, args.batch_size // most * n, False) for n in args.processes if n < most),
        *((f"distributed {n}", n, args.batch_size, True) for n in args.processes if n > 1),
    ]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name, *_ in contenders}
    for _ in range(args.rounds):
        for name, n, batch_size, is_distributed in contenders:
            runs[name].append(run(args, n, batch_size, is_distributed))
            print(f"{name}: {runs[name][-1]['tokens_per_sec']:,.0f} tok/s", flush=True)
    results = {name: summary(runs[name], runs["weak 1" if "weak" in name else "strong 1"]) for name in runs}
    print(json.dumps(results, indent=2))
    if args.record:
        about = {
            "command": f"python {shlex.join(sys.argv)}",
            "device": cpu_name(),
            "cores": os.cpu_count(),
            "threads": 1,
            "note": args.note,
        }
        add_record(args.record, about | {"results": results, "versions": versions()})


def run(args: argparse.Namespace, n_processes: int, batch_size: int, is_distributed: bool) -> dict[str, Any]:
    """One contender, in processes of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(n_processes)]
        settings = [f"--{name}={getattr(args, name)}" for name in ("num_latents", "ctx_len", "steps", "n_layers")]
        settings += [f"--batch_size={batch_size}", f"--worker={folder}"]
        if is_distributed:
            settings.append("--distribute_modules")
        subprocess.run([*command, "--", __file__, *settings], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        return json.loads((Path(folder) / "result.json").read_text())


def summary(own: list[dict[str, Any]], alone: list[dict[str, Any]]) -> dict[str, Any]:
    """The median rate of a contender, beside that of one process with the same part of a batch, or the same batch."""
    rate, rate_alone = (statistics.median(each["tokens_per_sec"] for each in those) for those in (own, alone))
    rates = [round(each["tokens_per_sec"]) for each in own]
    same = {name: own[0][name] for name in ("n_processes", "shape", "distribute_modules", "payload_bytes_per_step")}
    return same | {
        "tokens_per_sec": round(rate),
        "all_tokens_per_sec": rates,
        "times_one_process": round(rate / rate_alone, 2),
        "sent_bytes_per_step": round(sent_bytes(own[0]["payload_bytes_per_step"], own[0]["n_processes"])),
    }


def work(args: argparse.Namespace) -> None:
    """Train as one of the processes; the main one writes what was measured."""
    torch.set_num_threads(1)
    workers = join_workers()
    model = random_model("pythia-70m", torch.device("cpu"), torch.float32).base_model
    cut_after_(model, args.n_layers - 1)
    hookpoints = [f"{find_layers(model)[0]}.{layer}" for layer in range(args.n_layers)]
    n_rows = (WARM_UP_STEPS + args.steps) * args.batch_size
    tokens = np.random.default_rng(0).integers(1, VOCAB, (n_rows, args.ctx_len)).astype(np.int32)
    config = TrainConfig(
        SparseCoderConfig(num_latents=args.num_latents, k=32),
        batch_size=args.batch_size,
        hookpoints=hookpoints,
        init_seeds=[0],
        save_every=10**9,
        distribute_modules=args.distribute_modules,
        log_to_wandb=False,
    )
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder, counted_traffic() as traffic:
        trainer = SaeTrainer(config, Chunks(tokens), model, work_dir=Path(folder), workers=workers)

        def note(n_tokens: int, losses: dict) -> None:
            times.append(time.perf_counter())
            if len(times) == WARM_UP_STEPS:
                traffic.clear()

        trainer.on_step = note
        trainer.fit()
    if workers.is_main:
        shape = Shape(model.config.hidden_size, args.num_latents, args.n_layers, 1, args.batch_size * args.ctx_len, 4)
        result = {
            "n_processes": workers.n,
            "shape": asdict(shape),
            "distribute_modules": args.distribute_modules,
            "tokens_per_sec": args.steps * shape.batch_tokens / (times[-1] - times[WARM_UP_STEPS - 1]),
            "payload_bytes_per_step": {name: n_bytes // args.steps for name, n_bytes in sorted(traffic.items())},
        }
        (args.worker / "result.json").write_text(json.dumps(result))
    leave_workers()


@contextlib.contextmanager
def counted_traffic() -> Iterator[Counter]:
    """While open, the bytes that this process hands to collective operations, by kind."""
    traffic: Counter = Counter()
    reduce, gather, gather_object, init = (
        dist.all_reduce,
        dist.all_gather_into_tensor,
        dist.all_gather_object,
        DistributedDataParallel.__init__,
    )

    def counted(name: str, real: Callable, size_of: Callable[[tuple], int]) -> Callable:
        def call(*args: Any, **options: Any) -> Any:
            traffic[name] += size_of(args)
            return real(*args, **options)

        return call

    def add_up(state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        gradients = bucket.buffer().div_(dist.get_world_size())
        traffic["gradients"] += gradients.nbytes
        return reduce(gradients, async_op=True).get_future().then(lambda done: done.value()[0])

    def init_counted(replicas: DistributedDataParallel, *args: Any, **options: Any) -> None:
        init(replicas, *args, **options)
        replicas.register_comm_hook(None, add_up)

    dist.all_reduce = counted("all_reduce", reduce, lambda args: args[0].nbytes)
    dist.all_gather_into_tensor = counted("all_gather", gather, lambda args: args[1].nbytes)
    dist.all_gather_object = counted("objects", gather_object, lambda args: len(pickle.dumps(args[1])))
    DistributedDataParallel.__init__ = init_counted
    try:
        yield traffic
    finally:
        dist.all_reduce, dist.all_gather_into_tensor, dist.all_gather_object = reduce, gather, gather_object
        DistributedDataParallel.__init__ = init


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--n_layers", type=int, default=4, help="layers from the first on, each with an SAE")
    parser.add_argument("--num_latents", type=int, default=2048)
    parser.add_argument("--ctx_len", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=8, help="sequences per step of the largest contender")
    parser.add_argument("--steps", type=int, default=8, help="steps that are timed")
    parser.add_argument("--rounds", type=int, default=3, help="runs of every contender; the median counts")
    parser.add_argument("--note", help="what else went on on this machine, for the record")
    parser.add_argument("--record", type=Path, help="JSON file that the result is added to")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--distribute_modules", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
