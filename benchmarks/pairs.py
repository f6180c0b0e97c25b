"""Every pair of SAEs of several sources and seeds, at full size: time, memory, and planted shares found again.

    python benchmarks/pairs.py --n_latents 8192 --record benchmarks/results/pairs_cpu.json     # minutes
    python benchmarks/pairs.py --n_latents 40960 --record benchmarks/results/pairs_cpu.json    # hours, 8 GB

The dictionaries are random, but for two planted parts: some rows are common to all SAEs, some to those of one source;
each SAE has them with noise of its own (cosine 0.9 with those of the others) and in an order of its own. So agreement
within a source must be the sum of both shares, between sources the first. Pairs are matched, kept and summed up by the
steps of the comparison itself; a run that was stopped goes on with `--folder`.
"""

import argparse
import json
import logging
import os
import shlex
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from machine import add_record, device_name, peak_resident_bytes

from sae_utils.comparison.across import sum_up
from sae_utils.comparison.pairs import estimate_sec, match_pairs
from sae_utils.comparison.results import Results
from sae_utils.records import versions
from sae_utils.sparse_coders import SparseCoder, SparseCoderConfig

NOISE = (1 / 0.9 - 1) ** 0.5
"""Norm of the noise on a planted row of norm 1: two of them then have a cosine of 0.9."""

LAYER = 7


@dataclass(frozen=True)
class PlantedSae:
    """What the comparison wants of a finished SAE, made up when it is loaded."""

    source: str
    seed: int
    sizes: tuple[int, int, int, int]
    """d_model, latents, rows common to all, rows common to a source."""

    layer: int = LAYER
    alike: tuple = ()
    """What tells it from SAEs that it is not compared with: nothing."""
    eval_shape: tuple = ()
    """What it is measured on: nothing."""

    @property
    def series(self) -> str:
        """Under which it is listed."""
        return self.source

    @property
    def record(self) -> dict:
        """What its record has of it."""
        return {"target": "planted", "source": self.source, "d_model": self.sizes[0], "n_latents": self.sizes[1]}

    @property
    def key(self) -> tuple:
        """Target, source, layer and seed."""
        return "planted", self.source, LAYER, self.seed

    @property
    def weights_fingerprint(self) -> str:
        """What its weights depend on."""
        return f"{self.source} {self.seed} {self.sizes}"

    def load(self, device: torch.device) -> SparseCoder:
        """The SAE, its encoder its decoder's rows."""
        d_model, n_latents, n_common, n_own = self.sizes
        rows = draw(f"{self.source} {self.seed}", n_latents, d_model)
        planted = torch.cat([draw("common", n_common, d_model), draw(self.source, n_own, d_model)])
        rows[: len(planted)] = planted + NOISE * rows[: len(planted)]
        order = torch.randperm(n_latents, generator=generator_of(f"order {self.source} {self.seed}"))
        sae = SparseCoder(d_model, SparseCoderConfig(num_latents=n_latents, k=32), device, dtype=torch.float32)
        sae.encoder.weight.data = sae.W_dec.data = normalize(rows, dim=1)[order].to(device)
        return sae.requires_grad_(False)


def generator_of(name: str) -> torch.Generator:
    """A stream of its own for each name."""
    return torch.Generator().manual_seed(int.from_bytes(name.encode(), "big") % 2**61)


def draw(name: str, n: int, d_model: int) -> Tensor:
    """Random directions of norm 1, `(n, d_model)`."""
    return normalize(torch.randn(n, d_model, generator=generator_of(name)), dim=1)


def main() -> None:
    """Match all pairs, and hold what comes out against what was planted."""
    args = parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    device, n_planted = torch.device(args.device), [int(share * args.n_latents) for share in args.shares]
    sizes = args.d_model, args.n_latents, *n_planted
    saes = [PlantedSae(f"source-{i}", seed, sizes) for i in range(args.n_sources) for seed in range(args.n_seeds)]
    results = Results(args.folder or Path(tempfile.mkdtemp()))
    for sae in saes:
        about = {"source": sae.source, "seed": sae.seed, "layer": LAYER, "weights_fingerprint": sae.weights_fingerprint}
        results.saes[sae.key] = sae.record | about | {"is_diverged": False, "evaluations": [], "random_tokens": None}
        rates = np.full(args.n_latents, 0.01, np.float32)
        results.add_arrays("planted", sae.source, LAYER, **{f"firing_rate_{sae.seed}": rates})
    estimated = estimate_sec(args.d_model, args.n_latents, device)
    n_known = len(list(results.folder.rglob("*_with_*.npz")))
    began = time.perf_counter()
    match_pairs(saes, results, device)
    matched = time.perf_counter()
    sum_up(results)
    row = {
        "n_latents": args.n_latents,
        "d_model": args.d_model,
        "sources": args.n_sources,
        "seeds": args.n_seeds,
        "pairs": len(results.pairs),
        "pairs_of_this_run": len(results.pairs) - n_known,
        "sec": round(matched - began, 1),
        "sec_per_pair": round((matched - began) / max(1, len(results.pairs) - n_known), 1),
        "sec_per_pair_estimated": round(estimated, 1),
        "sec_to_sum_up": round(time.perf_counter() - matched, 1),
        "peak_memory_bytes": peak_resident_bytes(),
        "planted": {"between": n_planted[0] / args.n_latents, "within": sum(n_planted) / args.n_latents},
        "agreements": [
            {name: each[name] for name in ("source", "source_b", "kind", "sfr", "sfr_interval", "mean_matched_cosine")}
            for each in results.agreements
        ],
        "contrasts": [each for each in results.contrasts if each["measure"] == "sfr"],
        "load_average": round(os.getloadavg()[0], 2),
    }
    print(json.dumps(row, indent=1))
    if args.record:
        add_results(args, row)


def add_results(args: argparse.Namespace, row: dict) -> None:
    """Add this run to the record."""
    record = {
        "command": "python " + shlex.join(sys.argv),
        "device": device_name(torch.device(args.device)),
        "threads": args.threads,
        "results": [row],
        "versions": versions() | {"ortools": metadata.version("ortools")},
    }
    add_record(args.record, record)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n_latents", type=int, default=8192)
    parser.add_argument("--d_model", type=int, default=2048)
    parser.add_argument("--n_sources", type=int, default=3)
    parser.add_argument("--n_seeds", type=int, default=2)
    shares = {"type": float, "nargs": 2, "default": [0.25, 0.125], "metavar": ("ALL", "SOURCE")}
    parser.add_argument("--shares", **shares, help="rows common to all SAEs, and to those of a source")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, help="where to work, new or of a run that was stopped")
    parser.add_argument("--record", type=Path, help="JSON file that the result is added to")
    return parser.parse_args()


if __name__ == "__main__":
    main()
