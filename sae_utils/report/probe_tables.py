"""What probes on labelled texts found: a table on the terminal, and the rows of the one on the page."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sae_utils.comparison.results import Results
from sae_utils.report.findings import Comparison, Findings, Spread
from sae_utils.report.rounding import rounded
from sae_utils.report.tables import text_table

TITLES = {
    "hidden_state": "hidden state",
    "best_1": "best latent",
    "best_5": "best 5",
    "best_20": "best 20",
    "latents": "all latents",
    "reconstruction": "reconstruction",
}
"""What representations are called, in the order in which they are shown."""

MEASURES = {"accuracy": "accuracy", "macro_f1": "macro F1"}
"""The page's rows for each data set."""


@dataclass(frozen=True)
class ProbeRow:
    """One line of the page's table: a measure of an SAE's probes on a data set, over seeds."""

    comparison: Comparison
    """Target, source and layer."""

    measure: str
    """A name of `MEASURES`."""

    majority_share: float | None
    """The floor, of an accuracy."""

    scores: dict[str, Spread | None]
    """By representation, in the order of `TITLES`."""


def probe_table(results: Results, keys: Collection[tuple], names: Collection[str]) -> str:
    """A text table of accuracies on held-out texts, one line per data set and SAE; below it, what each learned from.

    Args:
        results: What was measured.
        keys: Target, source, layer and seed of each SAE to be shown.
        names: Data sets to be shown.
    """
    columns = "probed on", "target", "source", "layer", "seed", "majority", *TITLES.values()
    found = [(probe, key) for key in keys for probe in results.saes[key].get("probes", []) if probe["name"] in names]
    found.sort(key=lambda each: each[0]["name"])
    rows = [
        (
            probe["name"],
            *map(str, key),
            rounded(probe["majority_share"], 4),
            *(rounded(probe["scores"][name]["accuracy"], 4) for name in TITLES),
        )
        for probe, key in found
    ]
    sizes = {probe["name"]: probe_sentence(probe) for probe, _ in found}
    return "\n".join([text_table(columns, rows), *sizes.values()])


def probe_sentence(probe: dict[str, Any]) -> str:
    """How many texts and classes a data set has.

    >>> probe_sentence({"name": "news", "n_classes": 4, "n_train": 1600, "n_test": 400})
    'news: accuracy on 400 held-out texts of 4 classes, learned from 1,600'
    """
    about = f"{probe['n_test']:,} held-out texts of {probe['n_classes']} classes"
    return f"{probe['name']}: accuracy on {about}, learned from {probe['n_train']:,}"


def probed_datasets(findings: Findings) -> list[dict[str, Any]]:
    """Name, size and rows of every data set that any SAE was probed on, by name; targets, layers and sources in order.

    One that has changed between the SAEs' measurements is there once for each of its forms.
    """
    probes = [probe for sae in findings.saes for probe in sae.get("probes") or []]
    forms = sorted({(probe["name"], probe["fingerprint"]): probe for probe in probes}.items())
    return [{"about": probe, "rows": _rows(findings.comparisons, fingerprint)} for (_, fingerprint), probe in forms]


def _rows(comparisons: Sequence[Comparison], fingerprint: str) -> list[ProbeRow]:
    """The rows of one data set."""
    rows = []
    for each in comparisons:
        probes = [
            probe for sae in each.saes for probe in sae.get("probes") or [] if probe["fingerprint"] == fingerprint
        ]
        if not probes:
            continue
        for measure in MEASURES:
            scores = {name: Spread.of(probe["scores"][name][measure] for probe in probes) for name in TITLES}
            floor = probes[0]["majority_share"] if measure == "accuracy" else None
            rows.append(ProbeRow(each, measure, floor, scores))
    return rows
