"""Results for people: the tables on the terminal, and the numbers that go to W&B."""

from collections.abc import Sequence
from typing import Any

from sae_utils.comparison.results import Results
from sae_utils.report.rounding import rounded

_INTERVAL = "95% interval"
"""Column behind the numbers that have one."""

_SAE_COLUMNS = (
    *("target", "source", "layer", "seed", "FVU", _INTERVAL, "FVU w/o 1st"),
    *("CE recovered", _INTERVAL, "dead", "FFR", _INTERVAL, "path"),
)
_PAIR_COLUMNS = (
    *("target", "source", "layer", "seeds"),
    *("SFR", _INTERVAL, "floor", "SFR live", "SFR both", "mean cosine"),
)
_TEXT_COLUMNS = ("target", "source", "path", "seeds")


def results_tables(results: Results, keys: Sequence[tuple]) -> str:
    """Two text tables: one line per SAE, measured on its own source's held-out tokens, and one per pair of seeds.

    `FVU w/o 1st` leaves out the first position of each sequence; `CE recovered` is the share of the cross-entropy lost
    to zeros that the reconstruction gives back; `dead` is the share of latents that never fire on the held-out tokens;
    `FFR` is the share that fires on random tokens; `SFR` is the share of latents found again in the other seed. The
    interval behind a number is how far it may be off because it was measured on so many held-out sequences, blocks of
    random sequences (`FFR`) or latents (`SFR`) and no more.

    Args:
        results: What was measured.
        keys: Target, source, layer and seed of each SAE to be shown.
    """
    tables = [_table(_SAE_COLUMNS, [_sae_row(results.saes[key]) for key in keys])]
    wanted = {key[:3] for key in keys}
    pairs = [record for key, record in sorted(results.pairs.items()) if key[:3] in wanted]
    if pairs:
        tables.append(_table(_PAIR_COLUMNS, [_pair_row(record) for record in pairs]))
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
    for record in results.pairs.values():
        if (record["target"], record["source"]) != (target, source):
            continue
        name = f"layers.{record['layer']}/seeds_{record['seed']}_{record['seed_b']}"
        numbers = {what: record[what] for what in ("sfr", "sfr_both", "sfr_live", "sfr_floor", "mean_matched_cosine")}
        summary |= {f"agreement/{what}/{name}": value for what, value in numbers.items() if value is not None}
    return summary


def _numbers_of(record: dict[str, Any]) -> dict[str, float | int]:
    """What is a number in a record; no texts, no lists."""
    is_number = {what: isinstance(value, int | float) and not isinstance(value, bool) for what, value in record.items()}
    return {what: value for what, value in record.items() if is_number[what]}


def _sae_row(record: dict[str, Any]) -> tuple[str, ...]:
    about = record["target"], record["source"], str(record["layer"]), str(record["seed"])
    if record.get("is_diverged"):
        return (*about, "diverged", *[""] * (len(_SAE_COLUMNS) - len(about) - 2), record["path"])
    own = next(each for each in record["evaluations"] if each["eval_source"] == record["source"])
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


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
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


def _with_interval(record: dict[str, Any], name: str) -> tuple[str, str]:
    return _number(record[name]), _interval(record.get(f"{name}_interval"))


def _interval(ends: Sequence[float] | None, decimals: int = 4, *, is_share: bool = False) -> str:
    if ends is None:
        return "undefined"
    low, high = (rounded(end, decimals, is_share=is_share) for end in ends)
    return f"[{low}, {high}]"


def _number(value: float | None) -> str:
    return "undefined" if value is None else rounded(value, 4)
