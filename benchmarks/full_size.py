r"""Both scripts at their documented sizes, with random weights: what it took beside what `--dry_run` had foretold.

    python benchmarks/full_size.py full_size --device cuda --record benchmarks/results/full_size_gpu.json
    python benchmarks/full_size.py /tmp/small --shape pythia-70m --n 8 --max_length 64 --latents 512 --tokens 1000
    python benchmarks/full_size.py /tmp/many --shape tiny --n 400000 --max_length 288 --rows 1024 --top_p 1.0 \
        --latents 64 --k 4 --layers 0 --batch_size 32 --tokens 100000000

A data set of Pythia-1.4b's shape is sampled, SAEs of 40,960 latents are trained on it in one pass for layers 7 and 15
and two seeds, and measured and compared, each step in a process of its own. `--dry_run` is asked before every step, and
once more behind it, when rates are known. Foretold are hours for the whole; taken is the time of the whole process. At
the end all of it is run again: seconds, in which no file may change.
"""

import argparse
import contextlib
import hashlib
import importlib
import io
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import torch
from machine import add_record, device_name, peak_resident_bytes
from random_model import SHAPES

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from sae_utils.records import versions


def main() -> None:
    """Take every step, and print what it took and what was foretold."""
    args = parse_args()
    if args.one:
        print(json.dumps(run_here(*args.one)))
        return
    folder, model = args.folder, args.folder / "models" / args.shape
    if not model.exists():
        subprocess.run([sys.executable, Path(__file__).with_name("random_model.py"), args.shape, model], check=True)
    results = {}
    for name, argv in steps(args, folder, model).items():
        before = call(*argv, "--dry_run")["output"]
        taken = call(*argv)
        after = call(*argv, "--dry_run", *(["--overwrite"] if name == "sampling" else []))["output"]
        results[name] = {"command": shlex.join(argv), "foretold": before, "foretold_again": after} | taken
        results[name]["output"] = taken["output"][-3000:]
        print(json.dumps(results[name], indent=1), flush=True)
    before = digests(folder)
    for name, argv in steps(args, folder, model).items():
        results[name]["sec_again"] = call(*argv)["sec"]
        print(f"{name} again: {results[name]['sec_again']} s", flush=True)
    changed = sorted(path for path, digest in digests(folder).items() if before.get(path) != digest)
    print(f"{len(before):,} files, {len(changed)} of them changed by running all of it again: {changed}")
    if args.record:
        record = {
            "command": "python " + shlex.join(sys.argv),
            "device": device_name(torch.device(args.device)),
            "results": results,
            "files": len(before),
            "files_changed_again": changed,
            "versions": versions(),
        }
        add_record(args.record, record)


def steps(args: argparse.Namespace, folder: Path, model: Path) -> dict[str, list[str]]:
    """The command line of every step."""
    where = ["--device", args.device, "--dtype", args.dtype]
    sizes = [
        "--num_latents",
        str(args.latents),
        "--layers",
        *map(str, args.layers),
        "--num_seeds",
        str(args.seeds),
        "--k",
        str(args.k),
    ]
    train = ["train_sae.py", "--org_name", str(model.parent), "--target_models", args.shape, "--source_models"]
    train += [args.shape, *sizes, "--ctx_len", str(min(2048, args.max_length)), "--max_tokens", str(args.tokens)]
    train += ["--datasets_dir", str(folder / "datasets"), "--checkpoint_dir", str(folder / "checkpoints")]
    train += ["--results_dir", str(folder / "results"), "--wandb_mode", "disabled", *where]
    train += ["--eval_tokens", str(args.eval_tokens), "--random_tokens", str(args.random_tokens)]
    sample = ["generate_datasets.py", "--models", str(model), "--n", str(args.n), "--max_length", str(args.max_length)]
    sample += ["--seed", "4", *where, "--output_dir", str(folder / "datasets")]
    sample += ["--top_p", args.top_p]
    sample += ["--batch_size", str(args.rows)] if args.rows else []
    train += ["--dataset_top_p", args.top_p]
    train += ["--batch_size", str(args.batch_size)] if args.batch_size else []
    return {"sampling": sample, "training": [*train, "--train_only"], "comparison": [*train, "--eval_only"]}


def digests(folder: Path) -> dict[str, str]:
    """By the path of each file: what is in it, in short."""
    found = {}
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        with path.open("rb") as file:
            found[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def call(*argv: str) -> dict:
    """What a script says and takes, in a process of its own; errors go through."""
    command = [sys.executable, __file__, ".", "--one", *argv[:1], shlex.join(argv[1:])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def run_here(script: str, argv: str) -> dict:
    """Seconds, memory and the last lines of one run of a script."""
    output, began = io.StringIO(), time.perf_counter()
    with contextlib.redirect_stdout(output):
        importlib.import_module(script.removesuffix(".py")).main(shlex.split(argv))
    row = {"sec": round(time.perf_counter() - began, 1), "output": output.getvalue()}
    row["resident_bytes"] = peak_resident_bytes()
    if torch.cuda.is_initialized():
        row["gpu_allocated_bytes"] = torch.cuda.max_memory_allocated()
        row["gpu_reserved_bytes"] = torch.cuda.max_memory_reserved()
    return row


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to work; a model that stands there is taken")
    parser.add_argument("--shape", choices=SHAPES, default="pythia-1.4b")
    parser.add_argument("--n", type=int, default=512, help="samples")
    parser.add_argument("--max_length", type=int, default=1024, help="tokens of a sample, and of a training sequence")
    parser.add_argument("--rows", type=int, help="samples decoded together; not given, what fits")
    parser.add_argument("--latents", type=int, default=40_960)
    parser.add_argument("--top_p", default="0.9")
    parser.add_argument("--batch_size", type=int, help="training sequences of a step; not given, the script's own")
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--layers", type=int, nargs="+", default=[7, 15])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=300_000, help="tokens that SAEs are trained on")
    parser.add_argument("--eval_tokens", type=int, default=16_384)
    parser.add_argument("--random_tokens", type=int, default=100_000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--record", type=Path, help="JSON file that the result is added to")
    return parser.parse_args()


if __name__ == "__main__":
    main()
