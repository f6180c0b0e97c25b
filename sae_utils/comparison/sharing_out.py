"""SAEs of a group shared out over the processes of a run, and what they find put together again."""

from dataclasses import replace

from sae_utils.comparison.groups import Group
from sae_utils.comparison.results import Results
from sae_utils.distributed import Workers


def share_of(group: Group, workers: Workers) -> Group | None:
    """The part of a group that this process measures, every n-th SAE; None if it is left with none.

    SAEs of a layer follow each other, and take as long as each other: all processes get as many, but for one.
    """
    if workers.n == 1:
        return group
    saes = group.saes[workers.rank :: workers.n]
    return replace(group, saes=saes) if saes else None


def begin_as_main(group: Group, results: Results, workers: Workers) -> None:
    """Let all processes know of a group's SAEs what the main one knows, which also looks into other folders."""
    if workers.n > 1:
        results.saes |= workers.agree({sae.key: results.saes[sae.key] for sae in group.saes})


def put_together(part: Group | None, results: Results, workers: Workers) -> None:
    """Add what every process has found of its part to the results of all; the main one writes it."""
    if workers.n == 1:
        return
    found = {sae.key: results.saes[sae.key] for sae in (part.saes if part else ())}
    for records, changed in workers.gather((found, results.changed)):
        results.saes |= records
        results.changed |= changed
    results.save()
