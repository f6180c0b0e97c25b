"""Results for people: the tables on the terminal, and the numbers that go to W&B."""

from collections.abc import Sequence
from typing import Any

from sae_utils.comparison.results import Results
from sae_utils.records import largest_budgets
from sae_utils.report.budgets import places_of
from sae_utils.report.origin import NAMES, VERDICTS, origin_row
from sae_utils.report.rounding import rounded

_INTERVAL = "95% interval"
"""Column behind the numbers that have one."""

_SAE_COLUMNS = (
    *("target", "source", "layer", "seed", "FVU", _INTERVAL, "FVU w/o 1st"),
    *("CE recovered", _INTERVAL, "dead", "FFR", _INTERVAL, "path"),
)
_PAIR_COLUMNS = (
    *("target", "source", "layer", "seeds"),
    *("SFR", _INTERVAL, "floor", "SFR live", "SFR both", "PW-MCC"),
)
_SOURCE_COLUMNS = (
    *("target", "sources", "layer", "number", "within 1st", "within 2nd", "between"),
    *("ratio", _INTERVAL, "same seed", "between, against within"),
)
_WANDB_NUMBERS = ("sfr", "sfr_both", "sfr_top1", "sfr_live", "sfr_floor", "mean_matched_cosine")
"""Of pairs, in the summary of a W&B run."""

_TEXT_COLUMNS = ("target", "source", "sources", "path", "seeds", "number", "between, against within", "probed on")


def results_tables(results: Results, keys: Sequence[tuple]) -> str:
    """Text tables: a line per SAE, measured on its own source's held-out tokens, per two seeds, and per two sources.

    `FVU w/o 1st` leaves out the first position of each sequence; `CE recovered` is the share of the cross-entropy lost
    to zeros that the reconstruction gives back; `dead` is the share of latents that never fire on the held-out tokens;
    `FFR` is the share that fires on random tokens; `SFR` is the share of latents found again in the other seed. The
    interval behind a number is how far it may be off because it was measured on so many held-out sequences, blocks of
    random sequences (`FFR`) or latents (`SFR`) and no more. Of two sources: agreement of SAEs within each across seeds,
    and between them; the ratio of what is above the floor of untrained SAEs. Of several budgets, the largest.

    Args:
        results: What was measured.
        keys: Target, source, layer and seed of each SAE to be shown.
    """
    wanted = largest_budgets(results.saes[key] for key in keys)
    tables = [text_table(_SAE_COLUMNS, [_sae_row(results.saes[key]) for key in keys if key[:3] in wanted])]
    of_them = [record for key, record in sorted(results.pairs.items()) if key[:3] in wanted]
    pairs = [record for record in of_them if record["source"] == record["source_b"]]
    if pairs:
        tables.append(text_table(_PAIR_COLUMNS, [_pair_row(record) for record in pairs]))
    contrasts = [each for each in results.contrasts if places_of(each) <= wanted]
    if contrasts:
        tables.append(text_table(_SOURCE_COLUMNS, [_source_row(each, results) for each in contrasts]))
    return "\n\n".join(tables)


def wandb_summary(results: Results, target: str, source: str) -> dict[str, Any]:
    """The same numbers of one cell, by the names they have in its W&B run's summary."""
    summary: dict[str, Any] = {}
    for record in results.saes.values():
        if (record["target"], record["source"]) != (target, source):
            continue
        name = f"layers.{record['layer']}/seed_{record['seed']}"
        for evaluation in record["evaluations"]:
            numbers = _numbers_of(evaluation)
            summary |= {f"eval/{evaluation['eval_source']}/{what}/{name}": value for what, value in numbers.items()}
        random_tokens = _numbers_of(record["random_tokens"] or {})  # none of an SAE of another run that was stopped
        summary |= {f"random_tokens/{what}/{name}": value for what, value in random_tokens.items() if what != "seed"}
        for probe in record.get("probes", []):
            accuracies = {what: scores["accuracy"] for what, scores in probe["scores"].items()}
            summary |= {f"probe/{probe['name']}/{what}/{name}": value for what, value in accuracies.items()}
    for record in results.pairs.values():
        ends = [(record["source"], record["seed"]), (record["source_b"], record["seed_b"])]
        if record["target"] != target or source not in dict(ends):
            continue
        if ends[0][0] != source:
            ends.reverse()
        (_, seed), (other, other_seed) = ends
        kind = "agreement" if other == source else f"agreement_with/{other}"
        name = f"layers.{record['layer']}/seeds_{seed}_{other_seed}"
        numbers = {what: record[what] for what in _WANDB_NUMBERS}
        summary |= {f"{kind}/{what}/{name}": value for what, value in numbers.items() if value is not None}
    return summary


def text_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, numbers to the right."""
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    lines = [
        "  ".join(
            cell.ljust(width) if column in _TEXT_COLUMNS else cell.rjust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        )
        for row in [columns, tuple("-" * width for width in widths), *rows]
    ]
    return "\n".join(line.rstrip() for line in lines)


def _numbers_of(record: dict[str, Any]) -> dict[str, float | int]:
    """What is a number in a record; no texts, no lists."""
    is_number = {what: isinstance(value, int | float) and not isinstance(value, bool) for what, value in record.items()}
    return {what: value for what, value in record.items() if is_number[what]}


def _sae_row(record: dict[str, Any]) -> tuple[str, ...]:
    about = record["target"], record["source"], str(record["layer"]), str(record["seed"])
    if record.get("is_diverged"):
        return (*about, "diverged", *[""] * (len(_SAE_COLUMNS) - len(about) - 2), record["path"])
    own = next(each for each in record["evaluations"] if each["eval_source"] == record.get("dataset", record["source"]))
    random_tokens = record["random_tokens"]
    return (
        *about,
        *_with_interval(own, "fvu"),
        _number(own["fvu_without_first_position"]),
        *_with_interval(own, "ce_recovered"),
        rounded(own["dead_share"], 1, is_share=True),
        rounded(random_tokens["ffr"], 2, is_share=True),
        _interval(random_tokens.get("ffr_interval"), 2, is_share=True),
        record["path"],
    )


def _pair_row(record: dict[str, Any]) -> tuple[str, ...]:
    names = ("sfr_floor", "sfr_live", "sfr_both", "mean_matched_cosine")
    about = record["target"], record["source"], str(record["layer"]), f"{record['seed']} {record['seed_b']}"
    return (*about, *_with_interval(record, "sfr"), *(_number(record[name]) for name in names))


def _source_row(contrast: dict[str, Any], results: Results) -> tuple[str, ...]:
    row = origin_row(contrast, results.agreements)
    measure = contrast["measure"]
    low_high = _interval(contrast["ratio_interval"]) if contrast["ratio"] is not None else "undefined"
    return (
        contrast["target"],
        f"{contrast['source']}, {contrast['source_b']}",
        str(contrast["layer"]),
        NAMES[measure],
        *(_number(each[measure]) for each in [*row.within, row.between]),
        _number(contrast["ratio"]),
        low_high,
        _number(row.same_seed and row.same_seed[measure]),
        VERDICTS[contrast["verdict"]],
    )


def _with_interval(record: dict[str, Any], name: str) -> tuple[str, str]:
    return _number(record[name]), _interval(record.get(f"{name}_interval"))


def _interval(ends: Sequence[float] | None, decimals: int = 4, *, is_share: bool = False) -> str:
    if ends is None:
        return "undefined"
    low, high = (rounded(end, decimals, is_share=is_share) for end in ends)
    return f"[{low}, {high}]"


def _number(value: float | None) -> str:
    return "undefined" if value is None else rounded(value, 4)
