"""The target's own text against every other: which differences are larger than the spread, and no others.

A number of two sources differs if every value of the one is beyond every value of the other, over seeds or pairs of
seeds, and the 95 % intervals of the two means do not overlap: larger than what other seeds would change, and than what
other latents or held-out sequences would.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sae_utils.report.findings import Comparison, Findings
from sae_utils.report.origin import NAMES
from sae_utils.report.rounding import rounded

MORE, LESS, WITHIN_SPREAD, ONE_VALUE = "more", "less", "no difference", "one value"
"""What can be said of the own text beside another; the last where there is no second value to spread."""

MARKS = {MORE: "more", LESS: "less", WITHIN_SPREAD: "not told apart", ONE_VALUE: "one value"}
"""In a cell of a table."""

Interval = tuple[float, float] | None


@dataclass(frozen=True)
class Measure:
    """A number that sources are held against each other by."""

    title: str
    values: Callable[[Comparison], list[float]]
    """Over seeds, or over pairs of seeds."""

    interval: Callable[[Comparison], Interval]
    is_share: bool = False


def _of_pairs(name: str) -> Measure:
    def values(comparison: Comparison) -> list[float]:
        return _defined(pair.get(name) for pair in comparison.pairs)

    return Measure(NAMES[name], values, lambda comparison: comparison.interval_of_pairs(name))


def _of_evaluations(name: str, title: str) -> Measure:
    return Measure(
        title,
        lambda comparison: comparison.evaluation_values(name),
        lambda comparison: comparison.interval_of_evaluations(name),
    )


MEASURES = {
    **{name: _of_pairs(name) for name in NAMES},
    "ffr": Measure(
        "fake features",
        lambda comparison: comparison.random_token_values("ffr"),
        lambda comparison: comparison.interval_of_random_tokens("ffr"),
        is_share=True,
    ),
    "fvu": _of_evaluations("fvu", "FVU"),
    "ce_recovered": _of_evaluations("ce_recovered", "CE recovered"),
}
"""By their names in the results; numbers on held-out tokens are those of each SAE's own source."""


@dataclass(frozen=True)
class Difference:
    """A number of SAEs of the own text, beside that of SAEs of another source."""

    own: float
    other: float
    verdict: str
    """`MORE`, `LESS`, `WITHIN_SPREAD` or `ONE_VALUE`: what the own text has of it."""


@dataclass(frozen=True)
class DifferenceRow:
    """The own text of a target and another source, on one layer."""

    own: Comparison
    other: Comparison
    is_control: bool
    """Whether the other is no text."""

    differences: dict[str, Difference | None]
    """By names of `MEASURES`; None where one of the two lacks the number."""


def difference_rows(findings: Findings) -> list[DifferenceRow]:
    """One for every other source of a target that was trained on its own text, on every layer.

    Only SAEs that differ in their source alone are held against each other.
    """
    controls = findings.shuffled
    return [
        DifferenceRow(own, other, other.dataset in controls, {name: differ(name, own, other) for name in MEASURES})
        for target, _, members in findings.groups
        for own in members
        if own.dataset == target
        for other in members
        if other.dataset != target and _settings(other) == _settings(own)
    ]


def differ(name: str, own: Comparison, other: Comparison) -> Difference | None:
    """A number of two sources, and whether they differ in it."""
    measure = MEASURES[name]
    values, others = measure.values(own), measure.values(other)
    if not values or not others:
        return None
    means = sum(values) / len(values), sum(others) / len(others)
    if min(len(values), len(others)) < 2:
        return Difference(*means, ONE_VALUE)
    if _is_beyond(values, measure.interval(own), others, measure.interval(other)):
        return Difference(*means, MORE)
    if _is_beyond(others, measure.interval(other), values, measure.interval(own)):
        return Difference(*means, LESS)
    return Difference(*means, WITHIN_SPREAD)


def differences_sentence(findings: Findings) -> str | None:
    """Whether more features come back from the target's own text than from others; None where that was not compared.

    Shuffled tokens are no text.
    """
    found = [row.differences["sfr"] for row in difference_rows(findings) if not row.is_control]
    found = [each for each in found if each is not None]
    if not found:
        return None
    if all(each.verdict == ONE_VALUE for each in found):
        return (
            "Whether more features come back from the target's own text than from others needs three seeds: of two "
            "there is one pair, and its spread is not known."
        )
    counts = {verdict: sum(each.verdict == verdict for each in found) for verdict in (MORE, LESS, WITHIN_SPREAD)}
    own, other = (sum(getattr(each, end) for each in found) / len(found) for end in ("own", "other"))
    return (
        f"The target's own text or another? Of {len(found)} comparisons with a text on one layer, more features come "
        f"back from the own text in {counts[MORE]} and fewer in {counts[LESS]}; in {counts[WITHIN_SPREAD]} the "
        f"difference is within the spread of pairs or latents (mean SFR {rounded(own, 3)}; other texts "
        f"{rounded(other, 3)})."
    )


def _is_beyond(values: list[float], interval: Interval, others: list[float], other: Interval) -> bool:
    """Whether all values are above all others, and the interval of their mean as well; not where none is known."""
    return min(values) > max(others) and interval is not None and other is not None and interval[0] > other[1]


def _settings(comparison: Comparison) -> tuple:
    """What SAEs must have in common to differ in their source alone."""
    sae = comparison.saes[0]
    return sae.get("variant", ""), sae.get("n_latents"), sae.get("k"), sae.get("n_train_tokens")


def _defined(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]
