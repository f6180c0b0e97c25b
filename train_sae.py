"""Train sparse autoencoders on target models over the data sets of source models, and measure what came out.

    python train_sae.py --target_models pythia-1.4b pythia-2.8b --source_models pythia-1.4b --dataset_seed 42
    python train_sae.py --org_name FOLDER --target_models NAME --source_models NAME --device cpu   # a first try

Needs the data sets of generate_datasets.py. Leaves one folder per target, source and seed, which sparsify's
SparseCoder.load_many reads. A run that was stopped goes on where it was when the same command is given again.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sae_utils.errors import InputError

if TYPE_CHECKING:  # their import takes seconds, which --help does not need
    import torch

    from sae_utils.comparison.trained import TrainedSae


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
        "--num_latents",
        type=int,
        default=None,
        help="latents per SAE, on a GPU a multiple of 8; not given, 40,960 unless a factor is set",
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
    comparison = parser.add_argument_group("comparison")
    which = comparison.add_mutually_exclusive_group()
    which.add_argument(
        "--train_only", action="store_true", help="train, and leave the comparison to a later run with --eval_only"
    )
    which.add_argument(
        "--eval_only",
        action="store_true",
        help="train nothing; measure and compare all finished SAEs in --checkpoint_dir on all their sources",
    )
    comparison.add_argument(
        "--random_tokens", type=int, default=1_000_000, help="random tokens on which fake features are counted"
    )
    comparison.add_argument(
        "--export", choices=["saelens"], default=None, help="also write each SAE in SAELens' own folder format"
    )
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
    running.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:N; auto is a GPU if there is one that PyTorch can use"
    )
    running.add_argument(
        "--dtype",
        default="auto",
        help="format of the target's weights: float32, bfloat16, float16; auto is bfloat16 on a GPU that has it, else "
        "float32",
    )
    running.add_argument(
        "--overwrite", action="store_true", help="throw away what stands there instead of continuing it"
    )
    running.add_argument(
        "--dry_run", action="store_true", help="print what would be done and stop; --device cuda needs no GPU"
    )
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
    """Train every SAE asked for, compare them, and show the results.

    Raises:
        InputError: If a setting or an input has to be changed.
    """
    from sae_utils.dependencies import check_compiler, check_sparsify

    check_sparsify()
    from sae_utils.devices import choose_device, is_here
    from sae_utils.distributed import find_launch, join_workers, leave_workers
    from sae_utils.progress import script_output

    if args.random_tokens < 1 or args.batch_size < 1:
        found = f"{args.random_tokens} and {args.batch_size}"
        raise InputError(f"--random_tokens and --batch_size must be at least 1, got {found}")
    with script_output(quiet=args.quiet or not find_launch().is_main):
        device = choose_device(args.device, is_plan=args.dry_run)
        on_gpu = device.type == "cuda" and is_here(device)
        if on_gpu:
            check_compiler()
        workers = join_workers(on_gpus=on_gpu)
        # Only now: these import sparsify, which asks PyTorch for GPUs, and PyTorch prints once why it sees none.
        from sae_utils.comparison.trained import find_all_trained, find_trained
        from sae_utils.training.grid import describe_grid, plan_grid
        from sae_utils.training.loop import train_cells
        from sae_utils.training.tracking import choose_wandb_mode

        if args.eval_only:
            saes = find_all_trained(args.checkpoint_dir)
            plan = f"{len(saes)} finished SAEs in {args.checkpoint_dir}"
            wandb_mode = choose_wandb_mode(args.wandb_mode)
        else:
            # 1. Find models and data sets, pack the tokens, and give every cell of the grid the same budget.
            cells = plan_grid(args, workers, device)
            plan = describe_grid(cells)
            wandb_mode = cells[0].run.wandb["mode"]
        if workers.is_main:
            print(plan, flush=True)

        if not args.dry_run:
            # 2. Train each cell: layers and seeds in one pass of the target model.
            if not args.eval_only:
                saes = find_trained(train_cells(cells))

            # 3. Compare: on every source, on random tokens, across seeds.  4. Show and keep the results.
            if workers.is_main and not args.train_only:
                compare_and_report(args, saes, wandb_mode, device)
            workers.wait()
    leave_workers()


def compare_and_report(
    args: argparse.Namespace, saes: Sequence["TrainedSae"], wandb_mode: str, device: "torch.device"
) -> None:
    """Measure finished SAEs, and put the results on the terminal, on a page, and into W&B."""
    from sae_utils.comparison.measuring import ComparisonSettings, compare
    from sae_utils.comparison.saelens_export import export_saelens
    from sae_utils.report.figures import write_figures
    from sae_utils.report.page import write_report
    from sae_utils.report.tables import results_tables, wandb_summary
    from sae_utils.training.tracking import add_to_summary

    settings = ComparisonSettings(
        datasets_dir=args.datasets_dir,
        device=device,
        batch_size=args.batch_size,
        n_random_tokens=args.random_tokens,
        quiet=args.quiet,
    )
    results = compare(saes, args.results_dir, settings)
    if args.export:
        export_saelens(saes, args.checkpoint_dir)
    folders = {sae.key[:2]: sae.folder.parent for sae in saes}
    for target, source in sorted(results.changed):
        add_to_summary(folders[target, source], wandb_mode, wandb_summary(results, target, source))
    figures = write_figures(args.results_dir)
    page = write_report(args.results_dir)
    print(results_tables(results, [sae.key for sae in saes]))
    print(f"\n{page}: the comparison, with a browser of the features")
    print(f"{results.folder / 'metrics.json'}, {results.folder / 'metrics.csv'}: all numbers")
    print(f"{figures[0].parent}: the figures, as PNG and SVG")
    if args.export:
        print(f"{args.checkpoint_dir / 'saelens'}: the SAEs in SAELens' format")


if __name__ == "__main__":
    sys.exit(main())
