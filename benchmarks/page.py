"""What is in this folder's README and made from records: the table of peers, how costs grow, and the figure of that.

    python benchmarks/page.py

Tables stand between two comments of their name, `<!-- peers -->` and `<!-- end of peers -->`; what is between them is
replaced. Nothing is measured.
"""

import argparse
import json
import math
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from growth import AXES, LABELS

HERE = Path(__file__).resolve().parent

RESULTS = HERE / "results"

PEERS = {
    "generate": "transformers' `generate`",
    "generate_batch": "transformers' `generate_batch`",
    "sparsify": "sparsify's trainer, a run per seed",
    "saelens": "SAELens, a run per SAE",
    "saelens_multi": "SAELens, all SAEs in one run",
    "scipy": "SciPy's dense solver",
    "plain": "plain PyTorch",
}
"""Contenders of the benchmarks that others wrote, or would have to write; the rest are bounds and parts of ours."""

RATES = {"tokens_per_sec": "tok/s", "sae_tokens_per_sec": "SAE-tok/s"}
"""Names of rates in records, and their unit."""

COLUMNS = {
    "time (power)": (
        "sec",
        "usec_per_token",
        "sec_of_second_run",
        "sec_with_rows_there",
        "msec_per_step",
        "sec_of_reconstruction",
        "sec_of_splicing",
    ),
    "memory, disk (power)": ("peak_bytes", "bytes_on_disk", "files"),
}
"""Columns of the table of growth, and what stands in them."""

DEVICES = ("cpu", "gpu")
"""Ends of the names of records."""

UNSAID = ("--record", "--rounds", "--contenders", "--steps", "--saelens_env", "--model", "--config", "--grid")
"""Flags that a row of the table leaves out, with their values."""


def main() -> None:
    """Draw the figure, and write the tables into the README."""
    parse_args()
    growth = grown(read("growth_cpu"))
    draw(growth, HERE / "figures" / "growth.png")
    text = (HERE / "README.md").read_text(encoding="utf-8")
    for name, table in tables().items():
        text = with_table(text, name, table)
    (HERE / "README.md").write_text(text, encoding="utf-8")


def tables() -> dict[str, str]:
    """The tables by name, in Markdown."""
    return {"peers": peer_table(), "growth": growth_table(grown(read("growth_cpu")))}


def with_table(text: str, name: str, table: str) -> str:
    """A page with a table in the place of its name.

    Raises:
        ValueError: If there is no such place.
    """
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"README.md has no place between <!-- {name} --> and <!-- end of {name} -->")
    return pattern.sub(lambda match: f"{match[1]}{table}{match[2]}", text)


def read(name: str) -> list[dict[str, Any]]:
    """The records of a file, the oldest first; none if there is no such file yet."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def peer_table() -> str:
    """Every peer beside us, as it was measured last with these settings on this device."""
    rows = {}
    for what, name in (("sampling", "generation"), ("training", "training"), ("measuring", "measuring")):
        for device in DEVICES:
            for record in read(f"{name}_{device}"):
                for shape, results in shapes_of(record["results"]):
                    for row in rates_beside_ours(results):
                        rows[what, settings_of(record["command"]), shape, row[0], record["device"]] = row[1:]
    for device in DEVICES:
        for record in read(f"matching_{device}"):
            for shape, row in times_beside_ours(record["results"]):
                rows["matching", "", shape, row[0], record["device"]] = row[1:]
    head = "| | peer | theirs | ours | ours is | on |\n|---|---|---|---|---|---|\n"
    return head + "".join(
        f"| {', '.join(filter(None, (what, shape, settings)))} | {peer} | {theirs} | {ours} | {ratio} | {device} |\n"
        for (what, settings, shape, peer, device), (theirs, ours, ratio) in rows.items()
    )


def shapes_of(results: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What was measured side by side, by its shape, which has no name where there is only one."""
    if "ours" in results:
        yield "", results
    else:
        yield from ((shape, each) for shape, each in results.items() if isinstance(each, dict) and "ours" in each)


def rates_beside_ours(results: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Peer, its rate, ours, and how many times it ours is."""
    (rate,) = RATES.keys() & results["ours"].keys()
    for name in (each for each in PEERS if each in results):
        ours, theirs = results["ours"][rate], results[name][rate]
        yield PEERS[name], f"{theirs:,.0f} {RATES[rate]}", f"{ours:,.0f}", times(ours / theirs)


def times_beside_ours(results: list[dict[str, Any]]) -> Iterator[tuple[str, tuple[str, str, str, str]]]:
    """Of matchings that were solved in both ways: what, and SciPy's time, ours, and how many times as fast ours is."""
    by_solver = {(each["solver"], each["kind"], each["n_latents"]): each["sec"] for each in results}
    for (solver, kind, n_latents), theirs in by_solver.items():
        if solver != "ours" and ("ours", kind, n_latents) in by_solver:
            ours = by_solver["ours", kind, n_latents]
            row = PEERS[solver], f"{theirs:.2f} s", f"{ours:.2f} s", times(theirs / ours)
            yield f"{n_latents:,} latents, {kind}", row


def times(ratio: float) -> str:
    """A ratio; one below 1 stands out."""
    return f"{ratio:.1f}" if ratio >= 1 else f"**{ratio:.2f}**"


def settings_of(command: str) -> str:
    """What a benchmark was told, but for where and how often."""
    kept, is_said = [], True
    for word in shlex.split(command)[2:]:
        if word.startswith("--"):
            is_said = word not in UNSAID
        if is_said:
            kept.append(word)
    return f"`{' '.join(kept)}`" if kept else ""


def grown(records: list[dict[str, Any]]) -> dict[str, Any]:
    """By axis, in order: its points as they were measured last, and where."""
    found = {axis: {"points": record["results"][axis], **record} for record in records for axis in record["results"]}
    return {axis: found[axis] for axis in AXES if axis in found}


def growth_table(growth: dict[str, Any]) -> str:
    """Of every axis its first and last size, and what each number was there, with its power of the size."""
    lines = [f"| | from, to | {' | '.join(COLUMNS)} |", "|---|---|" + "---|" * len(COLUMNS)]
    for axis, each in growth.items():
        first, last = each["points"][0], each["points"][-1]
        growth_of_size = math.log(last["value"] / first["value"])
        cells = [
            "; ".join(
                f"{LABELS[name]} {a:,} to {b:,} ({math.log(b / a) / growth_of_size:.2f})"
                for name in names
                if (a := first.get(name)) and (b := last.get(name))
            )
            for names in COLUMNS.values()
        ]
        lines.append(f"| {axis} | {first['value']:,}, {last['value']:,} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(growth: dict[str, Any], path: Path) -> None:
    """A panel per axis: every number over the size, relative to its first, beside a straight line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    n_columns = 4
    n_rows = math.ceil(len(growth) / n_columns)
    figure, panels = pyplot.subplots(n_rows, n_columns, figsize=(14, 3.2 * n_rows), squeeze=False)
    for panel in panels.flat[len(growth) :]:
        panel.axis("off")
    for panel, (axis, each) in zip(panels.flat, growth.items(), strict=False):
        points = each["points"]
        sizes = [point["value"] for point in points]
        panel.plot(sizes, [size / sizes[0] for size in sizes], color="0.7", linestyle="--", label="straight line")
        for name in (name for name in points[0] if name != "value" and points[0][name]):
            panel.plot(sizes, [point[name] / points[0][name] for point in points], marker="o", label=LABELS[name])
        panel.set(xscale="log", yscale="log", title=axis, xlabel=axis.partition(": ")[2])
        panel.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=30)
        panel.minorticks_off()
        panel.legend(fontsize=7, frameon=False)
    last = list(growth.values())[-1]
    figure.supylabel("times the first")
    figure.suptitle(f"{last['device']}, {last['threads']} thread{'s' * (last['threads'] > 1)}")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def parse_args() -> argparse.Namespace:
    """The command line, which has nothing to choose."""
    return argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()


if __name__ == "__main__":
    main()
