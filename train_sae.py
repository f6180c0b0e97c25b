"""Train sparse autoencoders on target models over the data sets of source models, and measure what came out.

    python train_sae.py --target_models pythia-1.4b pythia-2.8b --source_models pythia-1.4b --dataset_seed 42
    python train_sae.py --org_name FOLDER --target_models NAME --source_models NAME --device cpu   # a first try

Needs the data sets of generate_datasets.py. Leaves one folder per target, source and seed, which sparsify's
SparseCoder.load_many reads. A run that was stopped goes on where it was when the same command is given again.
"""

import argparse
import os
import sys
from pathlib import Path

from sae_utils.errors import InputError


def build_parser() -> argparse.ArgumentParser:
    """The documented command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    models = parser.add_argument_group("models")
    models.add_argument(
        "--org_name",
        default="EleutherAI",
        help="hub organisation or local folder that holds every target and source model",
    )
    models.add_argument(
        "--target_models",
        nargs="+",
        default=["pythia-1.4b", "pythia-2.8b"],
        metavar="MODEL",
        help="models whose activations are encoded; a name with a slash is a folder or a whole hub id",
    )
    models.add_argument(
        "--source_models",
        nargs="*",
        default=["pythia-1.4b"],
        metavar="MODEL",
        help="models whose generated data sets are trained on; none at all if nothing follows",
    )
    data = parser.add_argument_group("data")
    data.add_argument("--datasets_dir", type=Path, default=Path("datasets"), help="folder of the generated data sets")
    data.add_argument(
        "--text_datasets",
        nargs="+",
        default=[],
        metavar="TEXTS",
        help="control corpora as further sources: .txt (one text a line), .jsonl, .parquet, a folder made by "
        "save_to_disk, or a hub id (ID:CONFIGURATION where it has several); texts in the column `text`",
    )
    data.add_argument("--dataset_seed", type=int, default=4, help="seed that the data sets were generated with")
    data.add_argument("--dataset_temperature", type=float, default=1.0, help="temperature they were generated with")
    data.add_argument("--dataset_top_p", type=float, default=0.9, help="nucleus mass they were generated with")
    data.add_argument("--ctx_len", type=int, default=2048, help="tokens per training sequence")
    data.add_argument(
        "--max_tokens",
        type=int,
        default=None,
        help="most training tokens per SAE; not given, all that the smallest source has",
    )
    data.add_argument(
        "--eval_tokens",
        type=int,
        default=None,
        help="tokens held out from the end of every source; not given, 5 %% of the smallest source, at most 131,072",
    )
    data.add_argument("--shuffle_seed", type=int, default=42, help="order of the training sequences")
    saes = parser.add_argument_group("sparse autoencoders")
    saes.add_argument("--layers", type=int, nargs="+", default=[7, 15], help="decoder layers to encode, counted from 0")
    saes.add_argument("--num_seeds", type=int, default=2, help="SAEs per layer, from seeds 0 .. num_seeds-1")
    saes.add_argument("--k", type=int, default=32, help="latents that may be active on a token")
    saes.add_argument(
        "--expansion_factor",
        type=int,
        default=None,
        help="latents per dimension of the model; not given, 20 for pythia-1.4b, 16 for pythia-2.8b",
    )
    saes.add_argument(
        "--num_latents", type=int, default=None, help="latents per SAE; not given, 40,960 unless a factor is set"
    )
    training = parser.add_argument_group("training")
    training.add_argument("--batch_size", type=int, default=2, help="sequences per step, of all processes together")
    training.add_argument(
        "--lr", type=float, default=None, help="learning rate; not given, sparsify's for the optimizer and size"
    )
    training.add_argument(
        "--optimizer", choices=["signum", "adam", "muon"], default="signum", help="sparsify's optimizer"
    )
    training.add_argument("--grad_acc_steps", type=int, default=1, help="batches per optimizer step")
    training.add_argument(
        "--micro_acc_steps", type=int, default=1, help="parts a batch is cut into for the SAEs, to save memory"
    )
    training.add_argument(
        "--distribute_modules",
        action="store_true",
        help="with torchrun: each process trains some of the layers, instead of all layers on a part of each batch",
    )
    training.add_argument("--save_every", type=int, default=1000, help="steps between resumable checkpoints")
    output = parser.add_argument_group("output")
    output.add_argument("--checkpoint_dir", type=Path, default=Path("checkpoints"), help="folder of the SAEs")
    output.add_argument("--results_dir", type=Path, default=Path("results"), help="folder of the measurements")
    output.add_argument("--project_name", default="sae-training", help="W&B project")
    output.add_argument(
        "--entity", default=os.environ.get("WANDB_ENTITY"), help="W&B team; $WANDB_ENTITY, or the account's own"
    )
    output.add_argument(
        "--wandb_mode",
        choices=["auto", "online", "offline", "disabled"],
        default="auto",
        help="auto is online when logged in, offline when not",
    )
    running = parser.add_argument_group("running")
    running.add_argument("--device", default="auto", help="cpu, cuda, cuda:N; auto is the GPU if there is one")
    running.add_argument(
        "--dtype",
        default="auto",
        help="format of the target's weights: float32, bfloat16, float16; auto is bfloat16 on a GPU, float32 on a CPU",
    )
    running.add_argument(
        "--overwrite", action="store_true", help="throw away what stands there instead of continuing it"
    )
    running.add_argument("--dry_run", action="store_true", help="print what would be done and stop")
    running.add_argument("--quiet", action="store_true", help="no progress bars, no status lines")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Parse, check, then train and measure the whole grid."""
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        train(args)
    except InputError as err:
        parser.exit(2, f"{parser.prog}: error: {err}\n")
    except KeyboardInterrupt:
        parser.exit(130, "stopped; the same command goes on from the last checkpoint\n")


def train(args: argparse.Namespace) -> None:
    """Train every SAE asked for and print the table.

    Raises:
        InputError: If a setting or an input has to be changed.
    """
    from sae_utils.dependencies import check_sparsify

    check_sparsify()
    from sae_utils.devices import choose_device
    from sae_utils.distributed import join_workers, leave_workers
    from sae_utils.grid import describe_grid, plan_grid
    from sae_utils.progress import script_output
    from sae_utils.report import collect_records, results_table
    from sae_utils.training import train_cells

    workers = join_workers(on_gpus=choose_device(args.device).type == "cuda")
    with script_output(quiet=args.quiet or not workers.is_main):
        # 1. Find models and data sets, pack the tokens, and give every cell of the grid the same budget.
        cells = plan_grid(args, workers)
        if workers.is_main:
            print(describe_grid(cells), flush=True)
        if not args.dry_run:
            # 2. Train each cell: layers and seeds in one pass of the target model.  3. Measure on held-out tokens.
            records = train_cells(cells)

            # 4. Show and keep the results.
            if workers.is_main:
                print(results_table(records))
                print(f"written to {collect_records(args.results_dir, records)}")
    leave_workers()


if __name__ == "__main__":
    sys.exit(main())
