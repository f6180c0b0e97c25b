"""What could be gained if rows that outlive their batch went on together with those of other batches.

    python benchmarks/survivors.py datasets/SmolLM2-135M-Instruct_42_1.0_1.0 --record benchmarks/results/survivors.json

Computed from the lengths of a sampled data set: a step costs a part that does not depend on the number of rows, and one
that grows with it. Rows are dropped as the sampler drops them, and that is held against a batch that is always full,
which no merging can beat. On a CPU the fixed part is small; on a GPU that waits for its kernels to be started, it is
nearly all.
"""

import argparse
import shlex
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from datasets import load_from_disk
from machine import add_record

from sae_utils.generation.sampling import COMPACT_SHARE

FIXED_SHARES = (0.0, 0.1, 0.3, 1.0)
"""Shares of a full batch's step that it takes whatever the number of rows."""


def main() -> None:
    """Print and record what a batch that is always full would save."""
    args = parse_args()
    lengths = np.array([len(ids) for ids in load_from_disk(str(args.dataset))["input_ids"]])
    gains = {str(share): round(gain(lengths, args.rows, share), 3) for share in FIXED_SHARES}
    for share, each in gains.items():
        print(f"{float(share):.0%} of a step without regard to rows: {each:.1%} more time than with full batches")
    if args.record:
        about = {
            "n_samples": len(lengths),
            "longest": int(lengths.max()),
            "mean_length": round(float(lengths.mean()), 1),
        }
        about |= {"share_that_reach_the_longest": round(float((lengths == lengths.max()).mean()), 3)}
        add_record(args.record, {"command": "python " + shlex.join(sys.argv)} | about | {"gain_at_most": gains})


def gain(lengths: np.ndarray, n_rows: int, fixed_share: float) -> float:
    """Time of batches that shrink, over that of full ones for the same tokens, less one."""
    batches = lengths[: len(lengths) // n_rows * n_rows].reshape(-1, n_rows)
    taken = sum(batch_cost(batch, fixed_share) for batch in batches)
    return float(taken / ((batches - 1).sum() / n_rows) - 1)  # BOS is given


def batch_cost(lengths: np.ndarray, fixed_share: float) -> float:
    """Time of one batch, in steps of a full one."""
    n_rows = n_kept = len(lengths)
    cost = 0.0
    for position in range(1, lengths.max()):
        n_live = int((lengths > position).sum())
        if n_kept - n_live >= COMPACT_SHARE * n_kept:
            n_kept = n_live
        cost += fixed_share + (1 - fixed_share) * n_kept / n_rows
    return cost


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path, help="folder of a sampled data set")
    parser.add_argument("--rows", type=int, default=128, help="samples decoded together")
    parser.add_argument("--record", type=Path, help="JSON file that the result is added to")
    return parser.parse_args()


if __name__ == "__main__":
    main()
