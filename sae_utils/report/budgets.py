"""Of SAEs that differ in their training tokens alone, the ones with most: they stand for the study, in every table.

Those of smaller budgets show how it got there, in the figure over training tokens; beside each other in one table, they
would be taken for SAEs to be compared.
"""

from dataclasses import replace
from typing import Any

from sae_utils.records import Place, largest_budgets
from sae_utils.report.findings import Findings


def at_largest_budget(findings: Findings) -> Findings:
    """What results say of the largest budget of every source, and of nothing else."""
    largest = largest_budgets(findings.saes)
    return replace(
        findings,
        comparisons=[each for each in findings.comparisons if (each.target, each.source, each.layer) in largest],
        pairs=[each for each in findings.pairs if places_of(each) <= largest],
        agreements=[each for each in findings.agreements if places_of(each) <= largest],
        contrasts=[each for each in findings.contrasts if places_of(each) <= largest],
    )


def places_of(record: dict[str, Any]) -> set[Place]:
    """Of a record about two sources of a target and layer: both."""
    return {(record["target"], record[end], record["layer"]) for end in ("source", "source_b")}


def smaller_budgets(findings: Findings) -> list[int]:
    """Training tokens of the SAEs that are not among those of the largest budgets, ascending."""
    largest = largest_budgets(findings.saes)
    smaller = [sae for sae in findings.saes if (sae["target"], sae["source"], sae["layer"]) not in largest]
    return sorted({sae["n_train_tokens"] for sae in smaller})
