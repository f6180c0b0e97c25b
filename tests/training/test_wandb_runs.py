"""W&B runs on a server of this machine: started, gone on with, added to."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_cli import TRAIN, generate
from wandb_server import WandbServer, logged_in, no_answer, refusal, warnings_of

import train_sae
from sae_utils.files import read_record, write_record
from sae_utils.training import wandb_runs
from sae_utils.training.wandb_login import Tracking
from sae_utils.training.wandb_runs import add_to_summaries, is_summary_due, start_run

DELETED = "run was previously created and deleted; try a new run name"
"""What W&B's server answers, with 409, to an id that it had."""


@pytest.fixture
def server(monkeypatch):
    """A server and a login."""
    with logged_in(monkeypatch) as server:
        yield server


@contextlib.contextmanager
def little_patience(start_sec: float = 1.0) -> Iterator[None]:
    """With a server that is ill; one that is well has the usual time, on a machine that may have much to do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wandb_runs, "START_LIMIT_SEC", start_sec)
        patch.setattr(wandb_runs, "FINISH_LIMIT_SEC", 1.0)
        yield


def online() -> Tracking:
    """As found when a login was."""
    return Tracking("online", "sae-training", "team")


def trained(name: str, tracking: Tracking) -> Path:
    """A folder whose W&B run was started and has ended."""
    run = start_run(Path(name), tracking)
    if run:
        run.finish()
    return Path(name)


def described(folder: Path) -> dict:
    """What the folder says of its run."""
    return dict(read_record(folder / "wandb.json", ""))


def test_a_run_is_the_one_that_the_folder_describes(server):
    folder = trained("cell", online())
    about = described(folder)
    assert trained("cell", online()) and described(folder) == about, "the same id"
    assert list(server.sent) == [about.pop("id")]
    assert about == {"project": "sae-training", "entity": "team", "mode": "online", "summary_due": False}


def test_another_project_is_remembered(server):
    """What is found later is added to the run where it is, and not where it was begun."""
    trained("cell", online())
    trained("cell", Tracking("online", "elsewhere", None))
    assert (described(Path("cell"))["project"], described(Path("cell"))["entity"]) == ("elsewhere", None)


@pytest.mark.parametrize(
    ("answer", "why"),
    [(no_answer, "exceeded"), (refusal(403, "permission denied"), "team/sae-training: permission denied")],
    ids=["hangs", "refuses"],
)
def test_a_run_that_cannot_be_online_is_offline_and_so_are_the_next(server, caplog, answer, why):
    """Found out once: twelve cells must not wait for the same server."""
    server.answers["UpsertBucket"] = answer
    tracking = online()
    with little_patience():
        trained("one", tracking)
    assert (tracking.mode, tracking.has_fallen_back) == ("offline", True)
    (line,) = warnings_of(caplog)
    assert why in line and "\n" not in line
    pattern = line.split("`wandb sync ")[1].rstrip("`")
    assert [each.parent for each in Path(pattern).parent.glob("offline-run-*/*.wandb")], "what is to be sent is there"
    n_asked = len(server.asked)
    trained("two", tracking)
    assert len(server.asked) == n_asked and len(warnings_of(caplog)) == 1
    assert described(Path("one"))["mode"] == described(Path("two"))["mode"] == "offline"


def test_a_run_that_can_be_nowhere_is_none(server, caplog):
    Path("wandb").write_text("")
    tracking = online()
    assert start_run(Path("one"), tracking) is None and start_run(Path("two"), tracking) is None
    assert tracking.mode == described(Path("one"))["mode"] == "disabled"
    (line,) = warnings_of(caplog)
    assert "every number is in metrics.jsonl" in line


def test_a_run_that_was_deleted_goes_on_as_a_new_one(server, caplog):
    """W&B never takes an id again, and would ask in vain for as long as it may."""
    folder = trained("cell", online())
    before = described(folder)["id"]

    def taken_back() -> tuple[int, dict]:
        return refusal(409, DELETED)() if described(folder)["id"] == before else (200, {"data": upserted})

    upserted = WandbServer.data_of("UpsertBucket", {"name": "new"})
    server.answers["UpsertBucket"] = taken_back
    tracking = online()
    with little_patience(3.0):
        trained("cell", tracking)
    assert tracking == online() and described(folder)["id"] != before
    (line,) = warnings_of(caplog)
    assert f"run {before} was deleted on the server" in line


def test_disabled_starts_nothing(server):
    assert start_run(Path("cell"), Tracking("disabled", "p", None)) is None
    assert described(Path("cell"))["mode"] == "disabled" and not Path("wandb").exists() and server.asked == []


# the comparison


def test_what_was_compared_is_in_the_run(server, caplog):
    folder = trained("cell", online())
    add_to_summaries(online(), {folder: {"agreement": 0.5}})
    assert server.sent[described(folder)["id"]]["agreement"] == 0.5
    assert not is_summary_due(folder) and warnings_of(caplog) == []


def test_what_could_not_be_added_is_said_once_and_added_later(server, caplog):
    """It is the last thing that a run does: all numbers are on disk, and a traceback would say that they are not."""
    summaries = {trained(name, online()): {"agreement": 0.5} for name in ("one", "two")}
    server.answers["RunResumeStatus"], n_asked = no_answer, len(server.asked)
    with little_patience():
        add_to_summaries(online(), summaries)
    (line,) = warnings_of(caplog)
    assert "not in the runs of one, two (" in line and "--eval_only adds it later" in line
    assert len(server.asked) == n_asked + 1, "a server that hangs is waited for once"
    assert all(map(is_summary_due, summaries))
    del server.answers["RunResumeStatus"]
    add_to_summaries(online(), summaries)
    assert [server.sent[described(folder)["id"]]["agreement"] for folder in summaries] == [0.5, 0.5]
    assert not any(map(is_summary_due, summaries)) and len(warnings_of(caplog)) == 1


def test_a_run_that_is_refused_does_not_stop_the_others(server, caplog):
    """One that was moved or that others own: the rest are as they were."""
    summaries = {trained(name, online()): {"agreement": 0.5} for name in ("one", "two")}
    answers = [refusal(403, "permission denied")(), (200, {"data": WandbServer.data_of("RunResumeStatus", {})})]
    server.answers["RunResumeStatus"] = lambda: answers.pop(0)
    add_to_summaries(online(), summaries)
    assert list(map(is_summary_due, summaries)) == [True, False]
    (line,) = warnings_of(caplog)
    assert "not in the runs of one (" in line and "permission denied" in line


def test_a_server_that_hangs_at_the_end_is_left(server, caplog):
    folder = trained("cell", online())

    def last_answer() -> tuple[int, dict]:
        server.answers[""] = no_answer
        return 200, {"data": WandbServer.data_of("UpsertBucket", {"name": "cell"})}

    server.answers["UpsertBucket"] = last_answer
    with little_patience(start_sec=20.0):
        add_to_summaries(online(), {folder: {"agreement": 0.5}})
    (line,) = warnings_of(caplog)
    assert "Timed out finishing run" in line and is_summary_due(folder)


def test_nothing_is_due_to_a_run_that_was_deleted(server, caplog):
    """Else every comparison to come would wait for it."""
    folder = trained("cell", online())
    server.answers["UpsertBucket"] = refusal(409, DELETED)
    with little_patience(2.0):
        add_to_summaries(online(), {folder: {"agreement": 0.5}})
    (line,) = warnings_of(caplog)
    assert "the run of cell was deleted on the server" in line and not is_summary_due(folder)


@pytest.mark.parametrize(("trained_in", "n_records"), [("offline", 2), ("online", 0)])
def test_without_the_server_a_comparison_stays_with_its_run(server, caplog, trained_in, n_records):
    """Beside a record of training that is still to be sent; for a run on the server, it waits until it can go there."""
    folder = trained("cell", Tracking(trained_in, "p", None))
    add_to_summaries(Tracking("offline", "p", None, has_fallen_back=True), {folder: {"agreement": 0.5}})
    assert len(list(Path("wandb").glob("offline-run-*"))) == n_records
    assert is_summary_due(folder) == (trained_in == "online") == bool(warnings_of(caplog))


def test_saes_without_a_run_are_left_alone(server, caplog):
    """Those of others have no description; those that were trained without W&B would get a run of a summary alone."""
    Path("elsewhere").mkdir()
    without = trained("cell", Tracking("disabled", "p", None))
    add_to_summaries(online(), {Path("elsewhere"): {"agreement": 0.5}, without: {"agreement": 0.5}})
    assert server.asked == [] and warnings_of(caplog) == [] and not list(Path("elsewhere").iterdir())


@pytest.mark.slow
def test_eval_only_adds_what_is_due(tiny, server):
    """Nothing is measured anew then, so that nothing would be added either."""
    generate("--num_tokens", "2000")
    compare = ["--random_tokens", "500", "--wandb_mode"]
    train_sae.main([*TRAIN, *compare, "disabled"])
    folder = Path("checkpoints/tiny_from_tiny_seed_1")
    about = described(folder) | {"mode": "online"}
    for is_due in (False, True):
        write_record(folder / "wandb.json", about | {"summary_due": is_due})
        train_sae.main(["--eval_only", "--quiet", *compare, "online"])
        assert (about["id"] in server.sent) == is_due
    assert not is_summary_due(folder)
    assert "agreement/sfr/layers.0/seeds_0_1" in server.sent[about["id"]]
