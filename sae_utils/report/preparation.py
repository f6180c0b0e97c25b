"""What SAEs were given: how sources were packed into rows, which positions were left out, which tokens were drawn."""

from collections.abc import Sequence
from typing import Any

from sae_utils.exclusion import NORM
from sae_utils.report.findings import Findings, dataset_of

PACKING_RULES = {
    2: "Every row begins with BOS; documents follow each other as BOS ... EOS (BOS alone where one token is both), "
    "what does not fit goes on in the next row after another BOS, and special tokens are no targets of cross-entropy.",
}
"""How documents were put into rows, by the number that records have for it."""

EXCLUDED_NAMES = {
    "first": "the first position of every sequence",
    "bos": "BOS wherever it stands",
    "eos": "EOS wherever it stands",
}
"""Positions that can be left out by name."""


def packings(findings: Findings) -> list[dict[str, Any]]:
    """What the rows of every source hold in a target's tokens: `target`, `source`, and the record's counts.

    Once for all SAEs that read the same rows; those whose record does not tell are left out.
    """
    found = [
        {"target": sae["target"], "source": dataset_of(sae)} | sae["packing"]
        for sae in findings.saes
        if sae.get("packing")
    ]
    return [each for i, each in enumerate(found) if each not in found[:i]]


def packing_sentences(findings: Findings) -> list[str]:
    """The rules by which rows were packed; of one that is not known, its number."""
    rules = dict.fromkeys(each["rule"] for each in packings(findings))
    return [PACKING_RULES.get(rule, f"Packed by rule {rule}.") for rule in rules]


def random_tokens_sentence(findings: Findings) -> str | None:
    """How random tokens were drawn; None if no record tells."""
    draws = dict.fromkeys(
        (drawn["n_drawn"], drawn["generator"], drawn["seed"])
        for sae in findings.saes
        if "generator" in (drawn := sae.get("random_tokens") or {})
    )
    if not draws:
        return None
    named = "; ".join(f"{n_drawn:,} by {generator} with seed {seed}" for n_drawn, generator, seed in draws)
    return f"Random tokens drawn: {named}."


def exclusion_sentence(findings: Findings) -> str | None:
    """Which positions SAEs neither learned from nor are measured on; None if no record tells."""
    whose = _whose(findings)
    if set(whose) == {None}:
        return None
    if set(whose) == {()}:
        return "No position was left out of training or of a measure."
    if len(whose) == 1:
        said = f"for all SAEs: {_listed(next(iter(whose)))}"
    else:
        said = "not the same for all SAEs: " + "; ".join(
            f"{_listed(excluded)} ({'; '.join(labels)})" for excluded, labels in whose.items()
        )
    return (
        f"Left out of training and of every measure, {said}. Where a layer's output is replaced by reconstructions, it "
        f"stays as it is at these positions."
    )


def _whose(findings: Findings) -> dict[tuple[str, ...] | None, list[str]]:
    """Which SAEs are without what: labels, with seeds where these differ; None for what is not recorded."""
    found: dict[tuple[str, ...] | None, list[str]] = {}
    for each in findings.comparisons:
        seeds: dict[tuple[str, ...] | None, list[str]] = {}
        for sae in each.saes:
            excluded = None if sae.get("exclude") is None else tuple(sae["exclude"])
            seeds.setdefault(excluded, []).append(str(sae["seed"]))
        for excluded, names in seeds.items():
            of_seeds = f", seed{'s' if len(names) > 1 else ''} {', '.join(names)}" if len(seeds) > 1 else ""
            found.setdefault(excluded, []).append(findings.label(each) + of_seeds)
    return found


def _listed(excluded: Sequence[str] | None) -> str:
    """Positions in words."""
    if excluded is None:
        return "not recorded"
    return ", ".join(_named(word) for word in excluded) or "nothing"


def _named(word: str) -> str:
    """One of them, as records have it: a name, the number of a token, or a limit for norms."""
    if word.startswith(NORM):
        return f"activations whose norm is above {word.removeprefix(NORM)} times the median of their sequence"
    return EXCLUDED_NAMES.get(word, f"the token {word}")
