"""Results for people: the tables on the terminal, and the numbers that go to W&B."""

from collections.abc import Sequence
from typing import Any

from sae_utils.comparison.results import Results
from sae_utils.report.rounding import rounded

_SAE_COLUMNS = ("target", "source", "layer", "seed", "FVU", "FVU w/o 1st", "CE recovered", "dead", "FFR", "path")
_PAIR_COLUMNS = (
    *("target", "source", "layer", "seeds"),
    *("SFR", "95% interval", "floor", "SFR live", "SFR both", "mean cosine"),
)
_TEXT_COLUMNS = ("target", "source", "path", "seeds")


def results_tables(results: Results, keys: Sequence[tuple]) -> str:
    """Two text tables: one line per SAE, measured on its own source's held-out tokens, and one per pair of seeds.

    `FVU w/o 1st` leaves out the first position of each sequence; `CE recovered` is the share of the cross-entropy lost
    to zeros that the reconstruction gives back; `dead` is the share of latents that never fire on the held-out tokens;
    `FFR` is the share that fires on random tokens; `SFR` is the share of latents found again in the other seed, and the
    interval beside it how far that may be off because it was counted on so many latents.

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
            numbers = {
                what: value
                for what, value in evaluation.items()
                if isinstance(value, int | float) and not isinstance(value, bool)
            }
            summary |= {f"eval/{evaluation['eval_source']}/{what}/{name}": value for what, value in numbers.items()}
        random_tokens = record["random_tokens"] or {}  # none of an SAE of another run that was stopped
        summary |= {f"random_tokens/{what}/{name}": value for what, value in random_tokens.items()}
    for record in results.pairs.values():
        if (record["target"], record["source"]) != (target, source):
            continue
        name = f"layers.{record['layer']}/seeds_{record['seed']}_{record['seed_b']}"
        numbers = {what: record[what] for what in ("sfr", "sfr_both", "sfr_live", "sfr_floor", "mean_matched_cosine")}
        summary |= {f"agreement/{what}/{name}": value for what, value in numbers.items() if value is not None}
    return summary


def _sae_row(record: dict[str, Any]) -> tuple[str, ...]:
    if record.get("is_diverged"):
        about = record["target"], record["source"], str(record["layer"]), str(record["seed"])
        return (*about, "diverged", "", "", "", "", record["path"])
    own = next(each for each in record["evaluations"] if each["eval_source"] == record["source"])
    return (
        record["target"],
        record["source"],
        str(record["layer"]),
        str(record["seed"]),
        _number(own["fvu"]),
        _number(own["fvu_without_first_position"]),
        _number(own["ce_recovered"]),
        rounded(own["dead_share"], 1, is_share=True),
        rounded(record["random_tokens"]["ffr"], 2, is_share=True),
        record["path"],
    )


def _pair_row(record: dict[str, Any]) -> tuple[str, ...]:
    names = ("sfr_floor", "sfr_live", "sfr_both", "mean_matched_cosine")
    about = record["target"], record["source"], str(record["layer"]), f"{record['seed']} {record['seed_b']}"
    sfr = _number(record["sfr"]), _interval(record["sfr_interval"])
    return (*about, *sfr, *(_number(record[name]) for name in names))


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


def _interval(ends: Sequence[float] | None) -> str:
    return "undefined" if ends is None else f"[{ends[0]:.4f}, {ends[1]:.4f}]"


def _number(value: float | None) -> str:
    return "undefined" if value is None else rounded(value, 4)
