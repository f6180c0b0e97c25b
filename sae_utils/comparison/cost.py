"""What a comparison takes, before it starts: time by rates of the like, memory and disk by the shapes of what it holds.

Counted is a comparison from nothing; of what is known already nothing is measured again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sae_utils.comparison.features import N_SHOWN
from sae_utils.comparison.matching import BLOCK_ROWS
from sae_utils.comparison.outlook import MATCHING, RANDOM_TOKENS, RECONSTRUCTION, SPLICING
from sae_utils.comparison.trained import TrainedSae
from sae_utils.disk import describe_bytes
from sae_utils.evaluation.random_tokens import firing_bytes
from sae_utils.memory import sae_bytes
from sae_utils.progress import span
from sae_utils.rates import UNKNOWN_DEVICE, find_rate, on_machine, this_machine, unknown_rate

GB = 1e9

REST = "the rest"
"""Kind of work: loading, stability, features, in units of SAEs."""

KINDS = (RECONSTRUCTION, SPLICING, RANDOM_TOKENS, MATCHING, REST)
"""All that a comparison does of a target, but for probes and the report."""

BLOCKS = 4
"""Blocks of cosines side by side while two dictionaries are multiplied, also turned around and sorted."""

DICTIONARY_COPIES = 4
"""Of a matching: the rows of both as they are, and with norm 1."""

LATENT_BYTES = 8
"""Of an SAE in the results, for each latent: how strongly it fires, and how often on random tokens; how often on the
tokens of a source is 4 more for each. Files are compressed, but such numbers hardly are."""

PAIR_BYTES = 28
"""Of a pair in the results, for each latent: its partner, cosines, correlations; and its share of their floor."""

RECORD_BYTES = 13_500
"""Of an evaluation or a pair in `metrics.json` and `metrics.csv` together, about: 13 to 16 kB in studies of 4 to 210
SAEs."""

FEATURE_BYTES = 8_000
"""Of a latent that is shown in `features.json` with all of its contexts, about."""

CONTEXTS_HALF = 1.5
"""Times that a latent of the average fires on held-out tokens where those that are shown have half of their contexts,
about."""

PAGE_SHARE = 0.16
"""Of the contexts in `features.json`, what the page or the files beside it take for them, compressed."""

REPORT_BYTES, REPORT_BYTES_PER_SAE = 650_000, 15_000
"""Figures and the page without features, about: of any study, and for each SAE."""


@dataclass(frozen=True)
class Work:
    """The comparison of the SAEs of one target, measured on the same sequences."""

    target: str
    """Short name of the target."""

    dtype: str
    """Its number format."""

    layers: tuple[int, ...]
    """Layers that are encoded."""

    d_model: int
    """Width of its residual stream."""

    n_latents: int
    """Of each SAE; the most if they differ."""

    k: int
    """Active latents per token; the most if they differ."""

    ctx_len: int
    """Tokens per sequence."""

    batch_size: int
    """Sequences per forward pass."""

    n_saes: int
    """SAEs."""

    n_evaluations: int
    """SAEs times the sources that each is measured on."""

    n_eval_tokens: int
    """Tokens that are held out of every source."""

    n_random_tokens: int
    """Random tokens on which each is measured."""

    n_pairs: int
    """Pairs of SAEs."""

    fixed_bytes: int | None = None
    """Memory of the whole target; None if that is not known."""

    batch_bytes: int = 0
    """Memory that a batch takes beside it and the SAEs, see `groups.batch_bytes_of`."""

    @property
    def units(self) -> dict[str, int]:
        """How much there is of each kind of work: tokens times SAEs; pairs; SAEs."""
        evaluated = self.n_evaluations * self.n_eval_tokens
        counts = evaluated, evaluated, self.n_saes * self.n_random_tokens, self.n_pairs, self.n_saes
        return {kind: n for kind, n in zip(KINDS, counts, strict=True) if n}

    def about(self, kind: str, device: torch.device) -> dict[str, Any] | None:
        """What decides how long a unit of a kind of work takes; None for a GPU that is not here."""
        machine = this_machine(device)
        if machine is None:
            return None
        size = {"work": kind, "d_model": self.d_model, "n_latents": self.n_latents}
        if kind == MATCHING:
            return machine | size
        names = "target", "dtype", "layers", "ctx_len", "batch_size", "n_saes"
        return machine | size | {name: getattr(self, name) for name in names}

    @property
    def result_bytes(self) -> int:
        """Files of the results, with page and figures, about."""
        arrays = LATENT_BYTES * self.n_saes + 4 * self.n_evaluations + PAIR_BYTES * self.n_pairs
        records = RECORD_BYTES * (self.n_evaluations + self.n_pairs)
        n_fired = self.n_eval_tokens * self.k / self.n_latents  # times, by a latent of the average
        of_feature = FEATURE_BYTES * n_fired / (n_fired + CONTEXTS_HALF)
        features = self.n_saes * min(N_SHOWN, self.n_latents) * of_feature
        report = REPORT_BYTES + REPORT_BYTES_PER_SAE * self.n_saes + PAGE_SHARE * features
        return round(self.n_latents * arrays + records + features + report)


def work_of_saes(
    saes: Sequence[TrainedSae], n_pairs: Mapping[str, int], *, batch_size: int, n_random_tokens: int
) -> list[Work]:
    """The comparison of finished SAEs, target by target.

    Args:
        saes: All of them.
        n_pairs: Pairs by the short name of their target.
        batch_size: Sequences per forward pass.
        n_random_tokens: Random tokens on which each is measured.
    """
    by_shape: dict[tuple, list[TrainedSae]] = {}
    for sae in saes:
        by_shape.setdefault(sae.eval_shape, []).append(sae)
    found = []
    for (_, dtype, ctx_len, n_eval_tokens, _), members in by_shape.items():
        target, n_sources = members[0].record["target"], len({sae.source for sae in saes})
        found.append(
            Work(
                target=target,
                dtype=dtype,
                layers=tuple(sorted({sae.layer for sae in members})),
                d_model=members[0].record["d_model"],
                n_latents=max(sae.record["n_latents"] for sae in members),
                k=max(sae.record["k"] for sae in members),
                ctx_len=ctx_len,
                batch_size=batch_size,
                n_saes=len(members),
                n_evaluations=len(members) * n_sources,
                n_eval_tokens=n_eval_tokens,
                n_random_tokens=n_random_tokens,
                n_pairs=n_pairs.get(target, 0),
            )
        )
    return found


def work_sec(work: Work, folder: Path, device: torch.device) -> float | None:
    """How long a comparison takes by the last rates of the like; None if one of them is not known."""
    sec = 0.0
    for kind, n_units in work.units.items():
        about = work.about(kind, device)
        rate = None if about is None else find_rate(folder, about)
        if rate is None:
            return None
        sec += n_units / rate.tokens_per_sec
    return sec


def matching_bytes(d_model: int, n_latents: int) -> int:
    """Memory of matching two SAEs: both, their rows with norm 1, all cosines in half precision, and blocks of them."""
    rows = DICTIONARY_COPIES // 2 * 4 * n_latents * d_model
    return 2 * sae_bytes(d_model, n_latents) + rows + 2 * n_latents**2 + BLOCKS * 4 * BLOCK_ROWS * n_latents


def comparison_bytes(work: Work) -> int:
    """Memory that a comparison takes beside the process itself, if all SAEs fit together, and the target's is known."""
    of_saes = work.n_saes * (sae_bytes(work.d_model, work.n_latents) + firing_bytes(work.n_latents))
    matching = matching_bytes(work.d_model, work.n_latents) if work.n_pairs else 0
    return work.fixed_bytes + max(of_saes + work.batch_bytes, matching)


def describe_work(work: Work, folder: Path, device: torch.device) -> str:
    """What a comparison takes, in a line of a dry run.

    Args:
        work: What is compared.
        folder: Of the results.
        device: Where.
    """
    sec, machine = work_sec(work, folder, device), this_machine(device)
    if machine is None:
        how_long = UNKNOWN_DEVICE
    elif sec is None:
        how_long = f"{unknown_rate(folder, machine)}; the first comparison of the like leaves one"
    else:
        how_long = f"about {span(sec)} by rates measured last {on_machine(machine)}"
    memory = "" if work.fixed_bytes is None else f", {comparison_bytes(work) / GB:.2f} GB of memory"
    return (
        f"comparison of {work.n_saes:,} SAEs of {work.target}, {work.n_evaluations:,} times on a source: {how_long}"
        f"{memory}, {describe_bytes(work.result_bytes)} on disk"
    )
