"""The model or the data? What results say of agreement between sources, in a sentence and in the rows of a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sae_utils.report.findings import Findings
from sae_utils.report.rounding import rounded

NAMES = {"sfr": "SFR", "mean_matched_cosine": "PW-MCC"}
"""Numbers that sources are compared by, as people call them."""

VERDICTS = {
    "lower": "less than within",
    "higher": "more than within",
    "within_spread": "no difference beyond the spread",
    "at_floor": "at the floor",
}
"""What a contrast says of the agreement between its sources, in a cell of a table."""


@dataclass(frozen=True)
class OriginRow:
    """Two sources of a target and layer, by one number of their pairs."""

    contrast: dict[str, Any]
    """Agreement between the sources held against that within them."""

    within: list[dict[str, Any]]
    """Agreement within the one and within the other."""

    between: dict[str, Any]
    """Agreement between them, of other seeds."""

    same_seed: dict[str, Any] | None
    """Agreement between them, of the same seeds; None if it was not measured."""

    @property
    def measure(self) -> str:
        """Name of the number."""
        return self.contrast["measure"]


def origin_row(contrast: dict[str, Any], agreements: Sequence[dict[str, Any]]) -> OriginRow:
    """A contrast with the agreements that it is made of."""
    ends, names = (contrast["source"], contrast["source_b"]), ("target", "layer", "n_latents")
    same = [each for each in agreements if all(each[name] == contrast[name] for name in names)]
    by_kind = {(each["source"], each["source_b"], each["kind"]): each for each in same}
    within = [by_kind[end, end, "within"] for end in ends]
    return OriginRow(contrast, within, by_kind[*ends, "between"], by_kind.get((*ends, "same_seed")))


def origin_rows(findings: Findings, measure: str) -> list[OriginRow]:
    """One for every two sources of a target and layer, in the order of the report."""
    rows = []
    for target, layer, members in findings.groups:
        names = [each.source for each in members]
        here = [each for each in findings.contrasts if (each["target"], each["layer"]) == (target, layer)]
        wanted = [each for each in here if each["measure"] == measure]
        wanted.sort(key=lambda each: sorted(names.index(each[end]) for end in ("source", "source_b")))
        rows += [origin_row(each, findings.agreements) for each in wanted]
    return rows


def origin_sentence(findings: Findings) -> str | None:
    """Whether features come back from another text as often as from the same; None unless there are two texts.

    Shuffled tokens are no text.
    """
    rows = _of_texts(findings, "sfr")
    if not rows:
        return None
    above = [row for row in rows if row.contrast["verdict"] != "at_floor"]
    if not above:
        cosines = _of_texts(findings, "mean_matched_cosine")
        return (
            "The model's features or the data's? By SFR that cannot be told: even SAEs of one text share hardly any. "
            f"By mean cosine, {_counted(findings, cosines)}."
        )
    return f"The model's features or the data's? {_upper(_counted(findings, rows))}."


def _counted(findings: Findings, rows: Sequence[OriginRow]) -> str:
    """What the contrasts say: one in full, several by how many say what."""
    by_verdict = {verdict: [row for row in rows if row.contrast["verdict"] == verdict] for verdict in VERDICTS}
    if len(rows) == 1:
        return _said(findings, rows[0])
    parts = []
    for verdict, what in (
        ("lower", "SAEs of two texts agree less than SAEs of one"),
        ("higher", "SAEs of two texts agree more than SAEs of one"),
        ("within_spread", "the difference is within the spread"),
        ("at_floor", "nothing is above the floor"),
    ):
        if members := by_verdict[verdict]:
            ratios = [row.contrast["ratio"] for row in members if row.contrast["ratio"] is not None]
            span = f" (ratio {_span(ratios)})" if ratios else ""
            parts.append(f"in {len(members)}, {what}{span}")
    return f"of {len(rows)} comparisons of two sources, {'; '.join(parts)}"


def _said(findings: Findings, row: OriginRow) -> str:
    """A single contrast, with its numbers."""
    contrast = row.contrast
    between, within = (rounded(contrast[name], 3) for name in ("between", "within"))
    numbers = f"{NAMES[row.measure]} {between} between the two texts, {within} within one"
    if contrast["verdict"] == "at_floor":
        return f"nothing comes back, even within one text ({numbers})"
    low, high = (rounded(end, 2) for end in contrast["ratio_interval"])
    numbers += f"; above their floors {rounded(contrast['ratio'], 2)} times as much [{low}, {high}]"
    sentence = {
        "lower": "features depend on the text: from another one fewer come back than from the same",
        "higher": "from another text more features come back than from the same",
        "within_spread": "features come back from another text as often as from the same, as far as these SAEs can "
        "tell: the difference is within the spread of latents or pairs",
    }[contrast["verdict"]]
    return f"{sentence} ({numbers})"


def _of_texts(findings: Findings, measure: str) -> list[OriginRow]:
    """The rows of two sources that are not controls."""
    controls = {each.source for each in findings.comparisons if each.dataset in findings.shuffled}
    rows = origin_rows(findings, measure)
    return [row for row in rows if not controls & {row.contrast["source"], row.contrast["source_b"]}]


def _span(values: Sequence[float]) -> str:
    """One number, or the lowest and the highest."""
    low, high = (rounded(end, 2) for end in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _upper(text: str) -> str:
    """With a capital at the beginning."""
    return text[0].upper() + text[1:]
