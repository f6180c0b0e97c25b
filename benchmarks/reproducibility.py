"""What comes out the same: samples in other batches, with other numbers of threads, and once more.

    python benchmarks/reproducibility.py --model .cache/SmolLM2-135M-Instruct --record REPRODUCIBILITY.json
    python benchmarks/reproducibility.py --config pythia-1.4b --device cuda --batch_sizes 48 256      # random weights

Every way samples the same ids of the same stream. Counted are samples whose token ids differ from those of the first
way, and the first position at which one does; likelihoods are compared to their last unit of 2**-20 nats.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from generation import load_source
from machine import add_record, device_name
from random_model import SHAPES

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from sae_utils.generation.sampling import Sample, SamplingSettings, prepare_for_sampling_, sample_tokens
from sae_utils.models import LoadedModel
from sae_utils.records import versions


def main() -> None:
    """Sample in every way and print what differs."""
    args = parse_args()
    rows = []
    for dtype in args.dtypes:
        source = load_source(argparse.Namespace(**vars(args) | {"dtype": dtype}))
        prepare_for_sampling_(source.model)
        first = sampled(source, args, args.n, args.threads[0], is_fixed=False)
        for batch_size in [args.n, *args.batch_sizes]:
            for threads in args.threads:
                for is_fixed in (False, True) if batch_size > 1 else (False,):
                    found = sampled(source, args, batch_size, threads, is_fixed=is_fixed)
                    way = {"dtype": dtype, "batch_size": batch_size, "threads": threads, "fixed_batches": is_fixed}
                    rows.append(way | difference(first, found))
                    print(json.dumps(rows[-1]), flush=True)
    if args.record:
        record = {
            "command": "python " + shlex.join(sys.argv),
            "device": device_name(torch.device(args.device)),
            "n_samples": args.n,
            "max_length": args.tokens,
            "results": rows,
            "versions": versions(),
        }
        add_record(args.record, record)


def sampled(
    source: LoadedModel, args: argparse.Namespace, batch_size: int, threads: int, *, is_fixed: bool
) -> list[Sample]:
    """Samples 0 .. n - 1, `batch_size` at a time; with fixed batches, the last one is filled up."""
    torch.set_num_threads(threads)
    settings = SamplingSettings(seed=1, max_length=args.tokens)
    samples: list[Sample] = []
    for start in range(0, args.n, batch_size):
        stop = start + batch_size if is_fixed else min(args.n, start + batch_size)
        samples += sample_tokens(source, range(start, stop), settings, is_fixed=is_fixed)
    return samples[: args.n]


def difference(first: list[Sample], found: list[Sample]) -> dict[str, Any]:
    """How many samples differ, from which position on, and whether any likelihood does."""
    positions = [first_difference(a.ids, b.ids) for a, b in zip(first, found, strict=True)]
    differing = [position for position in positions if position is not None]
    same_nll = all(np.array_equal(a.nll, b.nll) for a, b in zip(first, found, strict=True))
    return {"n_differing": len(differing), "first_position": min(differing, default=None), "same_likelihoods": same_nll}


def first_difference(a: np.ndarray, b: np.ndarray) -> int | None:
    """First position at which two samples differ; None if they are the same."""
    shorter = min(len(a), len(b))
    unequal = np.flatnonzero(a[:shorter] != b[:shorter])
    if len(unequal):
        return int(unequal[0])
    return None if len(a) == len(b) else shorter


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", help="folder of a model")
    which.add_argument("--config", choices=SHAPES, help="random weights of this shape")
    parser.add_argument("--n", type=int, default=24, help="samples")
    parser.add_argument("--tokens", type=int, default=40, help="longest sample, BOS included")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 7], help="beside all samples at once")
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--record", type=Path, help="JSON file that the result is added to")
    return parser.parse_args()


if __name__ == "__main__":
    main()
