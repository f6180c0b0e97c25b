"""What a comparison has before it, found out before it begins, so that one line can say how far it is."""

from collections.abc import Collection, Mapping, Sequence

from sae_utils.comparison.groups import ComparisonSettings, group_saes
from sae_utils.comparison.measuring import plan_measuring
from sae_utils.comparison.outlook import MATCHING, Count, Outlook, Pace
from sae_utils.comparison.pairs import Pair, estimate_sec, pairs_of, work_of
from sae_utils.comparison.results import Results
from sae_utils.comparison.trained import TrainedSae
from sae_utils.distributed import Workers
from sae_utils.sources.catalog import Source


def look_ahead(
    saes: Sequence[TrainedSae],
    sources: Mapping[tuple[str, str], Source],
    results: Results,
    settings: ComparisonSettings,
    workers: Workers,
    *,
    kinds: Collection[str],
) -> Outlook:
    """What is to be measured and matched, with a small matching timed where there are pairs.

    Args:
        saes: All SAEs.
        sources: What they were trained on.
        results: What is known of them.
        settings: How they are compared.
        workers: The processes that share the pairs; only the main one shows something.
        kinds: Kinds of pairs.
    """
    outlook = Outlook(quiet=settings.quiet or not workers.is_main)
    if outlook.quiet:
        return outlook
    todo: list[Pair] = []
    for group in group_saes(saes, sources, settings):
        plan_measuring(group, results, outlook)
        pairs, part = pairs_of(group.saes, kinds), outlook.part(group.key)
        left = [pair for pair in pairs if pair.key not in results.pairs]
        n_known = len(pairs) - len(left)
        part.pairs = Count(n_known, n_known + -(-len(left) // workers.n))
        part.left[MATCHING] = sum(map(work_of, left)) / workers.n
        todo += left
    if todo:
        record = todo[0].a.record
        sec = estimate_sec(record["d_model"], record["n_latents"], settings.device)
        outlook.paces[MATCHING] = Pace(guess=sec / work_of(todo[0]))
    return outlook
