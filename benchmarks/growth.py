"""How time and memory grow with every size of a run: each point in a process of its own, one size changed at a time.

    python benchmarks/growth.py --record benchmarks/results/growth_cpu.json
    python benchmarks/growth.py --axes 'sampling: samples' --most 400000        # 400,000 samples

Models are small and random. What counts is the exponent between a size and the next: 0 does not grow, 1 grows in a
straight line, 2 with the square. Memory is the peak of the process with all of PyTorch in it, so that what grows shows
only when it is larger than that. `page.py` draws what is recorded.
"""

import argparse
import functools
import importlib
import io
import json
import math
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from machine import add_record, cpu_name, peak_resident_bytes

SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
"""Shape of the random model, a GPTNeoX of 1,024 tokens."""

TRAINING = {"n_latents": 2048, "k": 32, "n_layers": 1, "n_seeds": 1, "ctx_len": 256, "n_steps": 24}
"""What is trained, but for the size that is looked at; 2,048 tokens a step."""

MEASURING = {"n_saes": 4, "n_latents": 1024, "n_tokens": 8192}
"""What is measured, the same."""


def main() -> None:
    """Measure every axis, and print its exponents."""
    args = parse_args()
    if args.point:
        print(json.dumps(POINTS[args.point[0]](int(args.point[1]), args.threads)))
    else:
        axes = {name: measured(args, name) for name in args.axes}
        if args.record:
            add_axes(args, axes)


def measured(args: argparse.Namespace, axis: str) -> list[dict[str, Any]]:
    """The points of an axis, printed one by one with the exponents since the one before."""
    values = [value for value in AXES[axis] if args.most is None or value <= args.most]
    values += [args.most] if args.most and args.most > values[-1] else []
    points: list[dict[str, Any]] = []
    for value in values:
        command = [sys.executable, __file__, "--threads", str(args.threads), "--point", axis, str(value)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{axis} {value}: {done.stderr[-2000:]}")
        points.append({"value": value} | json.loads(done.stdout.splitlines()[-1]))
        print(describe(axis, points), flush=True)
    return points


def describe(axis: str, points: list[dict[str, Any]]) -> str:
    """One line of the last point."""
    last = points[-1]
    grown = {name: exponent(points[-2], last, name) for name in LABELS if name in last} if len(points) > 1 else {}
    cells = [
        f"{LABELS[name]} {last[name]:,}" + (f" (^{grown[name]:.2f})" if grown else "")
        for name in LABELS
        if name in last
    ]
    return f"{axis} {last['value']:,}: {', '.join(cells)}"


def exponent(before: dict[str, Any], after: dict[str, Any], name: str) -> float:
    """With which power of the size a number grows between two points."""
    if not before[name] or not after[name]:
        return math.nan
    return math.log(after[name] / before[name]) / math.log(after["value"] / before["value"])


def sample(n_samples: int, threads: int, max_length: int = 32, batch_size: int = 256) -> dict[str, Any]:
    """generate_datasets.py from its start to its end, and once more, when there is nothing left to do."""
    with tempfile.TemporaryDirectory() as folder:
        model = small_model(Path(folder) / "model")
        flags = ["--models", str(model), "--n", str(n_samples), "--max_length", str(max_length), "--seed", "4"]
        flags += ["--batch_size", str(batch_size), "--device", "cpu", "--output_dir", f"{folder}/out", "--quiet"]
        sec = run_script("generate_datasets", flags, threads)
        (final,) = (path.parent for path in Path(folder, "out").rglob("generation.json"))
        record = json.loads((final / "generation.json").read_text())
        files = [path for path in Path(folder, "out").rglob("*") if path.is_file()]
        sec_again = run_script("generate_datasets", flags, threads)
        return {
            "sec": round(sec, 2),
            "usec_per_token": round(sec / record["n_tokens"] * 1e6, 2),
            "sec_of_second_run": round(sec_again, 2),
            "files": len(files),
            "bytes_on_disk": sum(path.stat().st_size for path in files),
            "peak_bytes": peak_resident_bytes(),
        }


def run_script(name: str, flags: list[str], threads: int) -> float:
    """Seconds of a script in this process, its imports not counted."""
    import torch

    torch.set_num_threads(threads)
    script = importlib.import_module(name)
    start = time.perf_counter()
    with redirect_stdout(io.StringIO()):
        script.main(flags)
    return time.perf_counter() - start


def small_model(folder: Path, **shape: int) -> Path:
    """A random model with a tokenizer whose words are numbers."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, GPTNeoXConfig, PreTrainedTokenizerFast

    config = GPTNeoXConfig(
        vocab_size=1024, max_position_embeddings=2048, bos_token_id=0, eos_token_id=0, **(SMALL | shape)
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"<|endoftext|>": 0} | {str(i): i for i in range(1, 1024)}, unk_token="1"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    return folder


def train(name: str, value: int, threads: int) -> dict[str, Any]:
    """Seconds of an optimiser step with one size changed, the first steps not counted; 2,048 tokens a step."""
    import torch

    from sae_utils.models import find_layers, load_trunk
    from sae_utils.sources.packing import Chunks
    from sae_utils.sparse_coders import SparseCoderConfig, TrainConfig
    from sae_utils.training.trainer import SaeTrainer

    torch.set_num_threads(threads)
    sizes = TRAINING | {name: value}
    batch_size, n_steps = max(1, 2048 // sizes["ctx_len"]), sizes["n_steps"]
    tokens = np.random.default_rng(0).integers(1, 1024, (batch_size * n_steps, sizes["ctx_len"])).astype(np.int32)
    with tempfile.TemporaryDirectory() as folder:
        shape = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
        model = load_trunk(str(small_model(Path(folder) / "model", **shape)), torch.device("cpu"), torch.float32)
        config = TrainConfig(
            SparseCoderConfig(num_latents=sizes["n_latents"], k=sizes["k"]),
            batch_size=batch_size,
            hookpoints=[f"{find_layers(model)[0]}.{layer}" for layer in range(sizes["n_layers"])],
            init_seeds=list(range(sizes["n_seeds"])),
            save_every=10**9,
            log_to_wandb=False,
        )
        chunks = Chunks(tokens)
        SaeTrainer(config, chunks.select(range(2 * batch_size)), model, work_dir=Path(folder)).fit()
        trainer = SaeTrainer(config, chunks, model, work_dir=Path(folder))
        clock = PassClock(model)
        start = time.perf_counter()
        trainer.fit()
        sec = time.perf_counter() - start
    return {
        "msec_per_step": round(sec / n_steps * 1e3, 2),
        "msec_of_passes": round(clock.sec / n_steps * 1e3, 2),
        "peak_bytes": peak_resident_bytes(),
    }


class PassClock:
    """Seconds in the forward passes of a model on a CPU, from now on, with what its hooks do: the SAEs' passes."""

    def __init__(self, model: Any) -> None:
        self.sec, self.began = 0.0, 0.0
        model.register_forward_pre_hook(lambda *args: self.start())
        model.register_forward_hook(lambda *args: self.stop())

    def start(self) -> None:
        """A pass begins."""
        self.began = time.perf_counter()

    def stop(self) -> None:
        """It ends; nothing is returned, which would replace what the model computed."""
        self.sec += time.perf_counter() - self.began


def prepare(n_tokens: int, threads: int) -> dict[str, Any]:
    """train_sae.py from its start over a corpus of so many tokens to the end of its only step, and once more."""
    with tempfile.TemporaryDirectory() as folder:
        model, corpus = small_model(Path(folder) / "models" / "tiny"), Path(folder) / "words.txt"
        words = np.random.default_rng(0).integers(1, 1024, (-(-n_tokens // 512), 512))
        corpus.write_text("".join(" ".join(map(str, row)) + "\n" for row in words))
        flags = ["--org_name", str(model.parent), "--target_models", model.name, "--source_models"]
        flags += ["--text_datasets", str(corpus), "--text_tokens", str(n_tokens), "--max_tokens", "512"]
        flags += ["--ctx_len", "256", "--batch_size", "2", "--layers", "0", "--num_seeds", "1", "--num_latents", "256"]
        flags += ["--checkpoint_dir", f"{folder}/out", "--results_dir", f"{folder}/results"]
        flags += ["--datasets_dir", f"{folder}/data", "--device", "cpu", "--train_only", "--quiet"]
        flags += ["--wandb_mode", "disabled", "--eval_tokens", "512"]
        sec = run_script("train_sae", flags, threads)
        sec_again = run_script("train_sae", [*flags, "--overwrite"], threads)
        kept = [path for path in Path(folder).rglob("*") if path.is_file() and path != corpus]
        return {
            "sec": round(sec, 2),
            "sec_with_rows_there": round(sec_again, 2),
            "files": len(kept),
            "bytes_on_disk": sum(path.stat().st_size for path in kept),
            "peak_bytes": peak_resident_bytes(),
        }


def measure(name: str, value: int, threads: int) -> dict[str, Any]:
    """Seconds of measuring SAEs on held-out tokens with one size changed."""
    import torch

    from sae_utils.evaluation.reconstruction import measure_reconstruction
    from sae_utils.evaluation.splicing import measure_splices
    from sae_utils.models import find_layers, load_causal_lm
    from sae_utils.sources.packing import Chunks
    from sae_utils.sparse_coders import SparseCoder, SparseCoderConfig

    torch.set_num_threads(threads)
    sizes = MEASURING | {name: value}
    with tempfile.TemporaryDirectory() as folder:
        model = load_causal_lm(str(small_model(Path(folder))), torch.device("cpu"), torch.float32).model
    hookpoint = f"{find_layers(model)[0]}.0"
    config = SparseCoderConfig(num_latents=sizes["n_latents"], k=32)
    saes = {seed: (hookpoint, SparseCoder(SMALL["hidden_size"], config)) for seed in range(sizes["n_saes"])}
    chunks = Chunks(np.random.default_rng(0).integers(1, 1024, (sizes["n_tokens"] // 256, 256)).astype(np.int32))
    start = time.perf_counter()
    means = {hookpoint: measure_reconstruction(model, saes, chunks, batch_size=2).layers[hookpoint].all.mean}
    reconstruction_sec = time.perf_counter() - start
    measure_splices(model, saes, chunks, means, batch_size=2)
    splicing_sec = time.perf_counter() - start - reconstruction_sec
    return {
        "sec_of_reconstruction": round(reconstruction_sec, 3),
        "sec_of_splicing": round(splicing_sec, 3),
        "peak_bytes": peak_resident_bytes(),
    }


def match(n_latents: int, threads: int) -> dict[str, Any]:
    """Seconds of matching two dictionaries of which half is shared."""
    import torch
    from matching import make_dictionaries

    from sae_utils.comparison.matching import match_rows

    torch.set_num_threads(threads)
    a, b = make_dictionaries("half shared", n_latents, 256)
    start = time.perf_counter()
    match_rows(a, b)
    return {"sec": round(time.perf_counter() - start, 2), "peak_bytes": peak_resident_bytes()}


AXES = {
    "sampling: samples": [1000, 4000, 16_000, 64_000],
    "sampling: length": [32, 64, 128, 256],
    "sampling: rows": [16, 64, 256, 1024],
    "data: tokens": [100_000, 1_000_000, 10_000_000, 100_000_000],
    "training: latents": [1024, 2048, 4096, 8192, 16_384],
    "training: k": [8, 16, 32, 64],
    "training: layers": [1, 2, 4],
    "training: seeds": [1, 2, 4, 8],
    "training: sequence length": [64, 256, 1024],
    "measuring: SAEs": [2, 4, 8, 16],
    "measuring: latents": [1024, 4096, 16_384],
    "measuring: tokens": [4096, 16_384, 65_536],
    "matching: latents": [1024, 2048, 4096, 8192],
}
"""Sizes of each axis."""

POINTS: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "sampling: samples": sample,
    "sampling: length": lambda value, threads: sample(1000, threads, max_length=value),
    "sampling: rows": lambda value, threads: sample(4096, threads, batch_size=value),
    "data: tokens": prepare,
    "training: latents": functools.partial(train, "n_latents"),
    "training: k": functools.partial(train, "k"),
    "training: layers": functools.partial(train, "n_layers"),
    "training: seeds": functools.partial(train, "n_seeds"),
    "training: sequence length": functools.partial(train, "ctx_len"),
    "measuring: SAEs": functools.partial(measure, "n_saes"),
    "measuring: latents": functools.partial(measure, "n_latents"),
    "measuring: tokens": functools.partial(measure, "n_tokens"),
    "matching: latents": match,
}
"""What measures a point of each axis."""


LABELS = {
    "sec": "seconds",
    "usec_per_token": "microseconds a token",
    "sec_of_second_run": "seconds of a second run",
    "files": "files",
    "bytes_on_disk": "bytes on disk",
    "sec_with_rows_there": "seconds with the rows there",
    "msec_per_step": "milliseconds a step",
    "msec_of_passes": "of these in passes of model and SAEs",
    "sec_of_reconstruction": "seconds of reconstruction",
    "sec_of_splicing": "seconds of cross-entropies",
    "peak_bytes": "bytes of memory",
}
"""Words for what is measured."""


def add_axes(args: argparse.Namespace, axes: dict[str, list[dict[str, Any]]]) -> None:
    """Add what was measured to a file of records."""
    from sae_utils.records import versions

    about = {"command": "python " + shlex.join(sys.argv), "device": cpu_name(), "threads": args.threads}
    add_record(args.record, about | {"note": args.note, "results": axes, "versions": versions()})


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--axes", nargs="+", default=list(AXES), choices=list(AXES), help="what is changed")
    parser.add_argument("--most", type=int, help="largest size; one that is not among the points is added")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--record", type=Path, help="JSON file that the result is added to")
    parser.add_argument("--note", default="", help="what else has to be known of this machine, for the record")
    parser.add_argument("--point", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
