"""Speed of measuring SAEs by what the model predicts with a layer replaced, side by side in one run.

    python benchmarks/measuring.py --model .cache/SmolLM2-135M-Instruct --record benchmarks/results/measuring_cpu.json

Cross-entropy and KL of several SAEs on the same sequences, in tokens times SAEs per second.

ours        `measure_splices`: the layers after the replaced one alone, losses in parts that the caches hold
plain       the whole model for every replacement, and PyTorch's own losses on all logits at once
products    the matrix products of ours alone, which is the least that its passes can take
"""

import argparse
import shlex
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from machine import add_record, device_name, multiplied_flop_per_sec, synchronize
from products import products_sec
from random_model import SHAPES, random_model
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from sae_utils.evaluation.activations import activation_in, id_batches, recorded_outputs, with_activation
from sae_utils.evaluation.splicing import layers_up_to, measure_splices, replaced_output, replacements
from sae_utils.models import find_layers, load_causal_lm
from sae_utils.records import versions
from sae_utils.sources.packing import Chunks
from sae_utils.sparse_coders import SparseCoder, SparseCoderConfig


def main() -> None:
    """Time both, and the products."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    task = prepare(args)
    contenders = {"ours": measure_ours, "plain": measure_plain}
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    found = {}
    for _ in range(args.rounds):
        for name, run in contenders.items():
            start = time.perf_counter()
            found[name] = run(task)
            synchronize(task.model.device)
            rates[name].append(len(task.saes) * task.chunks.tokens.size / (time.perf_counter() - start))
            print(f"{name}: {rates[name][-1]:,.1f} SAE-tok/s", flush=True)
    check_same(found)
    rates["products"] = [
        len(task.saes) * task.chunks.tokens.size / products_sec(task.model, lambda: measure_ours(task))
    ]
    report(args, task, {name: statistics.median(each) for name, each in rates.items()}, rates)


def prepare(args: argparse.Namespace) -> SimpleNamespace:
    """A model, untrained SAEs on its layers, sequences of random tokens, and the means of the layers' outputs."""
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    model = load_causal_lm(args.model, device, dtype).model if args.model else random_model(args.config, device, dtype)
    name, d_model = find_layers(model)[0], model.config.hidden_size
    config = SparseCoderConfig(num_latents=args.num_latents, k=args.k)
    torch.manual_seed(0)
    saes = {
        (layer, seed): (f"{name}.{layer}", SparseCoder(d_model, config, device=device))
        for layer in args.layers
        for seed in range(args.n_seeds)
    }
    tokens = np.random.default_rng(0).integers(0, 40_000, (args.sequences, args.ctx_len)).astype(np.int32)
    means = {f"{name}.{layer}": torch.zeros(d_model, device=device) for layer in args.layers}
    return SimpleNamespace(model=model, saes=saes, chunks=Chunks(tokens), means=means, batch_size=args.batch_size)


def measure_ours(task: SimpleNamespace) -> dict[tuple, tuple[float, float]]:
    """Cross-entropy and KL of every SAE."""
    measured = measure_splices(task.model, task.saes, task.chunks, task.means, batch_size=task.batch_size)
    return {key: (each["ce_sae_nats"], each["kl_nats"]) for key, each in measured.items()}


@torch.no_grad()
def measure_plain(task: SimpleNamespace) -> dict[tuple, tuple[float, float]]:
    """The same, as one would write it down."""
    model, sums, n = task.model, {}, 0
    names = dict.fromkeys(hookpoint for hookpoint, _ in task.saes.values())
    for ids in id_batches(task.chunks, task.batch_size):
        ids = ids.to(model.device)
        with recorded_outputs(model, names) as outputs:
            clean = model(ids, use_cache=False).logits[:, :-1].flatten(0, 1).float()
        targets = ids[:, 1:].flatten()
        n += len(targets)
        for hookpoint, output in outputs.items():
            for key, new in with_replaced(task, hookpoint, output):
                with replaced_output(layers_up_to(model, hookpoint), new, is_resumed=False):
                    logits = model(ids, use_cache=False).logits[:, :-1].flatten(0, 1).float()
                entropy = functional.cross_entropy(logits, targets, reduction="sum")
                log_p, log_q = clean.log_softmax(-1), logits.log_softmax(-1)
                kl = functional.kl_div(log_q, log_p, log_target=True, reduction="sum")
                sums[key] = np.add(sums.get(key, 0.0), [float(entropy), float(kl)])
    return {key[1]: tuple(total / n) for key, total in sums.items() if key[0] == "sae"}


def with_replaced(
    task: SimpleNamespace, hookpoint: str, output: Tensor | tuple
) -> Iterator[tuple[tuple, Tensor | tuple]]:
    """What a layer returns instead: zeros, the mean, and every SAE's reconstruction."""
    activations = activation_in(output)
    kept = torch.ones(activations.shape[:2], dtype=torch.bool, device=activations.device)
    for key, new in replacements(hookpoint, activations, task.saes, task.means[hookpoint], kept):
        yield key, with_activation(output, new)


def check_same(found: dict[str, dict[tuple, tuple[float, float]]]) -> None:
    """Both have measured the same, up to rounding."""
    for key, expected in found["plain"].items():
        np.testing.assert_allclose(found["ours"][key], expected, rtol=1e-3)


def report(args: argparse.Namespace, task: SimpleNamespace, medians: dict[str, float], rates: dict) -> None:
    """Print what was found, and write it to the record."""
    rows = {
        name: {
            "sae_tokens_per_sec": round(median, 1),
            "all_sae_tokens_per_sec": [round(each, 1) for each in rates[name]],
            "ours_is_times": round(medians["ours"] / median, 3),
        }
        for name, median in medians.items()
    }
    for name, row in rows.items():
        print(f"{name:10} {row['sae_tokens_per_sec']:>10,.1f} SAE-tok/s   ours is {row['ours_is_times']} times")
    if args.record:
        device = task.model.device
        record = {
            "command": "python " + shlex.join(sys.argv),
            "device": device_name(device),
            "threads": args.threads,
            "multiplied_flop_per_sec": round(multiplied_flop_per_sec(device, task.model.dtype)),
            "share_of_products": rows["products"]["ours_is_times"],
            "results": rows,
            "versions": versions(),
        }
        add_record(args.record, record)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", help="folder of a model")
    which.add_argument("--config", choices=SHAPES, help="random weights of this shape")
    parser.add_argument("--layers", type=int, nargs="+", default=[3, 7])
    parser.add_argument("--n_seeds", type=int, default=2)
    parser.add_argument("--num_latents", type=int, default=576)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--ctx_len", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=2, help="sequences per pass")
    parser.add_argument("--sequences", type=int, default=4, help="sequences measured on")
    parser.add_argument("--rounds", type=int, default=3, help="runs of both; the median counts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--record", type=Path, help="JSON file that the result is added to")
    return parser.parse_args()


if __name__ == "__main__":
    main()
