r"""Does SAEBench's core evaluation find for an exported SAE what our results say of it?

    python benchmarks/saebench.py --model .cache/SmolLM2-135M-Instruct --record benchmarks/results/saebench.json

train_sae.py trains an SAE on the project's own pages, which are one document, measures it on the sequences held out,
and exports it for SAELens. SAEBench's `run_evals` then gets the export, TransformerLens' own model made from the same
folder, and the same sequences, in an environment of its own and with nothing but what is on disk. Done twice: with
every position counted, and with what both can leave out left out (`--exclude first bos eos`; SAEBench's special
tokens). All is in float32, on a CPU.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from training import SAELENS_REQUIREMENTS, add_results, call_saelens

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import train_sae
from sae_utils.comparison.groups import ComparisonSettings, group_saes
from sae_utils.comparison.trained import find_all_trained
from sae_utils.comparison.whereabouts import Whereabouts, find_sources_of
from sae_utils.sources.packs import Packs

ROOT = Path(__file__).resolve().parent.parent

SAEBENCH = ("sae-bench==0.6.0", "sae-probes==0.4.2")
"""Installed without what they ask for: NumPy below 2 and datasets below 4 do not go with this Python's PyTorch."""

SAEBENCH_NEEDS = ("beartype", "collectibles", "jaxtyping", "openai", "plotly", "scikit-learn", "seaborn", "tabulate")
"""What its core evaluation imports of that, beside SAELens."""

CTX_LEN, BATCH_SIZE = 256, 4


def main() -> None:
    """Train, measure and export; let SAEBench measure; compare."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    make_environment(args.saebench_env)
    results = []
    for exclude in ([], ["first", "bos", "eos"]):
        with tempfile.TemporaryDirectory() as folder:
            ours = measured_by_us(args, Path(folder), exclude)
            theirs = measured_by_saebench(args, Path(folder), has_special=not exclude)
        results.append({"exclude": exclude, "layer": args.layer} | side_by_side(ours, theirs, args))
        print(json.dumps(results[-1], indent=2), flush=True)
    if args.record:
        add_results(args, results, torch.device("cpu"))


def measured_by_us(args: argparse.Namespace, folder: Path, exclude: list[str]) -> dict[str, Any]:
    """Train an SAE, measure it and export it; its numbers on the sequences held out, which are left in `ids`."""
    pages = [path.read_text(encoding="utf-8") for path in [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md"))]]
    (folder / "pages.jsonl").write_text(json.dumps({"text": "\n\n".join(pages)}) + "\n")
    model = args.model.absolute()
    flags = ["--org_name", str(model.parent), "--target_models", model.name, "--source_models"]
    flags += ["--text_datasets", str(folder / "pages.jsonl"), "--exclude", *exclude, "--layers", str(args.layer)]
    flags += ["--num_seeds", "1", "--num_latents", str(args.num_latents), "--k", "32", "--ctx_len", str(CTX_LEN)]
    flags += ["--max_tokens", str(args.train_tokens), "--eval_tokens", str(args.tokens), "--lr", "5e-3"]
    flags += ["--random_tokens", "1000", "--export", "saelens", "--device", "cpu", "--dtype", "float32"]
    places = ["--datasets_dir", "datasets", "--checkpoint_dir", "checkpoints", "--results_dir", "results"]
    flags += [str(folder / each) if i % 2 else each for i, each in enumerate(places)]
    train_sae.main([*flags, "--wandb_mode", "disabled", "--quiet"])
    save_held_out(folder)
    (record,) = json.loads((folder / "results/metrics.json").read_text())["saes"]
    return record["evaluations"][0] | {"d_model": record["d_model"]}


def save_held_out(folder: Path) -> None:
    """Write the sequences that the SAE was measured on, int64 `(sequences, ctx_len)`, where SAEBench finds them."""
    saes, _ = find_all_trained(folder / "checkpoints")
    where = Whereabouts(folder / "datasets", Packs((folder / "datasets",)))
    (group,) = group_saes(saes, find_sources_of(saes, where), ComparisonSettings(where, torch.device("cpu")))
    chunks = group.held_out(group.sources["pages"], group.load_target())
    save_file({"ids": torch.stack([chunks[row]["input_ids"] for row in range(len(chunks))])}, folder / "ids")


def measured_by_saebench(args: argparse.Namespace, folder: Path, *, has_special: bool) -> dict[str, Any]:
    """What benchmarks/saebench_core.py finds, in SAEBench's environment.

    Args:
        args: The command line.
        folder: Where the export and the sequences are.
        has_special: Whether special tokens count.
    """
    (export,) = (folder / "checkpoints/saelens").glob("*/layers.*")
    settings = {
        "export": str(export),
        "model": str(args.model.absolute()),
        "ids": str(folder / "ids"),
        "layer": args.layer,
        "has_special": has_special,
        "batch_size": BATCH_SIZE,
        "n_threads": args.threads,
    }
    return call_saelens(args.saebench_env, "saebench_core.py", settings)


def side_by_side(ours: dict[str, Any], theirs: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Both libraries' numbers by our names, and how far they are apart; SAEBench's in our units.

    SAEBench's `explained_variance` is beside ours and not the same: of the mean square it takes away the square of the
    mean over dimensions of the mean squares, where the variance has the squared means of the dimensions. Its `mse` is a
    token's squared error divided by the tokens of a batch.
    """
    tokens_per_batch = ours["n_tokens"] * BATCH_SIZE * CTX_LEN / args.tokens
    metrics = {name: value for group in theirs["metrics"].values() for name, value in group.items()}
    pairs = {
        "explained_variance": (1 - ours["fvu"], metrics["explained_variance"]),
        "l0": (ours["l0"], metrics["l0"]),
        "ce_recovered": (ours["ce_recovered"], metrics["ce_loss_score"]),
        "ce_clean_nats": (ours["ce_clean_nats"], metrics["ce_loss_without_sae"]),
        "ce_sae_nats": (ours["ce_sae_nats"], metrics["ce_loss_with_sae"]),
        "ce_zero_nats": (ours["ce_zero_nats"], metrics["ce_loss_with_ablation"]),
        "kl_nats": (ours["kl_nats"], metrics["kl_div_with_sae"]),
        "mse": (ours["mse"], metrics["mse"] * tokens_per_batch / ours["d_model"]),
        "cosine": (ours["cosine"], metrics["cossim"]),
    }
    found = {name: {"ours": our, "saebench": their, "difference": their - our} for name, (our, their) in pairs.items()}
    about = {"n_tokens": ours["n_tokens"], "n_latents": args.num_latents, "n_train_tokens": args.train_tokens}
    return about | {"numbers": found, "saebench_versions": theirs["versions"], "warnings": theirs["warnings"]}


def make_environment(folder: Path) -> None:
    """SAEBench's environment, if there is none."""
    python = folder / "bin" / "python"
    if python.exists():
        return
    print("installing SAEBench in its own environment", flush=True)
    venv.create(folder, with_pip=True)
    pip = [python, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, *SAELENS_REQUIREMENTS, *SAEBENCH_NEEDS], check=True)
    subprocess.run([*pip, "--no-deps", *SAEBENCH], check=True)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of a model")
    parser.add_argument("--layer", type=int, default=7)
    parser.add_argument("--num_latents", type=int, default=2304)
    parser.add_argument("--train_tokens", type=int, default=16_384, help="tokens that the SAE is trained on")
    parser.add_argument("--tokens", type=int, default=4096, help="held-out tokens to measure on")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--saebench_env", type=Path, default=Path(".cache/saebench_env"), help="made if it is missing")
    parser.add_argument("--record", type=Path, help="JSON file that the result is added to")
    return parser.parse_args()


if __name__ == "__main__":
    main()
