"""Weights & Biases, and the same numbers in `metrics.jsonl`, which needs no account.

Nothing that W&B does or fails to do ends a training: what goes wrong is one line, and training goes on without it.
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_utils.paths import METRICS_FILE
from sae_utils.training.wandb_login import Tracking, one_line, stop_service
from sae_utils.training.wandb_runs import run_folder, start_run

if TYPE_CHECKING:
    from wandb import Run

logger = logging.getLogger(__name__)


class Tracker:
    """One W&B run, and its `metrics.jsonl`."""

    def __init__(
        self,
        *,
        folder: Path,
        tracking: Tracking,
        group: str,
        name: str,
        tags: list[str],
        config: dict[str, Any],
    ) -> None:
        """Start the run, or go on with the one this folder began.

        Args:
            folder: Where W&B's id is kept, so that a resumed run is the same run.
            tracking: Where the run goes; changed if it cannot go there.
            group: What runs are grouped by on the dashboard.
            name: Name of the run.
            tags: Tags of the run.
            config: Everything that was set.
        """
        self.tracking = tracking
        self.run = start_run(folder, tracking, group=group, name=name, tags=tags, config=config)
        self.kept_in = run_folder(self.run) if self.run else None
        self._send(lambda run: run.define_metric("tokens"))
        self._send(lambda run: run.define_metric("*", step_metric="tokens"))

    def write_to(self, folder: Path, from_tokens: int) -> None:
        """Write what comes to the `metrics.jsonl` of this folder.

        Args:
            folder: Where the file grows.
            from_tokens: Tokens already trained on; later lines of an interrupted run are dropped, they come again.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / METRICS_FILE
        self._drop_lines_after(from_tokens)

    def log(self, n_tokens: int, values: dict[str, float]) -> None:
        """Record numbers at a point of training, which is given in tokens per SAE."""
        record = {"tokens": n_tokens, **values}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self._send(lambda run: run.log(record))

    def summarise(self, summary: dict[str, Any]) -> None:
        """Put results into the run's summary."""
        self._send(lambda run: run.summary.update(summary))

    def close(self, exit_code: int = 0) -> None:
        """End the run; with another exit code it is marked as crashed."""
        self._send(lambda run: run.finish(exit_code=exit_code))
        self.run = None

    def _send(self, action: Callable[["Run"], Any]) -> None:
        """Do something with the run, if there is one; what fails ends the run and nothing else."""
        if self.run is None:
            return
        try:
            action(self.run)
        except Exception as err:  # noqa: BLE001  of W&B, of its service, of the network
            self.run = None
            if isinstance(err, TimeoutError):  # of `finish`
                self.tracking.fall_back("offline")
                problem = "its server did not take the rest of the run in time, and later runs are recorded offline"
            else:
                stop_service()
                problem = f"its process failed ({one_line(err)}) and records no more of this run"
            logger.warning(
                "W&B: %s; what is missing there is in metrics.jsonl, and what W&B has of it can be sent with "
                "`wandb sync --include-online %s`",
                problem,
                self.kept_in,
            )

    def _drop_lines_after(self, n_tokens: int) -> None:
        """Cut `metrics.jsonl` back to the state that training is resumed from; a torn last line goes, too."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            if not line.endswith("}") or json.loads(line)["tokens"] > n_tokens:
                break
            kept.append(line + "\n")
        self.path.write_text("".join(kept), encoding="utf-8")
