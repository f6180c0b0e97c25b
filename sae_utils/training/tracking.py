"""Weights & Biases, and the same numbers in `metrics.jsonl`, which needs no account."""

import json
import logging
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_utils.files import read_record, write_record
from sae_utils.paths import METRICS_FILE

logger = logging.getLogger(__name__)

RUN_FILE = "wandb.json"
"""Id, project and team of a cell's W&B run, beside the state and, at the end, beside the SAEs."""

WANDB_MODES = ("auto", "online", "offline", "disabled")


@dataclass(frozen=True)
class Tracking:
    """Where W&B runs go."""

    mode: str
    """online, offline or disabled."""

    project: str
    """W&B project."""

    entity: str | None
    """W&B team; None for the account's own."""


def choose_wandb_mode(mode: str) -> str:
    """The W&B mode to run in; `auto` is online when a login is found and offline, with a line saying so, when not.

    Nothing is asked and nothing is sent to find out.
    """
    if mode != "auto":
        return mode
    if chosen := os.environ.get("WANDB_MODE"):
        return chosen
    import wandb

    if wandb.setup().settings.api_key or _has_netrc_login():
        return "online"
    logger.info("W&B: no login found, so runs are recorded offline; send them later with `wandb sync`")
    return "offline"


class Tracker:
    """One W&B run, and its `metrics.jsonl`."""

    def __init__(
        self,
        *,
        folder: Path,
        mode: str,
        project: str,
        entity: str | None,
        group: str,
        name: str,
        tags: list[str],
        config: dict[str, Any],
    ) -> None:
        """Start the run, or go on with the one this folder began.

        Args:
            folder: Where W&B's id is kept, so that a resumed run is the same run.
            mode: online, offline or disabled.
            project: W&B project.
            entity: W&B team; None for the account's own.
            group: What runs are grouped by on the dashboard.
            name: Name of the run.
            tags: Tags of the run.
            config: Everything that was set.
        """
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / RUN_FILE).exists():
            write_record(folder / RUN_FILE, {"id": uuid.uuid4().hex[:12], "project": project, "entity": entity})
        about = read_run_id(folder) | {"project": project, "entity": entity}
        self.run = wandb.init(**about, group=group, name=name, tags=tags, config=config, **_run_options(mode))
        self.run.define_metric("tokens")
        self.run.define_metric("*", step_metric="tokens")

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
        self.run.log(record)

    def summarise(self, summary: dict[str, Any]) -> None:
        """Put results into the run's summary."""
        self.run.summary.update(summary)

    def close(self, exit_code: int = 0) -> None:
        """End the run; with another exit code it is marked as crashed."""
        self.run.finish(exit_code=exit_code)

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


def add_to_summary(folder: Path, mode: str, summary: dict[str, Any]) -> None:
    """Put what was measured later into the summary of the W&B run that trained the SAEs in a folder."""
    import wandb

    run = wandb.init(**read_run_id(folder), **_run_options(mode))
    run.summary.update(summary)
    run.finish()


def read_run_id(folder: Path) -> dict[str, Any]:
    """Id, project and team of the W&B run that a folder belongs to.

    Raises:
        DamagedFileError: If its file is damaged.
    """
    remedy = f"rm {folder / RUN_FILE}, and the next run gets another id"
    record = read_record(folder / RUN_FILE, remedy, id=str)
    return {name: record.get(name) for name in ("id", "project", "entity")}


def _run_options(mode: str) -> dict[str, Any]:
    """How every run is started: continued if it is there, and without a word on the terminal."""
    import wandb

    return {
        "mode": mode,
        "resume": "allow" if mode == "online" else None,
        "dir": os.environ.get("WANDB_DIR", "."),  # W&B itself looks once per process
        "settings": wandb.Settings(silent=True, console="off"),
    }


def _has_netrc_login() -> bool:
    """Whether `wandb login` left credentials in the user's netrc file."""
    import netrc

    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    if not path.exists():
        return False
    try:
        return netrc.netrc(path).authenticators("api.wandb.ai") is not None
    except netrc.NetrcParseError as err:
        logger.warning("W&B: %s cannot be read (%s), so runs are recorded offline", path, err)
        return False
