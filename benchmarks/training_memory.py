"""Memory that training takes, beside what the plan estimates.

    python benchmarks/training_memory.py --record benchmarks/results/training_memory_cpu.json
    python benchmarks/training_memory.py --device cuda --d_model 2048 --sizes 40960:32:signum:1 40960:32:signum:4

SAEs on the one layer of a random GPT-NeoX model, from sequences of random ids, every size in a process of its own. A
CPU's memory is what becomes resident, looked at two hundred times a second, with all that PyTorch sets up on the first
step (about 0.1 GB).
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from machine import add_record, device_name
from peaks import MemoryPeak
from transformers import AutoModel, GPTNeoXConfig

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from sae_utils.models import skip_masks_
from sae_utils.records import versions
from sae_utils.sources.packing import Chunks
from sae_utils.sparse_coders import SparseCoderConfig, TrainConfig
from sae_utils.training.passes import estimate_pass_memory
from sae_utils.training.trainer import SaeTrainer

N_STEPS = 6


def main() -> None:
    """Measure every size in a process of its own, and print both numbers."""
    args = parse_args()
    if args.one:
        print(json.dumps(measure(args, args.one)))
        return
    rows = []
    for size in args.sizes:
        command = [sys.executable, __file__, "--one", size, "--device", args.device, "--d_model", str(args.d_model)]
        command += ["--batch_size", str(args.batch_size), "--ctx_len", str(args.ctx_len)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(rows[-1]), flush=True)
    if args.record:
        record = {
            "command": "python " + shlex.join(sys.argv),
            "device": device_name(torch.device(args.device)),
            "d_model": args.d_model,
            "tokens_per_batch": args.batch_size * args.ctx_len,
            "results": rows,
            "versions": versions(),
        }
        add_record(args.record, record)


def measure(args: argparse.Namespace, size: str) -> dict[str, int | float | str]:
    """Bytes taken while training beside the model, and the estimate of the same."""
    n_latents, k, optimizer, n_saes = size.split(":")
    n_latents, k, n_saes, device = int(n_latents), int(k), int(n_saes), torch.device(args.device)
    shape = {"hidden_size": args.d_model, "num_hidden_layers": 1, "intermediate_size": 4 * args.d_model}
    config = GPTNeoXConfig(vocab_size=300, num_attention_heads=8, max_position_embeddings=args.ctx_len, **shape)
    model = AutoModel.from_config(config).to(device).eval()
    skip_masks_(model)
    tokens = np.random.default_rng(0).integers(0, 300, (args.batch_size * N_STEPS, args.ctx_len)).astype(np.int32)
    cfg = TrainConfig(
        SparseCoderConfig(num_latents=n_latents, k=k),
        batch_size=args.batch_size,
        hookpoints=["layers.0"],
        init_seeds=list(range(n_saes)),
        optimizer=optimizer,
        save_every=10**9,
    )
    with tempfile.TemporaryDirectory() as folder, MemoryPeak(device) as peak:
        SaeTrainer(cfg, Chunks(tokens), model, work_dir=Path(folder)).fit()
    memory = estimate_pass_memory(
        model_bytes=0,
        d_model=args.d_model,
        n_latents=n_latents,
        k=k,
        optimizer=optimizer,
        tokens_per_micro_batch=args.batch_size * args.ctx_len,
        device=device,
    )
    about = {"n_latents": n_latents, "k": k, "optimizer": optimizer, "n_saes": n_saes}
    estimate = memory.of(n_saes)
    return about | {"measured_bytes": peak.n_bytes, "estimated_bytes": estimate, "ratio": estimate / peak.n_bytes}


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--d_model", type=int, default=512)
    parser.add_argument("--batch_size", type=int, default=4, help="sequences per step")
    parser.add_argument("--ctx_len", type=int, default=512)
    parser.add_argument(
        "--sizes",
        nargs="+",
        default=[
            *("8192:32:signum:1", "8192:32:signum:4", "8192:256:signum:1", "8192:512:signum:1"),
            *("8192:32:adam:4", "8192:32:muon:4", "32768:32:signum:1", "32768:32:adam:2"),
        ],
        help="what to train, as LATENTS:K:OPTIMIZER:SAES",
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--record", type=Path, help="JSON file that the result is added to")
    return parser.parse_args()


if __name__ == "__main__":
    main()
