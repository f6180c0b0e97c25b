r"""Train sparse autoencoders on target models over source data sets, and compare.

    python train_sae.py --source_models pythia-1.4b  # pythia-1.4b and 2.8b
    python train_sae.py --org_name FOLDER --target_models NAME \
        --source_models NAME --num_latents 2048 --ctx_len 256  # a first try
    python train_sae.py --eval_only  # measure and compare what is there

Needs the data sets of generate_datasets.py. Leaves one folder per target,
source and seed, which sparsify's SparseCoder.load_many reads, and the results
with a page. The same command again goes on where a run was stopped; --dry_run
says what it would do. docs/options.md has every flag at length.
"""

import argparse
import contextlib
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sae_utils.command_line import add_running_flags, add_sharing_flags, check_running_flags, make_parser, run_script

if TYPE_CHECKING:  # their import takes seconds, which --help does not need
    import torch

    from sae_utils.comparison.cost import Work
    from sae_utils.comparison.groups import ComparisonSettings
    from sae_utils.comparison.results import Results
    from sae_utils.comparison.trained import Damaged, TrainedSae
    from sae_utils.distributed import Workers
    from sae_utils.sharing.upload import PushChoice
    from sae_utils.sources.labelled import LabelledTexts
    from sae_utils.sources.packs import Packs
    from sae_utils.training.cells import Cell
    from sae_utils.training.folders import Checkpoints
    from sae_utils.training.grid import GridChoice
    from sae_utils.training.machines import Machines
    from sae_utils.training.settings import TrainingSettings
    from sae_utils.training.wandb_login import Tracking


def build_parser() -> argparse.ArgumentParser:
    """The documented command line."""
    parser = make_parser(__doc__)
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
        help="models whose generated data sets are trained on, or hf://datasets/ORG/NAME for one on a hub; none at all "
        "if nothing follows",
    )
    data = parser.add_argument_group("data")
    data.add_argument("--datasets_dir", type=Path, default=Path("datasets"), help="folder of the generated data sets")
    data.add_argument(
        "--text_datasets",
        nargs="+",
        default=[],
        metavar="TEXTS",
        help="control corpora as further sources: .txt (one text a line), .jsonl, .parquet, a folder made by "
        "save_to_disk, or a hub id (ID:CONFIGURATION where it has several); texts in the column `text`, or token ids "
        "in `input_ids`",
    )
    data.add_argument(
        "--text_tokens",
        type=int,
        default=None,
        help="tokens to take from the beginning of each corpus; not given, about as many as the smallest generated "
        "data set has",
    )
    data.add_argument(
        "--controls",
        nargs="*",
        default=[],
        metavar="CONTROL",
        help="further sources made of these: shuffled has the rows of each source with their tokens in random order, "
        "shuffled:NAME those of one source",
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
        "--keep_at",
        type=parse_tokens,
        nargs="+",
        default=[],
        metavar="TOKENS",
        help="numbers of training tokens, such as 1e6, at which SAEs are kept on the way: those of smaller budgets",
    )
    data.add_argument(
        "--eval_tokens",
        type=int,
        default=None,
        help="tokens held out from the end of every source; not given, 5 %% of the smallest source, at most 131,072",
    )
    data.add_argument("--shuffle_seed", type=int, default=42, help="order of the training sequences")
    data.add_argument(
        "--exclude",
        nargs="*",
        default=["first", "bos"],
        metavar="WHAT",
        help="positions that SAEs neither learn from nor are measured on: first (of each sequence), bos, eos, token "
        "ids, norm:M (activations of more than M times their sequence's median norm); none if nothing follows",
    )
    saes = parser.add_argument_group("sparse autoencoders")
    saes.add_argument("--layers", type=int, nargs="+", default=[7, 15], help="decoder layers to encode, counted from 0")
    saes.add_argument(
        "--hookpoint",
        nargs="+",
        choices=["residual", "mlp_out", "attn_out"],
        default=["residual"],
        help="what of a layer is encoded: its output, which is the residual stream, or that of its MLP or attention; "
        "each gets SAEs of its own",
    )
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
    training.add_argument(
        "--keep_state",
        action="store_true",
        help="keep the state behind finished SAEs (twice their size), so that a larger --max_tokens goes on from there",
    )
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
    which.add_argument(
        "--report_only",
        action="store_true",
        help="only make tables, figures and page of --results_dir anew, from its metrics.json; needs no model, no SAE "
        "and no data",
    )
    comparison.add_argument(
        "--pairs",
        nargs="+",
        choices=["within", "between", "same_seed"],
        default=["within", "between", "same_seed"],
        help="SAEs of a target and layer that are matched: within a source (other seeds), between two sources (other "
        "seeds), of two sources from the same seed",
    )
    comparison.add_argument(
        "--random_tokens", type=int, default=1_000_000, help="random tokens on which fake features are counted"
    )
    comparison.add_argument(
        "--probe_datasets",
        nargs="+",
        default=[],
        metavar="TEXTS",
        help="labelled texts on which hidden states, latents and reconstructions are probed: .jsonl, .parquet, .csv, a "
        "folder made by save_to_disk, or a hub id; columns `text` and `label`",
    )
    comparison.add_argument(
        "--export", choices=["saelens"], default=None, help="also write each SAE in SAELens' own folder format"
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--checkpoint_dir",
        type=Path,
        nargs="+",
        default=[Path("checkpoints")],
        help="folder of the SAEs; with --eval_only also several, whose SAEs are compared together",
    )
    output.add_argument(
        "--results_dir",
        type=Path,
        nargs="+",
        default=[Path("results")],
        help="folder of the measurements; with --eval_only also others behind it, whose measurements are taken over",
    )
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
    add_sharing_flags(parser, what="every finished folder of SAEs")
    add_running_flags(parser)
    return parser


def parse_tokens(text: str) -> int:
    """A number of tokens, also as it is written for large ones.

    >>> parse_tokens("1e6"), parse_tokens("2500")
    (1000000, 2500)

    Raises:
        ArgumentTypeError: If it is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value.is_integer():
        raise argparse.ArgumentTypeError(f"must be numbers of tokens, such as 1e6, got {text}")
    return int(value)


def main(argv: list[str] | None = None) -> None:
    """Parse, check, then train and measure the whole grid."""
    run_script(build_parser(), start, argv, when_stopped=how_to_go_on)


def how_to_go_on(args: argparse.Namespace) -> str:
    """What to say when the script was asked to end."""
    same = "the same command without --overwrite" if args.overwrite else "the same command"
    return f"stopped; {same} goes on from the last {'measurement' if args.eval_only else 'checkpoint'}"


def start(args: argparse.Namespace) -> None:
    """Find the device and the other processes, then do what is asked for.

    Raises:
        InputError: If a setting or an input has to be changed.
    """
    from sae_utils.dependencies import check_compiler, check_sparsify

    check_sparsify()
    from sae_utils.devices import choose_device, is_here
    from sae_utils.distributed import find_launch, join_workers, leave_workers
    from sae_utils.progress import script_output

    split_folders(args)
    check_running_flags(args)
    with script_output(quiet=args.quiet or not find_launch().is_main):
        if args.report_only:
            if find_launch().is_main:
                show_again(args.results_dir)
            return
        device = choose_device(args.device, is_plan=args.dry_run)
        on_gpu = device.type == "cuda" and is_here(device)
        if on_gpu:
            check_compiler()
        workers = join_workers(on_gpus=on_gpu)
        train(args, device, workers)
        workers.wait()
    leave_workers()


def split_folders(args: argparse.Namespace) -> None:
    """Tell the folders that are written into from the others that are only read.

    Raises:
        InputError: If there are others, and something is to be trained.
    """
    from sae_utils.errors import InputError

    for name in ("checkpoint_dir", "results_dir"):
        first, *others = getattr(args, name)
        if others and not args.eval_only:
            raise InputError(f"--{name} takes several folders only with --eval_only, got {' '.join(map(str, others))}")
        setattr(args, name, first)
        setattr(args, f"other_{name}s", others)


def train(args: argparse.Namespace, device: "torch.device", workers: "Workers") -> None:
    """Plan, train, measure, match, report.

    Args:
        args: What is asked for.
        device: Where this process computes. It is chosen before sparsify is imported here, which asks PyTorch for GPUs,
            too: PyTorch says only once why it sees none.
        workers: The processes that work together.

    Raises:
        InputError: If a setting or an input has to be changed.
    """
    from sae_utils.comparison.across import sum_up
    from sae_utils.comparison.groups import ComparisonSettings
    from sae_utils.comparison.trained import check_none_left_out, find_trained
    from sae_utils.comparison.whereabouts import Whereabouts
    from sae_utils.rates import tidy_rates
    from sae_utils.shared_folders import check_shared
    from sae_utils.sharing.upload import find_push
    from sae_utils.sources.labelled import find_labelled
    from sae_utils.training.loop import train_grid
    from sae_utils.training.room import check_room
    from sae_utils.training.timed_pass import time_training
    from sae_utils.training.wandb_login import find_tracking

    # 0. Folders, W&B and the hub: what cannot work there is said before anything is loaded.
    check_places(args)
    names = args.wandb_mode, args.project_name, args.entity
    tracking = workers.agree(find_tracking(*names) if workers.is_main else None)
    push = find_push(args.push_to_hub, is_public=args.public, is_plan=args.dry_run) if workers.is_main else None
    packs, targets = packs_of(args), whole_names(args, args.target_models)
    where = Whereabouts(args.datasets_dir, packs, targets, tuple(args.text_datasets))
    comparison = ComparisonSettings(where, device, args.batch_size, args.random_tokens, quiet=args.quiet)
    labelled = find_labelled(args.probe_datasets if workers.is_main else (), packs)

    # 1. Plan: find models and data sets, pack the tokens, and give every cell of the grid the same budget.
    plan = plan_finished(args) if args.eval_only else plan_training(args, device, workers)
    if workers.is_main and (args.dry_run or not args.quiet):
        print(plan.text, flush=True)
    if args.time_steps and plan.grid:
        time_training(*plan.grid)
    if workers.is_main and args.dry_run:
        foretell(plan, args, device, workers.n)
    if push is not None:
        planned = push.describe("model", plan.folders)
        if args.dry_run:
            print(planned, flush=True)
    if plan.grid:
        check_room(*plan.grid)
    if args.dry_run:
        return
    if plan.grid:
        check_shared(workers, checkpoint_dir=args.checkpoint_dir)
    if not args.train_only:
        check_shared(workers, results_dir=args.results_dir)

    # 2. Train each cell: layers and seeds in one pass of the target model.
    saes = plan.saes
    if plan.grid:
        folders = train_grid(*plan.grid, tracking, quiet=args.quiet)
        saes = [sae for sae in find_trained(folders) if sae.layer in args.layers]
        if workers.is_main:
            tidy_rates(args.checkpoint_dir)
    if args.train_only:
        send_to_hub(push, plan.folders, quiet=args.quiet)
        return

    # 3. Measure every SAE on every source and on random tokens.  4. Match them with each other, across seeds and
    # sources, and see what their latents fire on.
    results = compare(saes, comparison, labelled, args, workers)
    if not workers.is_main:
        return

    # 5. Sum up: do features come back from another text as often as from the same one?  6. Report: figures, a page,
    # tables, W&B.  7. Send what is finished to the hub, if asked to.
    sum_up(results)
    results.save()
    report(results, saes, tracking, probed=labelled, exports_to=args.checkpoint_dir if args.export else None)
    send_to_hub(push, plan.folders, plan.damaged, quiet=args.quiet)
    check_none_left_out(plan.damaged)


@dataclass(frozen=True)
class Plan:
    """What a run will do, known before anything is trained."""

    text: str
    """The same in words."""

    folders: list[Path]
    """Folders of SAEs, one a seed, that will then be finished and may go to the hub."""

    pairs: dict[tuple[int, int], int]
    """Pairs of SAEs that are matched, by `(d_model, n_latents)`."""

    works: "list[Work]"
    """The comparison, target by target."""

    grid: "tuple[list[Cell], range, Machines, Checkpoints] | None" = None
    """What is trained, from which seeds, by which machines, and where it goes; None if nothing is."""

    saes: "Sequence[TrainedSae]" = ()
    """What is compared where nothing is trained."""

    damaged: "Sequence[Damaged]" = ()
    """What is left out, because it cannot be read."""


def plan_training(args: argparse.Namespace, device: "torch.device", workers: "Workers") -> Plan:
    """Every target on every source, all with the same budget.

    Raises:
        InputError: If a setting or an input has to be changed.
    """
    from sae_utils.devices import choose_dtype
    from sae_utils.sharing.download import fetch, find_shared
    from sae_utils.training.extension import check_can_extend
    from sae_utils.training.folders import Checkpoints
    from sae_utils.training.grid import describe_grid, plan_grid
    from sae_utils.training.machines import check_shares, find_machines
    from sae_utils.training.variants import name_variants

    choice, settings = grid_choice(args), training_settings(args)
    checkpoints = Checkpoints(args.checkpoint_dir, args.save_every, args.overwrite, args.keep_state)
    if args.keep_state:
        check_can_extend(settings)
    distribution = {"distribute_modules": args.distribute_modules}
    check_shares(settings.batch_size, len(settings.layers), workers.n, **distribution)
    for shared in find_shared(args.source_models) if workers.is_main else ():
        fetch(shared, args.datasets_dir, quiet=args.quiet)
    dtype, is_plan = choose_dtype(args.dtype, device), args.dry_run
    cells = plan_grid(choice, settings, dtype, device, workers, args.hookpoint, is_plan=is_plan)
    cells = name_variants(cells, checkpoints, workers, keep_at=args.keep_at)
    grid = cells, choice.seeds, find_machines(device, workers, **distribution), checkpoints
    return Plan(
        text=describe_grid(*grid),
        folders=[checkpoints.of(cell).seed_dir(seed) for cell in cells for seed in choice.seeds],
        pairs=pairs_of_grid(cells, choice.seeds, args.pairs),
        works=work_of_grid(cells, choice.seeds, device, args),
        grid=grid,
    )


def plan_finished(args: argparse.Namespace) -> Plan:
    """The comparison of all SAEs that are there.

    Raises:
        InputError: If there is none, or one is not ours.
    """
    from sae_utils.comparison.cost import work_of_saes
    from sae_utils.comparison.merging import told_apart
    from sae_utils.comparison.pairs import count_by_size, count_by_target
    from sae_utils.comparison.trained import find_all_trained

    folders = [args.checkpoint_dir, *args.other_checkpoint_dirs]
    found, damaged = find_all_trained(*folders)
    saes, there = told_apart(found), dict.fromkeys(sae.folder.parent for sae in found)
    amounts = {"batch_size": args.batch_size, "n_random_tokens": args.random_tokens}
    return Plan(
        text=f"{len(saes)} finished SAEs in {', '.join(map(str, folders))}",
        folders=[folder for folder in there if folder.parent == args.checkpoint_dir],
        pairs=count_by_size(saes, args.pairs),
        works=work_of_saes(saes, count_by_target(saes, args.pairs), **amounts),
        saes=saes,
        damaged=damaged,
    )


def foretell(plan: Plan, args: argparse.Namespace, device: "torch.device", n_processes: int) -> None:
    """Say what a plan takes: room, what is left to train, time, memory."""
    from sae_utils.comparison.cost import describe_work, work_sec
    from sae_utils.comparison.pairs import describe_pairs
    from sae_utils.rates import describe_total
    from sae_utils.training.room import describe_room
    from sae_utils.training.status import describe_status, training_sec

    if plan.grid:
        print(describe_room(*plan.grid), flush=True)
        print(describe_status(*plan.grid), flush=True)
    if args.train_only:
        return
    print(describe_pairs(plan.pairs, device, n_processes), flush=True)
    for work in plan.works:
        print(describe_work(work, args.results_dir, device), flush=True)
    times = [work_sec(work, args.results_dir, device) for work in plan.works]
    if plan.grid:
        times.append(training_sec(*plan.grid))
    print(describe_total("all that is left, but for the report", times), flush=True)


def compare(
    saes: "Sequence[TrainedSae]",
    comparison: "ComparisonSettings",
    labelled: "Sequence[LabelledTexts]",
    args: argparse.Namespace,
    workers: "Workers",
) -> "Results":
    """Measure, match and describe SAEs, one target after the other; all processes share measuring and matching.

    Returns:
        The results, which are whole in the main process alone.

    Raises:
        InputError: If SAEs, or what they were trained on, cannot be read.
    """
    from sae_utils.comparison.coactivation import compare_codes
    from sae_utils.comparison.cost import work_of_saes
    from sae_utils.comparison.features import describe_features
    from sae_utils.comparison.groups import group_saes
    from sae_utils.comparison.lookahead import look_ahead
    from sae_utils.comparison.measuring import measure, read_known
    from sae_utils.comparison.merging import take_over
    from sae_utils.comparison.pairs import match_pairs
    from sae_utils.comparison.speed import timed_work
    from sae_utils.comparison.stability import measure_stability
    from sae_utils.comparison.whereabouts import find_sources_of
    from sae_utils.rates import tidy_rates

    device, kinds = comparison.device, args.pairs
    sources = find_sources_of(saes, comparison.where)
    results = read_known(args.results_dir, saes, sources)
    results.is_written_here = workers.is_main
    for folder in args.other_results_dirs if workers.is_main else ():
        take_over(results, saes, folder)
    with look_ahead(saes, sources, results, comparison, workers, kinds=kinds) as outlook:
        for group in group_saes(saes, sources, comparison):
            outlook.begin(group.key, group.name)
            amounts = {"batch_size": args.batch_size, "n_random_tokens": args.random_tokens}
            (work,) = work_of_saes(group.saes, {}, **amounts)
            timed = timed_work(args.results_dir, work, outlook, device, has_more=bool(labelled))
            with timed if workers.is_main else contextlib.nullcontext():
                measure(group, results, outlook, workers)
                if labelled:  # which only the main process knows
                    from sae_utils.comparison.probes import probe  # scikit-learn takes a second

                    probe(group, labelled, results)
                match_pairs(group.saes, results, device, kinds=kinds, workers=workers, outlook=outlook)
                if workers.is_main:
                    compare_codes(group, results)
                    measure_stability(group, results)
                    describe_features(group, results)
    if workers.is_main:
        tidy_rates(args.results_dir)
        results.save()
    return results


def pairs_of_grid(cells: "Sequence[Cell]", seeds: Sequence[int], kinds: Sequence[str]) -> dict[tuple[int, int], int]:
    """How many pairs of SAEs of these kinds the grid has, by `(d_model, n_latents)`."""
    from sae_utils.comparison.pairs import count_pairs

    counts: dict[tuple[int, int], int] = {}
    alike = [(cell.target.name, cell.budget.n_train_tokens, cell.settings.hookpoint) for cell in cells]
    for one in dict.fromkeys(alike):
        members = [cell for cell, each in zip(cells, alike, strict=True) if each == one]
        size = members[0].target.d_model, members[0].target.n_latents
        n_pairs = len(members[0].settings.layers) * count_pairs(len(members), len(seeds), kinds)
        counts[size] = counts.get(size, 0) + n_pairs
    return counts


def work_of_grid(
    cells: "Sequence[Cell]", seeds: Sequence[int], device: "torch.device", args: argparse.Namespace
) -> "list[Work]":
    """The comparison of all SAEs of the grid, target by target."""
    from sae_utils.comparison.cost import Work
    from sae_utils.comparison.groups import batch_bytes_of
    from sae_utils.devices import dtype_name
    from sae_utils.models import model_bytes

    works, on_the_way = [], {each.name for cell in cells for each in cell.kept}
    for target in {cell.target.name: cell.target for cell in cells}.values():
        members = [cell for cell in cells if cell.target.name == target.name]
        n_sources, settings = len({cell.source.name for cell in cells}), members[0].settings
        n_of_cell, n_kept = len(settings.layers) * len(seeds), sum(cell.name in on_the_way for cell in members)
        batch_bytes = batch_bytes_of(
            n_tokens=args.batch_size * settings.ctx_len,
            vocab=target.config.vocab_size,
            d_model=target.d_model,
            n_layers=len(settings.layers),
            n_latents=target.n_latents,
            itemsize=target.dtype.itemsize,
            device=device,
        )
        works.append(
            Work(
                target=target.name,
                dtype=dtype_name(target.dtype),
                layers=settings.layers,
                d_model=target.d_model,
                n_latents=target.n_latents,
                k=settings.k,
                ctx_len=settings.ctx_len,
                batch_size=args.batch_size,
                n_saes=len(members) * n_of_cell,
                n_evaluations=((len(members) - n_kept) * n_sources + n_kept) * n_of_cell,
                n_eval_tokens=members[0].budget.n_eval_tokens,
                n_random_tokens=args.random_tokens,
                n_pairs=sum(pairs_of_grid(members, seeds, args.pairs).values()),
                fixed_bytes=model_bytes(target.config, target.dtype),
                batch_bytes=batch_bytes,
            )
        )
    return works


def check_places(args: argparse.Namespace) -> None:
    """Refuse, before anything is loaded, folders in which nothing can be written, or that hold something else.

    Raises:
        InputError: If there is one.
    """
    from sae_utils.comparison.results import check_are_ours
    from sae_utils.disk import check_writable

    if not args.eval_only or args.export:
        check_writable(args.checkpoint_dir, "checkpoint_dir")
    if not args.train_only:
        check_writable(args.results_dir, "results_dir")
        check_are_ours(args.results_dir)


def whole_names(args: argparse.Namespace, models: Sequence[str]) -> tuple[str, ...]:
    """Models with the organisation or folder that holds them."""
    from sae_utils.models import full_name

    return tuple(full_name(model, org_name=args.org_name) for model in models)


def packs_of(args: argparse.Namespace) -> "Packs":
    """Packed sequences: beside the data sets, or where else may be written."""
    from sae_utils.distributed import find_launch
    from sae_utils.sources.packs import Packs

    places = args.datasets_dir, args.checkpoint_dir, args.results_dir
    return Packs(places, quiet=args.quiet or not find_launch().is_main)


def grid_choice(args: argparse.Namespace) -> "GridChoice":
    """What the flags say of targets, sources, seeds, latents and tokens."""
    from sae_utils.expansion import DictionarySize
    from sae_utils.sharing.download import find_shared
    from sae_utils.sources.budget import TokenLimits
    from sae_utils.sources.catalog import SourceChoice
    from sae_utils.training.grid import GridChoice

    return GridChoice(
        targets=whole_names(args, args.target_models),
        sources=SourceChoice(
            args.datasets_dir,
            packs_of(args),
            models=whole_names(args, args.source_models),
            seed=args.dataset_seed,
            temperature=args.dataset_temperature,
            top_p=args.dataset_top_p,
            corpora=tuple(args.text_datasets),
            text_tokens=args.text_tokens,
            controls=tuple(args.controls),
            fetched={shared.reference: shared.key for shared in find_shared(args.source_models)},
        ),
        n_seeds=args.num_seeds,
        size=DictionarySize(args.expansion_factor, args.num_latents),
        limits=TokenLimits(args.max_tokens, args.eval_tokens),
    )


def training_settings(args: argparse.Namespace) -> "TrainingSettings":
    """What the flags say of training itself."""
    from sae_utils.exclusion import parse_exclusion
    from sae_utils.training.settings import TrainingSettings

    return TrainingSettings(
        layers=tuple(sorted(args.layers)),
        k=args.k,
        batch_size=args.batch_size,
        grad_acc_steps=args.grad_acc_steps,
        micro_acc_steps=args.micro_acc_steps,
        lr=args.lr,
        optimizer=args.optimizer,
        ctx_len=args.ctx_len,
        shuffle_seed=args.shuffle_seed,
        exclude=parse_exclusion(args.exclude),
    )


def report(
    results: "Results",
    saes: Sequence["TrainedSae"],
    tracking: "Tracking",
    *,
    probed: Sequence["LabelledTexts"] = (),
    exports_to: Path | None = None,
) -> None:
    """Put the results on the terminal, on a page, and into W&B, and the SAEs into other tools' formats.

    Args:
        results: What was measured.
        saes: The SAEs that this run is about.
        tracking: Where W&B runs go.
        probed: The labelled texts that this run is about.
        exports_to: Folder to write SAEs in SAELens' format into, if they are wanted.
    """
    from sae_utils.comparison.saelens_export import export_saelens

    if exports_to is not None:
        export_saelens(saes, exports_to)
    show(results, [sae.key for sae in saes], [each.name for each in probed])
    if exports_to is not None:
        print(f"{exports_to / 'saelens'}: the SAEs in SAELens' format", flush=True)
    send_to_wandb(results, saes, tracking)


def show(results: "Results", keys: Sequence[tuple], probed: Sequence[str] = ()) -> None:
    """Draw the page and the figures where they are not those of the results, and print the tables.

    Args:
        results: What was measured.
        keys: Target, source, layer and seed of the SAEs to be shown on the terminal.
        probed: Names of the labelled texts to be shown there.
    """
    from sae_utils.report.feature_files import feature_files
    from sae_utils.report.figures import write_figures
    from sae_utils.report.freshness import fresh_figures, record_report
    from sae_utils.report.page import write_report
    from sae_utils.report.probe_tables import probe_table
    from sae_utils.report.tables import results_tables

    page = results.folder / "report.html"
    if (figures := fresh_figures(results.folder)) is None:
        with results.lock():
            figures, page = write_figures(results.folder), write_report(results.folder)
            record_report(results.folder, [page, *feature_files(results.folder), *figures])
    results.lock().remove_left_over()
    print(results_tables(results, keys))
    if probed:
        print(f"\n{probe_table(results, keys, probed)}")
    print(f"\n{page}: the comparison, with a browser of the features")
    if beside := feature_files(results.folder):
        print(f"{beside[0].parent}: features that the page reads from there; keep them together")
    print(f"{results.folder / 'metrics.json'}, {results.folder / 'metrics.csv'}: all numbers")
    print(f"{figures[0].parent}: the figures, as PNG and SVG", flush=True)


def show_again(results_dir: Path) -> None:
    """The same from `metrics.json` alone, and `metrics.csv`.

    Raises:
        MissingInputError: If there is no such file, or no SAE in it.
    """
    from sae_utils.comparison.results import check_are_ours, read_results
    from sae_utils.errors import MissingInputError

    check_are_ours(results_dir)
    results = read_results(results_dir)
    if not results.saes:
        raise MissingInputError(
            f"--report_only needs results, and {results_dir / 'metrics.json'} has none; measure first"
        )
    results.save()
    probed = {probe["name"] for record in results.saes.values() for probe in record.get("probes", [])}
    show(results, sorted(results.saes), sorted(probed))


def send_to_wandb(results: "Results", saes: Sequence["TrainedSae"], tracking: "Tracking") -> None:
    """Put what is new into the summaries of the runs that trained the SAEs, and into a run per target of its own."""
    from sae_utils.report.dashboard import comparison_config, comparison_files, comparison_tables
    from sae_utils.report.tables import wandb_summary
    from sae_utils.training.comparison_runs import Comparison, send_comparisons
    from sae_utils.training.wandb_runs import add_to_summaries, is_summary_due

    folders = {sae.key[:2]: sae.folder.parent for sae in saes}
    due = [cell for cell in sorted(folders) if cell in results.changed or is_summary_due(folders[cell])]
    add_to_summaries(tracking, {folders[cell]: wandb_summary(results, *cell) for cell in due})
    targets = sorted({sae.key[0] for sae in saes})
    files = comparison_files(results)
    compared = [
        Comparison(each, comparison_config(results, each), comparison_tables(results, each), files) for each in targets
    ]
    send_comparisons(tracking, results.folder, compared)


def send_to_hub(
    push: "PushChoice | None", folders: Sequence[Path], damaged: Sequence["Damaged"] = (), *, quiet: bool = False
) -> None:
    """Send the folders of finished SAEs to the hub, if they are to be; their cards are made anew of their records.

    Raises:
        InputError: If any could not be sent; what was left out before is said in the same line.
    """
    from sae_utils.errors import InputError
    from sae_utils.training.model_card import write_card

    if push is None:
        return
    try:
        for folder in folders:
            write_card(folder)
        for outcome in push.send("model", folders, quiet=quiet):
            print(outcome, flush=True)
    except InputError as err:
        raise InputError(" | ".join([str(err), *(each.reason for each in damaged)])) from err


if __name__ == "__main__":
    sys.exit(main())
