"""From the flags of `train_sae.py` to the cells of the target x source grid, before any weights are loaded."""

import argparse
from collections.abc import Sequence

import torch

from sae_utils.devices import choose_dtype, dtype_name
from sae_utils.distributed import Workers
from sae_utils.errors import InputError
from sae_utils.expansion import check_latents_on_gpu, choose_n_latents
from sae_utils.memory import NOT_HERE, free_bytes, sae_bytes
from sae_utils.models import (
    check_fits_context,
    check_layers,
    full_name,
    load_config,
    load_tokenizer,
    resolve_reference,
    trunk_bytes,
)
from sae_utils.paths import DatasetKey, short_name
from sae_utils.sources.budget import equal_budget
from sae_utils.sources.catalog import Source, find_corpus, find_source, pack_source
from sae_utils.sources.corpora import corpus_name
from sae_utils.training.cells import Cell, Run, Target, TrainingSettings
from sae_utils.training.passes import estimate_pass_memory
from sae_utils.training.tracking import choose_wandb_mode

GB = 1e9


def plan_grid(args: argparse.Namespace, workers: Workers, device: torch.device) -> list[Cell]:
    """Every cell of the grid, targets outside, sources inside; the same in all processes.

    Args:
        args: Flags of `train_sae.py`.
        workers: The processes that train together.
        device: Where this one computes.

    Raises:
        InputError: If a setting, a model or a data set has to be changed.
    """
    settings = TrainingSettings(
        layers=tuple(sorted(args.layers)),
        k=args.k,
        batch_size=args.batch_size,
        grad_acc_steps=args.grad_acc_steps,
        micro_acc_steps=args.micro_acc_steps,
        lr=args.lr,
        optimizer=args.optimizer,
        ctx_len=args.ctx_len,
        shuffle_seed=args.shuffle_seed,
    )
    _check_run_flags(args)
    _check_workers(args, workers)
    dtype = choose_dtype(args.dtype, device)
    if not workers.is_main:
        workers.wait()  # the main process packs, the others find it packed
    sources = find_sources(args)
    is_replicated = workers.n > 1 and not args.distribute_modules
    targets = find_targets(args, settings, device, dtype, is_replicated=is_replicated)
    chunks = {
        (target.name, source.name): pack_source(source, target.tokenizer, settings.ctx_len, args.datasets_dir)
        for target in targets
        for source in sources
    }
    if workers.is_main:
        workers.wait()
    budget = equal_budget(
        [len(each) for each in chunks.values()],
        ctx_len=settings.ctx_len,
        chunks_per_step=settings.batch_size * settings.grad_acc_steps,
        max_tokens=args.max_tokens,
        eval_tokens=args.eval_tokens,
    )
    run = Run(
        settings=settings,
        budget=budget,
        n_seeds=args.num_seeds,
        save_every=args.save_every,
        checkpoint_dir=args.checkpoint_dir,
        device=device,
        free_bytes=workers.agree(free_bytes(device)),
        dtype=dtype,
        workers=workers,
        distribute_modules=args.distribute_modules,
        overwrite=args.overwrite,
        wandb={
            "mode": workers.agree(choose_wandb_mode(args.wandb_mode)),
            "project": args.project_name,
            "entity": args.entity,
        },
        quiet=args.quiet,
    )
    return [Cell(target, source, chunks[target.name, source.name], run) for target in targets for source in sources]


def find_targets(
    args: argparse.Namespace,
    settings: TrainingSettings,
    device: torch.device,
    dtype: torch.dtype,
    *,
    is_replicated: bool,
) -> list[Target]:
    """The target models, checked against the settings; their weights are not loaded.

    Raises:
        InputError: If one is missing, lacks a layer, has too short a context, too few latents for k, or a number of
            latents that a GPU cannot train.
    """
    targets = []
    for name in args.target_models:
        reference = resolve_reference(name, org_name=args.org_name)
        config = load_config(reference)
        check_layers(list(settings.layers), config, reference)
        check_fits_context(settings.ctx_len, config, flag="--ctx_len", reference=reference)
        d_model = config.hidden_size
        n_latents = choose_n_latents(
            short_name(reference), d_model, expansion_factor=args.expansion_factor, num_latents=args.num_latents
        )
        if settings.k > n_latents:
            raise InputError(
                f"--k must be <= the number of latents, got k={settings.k} with {n_latents} latents for {reference} "
                f"(d_model {d_model}); lower --k or raise --expansion_factor or --num_latents"
            )
        if device.type == "cuda":
            check_latents_on_gpu(n_latents, reference)
        memory = estimate_pass_memory(
            model_bytes=trunk_bytes(config, dtype, max(settings.layers)),
            d_model=d_model,
            n_latents=n_latents,
            k=settings.k,
            optimizer=settings.optimizer,
            is_replicated=is_replicated,
            tokens_per_micro_batch=settings.batch_size * settings.ctx_len // settings.micro_acc_steps,
        )
        targets.append(Target(reference, load_tokenizer(reference), d_model, n_latents, memory))
    _check_distinct([target.name for target in targets], "--target_models")
    return targets


def find_sources(args: argparse.Namespace) -> list[Source]:
    """The generated data sets of the source models, and the text corpora.

    Raises:
        InputError: If there is none, or one is missing or named twice.
    """
    names = [short_name(name) for name in args.source_models] + [corpus_name(each) for each in args.text_datasets]
    _check_distinct(names, "--source_models and --text_datasets")
    if not names:
        raise InputError("nothing to train on: --source_models is empty and no --text_datasets are given")
    chosen = args.dataset_seed, args.dataset_temperature, args.dataset_top_p
    generated = [
        find_source(args.datasets_dir, DatasetKey(short_name(model), *chosen), full_name(model, org_name=args.org_name))
        for model in args.source_models
    ]
    return generated + [find_corpus(args.datasets_dir, each) for each in args.text_datasets]


def describe_grid(cells: Sequence[Cell]) -> str:
    """The plan in a few lines: cells, tokens, steps, latents, passes, memory, disk."""
    run = cells[0].run
    settings, budget = run.settings, run.budget
    n_saes = len(settings.layers) * run.n_seeds
    n_steps = budget.n_train_chunks // (settings.batch_size * settings.grad_acc_steps)
    lines = [
        f"{len(cells)} cells x {len(settings.layers)} layers x {run.n_seeds} seeds; per SAE {budget.n_train_tokens:,} "
        f"training tokens in {n_steps:,} steps, {budget.n_eval_tokens:,} tokens held out; {run.device}, "
        f"{dtype_name(run.dtype)}" + (f"; {NOT_HERE}" if run.free_bytes is None else "")
    ]
    free = "" if run.free_bytes is None else f" of {run.free_bytes / GB:.2f} GB free"
    for cell in cells:
        target = cell.target
        passes = cell.plan_passes(range(run.n_seeds))
        n_together = max(len(each.layers) * len(each.seeds) for each in passes)
        n_processes = run.workers.n if run.distribute_modules else 1
        memory = target.memory.of(-(-n_together // n_processes))
        lines.append(
            f"  {cell.name}: {target.n_latents:,} latents, k {settings.k}, {len(passes)} "
            f"pass{'es' if len(passes) > 1 else ''} ({'; '.join(map(str, passes))}), about {memory / GB:.2f} GB{free}, "
            f"{sae_bytes(target.d_model, target.n_latents) * n_saes / GB:.2f} GB on disk"
        )
    return "\n".join(lines)


def _check_run_flags(args: argparse.Namespace) -> None:
    """Refuse numbers that make no sense before anything is looked up."""
    for flag in (
        "num_seeds",
        "save_every",
        "max_tokens",
        "eval_tokens",
        "expansion_factor",
        "num_latents",
        "random_tokens",
    ):
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise InputError(f"--{flag} must be at least 1, got {value}")


def _check_workers(args: argparse.Namespace, workers: Workers) -> None:
    """Refuse what cannot be shared out evenly."""
    if args.batch_size % workers.n:
        raise InputError(
            f"--batch_size counts the sequences of all processes and must be a multiple of their number, got "
            f"{args.batch_size} for {workers.n} processes"
        )
    if args.distribute_modules and (workers.n == 1 or len(args.layers) % workers.n):
        raise InputError(
            f"--distribute_modules needs several processes, started by torchrun, and a number of --layers that is a "
            f"multiple of theirs, got {len(args.layers)} layers for {workers.n} process{'es' if workers.n > 1 else ''}"
        )


def _check_distinct(names: Sequence[str], flag: str) -> None:
    """Refuse two models whose results would share one folder."""
    if len(set(names)) != len(names):
        raise InputError(f"{flag} must have different short names, got {' '.join(names)}; results would share a folder")
