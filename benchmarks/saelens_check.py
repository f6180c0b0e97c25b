r"""Do exported SAEs give in SAELens what they give in sparsify? Latents, reconstructions and explained variance.

    python benchmarks/saelens_check.py --model .cache/SmolLM2-135M-Instruct \
        --record benchmarks/results/saelens_check.json

SAEs are trained by the two scripts on what the model says and exported. Both libraries then get the same activations:
`real`, outputs of the layer on held-out tokens, and `random`, normal with deviation 1. SAELens reads the exports with
`SAE.load_from_disk` in an environment of its own, and runs the model itself up to the hook that the export names.
All but the sampling is in float32, on a CPU.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from training import add_results, call_saelens

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import generate_datasets
import train_sae
from sae_utils.comparison.groups import ComparisonSettings, group_saes
from sae_utils.comparison.saelens_export import export_saelens
from sae_utils.comparison.trained import TrainedSae, find_all_trained
from sae_utils.comparison.whereabouts import Whereabouts, find_sources_of
from sae_utils.evaluation.activations import encode, layer_outputs
from sae_utils.evaluation.reconstruction import SquaredDeviation, fraction_of_variance_unexplained
from sae_utils.sources.packs import Packs
from sae_utils.sparse_coders import SparseCoder


def main() -> None:
    """Train, export, encode with both, compare."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        saes = train_saes(args, Path(folder))
        exports = export_saelens(saes, Path(folder) / "checkpoints")
        results = [
            check(args, trained, export, Path(folder) / "inputs.safetensors")
            for trained, export in zip(saes, exports, strict=True)
        ]
    for result in results:
        print(json.dumps(result, indent=2))
    if args.record:
        add_results(args, results, torch.device("cpu"))


def train_saes(args: argparse.Namespace, folder: Path) -> list[TrainedSae]:
    """SAEs of every layer as a user would make them; few tokens, as only their size and kind matter here."""
    model, name = args.model.absolute(), args.model.name
    sample = ["--models", str(model), "--num_tokens", str(args.train_tokens + args.tokens), "--max_length", "256"]
    sample += ["--dtype", "bfloat16", "--device", "cpu", "--batch_size", "64"]
    generate_datasets.main([*sample, "--output_dir", str(folder / "datasets"), "--quiet"])
    train = ["--org_name", str(model.parent), "--target_models", name, "--source_models", name, "--dataset_seed", "42"]
    train += ["--layers", *map(str, args.layers), "--num_seeds", "1", "--num_latents", str(args.num_latents)]
    train += ["--k", str(args.k), "--ctx_len", "256", "--eval_tokens", str(args.tokens), "--lr", "5e-3"]
    train += ["--datasets_dir", str(folder / "datasets"), "--checkpoint_dir", str(folder / "checkpoints")]
    train_sae.main([*train, "--dtype", "float32", "--device", "cpu", "--train_only", "--wandb_mode", "disabled"])
    return find_all_trained(folder / "checkpoints")[0]


def check(args: argparse.Namespace, trained: TrainedSae, export: Path, inputs: Path) -> dict[str, Any]:
    """What SAELens finds, beside what sparsify finds, for one SAE."""
    device = torch.device("cpu")
    where = Whereabouts(inputs.parent / "datasets", Packs((inputs.parent / "datasets",)))
    (group,) = group_saes([trained], find_sources_of([trained], where), ComparisonSettings(where, device))
    target = group.load_target()
    chunks = group.held_out(group.sources[trained.key[1]], target)
    ids = torch.stack([chunks[row]["input_ids"] for row in range(len(chunks))])
    batches = [layer_outputs(target.model, [trained.hookpoint], batch) for batch in ids.split(4)]
    real = torch.cat([batch[trained.hookpoint] for batch in batches]).flatten(0, 1)  # (tokens, d_model)
    random = torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
    sae = trained.load(device)
    given = {"ids": ids} | encoded("real", sae, real) | encoded("random", sae, random)
    save_file(given, inputs)
    about = {name: trained.record[name] for name in ("layer", "n_latents", "k", "d_model", "n_train_tokens")}
    about |= {"n_tokens": len(real), "fvu_in_run_json": trained.record["fvu"]}
    fvu = {name: our_fvu(given[f"{name}.x"], given[f"{name}.x_hat"]) for name in ("real", "random")}
    return about | {"sparsify_fvu": fvu} | run_saelens(args, export, inputs)


def encoded(name: str, sae: SparseCoder, x: Tensor) -> dict[str, Tensor]:
    """Activations `(tokens, d_model)` and what sparsify makes of them: latents > 0 as a dense array, reconstruction."""
    encoding = encode(sae, x[None])
    latents = torch.zeros(len(x), sae.num_latents).scatter(1, encoding.top_indices, encoding.top_acts)
    return {f"{name}.x": x.contiguous(), f"{name}.latents": latents, f"{name}.x_hat": encoding.x_hat.contiguous()}


def our_fvu(x: Tensor, x_hat: Tensor) -> float | None:
    """Fraction of variance unexplained as in the results."""
    deviation = SquaredDeviation()
    deviation.add(x.double())
    return fraction_of_variance_unexplained(float((x.double() - x_hat.double()).pow(2).sum()), deviation)


def run_saelens(args: argparse.Namespace, export: Path, inputs: Path) -> dict[str, Any]:
    """What benchmarks/saelens_check_saelens.py finds, in SAELens' own environment, which is made if it is missing."""
    settings = {"export": str(export), "inputs": str(inputs), "n_threads": args.threads}
    return call_saelens(args.saelens_env, "saelens_check_saelens.py", settings)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of a model")
    parser.add_argument("--layers", type=int, nargs="+", default=[7, 15])
    parser.add_argument("--num_latents", type=int, default=4608)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--train_tokens", type=int, default=12_000, help="tokens that the SAEs are trained on, about")
    parser.add_argument("--tokens", type=int, default=4096, help="held-out tokens to compare on")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--saelens_env", type=Path, default=Path(".cache/saelens_env"), help="made if it is missing")
    parser.add_argument("--record", type=Path, help="JSON file that the result is added to")
    return parser.parse_args()


if __name__ == "__main__":
    main()
