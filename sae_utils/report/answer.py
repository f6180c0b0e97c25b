"""The short answer: a sentence or two computed from the numbers, no stronger than they are."""

from sae_utils.report.findings import Comparison, Findings, Spread
from sae_utils.report.rounding import rounded

REFERENCE = (
    "For orientation: on Pythia-160m (MLP of layer 6, 32k latents) the stricter ratio SFR-both was 0.07 after 0.8B "
    "training tokens, 0.42 after 8B and 0.61 after 80B (Paulo & Belrose 2025)."
)
ENOUGH_TOKENS = 8_000_000_000
"""Training tokens below which a low SFR is first of all a sign of undertraining; the middle point of `REFERENCE`."""

UNITS = {
    "pairs": "latents (SFR)",
    "evaluations": "held-out sequences (FVU, CE)",
    "random_tokens": "blocks of random sequences (fake features)",
}
"""What intervals are over, by the kind of numbers."""


def agreement_sentence(findings: Findings) -> str:
    """How many features another seed finds again, beside what two untrained SAEs share."""
    measured = [each for each in findings.comparisons if each.of_pairs("sfr")]
    if not measured:
        return "Whether features come back needs two seeds: there is one SAE per target, source and layer."
    if len(measured) == 1:
        return _one(measured[0])
    best = max(measured, key=_sfr)
    worst = min(measured, key=_sfr)
    floors = Spread.of(each.of_pairs("sfr_floor").mean for each in measured if each.of_pairs("sfr_floor"))
    if _sfr(best) == _sfr(worst):
        sentence = f"Found again from one seed to another, everywhere: {_count(best)} features (SFR {_shown(best)})."
    else:
        sentence = (
            f"Found again from one seed to another: at worst {_count(worst)} features (SFR {_shown(worst)}; "
            f"{findings.label(worst)}), at best {_count(best)} (SFR {_shown(best)}; {findings.label(best)})."
        )
    return sentence + (f" Floor of untrained SAEs: at most {rounded(floors.high, 3)}." if floors else "")


def tokenized_again_sentence(findings: Findings) -> str | None:
    """Which sources a target read in other tokens than they were sampled in; None if none, or if it is not known."""
    again = dict.fromkeys(
        (each["eval_source"], sae["target"])
        for sae in findings.saes
        for each in sae.get("evaluations") or []
        if each.get("is_tokenized_again")
    )
    if not again:
        return None
    named = "; ".join(f"{source} for {target}" for source, target in again)
    return (
        f"Tokenized again, as source and target have different tokenizers: {named}. There, SAEs were trained and "
        f"measured on the target's tokens of the texts, not on the ids that were sampled."
    )


def caution_sentence(findings: Findings) -> str | None:
    """That few training tokens make a low SFR; None if there were many, or if no SFR was measured."""
    tokens = Spread.of(sae.get("n_train_tokens") for sae in findings.saes)
    if tokens is None or tokens.low >= ENOUGH_TOKENS or not any(each.pairs for each in findings.comparisons):
        return None
    amount = f"{tokens.low:,.0f}" + (f" to {tokens.high:,.0f}" if tokens.high > tokens.low else "")
    return (
        f"These SAEs were trained on {amount} tokens each. A low SFR after so few tokens is a sign of "
        f"undertraining, not evidence that the features are arbitrary. {REFERENCE} The two ratios are not comparable "
        f"number by number."
    )


def unequal_sentence(findings: Findings) -> str | None:
    """Where SAEs of a target and layer were trained on different amounts; None if nowhere, as within every grid.

    Those that stand under names of their own for another budget are not meant.
    """
    unequal = [
        findings.group_label(target, layer)
        for target, layer, members in findings.groups
        if _differs({(sae.get("variant", ""), sae.get("n_train_tokens")) for each in members for sae in each.saes})
    ]
    if not unequal:
        return None
    return (
        f"Trained on different numbers of tokens, so that what differs between sources may be due to that: "
        f"{'; '.join(unequal)}."
    )


def kinds_with_intervals(findings: Findings) -> list[str]:
    """Of which kinds of numbers, names of `UNITS`, there are intervals to be shown."""
    shown = {
        "pairs": lambda each: each.interval_of_pairs("sfr"),
        "evaluations": lambda each: any(map(each.interval_of_evaluations, ("fvu", "ce_recovered", "ce_diff_nats"))),
        "random_tokens": lambda each: each.interval_of_random_tokens("ffr"),
    }
    return [kind for kind, interval in shown.items() if any(map(interval, findings.comparisons))]


def brackets_sentence(findings: Findings) -> str | None:
    """What the intervals in brackets are over; None if there are none."""
    units = [UNITS[kind] for kind in kinds_with_intervals(findings)]
    if not units:
        return None
    listed = " and ".join(filter(None, (", ".join(units[:-1]), units[-1])))
    return f"In brackets: how far it may be off because it was measured on so many {listed} and no more (95% interval)."


def diverged_sentence(findings: Findings) -> str | None:
    """Which SAEs are left out because they have diverged; None if none has."""
    diverged = [
        f"{findings.label(each)}, seed {sae['seed']}"
        for each in findings.comparisons
        for sae in each.saes
        if sae.get("is_diverged")
    ]
    if not diverged:
        return None
    return f"Diverged in training (NaN or infinity), and left out of every number: {'; '.join(diverged)}."


def _one(comparison: Comparison) -> str:
    """The sentence for a single comparison, which has room for counts."""
    floor = comparison.of_pairs("sfr_floor")
    chance = f", floor {rounded(floor.mean, 3)}" if floor else ""
    interval = comparison.interval_of_pairs("sfr")
    sfr = _shown(comparison) + (f" [{rounded(interval[0], 3)}, {rounded(interval[1], 3)}]" if interval else "")
    return f"{_count(comparison)} features are found again from one seed to another (SFR {sfr}{chance})."


def _sfr(comparison: Comparison) -> float:
    return comparison.of_pairs("sfr").mean


def _shown(comparison: Comparison) -> str:
    return rounded(_sfr(comparison), 3)


def _count(comparison: Comparison) -> str:
    """How many features that is; a mean over pairs, rounded."""
    n_latents = comparison.pairs[0]["n_latents"]
    return f"{round(_sfr(comparison) * n_latents):,} of {n_latents:,}"


def _differs(amounts: set[tuple[str, int | None]]) -> bool:
    """Whether SAEs of one variant were trained on several amounts.

    >>> _differs({("", 640), ("k_64", 640), ("tokens_1280", 1280)}), _differs({("", 640), ("", 1280)})
    (False, True)
    """
    return len(amounts) > len({variant for variant, _ in amounts})
