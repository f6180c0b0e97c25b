"""Pages, figures and tables of the study from its recorded numbers, and the recording of new ones.

    python studies/own_text/report.py study_output/report                      # from studies/own_text/recorded
    python studies/own_text/report.py study_output/report --record small_512=study_output/small/results_512

A record is `metrics.json` as `train_sae.py` leaves it, compressed. All else is made from it: a page and figures by
`train_sae.py --report_only`, of which some are copied into `figures`, and tables.
"""

import argparse
import json
import lzma
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

FIGURES = ("agreement_over_tokens", "seed_agreement", "fake_features")
"""Of those that the results allow."""


def main() -> None:
    """Record what is asked for, then make everything from the records."""
    args = parse_args()
    for name, _, folder in (each.partition("=") for each in args.record):
        record(HERE / "recorded" / f"{name}.json.xz", Path(folder) / "metrics.json")
    for path in sorted((HERE / "recorded").glob("*.json.xz")):
        name = path.name.removesuffix(".json.xz")
        results = args.folder / name
        results.mkdir(parents=True, exist_ok=True)
        (results / "metrics.json").write_bytes(lzma.decompress(path.read_bytes()))
        command = [sys.executable, str(ROOT / "train_sae.py"), "--report_only", "--results_dir", str(results)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        copy_figures(results / "figures", args.to / "figures", name)
        table = agreement_table(json.loads((results / "metrics.json").read_text(encoding="utf-8")))
        write(args.to / "tables" / f"{name}.md", table)
        print(f"{results / 'report.html'}: the page of {name}")


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the pages go")
    parser.add_argument("--to", type=Path, default=HERE, help="where `figures` and `tables` are")
    parser.add_argument("--record", nargs="*", default=[], metavar="NAME=RESULTS_DIR", help="results to be recorded")
    return parser.parse_args()


def record(path: Path, metrics: Path) -> None:
    """Compress results; the same bytes give the same file, whenever that is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.compress(metrics.read_bytes(), preset=9 | lzma.PRESET_EXTREME))


def copy_figures(drawn: Path, folder: Path, name: str) -> None:
    """Copy those that the text shows."""
    folder.mkdir(parents=True, exist_ok=True)
    for figure in FIGURES:
        for path in drawn.glob(f"{figure}.*"):
            shutil.copyfile(path, folder / f"{name}_{path.name}")


def agreement_table(metrics: dict[str, Any]) -> str:
    """Agreement within every source by training tokens, and what the SAEs of the largest budget are."""
    budgets = sorted({sae["n_train_tokens"] for sae in metrics["saes"]})
    columns = [f"SFR, {n_tokens:,}" for n_tokens in budgets]
    head = ["layer", "trained on", *columns, "PW-MCC", "FVU", "CE recovered", "fake features"]
    lines = [head, ["---"] * len(head)]
    for layer in sorted({sae["layer"] for sae in metrics["saes"]}):
        for dataset in dict.fromkeys(sae["dataset"] for sae in metrics["saes"]):
            of_it = [sae for sae in metrics["saes"] if (sae["layer"], sae["dataset"]) == (layer, dataset)]
            lines.append([str(layer), dataset, *row_of(of_it, budgets, metrics)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def row_of(saes: list[dict[str, Any]], budgets: list[int], metrics: dict[str, Any]) -> list[str]:
    """The numbers of one data set and layer."""
    cells, within = [], {}
    for n_tokens in budgets:
        sources = {sae["source"] for sae in saes if sae["n_train_tokens"] == n_tokens}
        within = next(
            (
                each
                for each in metrics["agreements"]
                if each["layer"] == saes[0]["layer"] and {each["source"], each["source_b"]} == sources
            ),
            {},
        )
        cells.append(with_interval(within, "sfr") if within else "")
    longest = [sae for sae in saes if sae["n_train_tokens"] == budgets[-1]]
    own = [each for sae in longest for each in sae["evaluations"] if each["eval_source"] == sae["dataset"]]
    fakes = [sae["random_tokens"]["ffr"] for sae in longest]
    numbers = (spread([each[name] for each in own]) for name in ("fvu", "ce_recovered"))
    return [*cells, with_interval(within, "mean_matched_cosine"), *numbers, spread(fakes)]


def with_interval(agreement: dict[str, Any], name: str) -> str:
    """A mean over pairs of seeds, with its 95 % interval over latents."""
    low, high = agreement[f"{name}_interval"]
    return f"{agreement[name]:.3f} [{low:.3f}, {high:.3f}]"


def spread(values: list[float]) -> str:
    """The mean over seeds, with the lowest and the highest."""
    return f"{sum(values) / len(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def write(path: Path, text: str) -> None:
    """Write a text, folder and all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
