"""Every two SAEs of a target and layer, matched with each other: across seeds, across sources, and across both.

Pairs are shared out over the processes that work together. What came out of one is written as soon as it is matched,
with all that its record has, so that a run that was stopped goes on with the next pair.
"""

import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sae_utils.comparison.agreement import compare_dictionaries, directions
from sae_utils.comparison.floors import floor_of
from sae_utils.comparison.matching import match_rows
from sae_utils.comparison.outlook import MATCHING, Count, Outlook
from sae_utils.comparison.results import PairKey, Results, pair_key
from sae_utils.comparison.trained import TrainedSae
from sae_utils.devices import is_here
from sae_utils.distributed import Workers

logger = logging.getLogger(__name__)

TIMED_ROWS = 2048
"""Rows of the matching that is timed for an estimate: less than a second."""

STATUS_INTERVAL_SEC = 20.0
"""Time between status lines of a matching."""

ALONE = Workers()
"""This process and no other."""

WITHIN, BETWEEN, SAME_SEED = "within", "between", "same_seed"

KINDS = {
    WITHIN: "the same source, another seed",
    BETWEEN: "another source, another seed",
    SAME_SEED: "another source, the same seed, so that the two began as one",
}
"""What a pair of SAEs of one target and layer can have in common."""


@dataclass(frozen=True)
class Pair:
    """Two SAEs of one target and layer, in the order of their sources and seeds."""

    a: TrainedSae
    b: TrainedSae

    @property
    def key(self) -> PairKey:
        """Target, source, layer and seed of the first, source and seed of the second."""
        return (*self.a.key, self.b.series, self.b.seed)

    @property
    def kind(self) -> str:
        """A name of `KINDS`."""
        if self.a.series == self.b.series:
            return WITHIN
        return SAME_SEED if self.a.seed == self.b.seed else BETWEEN

    @property
    def fingerprints(self) -> list[str]:
        """Of the weights of both."""
        return [self.a.weights_fingerprint, self.b.weights_fingerprint]

    def __str__(self) -> str:
        ends = [f"{sae.series} seed {sae.seed}" for sae in (self.a, self.b)]
        return f"{self.a.record['target']} layer {self.a.layer}: {' and '.join(ends)}"


def pairs_of(saes: Sequence[TrainedSae], kinds: Collection[str] = tuple(KINDS)) -> list[Pair]:
    """The pairs of these kinds, by target, layer, sources and seeds.

    SAEs that were trained in another way are no pair: what they have in common says nothing of sources or seeds, and
    those of another size have no one-to-one matching.
    """
    alike: dict[tuple, list[TrainedSae]] = {}
    for sae in sorted(saes, key=lambda sae: (sae.record["target"], sae.layer, sae.series, sae.seed)):
        alike.setdefault((sae.record["target"], sae.layer, sae.record["d_model"], sae.alike), []).append(sae)
    pairs = [Pair(a, b) for members in alike.values() for a, b in itertools.combinations(members, 2)]
    return [pair for pair in pairs if pair.kind in kinds]


def match_pairs(
    saes: Sequence[TrainedSae],
    results: Results,
    device: torch.device,
    *,
    kinds: Collection[str] = tuple(KINDS),
    workers: Workers = ALONE,
    outlook: Outlook | None = None,
) -> None:
    """Add the agreement of every two SAEs, all of them measured, to the results, where it is not known.

    All processes come here; only the main one needs the results, and has them afterwards. SAEs that have diverged have
    no directions to be matched.

    Args:
        saes: Of one target.
        results: What is known; the folder is all that processes other than the main one look at.
        device: Where this process computes.
        kinds: Names of `KINDS`.
        workers: The processes that share the work.
        outlook: Is told how far it has got; None where nobody looks.
    """
    outlook = outlook or Outlook()
    pairs = {pair.key: pair for pair in pairs_of(saes, kinds)}
    todo = workers.agree(_not_known(pairs, results) if workers.is_main else None)
    mine = todo[workers.rank :: workers.n]
    part_key, n_known = saes[0].eval_shape, sum(key in results.pairs for key in pairs)
    part = outlook.part(part_key)
    part.pairs = Count(n_known, n_known + len(mine))
    part.left[MATCHING] = sum(work_of(pairs[key]) for key in mine)
    for key in mine:
        with outlook.doing(part_key, MATCHING, work_of(pairs[key]), f"matching {pairs[key]}") as note:
            match_pair(pairs[key], results, device, on_look=lambda note=note: note(0))
            note(work_of(pairs[key]))
        part.pairs.n_done += 1
    outlook.pause()
    workers.wait()
    if workers.is_main:
        for key in todo:
            results.take_in_pair(key, pairs[key].fingerprints)
        results.save()


def work_of(pair: Pair) -> int:
    """How much work a pair is beside others."""
    return pair.a.record["n_latents"] ** 2


def match_pair(
    pair: Pair, results: Results, device: torch.device, *, on_look: Callable[[], None] = lambda: None
) -> None:
    """Match two SAEs, and write what came out beside the results; `on_look` is called now and then meanwhile."""
    a, b = pair.a, pair.b
    on_status = _now_and_then(on_look)
    sae_a, sae_b = (sae.load(device) for sae in (a, b))
    agreement = compare_dictionaries(
        directions(sae_a),
        directions(sae_b),
        floor := floor_of(sae_a, (a.seed, b.seed), results.folder, device, on_status=on_status),
        rates_a=results.arrays(*a.key[:3])[f"firing_rate_{a.seed}"],
        rates_b=results.arrays(*b.key[:3])[f"firing_rate_{b.seed}"],
        on_status=on_status,
    )
    matching = agreement.matching
    found = {
        "partner": matching.partner.astype(np.int32),
        "cosine": matching.cosine,
        "best": matching.best,
        "best_b": matching.best_b,
        "floor_cosine": floor.cosine,
    }
    names = "target", "source", "layer", "seed", "source_b", "seed_b"
    about = dict(zip(names, pair.key, strict=True)) | {"kind": pair.kind, "weights_fingerprints": pair.fingerprints}
    assert pair_key(about) == pair.key
    results.write_pair(about | agreement.record, found)


def count_by_size(saes: Sequence[TrainedSae], kinds: Collection[str] = tuple(KINDS)) -> dict[tuple[int, int], int]:
    """Pairs of these kinds by the size of their SAEs, `(d_model, n_latents)`."""
    return Counter((pair.a.record["d_model"], pair.a.record["n_latents"]) for pair in pairs_of(saes, kinds))


def count_by_target(saes: Sequence[TrainedSae], kinds: Collection[str] = tuple(KINDS)) -> dict[str, int]:
    """Pairs of these kinds by the short name of their target."""
    return Counter(pair.a.record["target"] for pair in pairs_of(saes, kinds))


def count_pairs(n_sources: int, n_seeds: int, kinds: Collection[str] = tuple(KINDS)) -> int:
    """Pairs of these kinds among the SAEs of one target and layer.

    >>> count_pairs(4, 3), count_pairs(4, 3, ["within"]), count_pairs(4, 3, ["same_seed"])
    (66, 12, 18)
    """
    of_seeds, of_sources = n_seeds * (n_seeds - 1) // 2, n_sources * (n_sources - 1) // 2
    counts = {WITHIN: n_sources * of_seeds, BETWEEN: of_sources * 2 * of_seeds, SAME_SEED: of_sources * n_seeds}
    return sum(counts[kind] for kind in set(kinds))


def describe_pairs(counts: Mapping[tuple[int, int], int], device: torch.device, n_workers: int) -> str:
    """How many pairs there will be, and how long they take, in a line of the plan.

    Args:
        counts: Pairs by the size of their SAEs, `(d_model, n_latents)`.
        device: Where this process computes; a small matching is timed there, if PyTorch sees it.
        n_workers: Processes that share them.
    """
    n = sum(counts.values())
    shares = f", shared by {n_workers} processes" if n_workers > 1 else ""
    if n == 0 or not is_here(device):
        return f"{n:,} pairs of SAEs to be matched{shares}"
    sec = sum(count * estimate_sec(*size, device) for size, count in counts.items()) / n_workers
    span = f"{sec / 3600:.1f} h" if sec >= 3600 else f"{sec / 60:.1f} min"
    return f"{n:,} pairs of SAEs to be matched{shares}, about {span} as a small one takes on this machine now"


def estimate_sec(d_model: int, n_latents: int, device: torch.device) -> float:
    """Time to match two SAEs of this size, decoder and encoder rows: a smaller one's, by the square of their sizes."""
    n_timed = min(n_latents, TIMED_ROWS)
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(n_timed, d_model, generator=generator).to(device) for _ in range(2)]
    began = time.monotonic()
    match_rows(*rows)
    return 2 * (time.monotonic() - began) * (n_latents / n_timed) ** 2


def _not_known(pairs: dict[PairKey, Pair], results: Results) -> list[PairKey]:
    """Keys of the pairs that are neither in the results nor on disk from a run that was stopped."""
    keys = {sae.key for pair in pairs.values() for sae in (pair.a, pair.b)}
    alive = {key for key in keys if not results.saes[key]["is_diverged"]}
    wanted = [pair for pair in pairs.values() if {pair.a.key, pair.b.key} <= alive and pair.key not in results.pairs]
    return [pair.key for pair in wanted if not results.take_in_pair(pair.key, pair.fingerprints)]


def _now_and_then(on_look: Callable[[], None]) -> Callable[[str], None]:
    """A function that logs the lines it is given, but not more often than `STATUS_INTERVAL_SEC`, and looks around."""
    last_sec = time.monotonic()

    def log(line: str) -> None:
        nonlocal last_sec
        on_look()
        if time.monotonic() - last_sec > STATUS_INTERVAL_SEC:
            last_sec = time.monotonic()
            logger.info("  %s", line)

    return log
