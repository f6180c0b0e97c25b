"""From the flags of `train_sae.py` to the cells of the target x source grid, before any weights are loaded."""

import argparse
from collections.abc import Sequence

from sae_utils.cells import Cell, Run, Target, TrainingSettings
from sae_utils.devices import choose_device, choose_dtype, dtype_name
from sae_utils.errors import InputError
from sae_utils.expansion import choose_n_latents
from sae_utils.models import check_fits_context, check_layers, full_name, load_config, load_tokenizer, resolve_reference
from sae_utils.paths import DatasetKey, short_name
from sae_utils.plan import equal_budget, sae_bytes, training_bytes
from sae_utils.sources import Source, find_source, pack_source
from sae_utils.tracking import choose_wandb_mode

GB = 1e9


def plan_grid(args: argparse.Namespace) -> list[Cell]:
    """Every cell of the grid, targets outside, sources inside.

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
    device = choose_device(args.device)
    dtype = choose_dtype(args.dtype, device)
    sources = find_sources(args)
    targets = find_targets(args, settings)
    chunks = {
        (target.name, source.name): pack_source(source, target.tokenizer, settings.ctx_len, args.datasets_dir)
        for target in targets
        for source in sources
    }
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
        dtype=dtype,
        overwrite=args.overwrite,
        wandb={"mode": choose_wandb_mode(args.wandb_mode), "project": args.project_name, "entity": args.entity},
        quiet=args.quiet,
    )
    return [Cell(target, source, chunks[target.name, source.name], run) for target in targets for source in sources]


def find_targets(args: argparse.Namespace, settings: TrainingSettings) -> list[Target]:
    """The target models, checked against the settings; their weights are not loaded.

    Raises:
        InputError: If one is missing, lacks a layer, has too short a context, or too few latents for k.
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
        targets.append(Target(reference, load_tokenizer(reference), d_model, n_latents))
    _check_distinct([target.name for target in targets], "--target_models")
    return targets


def find_sources(args: argparse.Namespace) -> list[Source]:
    """The generated data sets of the source models.

    Raises:
        InputError: If one is missing or named twice.
    """
    names = [short_name(name) for name in args.source_models]
    _check_distinct(names, "--source_models")
    chosen = args.dataset_seed, args.dataset_temperature, args.dataset_top_p
    return [
        find_source(args.datasets_dir, DatasetKey(short_name(model), *chosen), full_name(model, org_name=args.org_name))
        for model in args.source_models
    ]


def describe_grid(cells: Sequence[Cell]) -> str:
    """The plan in a few lines: cells, tokens, steps, latents, memory for the SAEs, disk."""
    run = cells[0].run
    settings, budget = run.settings, run.budget
    n_saes = len(settings.layers) * run.n_seeds
    n_steps = budget.n_train_chunks // (settings.batch_size * settings.grad_acc_steps)
    lines = [
        f"{len(cells)} cells x {len(settings.layers)} layers x {run.n_seeds} seeds; per SAE {budget.n_train_tokens:,} "
        f"training tokens in {n_steps:,} steps, {budget.n_eval_tokens:,} tokens held out; {run.device}, "
        f"{dtype_name(run.dtype)}"
    ]
    for cell in cells:
        target = cell.target
        memory = training_bytes(target.d_model, target.n_latents, n_saes, settings.optimizer) / GB
        disk = sae_bytes(target.d_model, target.n_latents) * n_saes / GB
        lines.append(
            f"  {cell.name}: layers {' '.join(map(str, settings.layers))}, {target.n_latents:,} latents, "
            f"k {settings.k}, SAEs take {memory:.2f} GB in training, {disk:.2f} GB on disk"
        )
    return "\n".join(lines)


def _check_run_flags(args: argparse.Namespace) -> None:
    """Refuse numbers that make no sense before anything is looked up."""
    for flag in ("num_seeds", "save_every", "max_tokens", "eval_tokens", "expansion_factor", "num_latents"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise InputError(f"--{flag} must be at least 1, got {value}")


def _check_distinct(names: Sequence[str], flag: str) -> None:
    """Refuse two models whose results would share one folder."""
    if len(set(names)) != len(names):
        raise InputError(f"{flag} must have different short names, got {' '.join(names)}; results would share a folder")
