"""Where W&B runs can go, found out before anything is loaded: online, offline, or nowhere.

Training comes first. What was asked for by name and cannot be had is refused here, in seconds; where nothing was asked
for (`auto`), the next best is taken, with one line.
"""

import logging
import netrc
import os
import re
import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from sae_utils.errors import InputError

logger = logging.getLogger(__name__)

WANDB = "wandb>=0.30"
"""Versions that can be asked for a login without a prompt, and that end a run within a limit."""

MODES = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}
"""What `$WANDB_MODE` may be, and means; `run` and `dryrun` are older names of W&B's."""

ANSWER_LIMIT_SEC = 4.0
"""Time in which W&B's server has to say who is logged in, in whole seconds. It is asked twice; after 10 s in all, W&B
itself gives up."""

MAX_PROJECT_CHARACTERS = 128

NOT_IN_PROJECTS = r"/\#?%:"
"""Characters that W&B does not take in the name of a project.

Source: `validate_project` in wandb/sdk/wandb_settings.py; the same, and the same length.
"""


@dataclass
class Tracking:
    """Where W&B runs go; after a failure, the next best, for this run and all later ones."""

    mode: str
    """online, offline or disabled."""

    project: str
    """W&B project."""

    entity: str | None
    """W&B team; None for the account's own."""

    has_fallen_back: bool = False
    """Whether this is not where they were meant to go."""

    def fall_back(self, mode: str) -> None:
        """Go there from now on: a server that did not answer once costs no time again."""
        self.mode = mode
        self.has_fallen_back = True


@dataclass(frozen=True)
class Obstacle:
    """Why W&B runs cannot go where they should, and where they can."""

    why: str
    """What was found."""

    remedy: str
    """What to do about it."""

    next_best: str
    """Mode that is left."""

    meaning: str
    """What that mode means."""

    is_news: bool = True
    """Whether something is wrong, which is said with `--quiet`, too; not being logged in is how many people work."""


def find_tracking(wanted: str, project: str, entity: str | None) -> Tracking:
    """Where W&B runs go: names are checked and, online, the server is asked who is logged in.

    Args:
        wanted: `--wandb_mode`. `auto` is `$WANDB_MODE` if that is set, else online when a login is found and offline
            when not.
        project: W&B project.
        entity: W&B team; None or empty for the account's own.

    Raises:
        InputError: If W&B takes no such name or mode, if its package is missing, or if what was asked for by name
            cannot be had.
    """
    check_names(project, entity)
    mode, asked_by = read_mode(wanted)
    tracking = Tracking(mode, project, entity or None)
    if mode == "disabled":
        return tracking
    check_package()
    try:
        obstacle = find_obstacle(mode)
    finally:
        stop_service()
    if obstacle is None:
        return tracking
    if asked_by:
        raise InputError(f"{asked_by}, but {obstacle.why}; {obstacle.remedy}")
    if obstacle.is_news:
        tracking.fall_back(obstacle.next_best)
    else:
        tracking.mode = obstacle.next_best
    logger.log(logging.WARNING if obstacle.is_news else logging.INFO, "W&B: %s, so %s", obstacle.why, obstacle.meaning)
    return tracking


def check_names(project: str, entity: str | None) -> None:
    """Refuse names that W&B does not take.

    >>> check_names("sae-training", "my_team")

    Raises:
        InputError: With what is wrong about the first of them.
    """
    if not 1 <= len(project) <= MAX_PROJECT_CHARACTERS:
        raise InputError(
            f"--project_name must have 1 to {MAX_PROJECT_CHARACTERS} characters, which W&B takes, got {len(project)}"
        )
    if found := "".join(each for each in NOT_IN_PROJECTS if each in project):
        raise InputError(f"--project_name must have none of {NOT_IN_PROJECTS} in it for W&B, got {project!r} ({found})")
    if entity and not re.fullmatch(r"[\w.-]+", entity):
        raise InputError(
            f"--entity (or $WANDB_ENTITY) must be the name of a W&B team or account, of letters, digits and . _ -, got "
            f"{entity!r}"
        )


def read_mode(wanted: str) -> tuple[str, str | None]:
    """The mode to be in, and what asked for it by name; `auto`, with nothing in `$WANDB_MODE`, is online by default.

    Raises:
        InputError: If `$WANDB_MODE` is no mode.
    """
    in_environment = os.environ.get("WANDB_MODE")
    if wanted == "disabled":  # W&B's package is not touched
        return wanted, "--wandb_mode disabled"
    if in_environment is not None and in_environment not in MODES:
        raise InputError(f"$WANDB_MODE must be online, offline or disabled, got {in_environment!r}; change or unset it")
    if wanted != "auto":
        return wanted, f"--wandb_mode {wanted}"
    if in_environment is not None:
        return MODES[in_environment], f"$WANDB_MODE is {in_environment}"
    return "online", None


def check_package() -> None:
    """Refuse to go on without W&B's package, which is among the requirements.

    Raises:
        InputError: If it is missing, broken or too old; with the command that mends it.
    """
    try:
        import wandb

        version = wandb.__version__  # a folder `wandb` of runs can be imported, too
    except Exception as err:  # whatever a broken package raises
        raise InputError(
            f"W&B's package cannot be imported ({one_line(err)}); run: pip install --upgrade '{WANDB}', or give "
            f"--wandb_mode disabled"
        ) from err
    if not Requirement(WANDB).specifier.contains(version, prereleases=True):
        raise InputError(
            f"{WANDB} is needed, and version {version} is installed; run: pip install --upgrade '{WANDB}', or give "
            f"--wandb_mode disabled"
        )


def find_obstacle(mode: str) -> Obstacle | None:
    """What stands in the way of runs in this mode; W&B's service is started for it."""
    import wandb

    settings = wandb.Settings(
        mode=mode,
        silent=True,
        root_dir=str(root_folder()),
        x_graphql_timeout_seconds=ANSWER_LIMIT_SEC,
        x_graphql_retry_max=1,
        x_graphql_retry_wait_min_seconds=ANSWER_LIMIT_SEC / 4,
        x_graphql_retry_wait_max_seconds=ANSWER_LIMIT_SEC / 4,
    )
    try:
        folder = Path(wandb.setup(settings).settings.wandb_dir)
    except Exception as err:  # noqa: BLE001  settings in files and variables, and the start of a process: anything
        return _nothing_recorded(f"the settings or the service of W&B fail ({one_line(err)})")
    return find_obstacle_on_disk(folder) or (find_obstacle_online(folder) if mode == "online" else None)


def find_obstacle_on_disk(folder: Path) -> Obstacle | None:
    """Why no runs can be kept in W&B's folder, which need not be there yet, and is not made here."""
    nearest = next(each for each in (folder, *folder.parents) if os.path.lexists(each))
    try:
        with tempfile.TemporaryFile(dir=nearest):
            return None
    except OSError as err:
        return _nothing_recorded(f"runs are kept in {folder}, and {nearest} cannot be written to ({err.strerror})")


def find_obstacle_online(folder: Path) -> Obstacle | None:
    """Why no run can be started on W&B's server; nothing is asked of the user."""
    import wandb

    unreadable = _netrc_problem()
    try:
        if wandb.login(prompt=False, verify=True):
            return None
        found, is_news = unreadable or f"no login found in $WANDB_API_KEY or {_netrc_path()}", unreadable is not None
    except UnicodeDecodeError as err:  # the one thing about a netrc file that W&B does not expect
        found, is_news = unreadable or one_line(err), True
    except Exception as err:  # noqa: BLE001  of W&B, of its service, of the network
        found, is_news = one_line(err), True
    return Obstacle(
        why=f"no run can be started online: {found}",
        remedy="run `wandb login`, look at $WANDB_API_KEY and $WANDB_BASE_URL, or give --wandb_mode offline",
        next_best="offline",
        meaning=f"runs are recorded offline; send them later with `{sync_command(folder)}`",
        is_news=is_news,
    )


def root_folder() -> Path:
    """Where W&B makes its folder; W&B itself looks at `$WANDB_DIR` once per process."""
    return Path(os.environ.get("WANDB_DIR") or ".").expanduser().absolute()


def sync_command(folder: Path) -> str:
    """What sends the runs that were recorded offline in W&B's folder; those that were sent are skipped by it.

    >>> sync_command(Path("/data/my runs/wandb"))
    "wandb sync '/data/my runs/wandb'/offline-run-*"
    """
    return f"wandb sync {shlex.quote(str(folder))}/offline-run-*"


def stop_service() -> None:
    """End W&B's process and forget its settings; one that is gone already would end this process with a traceback."""
    import wandb

    try:
        wandb.teardown()
    except Exception as err:  # noqa: BLE001  a service that has died, in whatever way
        wandb.run = None  # W&B takes what the process was recording for a run that goes on
        logger.debug("W&B's process had ended: %s", one_line(err))


def one_line(err: Exception) -> str:
    r"""What an exception says, on one line, without W&B's advice for those who call it.

    >>> one_line(ValueError("Timed out: POST u giving up after 2 attempt(s)\nwhile retrying: HTTP 500: {}"))
    'Timed out: HTTP 500: {}'
    """
    text = re.split(r"\n *(?:Consider increasing|For further information)", str(err))[0]
    what, _, cause = text.partition("\nwhile retrying: ")
    text = f"{what.split(': POST ')[0]}: {cause}" if cause else what
    return " ".join(text.split()) or type(err).__name__


def _nothing_recorded(why: str) -> Obstacle:
    """An obstacle that leaves nothing to W&B."""
    return Obstacle(
        why=why,
        remedy="mend that, or give --wandb_mode disabled",
        next_best="disabled",
        meaning="it records nothing; every number is in metrics.jsonl",
    )


def _netrc_path() -> Path:
    """The file in which `wandb login` leaves the key."""
    return Path(os.environ.get("NETRC") or "~/.netrc").expanduser()


def _netrc_problem() -> str | None:
    """Why the netrc file cannot be read, which W&B does not say; None if it can, or is not there."""
    try:
        netrc.netrc(_netrc_path())
    except FileNotFoundError:
        return None
    except (netrc.NetrcParseError, OSError, UnicodeDecodeError) as err:
        return f"{_netrc_path()} cannot be read ({one_line(err)})"
    return None
