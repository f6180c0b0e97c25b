"""From what is asked for to the cells of the target x source grid, before any weights are loaded."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch

from sae_utils.devices import dtype_name
from sae_utils.disk import describe_bytes, free_disk_bytes
from sae_utils.distributed import Workers
from sae_utils.errors import InputError, check_positive
from sae_utils.exclusion import find_exclusion
from sae_utils.expansion import DictionarySize, check_latents_on_gpu
from sae_utils.hookpoints import check_hookpoint
from sae_utils.memory import NOT_HERE
from sae_utils.models import (
    check_fits_context,
    check_layers,
    resolve_reference,
    trunk_bytes,
)
from sae_utils.paths import short_name
from sae_utils.planned_models import StandInTokenizer, check_to_be_run, check_trunk_to_be_run
from sae_utils.sources.assumed import assumed_pack, assumed_rows
from sae_utils.sources.budget import TokenLimits, equal_budget
from sae_utils.sources.catalog import SourceChoice, check_distinct, check_reads, find_sources, pack_source
from sae_utils.sources.joining import RowCounts, find_delimiters
from sae_utils.sources.origins import Source
from sae_utils.sources.packs import Packed
from sae_utils.sources.pieces import Ruler
from sae_utils.training.cells import Cell, Target
from sae_utils.training.folders import Checkpoints
from sae_utils.training.machines import Machines
from sae_utils.training.room import disk_of, memory_of, planned_passes
from sae_utils.training.settings import TrainingSettings

GB = 1e9

MAX_SEEDS = 10_000
"""More SAEs than anybody trains, and few enough to be listed."""


@dataclass(frozen=True)
class GridChoice:
    """What is trained on what: every target on every source, each from several seeds."""

    targets: tuple[str, ...]
    """Hub ids or folders of the target models."""

    sources: SourceChoice
    """What they are trained on."""

    n_seeds: int
    """SAEs per layer, initialised from seeds 0 .. n_seeds - 1."""

    size: DictionarySize
    """How many latents they get."""

    limits: TokenLimits
    """How many tokens they get."""

    def __post_init__(self) -> None:
        check_positive(num_seeds=self.n_seeds)
        if self.n_seeds > MAX_SEEDS:
            raise InputError(f"--num_seeds must be at most {MAX_SEEDS:,}, got {self.n_seeds}")

    @property
    def seeds(self) -> range:
        """Seeds of the SAEs of a layer."""
        return range(self.n_seeds)


def plan_grid(
    choice: GridChoice,
    settings: TrainingSettings,
    dtype: torch.dtype,
    device: torch.device,
    workers: Workers,
    hookpoints: Sequence[str] = ("residual",),
    *,
    is_plan: bool = False,
) -> list[Cell]:
    """Every cell of the grid, targets outside, sources inside; the same in all processes.

    Args:
        choice: What is trained on what.
        settings: How.
        dtype: Number format of the targets.
        device: Where this process computes.
        workers: The processes that train together: one of them packs, the others wait for it.
        hookpoints: What of the layers is encoded, names of `HOOKPOINTS`; a cell for each.
        is_plan: Whether data sets to be sampled and weights need not be there.

    Raises:
        InputError: If a setting, a model or a data set has to be changed.
    """
    options = {"is_on_gpu": device.type == "cuda", "hookpoints": hookpoints, "is_plan": is_plan}
    targets = find_targets(choice.targets, choice.size, settings, dtype, **options)
    if workers.is_main:  # it reads corpora and packs, the others find what it found
        first = targets[0]
        ruler = Ruler(first.tokenizer, find_delimiters(first.tokenizer, first.config))
        sources = find_sources(choice.sources, ruler, is_plan=is_plan)
    else:
        sources = workers.agree(None)
    for target in targets:
        for source in sources:
            check_reads(source, target.tokenizer, target.config)
    packed = pack_all(targets, sources, settings.ctx_len, choice)
    if workers.is_main:
        workers.agree(sources)
    budget = equal_budget(
        [each.counts.n_rows for each in packed.values()],
        ctx_len=settings.ctx_len,
        chunks_per_step=settings.chunks_per_step,
        limits=choice.limits,
    )
    cells = [
        Cell(target, source, packed[target.name, source.name], replace(settings, hookpoint=hookpoint), budget)
        for target in targets
        for source in sources
        for hookpoint in dict.fromkeys(hookpoints)
    ]
    for cell in cells:
        if not cell.is_assumed:
            check_kept(cell)
    return cells


def pack_all(
    targets: Sequence[Target], sources: Sequence[Source], ctx_len: int, choice: GridChoice
) -> dict[tuple[str, str], Packed]:
    """Rows of every source for every target, by their names; of what is not there yet, as many as are assumed.

    Raises:
        InputError: If a source does not fill a row, or is not there and nothing says how large it will be.
    """
    pairs = [(target, source) for target in targets for source in sources]
    there = {
        (target.name, source.name): pack_source(source, target.tokenizer, target.config, ctx_len, choice.sources.packs)
        for target, source in pairs
        if source.missing is None and not isinstance(target.tokenizer, StandInTokenizer)
    }
    n_there, missing = [each.counts.n_rows for each in there.values()], [each for each in sources if each.missing]
    packed = {}
    for target, source in pairs:
        if (key := (target.name, source.name)) not in there:
            is_sampled = source.missing is None and source.n_tokens is not None
            n_rows = source.n_tokens // ctx_len if is_sampled else None
            n_rows = n_rows or assumed_rows(choice.limits, ctx_len, n_there, missing or [source])
            delimiters = find_delimiters(target.tokenizer, target.config)
            packed[key] = assumed_pack(n_rows, ctx_len, delimiters, target.config.vocab_size)
    return there | packed


def check_kept(cell: Cell) -> None:
    """Refuse to leave fewer than two tokens of a sequence: a batch may consist of such ones, and one has no variance.

    Raises:
        InputError: If there is such a sequence among those that are used.
    """
    exclusion = cell.target.exclusion
    for chunks in () if exclusion.is_empty else cell.split():
        if n_empty := int((chunks.count_kept(exclusion) < 2).sum()):
            raise InputError(
                f"--exclude {' '.join(cell.settings.exclude)} leaves fewer than two tokens of {n_empty:,} of "
                f"{len(chunks):,} sequences of {cell.source.name}; leave out less, or raise --ctx_len"
            )


def describe_rows(counts: RowCounts) -> str:
    """What the rows of a source hold, in a line of the plan.

    >>> describe_rows(RowCounts(n_rows=30, n_documents=90, n_cut_documents=28, n_bos=118, n_eos=88))
    '30 rows of 90 documents, 28 of them cut; 118 BOS, 88 EOS'
    """
    return (
        f"{counts.n_rows:,} rows of {counts.n_documents:,} documents, {counts.n_cut_documents:,} of them cut; "
        f"{counts.n_bos:,} BOS, {counts.n_eos:,} EOS"
    )


def describe_assumed(cell: Cell) -> str:
    """What is taken for granted of rows that are not there yet."""
    rows = f"assumed: {cell.packed.counts.n_rows:,} rows, {4 * cell.packed.chunks.tokens.size / GB:.2f} GB when packed"
    return f"{rows}; {cell.source.missing or f'{cell.target.reference} has no tokenizer to pack them with'}"


def find_targets(
    names: Sequence[str],
    size: DictionarySize,
    settings: TrainingSettings,
    dtype: torch.dtype,
    *,
    is_on_gpu: bool,
    hookpoints: Sequence[str] = ("residual",),
    is_plan: bool = False,
) -> list[Target]:
    """The target models, checked against the settings; their weights are not loaded.

    Raises:
        InputError: If one is missing or unfit, lacks a layer, has too short a context, too few latents for k, or a
            number of latents that a GPU cannot train.
    """
    targets = []
    for name in names:
        reference = resolve_reference(name)
        config, tokenizer = check_to_be_run(reference, is_plan=is_plan)
        check_trunk_to_be_run(config, reference, is_plan=is_plan)
        delimiters = asdict(find_delimiters(tokenizer, config))  # without which nothing can be packed
        exclusion = find_exclusion(settings.exclude, **delimiters, vocab_size=config.vocab_size)
        check_layers(list(settings.layers), config, reference)
        for hookpoint in hookpoints:
            check_hookpoint(config, hookpoint)
        check_fits_context(settings.ctx_len, config, flag="--ctx_len", reference=reference)
        d_model = config.hidden_size
        n_latents = size.n_latents(short_name(reference), d_model)
        if settings.k > n_latents:
            raise InputError(
                f"--k must be <= the number of latents, got k={settings.k} with {n_latents} latents for {reference} "
                f"(d_model {d_model}); lower --k or raise --expansion_factor or --num_latents"
            )
        if is_on_gpu:
            check_latents_on_gpu(n_latents, reference)
        weights = trunk_bytes(config, dtype, max(settings.layers))
        targets.append(Target(reference, dtype, tokenizer, config, n_latents, exclusion, weights))
    check_distinct([target.name for target in targets], "--target_models")
    return targets


def describe_grid(cells: Sequence[Cell], seeds: Sequence[int], machines: Machines, checkpoints: Checkpoints) -> str:
    """The plan in a few lines: cells, tokens, steps, latents, passes, memory, disk."""
    on_the_way = {each.name for cell in cells for each in cell.kept}
    kept, cells = ([each for each in cells if (each.name in on_the_way) is is_kept] for is_kept in (True, False))
    settings, budget = cells[0].settings, cells[0].budget
    n_steps = budget.n_train_chunks // settings.chunks_per_step
    lines = [
        f"{len(cells)} cells x {len(settings.layers)} layers x {len(seeds)} seeds; per SAE {budget.n_train_tokens:,} "
        f"training tokens in {n_steps:,} steps, {budget.n_eval_tokens:,} tokens held out; {machines.device}, "
        f"{dtype_name(cells[0].target.dtype)}" + (f"; {NOT_HERE}" if machines.free_bytes is None else "")
    ]
    free_disk = describe_bytes(free_disk_bytes(checkpoints.folder))
    free = "" if machines.free_bytes is None else f" of {machines.free_bytes / GB:.2f} GB free"
    for cell in cells:
        passes = planned_passes(cell, seeds, machines)
        lines.append(
            f"  {cell.name}: {cell.target.n_latents:,} latents, k {settings.k}, {len(passes)} "
            f"pass{'es' if len(passes) > 1 else ''} ({'; '.join(map(str, passes))}), about "
            f"{memory_of(cell, seeds, machines) / GB:.2f} GB{free}, {disk_of(cell, seeds, machines, checkpoints)}, of "
            f"{free_disk} free"
        )
        lines.append(f"    {describe_assumed(cell) if cell.is_assumed else describe_rows(cell.packed.counts)}")
        if cell.source.base is not None:
            lines.append(f"    tokens of each row of {cell.source.base.name} in random order behind its BOS")
    lines += [f"  {cell.name}: kept on the way, after {cell.budget.n_train_tokens:,} tokens" for cell in kept]
    return "\n".join(lines)
