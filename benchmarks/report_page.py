"""The page of the report over the number of SAEs: bytes of it and beside it, seconds to write it and until it is seen.

    python benchmarks/report_page.py --saes 8                                                  # seconds
    python benchmarks/report_page.py --record benchmarks/results/report_page_cpu.json          # a quarter of an hour

The results are made up as those that the page is tested with, but with 300 features of six contexts for each SAE, the
most that a comparison keeps. The page is opened from the disk in a headless Chromium, which starts anew for each time.
Making up 144 SAEs takes minutes, for the sake of their pairs; `--folder` keeps the results for another run.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/report"))
from chromium import Chromium, find_chromium
from machine import add_record, cpu_name
from report_fixture import write_results

from sae_utils.records import versions
from sae_utils.report.feature_files import feature_files
from sae_utils.report.page import MAX_PAGE_BYTES, write_report

MODELS, TEXTS = ["a-model-1.4b", "another-2.8b"], ["web", "books", "code", "wiki", "news", "mail"]

SHAPES = {
    8: {"targets": MODELS[:1], "sources": MODELS, "layers": [7, 15], "n_seeds": 2, "n_latents": 512},
    36: {
        "targets": MODELS,
        "sources": MODELS,
        "text_sources": TEXTS[:1],
        "layers": [7, 15],
        "n_seeds": 3,
        "n_latents": 1024,
    },
    144: {
        "targets": MODELS,
        "sources": MODELS,
        "text_sources": TEXTS,
        "layers": [3, 7, 15],
        "n_seeds": 3,
        "n_latents": 2304,
    },
}
"""What is compared, by the number of SAEs."""

PAINT_MS = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"

LOADED_MS = "performance.getEntriesByType('navigation')[0].loadEventEnd"

CHOOSE_LAST = """new Promise((done) => {
  const box = document.getElementById('sae'), list = document.getElementById('features'), began = performance.now();
  box.value = box.options.length - 1;
  new MutationObserver(() => done(performance.now() - began)).observe(list, { childList: true });
  box.dispatchEvent(new Event('change', { bubbles: true }));
})"""
"""Milliseconds until the features of the last SAE are on the page."""


def main() -> None:
    """Make results, write their page, and open it."""
    args = parse_args()
    if find_chromium() is None:
        sys.exit("no chromium or chrome executable on PATH; install one")
    folder = args.folder or Path(tempfile.mkdtemp())
    rows = []
    for n_saes in args.saes:
        rows.append(row_of(n_saes, make_results(folder / str(n_saes), n_saes), args.rounds))
        print(json.dumps(rows[-1], indent=1), flush=True)
    if args.record:
        chromium = subprocess.run([find_chromium(), "--version"], capture_output=True, text=True, check=True)
        record = {
            "command": "python " + shlex.join(sys.argv),
            "device": cpu_name(),
            "threads": os.cpu_count(),
            "max_page_bytes": MAX_PAGE_BYTES,
            "results": rows,
            "versions": versions()
            | {name: metadata.version(name) for name in ("jinja2", "matplotlib")}
            | {"chromium": chromium.stdout.strip()},
        }
        add_record(args.record, record)


def make_results(folder: Path, n_saes: int) -> Path:
    """A results folder of so many SAEs; one that is there is taken as it is."""
    if not (folder / "results" / "metrics.json").exists():
        write_results(folder, n_features=300, **SHAPES[n_saes])
    return folder / "results"


def row_of(n_saes: int, results: Path, n_rounds: int) -> dict:
    """What one page takes."""
    began, cpu_began = time.perf_counter(), time.process_time()
    page = write_report(results)
    write_sec, write_cpu_sec = time.perf_counter() - began, time.process_time() - cpu_began
    beside = feature_files(results)
    times_ms = [open_once(page) for _ in range(n_rounds)]
    names = ("first_paint_sec", "load_sec", "choose_last_sae_sec")
    medians = [round(statistics.median(each) / 1000, 3) for each in zip(*times_ms, strict=True)]
    return {
        "saes": n_saes,
        "n_latents": SHAPES[n_saes]["n_latents"],
        "page_bytes": page.stat().st_size,
        "files_beside": len(beside),
        "beside_bytes": sum(path.stat().st_size for path in beside),
        "write_sec": round(write_sec, 1),
        "write_cpu_sec": round(write_cpu_sec, 1),
        **dict(zip(names, medians, strict=True)),
        "rounds": n_rounds,
        "load_average": round(os.getloadavg()[0], 2),
    }


def open_once(page: Path) -> tuple[float, float, float]:
    """Milliseconds to the first paint, to the end of loading, and from a choice to the features of the last SAE."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Chromium(find_chromium(), Path(profile))
        browser.open(page)
        while (paint_ms := browser.run(PAINT_MS)) is None:
            time.sleep(0.01)
        times_ms = paint_ms, browser.run(LOADED_MS), browser.run(CHOOSE_LAST)
        browser.close()
    return times_ms


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--saes", type=int, nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=3, help="times that each page is opened")
    parser.add_argument("--folder", type=Path, help="where results are made, or are since another run")
    parser.add_argument("--record", type=Path, help="JSON file that the result is added to")
    return parser.parse_args()


if __name__ == "__main__":
    main()
