"""Speed of training, side by side in one run: ours, sparsify's Trainer as it is usually run, SAELens, and our parts.

    python benchmarks/training.py --model .cache/SmolLM2-135M-Instruct --record benchmarks/results/training_cpu.json

Counted are SAE-tokens per second: tokens trained on, times the SAEs that are trained on them. All train TopK SAEs of
one size on the same layers of the same model in the same number format, from packed sequences. The rate of our matrix
products, with those of the backward pass, is held against that of large square matrices in the same format.

ours            one pass of the cut model without head for all layers and seeds
sparsify        its Trainer on the whole causal model, all layers in a run, a run per seed; its checkpoints not counted
saelens         LanguageModelSAETrainingRunner, an SAE a run; evaluation and W&B off; installed in its own environment
saelens_multi   MultiSAETrainingRunner, all SAEs in one run, else the same
parts           the cut model's forward passes alone, and the SAEs' steps alone on stored activations: their sum is what
                one pass for all must take at least
"""

import argparse
import contextlib
import io
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from machine import add_record, copied_bytes_per_sec, device_name, multiplied_flop_per_sec, synchronize
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from sae_utils.models import cut_after_, find_layers, load_trunk
from sae_utils.records import versions
from sae_utils.sources.packing import Chunks
from sae_utils.sparse_coders import SparseCoderConfig, TrainConfig, Trainer
from sae_utils.training.adapters import captured_prints
from sae_utils.training.trainer import SaeTrainer

SAELENS_REQUIREMENTS = ("sae-lens==6.54.12", "torch==2.13.0")


class UnsavedTrainer(Trainer):
    """sparsify's trainer without its checkpoints."""

    def save(self) -> None:
        """Leave the time of writing files out."""


class StoredActivations(nn.Module):
    """Stands for a model whose forward pass costs nothing: its layers put out activations that were stored before."""

    def __init__(self, activations: dict[str, Tensor]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name.rpartition(".")[2]: Stored(each) for name, each in activations.items()})
        first = next(iter(activations.values()))
        self.device, self.dtype, self.base_model = first.device, first.dtype, self
        self.dummy_inputs = {"input_ids": torch.zeros(1, 1, dtype=torch.long)}

    def forward(self, input_ids: Tensor) -> None:
        """Call every layer once, as a model would."""
        for layer in self.layers.values():
            layer(input_ids)


class Stored(nn.Module):
    """One layer's stored output."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output  # (batch, seq, d_model)

    def forward(self, input_ids: Tensor) -> Tensor:
        """The same activations for every batch; sparsify works on a copy."""
        return self.output


def main() -> None:
    """Run every contender and print SAE-tokens per second."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    vocab = 40_000
    tokens = np.random.default_rng(0).integers(0, vocab, (args.steps * args.batch_size, args.ctx_len)).astype(np.int32)
    chunks = Chunks(tokens)
    table = {}
    for n_seeds, layers in args.grid:
        shape = SimpleNamespace(n_seeds=n_seeds, layers=layers, args=args, chunks=chunks)
        contenders = contenders_of(shape)
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(args.rounds):
            for name, run in contenders.items():
                n_saes, elapsed_sec, n_tokens = run()
                rates[name].append(n_saes * n_tokens / elapsed_sec)
                print(f"{n_seeds} seeds, layers {layers}: {name} {rates[name][-1]:,.0f} SAE-tok/s", flush=True)
        shape_of = f"{n_seeds} seeds, layers {' '.join(map(str, layers))}"
        table[shape_of] = summary(rates) | {"flop_per_sae_token": flop_per_sae_token(shape)}
    report(args, table)


def contenders_of(shape: SimpleNamespace) -> dict[str, Callable[[], tuple[int, float, int]]]:
    """What is run, by name; each returns the number of SAEs, seconds, and tokens that each SAE was trained on."""
    args = shape.args
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    model = load_trunk(args.model, device, dtype)
    cut_after_(model, max(shape.layers))
    names = [f"{find_layers(model)[0]}.{layer}" for layer in shape.layers]
    warm_up = shape.chunks.select(range(args.batch_size))
    n_saes, n_tokens = shape.n_seeds * len(shape.layers), shape.chunks.tokens.size

    def ours() -> tuple[int, float, int]:
        with tempfile.TemporaryDirectory() as folder:
            SaeTrainer(config(shape, names), warm_up, model, work_dir=Path(folder)).fit()
            trainer = SaeTrainer(config(shape, names), shape.chunks, model, work_dir=Path(folder))
            return n_saes, timed(trainer.fit, device), n_tokens

    def sparsify() -> tuple[int, float, int]:
        whole = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype).to(device).eval()
        elapsed_sec = 0.0
        for seed in range(shape.n_seeds):
            with captured_prints(), contextlib.redirect_stderr(io.StringIO()):
                trainer = UnsavedTrainer(config(shape, names, seeds=[seed]), shape.chunks, whole)
                elapsed_sec += timed(trainer.fit, device)
        return n_saes, elapsed_sec, n_tokens

    def saelens(mode: str) -> tuple[int, float, int]:
        hooks = [f"model.{name}" for name in names]
        return n_saes, *run_saelens(args, mode, hooks, shape.n_seeds, model.config.hidden_size)

    def parts() -> tuple[int, float, int]:
        stored: dict[str, Tensor] = {}

        def keep(name: str) -> Callable:
            def hook(module: nn.Module, inputs: tuple, output: Tensor | tuple) -> None:
                stored[name] = output[0] if isinstance(output, tuple) else output

            return hook

        handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
        forward_sec = timed(lambda: run_forward(model, shape.chunks, args.batch_size), device)
        for handle in handles:
            handle.remove()
        stub = StoredActivations(stored)
        with tempfile.TemporaryDirectory() as folder:
            trainer = SaeTrainer(config(shape, names), shape.chunks, stub, work_dir=Path(folder))
            return n_saes, forward_sec + timed(trainer.fit, device), n_tokens

    known = {
        "ours": ours,
        "parts": parts,
        "sparsify": sparsify,
        "saelens": lambda: saelens("single"),
        "saelens_multi": lambda: saelens("multi"),
    }
    return {name: known[name] for name in args.contenders}


def config(shape: SimpleNamespace, hookpoints: list[str], seeds: list[int] | None = None) -> TrainConfig:
    """sparsify's settings; its defaults but for sizes."""
    args = shape.args
    return TrainConfig(
        SparseCoderConfig(num_latents=args.num_latents, k=args.k),
        batch_size=args.batch_size,
        hookpoints=list(hookpoints),
        init_seeds=list(range(shape.n_seeds)) if seeds is None else seeds,
        save_every=10**9,
        log_to_wandb=False,
    )


def flop_per_sae_token(shape: SimpleNamespace) -> float:
    """Floating-point operations of matrix products in our training, for a token and an SAE: counted in one step."""
    args = shape.args
    model = load_trunk(args.model, torch.device(args.device), getattr(torch, args.dtype))
    cut_after_(model, max(shape.layers))
    names = [f"{find_layers(model)[0]}.{layer}" for layer in shape.layers]
    chunks = shape.chunks.select(range(args.batch_size))
    with tempfile.TemporaryDirectory() as folder:
        trainer = SaeTrainer(config(shape, names), chunks, model, work_dir=Path(folder))
        with FlopCounterMode(display=False) as counter:
            trainer.fit()
    return counter.get_total_flops() / (len(chunks) * args.ctx_len * shape.n_seeds * len(shape.layers))


@torch.inference_mode()
def run_forward(model: nn.Module, chunks: Chunks, batch_size: int) -> None:
    """The target's forward passes, in the batches of training."""
    for start in range(0, len(chunks), batch_size):
        rows = torch.stack([chunks[i]["input_ids"] for i in range(start, start + batch_size)])
        model(rows.to(model.device))


def run_saelens(args: argparse.Namespace, mode: str, hooks: list[str], n_seeds: int, d_model: int) -> tuple[float, int]:
    """Seconds and tokens of SAELens, for all SAEs together, from its own environment."""
    settings = {
        "mode": mode,
        "model": args.model,
        "hooks": hooks,
        "n_seeds": n_seeds,
        "d_model": d_model,
        "n_latents": args.num_latents,
        "k": args.k,
        "ctx_len": args.ctx_len,
        "batch_size": args.batch_size,
        "n_steps": args.steps,
        "n_threads": args.threads,
        "dtype": args.dtype,
        "device": args.device,
    }
    result = call_saelens(args.saelens_env, "training_saelens.py", settings)
    return result["elapsed_sec"], result["n_tokens"]


def call_saelens(environment: Path, script: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What a script beside this one prints as JSON when SAELens' environment runs it; made first if it is missing."""
    python = environment / "bin" / "python"
    if not python.exists():
        print("installing SAELens in its own environment", flush=True)
        venv.create(environment, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *SAELENS_REQUIREMENTS], check=True)
    command = [python, Path(__file__).with_name(script), json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"SAELens failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def timed(run: Callable[[], None], device: torch.device) -> float:
    """Seconds of a call."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def summary(rates: dict[str, list[float]]) -> dict[str, dict]:
    """Medians, and how many times faster ours is."""
    medians = {name: statistics.median(each) for name, each in rates.items()}
    return {
        name: {
            "sae_tokens_per_sec": round(median),
            "all_sae_tokens_per_sec": [round(each) for each in rates[name]],
            "ours_is_times": round(medians["ours"] / median, 2),
        }
        for name, median in medians.items()
    }


def report(args: argparse.Namespace, table: dict[str, dict]) -> None:
    """Print the table, and write it to the record."""
    device = torch.device(args.device)
    rate = multiplied_flop_per_sec(device, getattr(torch, args.dtype))
    for shape, rows in table.items():
        rows["share_of_matrix_rate"] = round(
            rows["ours"]["sae_tokens_per_sec"] * rows.pop("flop_per_sae_token") / rate, 3
        )
        for name in args.contenders:
            row = rows[name]
            print(
                f"{shape:24} {name:14} {row['sae_tokens_per_sec']:>8,} SAE-tok/s   ours is {row['ours_is_times']} times"
            )
        print(f"{shape:24} ours multiplies at {rows['share_of_matrix_rate']:.0%} of the rate of large matrices")
    if args.record:
        about = {"multiplied_flop_per_sec": round(rate), "copied_bytes_per_sec": round(copied_bytes_per_sec(device))}
        add_results(args, about | table, device)


def add_results(args: argparse.Namespace, results: Any, device: torch.device) -> None:
    """Add results to the file of records, with the command, the machine and the versions that gave them."""
    record = {
        "command": "python " + shlex.join(sys.argv),
        "device": device_name(device),
        "threads": args.threads,
        "results": results,
        "versions": versions() | {"saelens": SAELENS_REQUIREMENTS[0].partition("==")[2]},
    }
    add_record(args.record, record)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of a model")
    parser.add_argument("--num_latents", type=int, default=4608)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--ctx_len", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=8, help="sequences per step")
    parser.add_argument("--steps", type=int, default=12, help="steps of every contender")
    parser.add_argument("--rounds", type=int, default=3, help="runs of every contender; the median counts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument(
        "--grid",
        nargs="+",
        default=[(2, [7, 15])],
        type=lambda text: (int(text.split(":")[0]), [int(layer) for layer in text.split(":")[1].split(",")]),
        help="what to train, as SEEDS:LAYER,LAYER",
    )
    names = ["ours", "parts", "sparsify", "saelens", "saelens_multi"]
    parser.add_argument("--contenders", nargs="+", default=names, choices=names)
    parser.add_argument("--saelens_env", type=Path, default=Path(".cache/saelens_env"), help="made if it is missing")
    parser.add_argument("--record", type=Path, help="JSON file that the result is added to")
    return parser.parse_args()


if __name__ == "__main__":
    main()
