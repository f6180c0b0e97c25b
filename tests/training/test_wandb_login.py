"""What is known of W&B before anything is loaded; the servers stand on this machine."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
from test_cli import TRAIN, refused
from wandb_server import deaf_port, log_in, logged_in, refusal, warnings_of

import train_sae
from sae_utils.errors import InputError
from sae_utils.training import wandb_login
from sae_utils.training.wandb_login import Tracking, find_tracking

LOGIN_FAULTS = {
    "nobody listens": "connection refused",
    "accepts and never answers": "exceeded",
    "refuses the key": "user is not logged in",
    "knows no such account": "did not recognize an account",
    "is broken": "HTTP 500",
    "is not W&B": "cannot unmarshal",
    "key too short": "API key must have 40+ characters, has 3",
}


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """Long enough for a server on this machine."""
    monkeypatch.setattr(wandb_login, "ANSWER_LIMIT_SEC", 1.0)


@pytest.fixture
def server(monkeypatch):
    """A server, and a login."""
    with logged_in(monkeypatch) as server:
        yield server


@pytest.fixture
def faulty(request, monkeypatch, server):
    """A server, or a login, that this is wrong with; what is said of it."""
    answers = {
        "refuses the key": refusal(401, "user is not logged in"),
        "knows no such account": lambda: (200, {"data": {"viewer": None}}),
        "is broken": lambda: (500, {}),
        "is not W&B": lambda: (200, "<html>log in to the network first</html>"),
    }
    if request.param in answers:
        server.answers["Viewer"] = answers[request.param]
    if request.param == "key too short":
        monkeypatch.setenv("WANDB_API_KEY", "abc")
    if request.param in ("nobody listens", "accepts and never answers"):
        with deaf_port(listens=request.param != "nobody listens") as url:
            log_in(monkeypatch, url)
            yield LOGIN_FAULTS[request.param]
    else:
        yield LOGIN_FAULTS[request.param]


def find(mode: str = "auto") -> Tracking:
    """With names that W&B takes."""
    return find_tracking(mode, "sae-training", None)


def test_a_login_that_the_server_knows_is_online(server, caplog):
    assert find() == Tracking("online", "sae-training", None)
    assert warnings_of(caplog) == []
    assert server.asked == ["Viewer"]


@pytest.mark.parametrize("faulty", LOGIN_FAULTS, indirect=True)
def test_auto_mode_is_offline_where_no_run_can_be_online(faulty, caplog):
    """91 seconds and a traceback, or a job that ends at night for a server that is down: training comes first."""
    tracking = find()
    assert (tracking.mode, tracking.has_fallen_back) == ("offline", True)
    (line,) = warnings_of(caplog)
    assert "\n" not in line and faulty in line
    assert f"runs are recorded offline; send them later with `wandb sync {Path.cwd()}/wandb/offline-run-*`" in line


@pytest.mark.parametrize("faulty", ["nobody listens", "refuses the key", "key too short"], indirect=True)
def test_online_by_name_is_refused_where_no_run_can_be_online(faulty):
    """Who asks for it watches for it; hours later it is too late to say so."""
    with pytest.raises(InputError, match="--wandb_mode online, but no run can be started online") as refusal:
        find("online")
    assert "\n" not in str(refusal.value) and faulty in str(refusal.value)
    assert "run `wandb login`" in str(refusal.value)


def test_online_in_the_environment_is_by_name(monkeypatch, server):
    server.answers["Viewer"] = refusal(401, "user is not logged in")
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(InputError, match=r"\$WANDB_MODE is online, but no run can be started online"):
        find()


def test_refusal_comes_before_anything_is_looked_at(monkeypatch, capsys, tmp_path):
    """There is neither a model nor a data set here: whoever looked for them would say so."""
    error = refused(capsys, train_sae.main, [*TRAIN, "--wandb_mode", "online"])
    assert f"no login found in $WANDB_API_KEY or {tmp_path / 'no_netrc'}" in error
    assert "bad name" in refused(capsys, train_sae.main, [*TRAIN, "--entity", "bad name"])


def test_auto_mode_is_offline_without_a_login(monkeypatch, caplog):
    """Nobody to ask on a cluster: the run must neither wait for a key nor fail. Nor is anything wrong."""
    monkeypatch.delenv("WANDB_MODE")
    with caplog.at_level("INFO", logger="sae_utils"):
        assert find() == Tracking("offline", "sae-training", None)
    assert "no login found" in caplog.text and warnings_of(caplog) == []


@pytest.mark.parametrize("given", ["offline", "disabled"])
@pytest.mark.parametrize("where", ["flag", "environment"])
def test_offline_and_disabled_ask_nobody(monkeypatch, server, given, where):
    monkeypatch.setenv("WANDB_MODE", given if where == "environment" else "online")
    assert find(given if where == "flag" else "auto").mode == given
    assert server.asked == []


@pytest.mark.parametrize(("old", "meant"), [("dryrun", "offline"), ("run", "online")])
def test_older_names_of_modes(monkeypatch, server, old, meant):
    monkeypatch.setenv("WANDB_MODE", old)
    assert find().mode == meant


@pytest.mark.parametrize("flag", ["auto", "online", "offline"])
def test_a_mode_that_is_none_is_refused(monkeypatch, flag):
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    with pytest.raises(InputError, match=r"\$WANDB_MODE must be online, offline or disabled, got 'nonsense'"):
        find(flag)


@pytest.mark.parametrize(
    ("project", "entity", "message"),
    [
        ("team/project", None, r"--project_name must have none of /\#?%: in it for W&B, got 'team/project' (/)"),
        ("50%?", None, "got '50%?' (?%)"),
        ("", None, "--project_name must have 1 to 128 characters, which W&B takes, got 0"),
        ("p" * 129, None, "got 129"),
        ("p", "my team", "--entity (or $WANDB_ENTITY) must be the name of a W&B team or account"),
        ("p", "https://wandb.ai/team", "got 'https://wandb.ai/team'"),
    ],
)
@pytest.mark.parametrize("mode", ["auto", "disabled"])
def test_names_that_wandb_does_not_take_are_refused(mode, project, entity, message):
    """W&B says so when the first run starts, after everything was loaded."""
    with pytest.raises(InputError) as refusal:
        find_tracking(mode, project, entity)
    assert message in str(refusal.value)


def test_longest_name_and_an_empty_team_are_taken():
    """`WANDB_ENTITY=` is how a variable is taken back for one command."""
    assert find_tracking("disabled", "p" * 128, "").entity is None


def test_netrc_counts_as_a_login(monkeypatch, server):
    """Of the server that is in use, not of the public one."""
    monkeypatch.delenv("WANDB_API_KEY")
    Path("netrc").write_text(f"machine {server.url.removeprefix('http://')} login user password {'0123456789' * 4}")
    monkeypatch.setenv("NETRC", "netrc")
    assert find().mode == "online"
    Path("netrc").write_text(f"machine elsewhere login user password {'0123456789' * 4}")
    assert find().mode == "offline"


@pytest.mark.parametrize("content", [None, b"machine a login b pass", b"\xff\xfe\x00"], ids=["folder", "text", "bytes"])
def test_a_netrc_file_that_cannot_be_read_is_named(monkeypatch, caplog, content):
    """Without its name, a user who did log in is told that nobody has."""
    if content is None:
        Path("netrc").mkdir()
    else:
        Path("netrc").write_bytes(content)
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("NETRC", "netrc")
    assert find().mode == "offline"
    (line,) = warnings_of(caplog)
    assert "netrc cannot be read" in line
    with pytest.raises(InputError, match="netrc cannot be read"):
        find("online")


@pytest.mark.parametrize("is_named", [False, True], ids=["wandb", "WANDB_DIR"])
def test_a_folder_that_cannot_be_written_to(monkeypatch, server, caplog, is_named):
    """W&B would go to the system's folder for temporary files without a word, or end with a traceback."""
    Path("wandb").write_text("")
    if is_named:
        monkeypatch.setenv("WANDB_DIR", "wandb/runs")
    assert find().mode == "disabled"
    (line,) = warnings_of(caplog)
    assert f"{Path.cwd()}/wandb cannot be written to (Not a directory), so it records nothing" in line
    for mode in ("online", "offline"):
        with pytest.raises(InputError, match=f"--wandb_mode {mode}, but runs are kept in .* cannot be written to"):
            find(mode)
    assert server.asked == []


def test_settings_of_wandb_that_are_wrong(monkeypatch, server, caplog):
    monkeypatch.setenv("WANDB_BASE_URL", "foo")
    assert find().mode == "disabled"
    (line,) = warnings_of(caplog)
    assert "\n" not in line and "base_url" in line
    with pytest.raises(InputError, match="give --wandb_mode disabled"):
        find("offline")


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (None, r"W&B's package cannot be imported .*; run: pip install --upgrade 'wandb>=0.30'"),
        ("", r"W&B's package cannot be imported \(module 'wandb' has no attribute '__version__'\)"),
        ("0.19.1", "wandb>=0.30 is needed, and version 0.19.1 is installed; run: pip install --upgrade 'wandb>=0.30'"),
    ],
    ids=["missing", "a folder of runs", "too old"],
)
def test_a_package_that_cannot_be_used_is_named(monkeypatch, version, message):
    """It is a requirement, so that it is put right; without W&B it is not needed."""
    package = None if version is None else ModuleType("wandb")
    if version:
        package.__version__ = version
    monkeypatch.setitem(sys.modules, "wandb", package)
    for mode in ("auto", "online", "offline"):
        monkeypatch.setenv("WANDB_MODE", "offline")
        with pytest.raises(InputError, match=message):
            find(mode)
    assert find("disabled").mode == "disabled"


def test_nothing_is_left_behind(monkeypatch, server):
    """Neither a folder, which a dry run must not make, nor W&B's process, whose settings are those of the question."""
    find()
    assert not Path("wandb").exists()
    wandb_setup = sys.modules["wandb"].sdk.wandb_setup
    assert wandb_setup._singleton is None
