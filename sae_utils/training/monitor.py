"""How training goes, for the user's eyes and for the record: progress bar, status lines, W&B and `metrics.jsonl`."""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sae_utils.progress import token_bar
from sae_utils.training.tracking import Tracker

logger = logging.getLogger(__name__)

STATUS_INTERVAL_SEC = 30.0
"""Time between status lines."""

SUMMARY_NAMES = ("fvu", "fvu_without_first_position", "dead_share", "l0")
"""Measurements on held-out tokens that go into the W&B summary."""


class TrainingMonitor:
    """Takes in a cell's losses step by step, pass after pass. Use as a context manager around all of them."""

    def __init__(self, name: str, tracker: Tracker, *, n_tokens: int, quiet: bool = False) -> None:
        """Prepare for a cell.

        Args:
            name: What is trained.
            tracker: The cell's W&B run; closed at the end.
            n_tokens: Tokens that every SAE is trained on.
            quiet: No bars.
        """
        self.name = name
        self.tracker = tracker
        self.n_tokens = n_tokens
        self.quiet = quiet
        self.bar: tqdm | None = None

    def __enter__(self) -> "TrainingMonitor":
        return self

    def begin_pass(self, name: str, folder: Path, labels: Mapping[str, str], *, from_tokens: int) -> None:
        """Start the bar and the file of a pass.

        Args:
            name: What is shown before the bar.
            folder: Where the pass' `metrics.jsonl` grows.
            labels: What to call each of the trainer's SAEs.
            from_tokens: Tokens that an interrupted run was already trained on.
        """
        self.labels = labels
        self.last_status_sec = time.monotonic()
        self.tracker.write_to(folder, from_tokens)
        self.end_pass()
        self.bar = token_bar(name, total=self.n_tokens, initial=from_tokens, quiet=self.quiet)

    def end_pass(self) -> None:
        """Close the bar of a pass."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def __exit__(self, kind: type | None, *exception: object) -> None:
        self.end_pass()
        self.tracker.close(exit_code=0 if kind is None else 1)

    def report(self, n_tokens: int, report: Mapping[str, Mapping[str, float]]) -> None:
        """Take in a step's losses: tokens trained on so far and, per SAE, FVU and dead share."""
        values = {
            f"{what}/{self.labels[name]}": number for name, each in report.items() for what, number in each.items()
        }
        self.tracker.log(n_tokens, values)
        mean_fvu = sum(each["fvu"] for each in report.values()) / len(report)
        self.bar.set_postfix(fvu=f"{mean_fvu:.4f}", refresh=False)
        self.bar.update(n_tokens - self.bar.n)
        if time.monotonic() - self.last_status_sec > STATUS_INTERVAL_SEC:
            self.last_status_sec = time.monotonic()
            per_sae = ", ".join(f"{self.labels[name]} {each['fvu']:.4f}" for name, each in report.items())
            logger.info("%s at %s tokens | fvu %s", self.name, f"{n_tokens:,}", per_sae)

    def summarise(self, records: Sequence[dict[str, Any]]) -> None:
        """Put the measurements on held-out tokens into the W&B run's summary."""
        self.tracker.summarise(
            {
                f"eval/{name}/layers.{record['layer']}/seed_{record['seed']}": record[name]
                for record in records
                for name in SUMMARY_NAMES
            }
        )
