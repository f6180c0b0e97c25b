"""W&B runs: started, gone on with and added to later, each within a limit of time, and without raising an error."""

import logging
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_utils.files import read_record, removal, write_record
from sae_utils.training.wandb_login import Tracking, one_line, root_folder, stop_service, sync_command

if TYPE_CHECKING:
    from wandb import Run

logger = logging.getLogger(__name__)

RUN_FILE = "wandb.json"
"""Description of a cell's W&B run, beside the state and, at the end, beside the SAEs."""

START_LIMIT_SEC = 20.0
"""Time in which a run has to be started on W&B's server."""

FINISH_LIMIT_SEC = 60.0
"""Time in which the server has to take what is left when a run ends; it lies on disk as well."""

WAS_DELETED = "previously created and deleted"
"""What the server says of a run that was deleted there: it never takes that id again."""


def start_run(folder: Path, tracking: Tracking, **options) -> "Run | None":
    """The W&B run that a folder describes, started or gone on with; None if there is to be none.

    Args:
        folder: Where the run is described, with a new id if it is not yet.
        tracking: Where the run goes. If it cannot be started there, it and all later ones go to the next best.
        options: What else `wandb.init` is told.
    """
    folder.mkdir(parents=True, exist_ok=True)
    describe(folder, project=tracking.project, entity=tracking.entity)
    run = problem = None
    if tracking.mode == "online":
        try:
            run = _start_online(folder, options)
        except Exception as err:  # noqa: BLE001  of W&B, of its service, of the network
            problem = f"{tracking.entity or 'your account'}/{tracking.project}: {one_line(err)}"
            tracking.fall_back("offline")
            stop_service()
    if tracking.mode == "offline":
        run = _start_offline(folder, tracking, options, problem)
    if run:
        describe(folder, mode=tracking.mode)
    return run


def run_folder(run: "Run") -> Path:
    """Where W&B keeps what a run recorded."""
    return Path(run.dir).parent


def add_to_summaries(tracking: Tracking, summaries: Mapping[Path, Mapping[str, Any]]) -> None:
    """Put what was measured later into the summaries of the W&B runs that trained the SAEs in these folders.

    What cannot be added is said, in one line, and stays due: the next comparison adds it.

    Args:
        tracking: Where runs go.
        summaries: By folder, the numbers by their names.
    """
    if tracking.mode == "disabled" and not tracking.has_fallen_back:
        return
    problems: dict[Path, str] = {}
    for folder, summary in summaries.items():
        about = described(folder)
        if not about or about.get("mode") == "disabled":  # SAEs from elsewhere, or trained without W&B
            continue
        mark_due(folder, is_due=True)  # first, as who sees nothing happen may press Ctrl-C
        if problem := _problem_of_adding(folder, tracking, summary):
            problems[folder] = problem
        else:
            mark_due(folder, is_due=False)
    if problems:
        logger.warning(
            "W&B: what the comparison found is not in the runs of %s (%s); it is in the results folder, and the same "
            "command with --eval_only adds it later",
            ", ".join(map(str, problems)),
            next(iter(problems.values())),
        )


def is_summary_due(folder: Path) -> bool:
    """Whether the W&B run of a folder of SAEs still lacks what an earlier comparison found."""
    return described(folder).get("summary_due", False)


def describe(folder: Path, **fields) -> None:
    """Write down what is known of the W&B run of a folder, with a new id if it had none, and keep what was."""
    before = described(folder)
    now = (before or {"id": _new_id(), "mode": "disabled", "summary_due": False}) | fields
    if now != before:
        write_record(folder / RUN_FILE, now)


def described(folder: Path) -> dict[str, Any]:
    """What is known of the W&B run of a folder; nothing if it had none.

    Raises:
        DamagedFileError: If its file is damaged.
    """
    path = folder / RUN_FILE
    if not path.exists():
        return {}
    return read_record(path, f"{removal(path)}, and what comes next is a new run", id=str)


def mark_due(folder: Path, *, is_due: bool) -> None:
    """Write down whether a comparison is still to be added to the run of a folder, where that can be written to."""
    try:
        describe(folder, summary_due=is_due)
    except OSError as err:
        logger.debug("W&B: %s cannot be written to (%s), so nothing is remembered of its run", folder, err)


def _problem_of_adding(folder: Path, tracking: Tracking, summary: Mapping[str, Any]) -> str | None:
    """Why numbers could not be added to the summary of a run; None if they were, or never can be."""
    is_offline = described(folder).get("mode") == "offline"
    if tracking.has_fallen_back and not (is_offline and tracking.mode == "offline"):  # else they are sent together
        return "no run can be started online"
    began_sec = time.monotonic()
    try:
        run = _init(folder, tracking.mode, {})
        run.summary.update(summary)
        run.finish()
    except Exception as err:  # noqa: BLE001  of W&B, of its service, of the network
        if WAS_DELETED in str(err):
            logger.warning("W&B: the run of %s was deleted on the server, so nothing is added to it", folder)
            return None
        if time.monotonic() - began_sec > START_LIMIT_SEC / 2:  # a server that is silent will not answer the next, too
            tracking.fall_back("offline")
        stop_service()
        return one_line(err)
    return None


def _start_online(folder: Path, options: Mapping[str, Any]) -> "Run":
    """A run on W&B's server; a new one where the folder's was deleted there."""
    import wandb

    try:
        return _init(folder, "online", options)
    except wandb.errors.CommError as err:
        if WAS_DELETED not in str(err):
            raise
    logger.warning("W&B: run %s was deleted on the server; what comes next is a new run there", described(folder)["id"])
    describe(folder, id=_new_id())
    return _init(folder, "online", options)


def _start_offline(folder: Path, tracking: Tracking, options: Mapping[str, Any], problem: str | None) -> "Run | None":
    """A run on disk, with a line that says so if there was a problem online; None if that fails as well."""
    try:
        run = _init(folder, "offline", options)
    except Exception as err:  # noqa: BLE001  of W&B, of its service, of the disk
        stop_service()
        tracking.fall_back("disabled")
        problems = "; ".join(filter(None, [problem, one_line(err)]))
        logger.warning("W&B records nothing more (%s); every number is in metrics.jsonl and the results", problems)
        return None
    if problem:
        logger.warning(
            "W&B: no run could be started online (%s), so runs are recorded offline; send them later with `%s`",
            problem,
            sync_command(run_folder(run).parent),
        )
    return run


def _init(folder: Path, mode: str, options: Mapping[str, Any]) -> "Run":
    """A run as W&B starts it: continued if it is there, within limits of time, and without a word on the terminal."""
    import wandb

    about = described(folder)
    wandb.setup(wandb.Settings(silent=True, mode=mode))  # what it says before a run has settings of its own
    return wandb.init(
        **{name: about[name] for name in ("id", "project", "entity")},
        **options,
        mode=mode,
        resume="allow",  # offline, too: it tells `wandb sync` to go on behind what the server has of the run
        dir=root_folder(),
        settings=wandb.Settings(
            silent=True,
            console="off",
            init_timeout=START_LIMIT_SEC,
            finish_timeout=FINISH_LIMIT_SEC,
            finish_timeout_raises=True,
        ),
    )


def _new_id() -> str:
    """An id for a W&B run that no other has."""
    return uuid.uuid4().hex[:12]
