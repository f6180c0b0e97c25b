"""W&B runs of comparisons, one per results folder and target: its tables, and its files as an artefact.

What was sent has a checksum in the results folder. So nothing is sent twice, and what could not be sent is sent by the
next comparison, as a new version in the same run.
"""

import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_utils.errors import InputError
from sae_utils.files import checksum_file, checksum_text, to_json
from sae_utils.locks import Lock
from sae_utils.training.wandb_login import Tracking, one_line, root_folder, stop_service
from sae_utils.training.wandb_runs import (
    FINISH_LIMIT_SEC,
    START_LIMIT_SEC,
    describe,
    described,
    mark_due,
    start_run,
)

if TYPE_CHECKING:
    from wandb import Run

logger = logging.getLogger(__name__)

FOLDER = "wandb_runs"
"""Folder, inside the results, of the descriptions of their W&B runs."""

KIND = "comparison"
"""Type of the run's job, and of its artefact."""

SEND_LIMIT_SEC = 20.0
"""Time in which W&B has to take tables and files one by one, before the end of the run is waited for."""

Rows = Sequence[Mapping[str, Any]]
"""Rows of a table, by column; all have the same columns."""


@dataclass(frozen=True)
class Comparison:
    """What is sent of a target."""

    target: str
    """Its short name."""

    config: Mapping[str, Any]
    """What was compared."""

    tables: Mapping[str, Rows]
    """Tables by name; those without rows are not sent."""

    files: Mapping[str, Path]
    """Files of the artefact, by their names in it."""

    def checksum(self, tracking: Tracking) -> str:
        """Of what is sent, and where to."""
        files = {name: checksum_file(path) for name, path in self.files.items()}
        where = tracking.project, tracking.entity
        return checksum_text(to_json([self.config, self.tables, files, where]))


def send_comparisons(tracking: Tracking, results_dir: Path, comparisons: Sequence[Comparison]) -> None:
    """Send what W&B does not have yet of the targets that a results folder is about.

    What cannot be sent is said, in one line, and sent by the next comparison.

    Args:
        tracking: Where runs go; changed if they cannot go there.
        results_dir: The results folder; its runs are described in there.
        comparisons: One per target.
    """
    problems: dict[str, str] = {}
    for each in comparisons:
        if tracking.mode == "disabled":
            return
        if problem := _problem_of_sending(each, tracking, results_dir):
            problems[each.target] = problem
    if problems:
        logger.warning(
            "W&B: the comparison of %s is not there as a run (%s); it is in the results folder, and the same command "
            "with --eval_only sends it later",
            ", ".join(problems),
            next(iter(problems.values())),
        )


def _problem_of_sending(comparison: Comparison, tracking: Tracking, results_dir: Path) -> str | None:
    """Why a comparison could not be sent; None if it was, or had been."""
    folder, checksum = results_dir / FOLDER / comparison.target, comparison.checksum(tracking)
    try:
        if described(folder).get("sent") == checksum:
            return None
        with Lock(results_dir, f"{comparison.target}.wandb", refusal="another run is sending it"):
            if tracking.has_fallen_back and described(folder).get("mode") == "online":  # all of it goes there later
                return "no run can be started online"
            return _send(comparison, tracking, folder, checksum)
    except (InputError, OSError) as err:  # the description is damaged, or cannot be written
        return one_line(err)


def _send(comparison: Comparison, tracking: Tracking, folder: Path, checksum: str) -> str | None:
    """Start the run or go on with it, and send everything; why that did not work, or None."""
    run = start_run(
        folder,
        tracking,
        group=comparison.target,
        job_type=KIND,
        name=f"{comparison.target}_{KIND}",
        tags=[f"target:{comparison.target}"[:64]],
        config=dict(comparison.config),
    )
    if run is None:
        return "no run can be started"
    began_sec = time.monotonic()
    try:
        mark_due(folder, is_due=True)  # first, as who sees nothing happen may press Ctrl-C
        _log_all(run, comparison)
        run.finish()
    except Exception as err:  # noqa: BLE001  of W&B, of its service, of the network, of the disk
        if time.monotonic() - began_sec > START_LIMIT_SEC / 2:  # a server that is silent will not answer the next, too
            tracking.fall_back("offline")
        stop_service()
        return one_line(err)
    describe(folder, summary_due=False, sent=checksum)
    return None


def _log_all(run: "Run", comparison: Comparison) -> None:
    """Tables as they are shown on the run's page, and the files as a version of its artefact.

    Raises:
        Exception: Whatever W&B raises; of its server, if that does not take the artefact.
        TimeoutError: If the server is asked for so long before W&B takes them.
    """
    import wandb

    # W&B copies what it will send; left alone, into the home folder, which on a cluster is small.
    os.environ.setdefault("WANDB_DATA_DIR", str(root_folder() / "wandb"))
    began_sec = time.monotonic()
    artifact = wandb.Artifact(_artifact_name(comparison.target, run.id), KIND)
    for name, path in comparison.files.items():
        artifact.add_file(str(path), name=name)
    run.log_artifact(artifact)
    for name, rows in comparison.tables.items():
        if time.monotonic() - began_sec > SEND_LIMIT_SEC:
            raise TimeoutError(f"its server did not answer for {SEND_LIMIT_SEC:.0f} s")
        if rows:
            columns = list(rows[0])
            data = [[row[column] for column in columns] for row in rows]
            run.log({name: wandb.Table(columns=columns, data=data)}, commit=False)
    run.log({f"n_{name}": len(rows) for name, rows in comparison.tables.items()})
    if not run.offline:  # the end of a run says nothing of what became of it
        artifact.wait(timeout=int(FINISH_LIMIT_SEC))


def _artifact_name(target: str, run_id: str) -> str:
    """Name of a run's artefact, of characters that W&B takes; two results folders have two, also of one target.

    >>> _artifact_name("SmolLM2 135M", "4f00")
    'comparison-SmolLM2-135M-4f00'
    """
    return f"{KIND}-{re.sub(r'[^A-Za-z0-9_.-]', '-', target)[:64]}-{run_id}"
