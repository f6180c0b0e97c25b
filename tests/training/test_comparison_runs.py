"""Comparisons as W&B runs: recorded offline and read back, sent once, taken up later, and never in the way."""

import json
import shutil
from pathlib import Path

import pytest
import wandb
from test_cli import TRAIN, generate, times
from test_wandb_runs import described, little_patience
from wandb_offline import read_offline
from wandb_server import logged_in, no_answer, refusal, warnings_of

import train_sae
from sae_utils.locks import Lock
from sae_utils.training.comparison_runs import Comparison, send_comparisons
from sae_utils.training.wandb_login import Tracking, stop_service

RESULTS = Path("results")
FOLDER = RESULTS / "wandb_runs/tiny"


@pytest.fixture(autouse=True)
def own_service():
    """W&B reads its variables once per process of its own."""
    yield
    stop_service()


@pytest.fixture
def server(monkeypatch):
    """A server and a login."""
    with logged_in(monkeypatch) as server:
        yield server


def compared(fvu: float = 0.5, target: str = "tiny") -> Comparison:
    """A small comparison, with its files."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "report.html").write_text(f"fvu {fvu}")
    rows = [{"source": "tiny", "fvu": fvu, "sfr": None}, {"source": "other", "fvu": 0.25, "sfr": 0.5}]
    config = {"target": target, "sources": ["other", "tiny"]}
    return Comparison(target, config, {"saes": rows, "pairs": []}, {"report.html": RESULTS / "report.html"})


def send(comparison: Comparison, tracking: Tracking) -> None:
    send_comparisons(tracking, RESULTS, [comparison])


def offline(**changes) -> Tracking:
    return Tracking("offline", "sae-training", "team", **changes)


def online() -> Tracking:
    return Tracking("online", "sae-training", "team")


# read back


def test_a_comparison_is_an_offline_run_with_tables_and_an_artefact():
    """What a later `wandb sync` will send."""
    send(compared(), offline())
    (run,) = read_offline(Path("wandb"))
    assert run["run"] == ("team", "sae-training", "tiny", "tiny_comparison", ["target:tiny"])
    assert (run["id"], run["job_type"]) == (described(FOLDER)["id"], "comparison")
    assert (run["config"]["target"], run["config"]["sources"]) == ("tiny", ["other", "tiny"])
    assert list(run["tables"]) == ["saes"], "none without rows"
    assert run["tables"]["saes"]["columns"] == ["source", "fvu", "sfr"]
    assert run["tables"]["saes"]["data"] == [["tiny", 0.5, None], ["other", 0.25, 0.5]]
    assert (run["summary"]["n_saes"], run["summary"]["n_pairs"]) == (2, 0)
    kind, files = run["artifacts"][f"comparison-tiny-{run['id']}"]
    assert kind == "comparison" and list(files) == ["report.html"]
    assert files["report.html"].read_text() == "fvu 0.5"


def test_what_is_sent_is_copied_beside_the_runs(monkeypatch):
    """Into the home folder goes nothing: on a cluster it is full; and what is recorded must outlive new results."""
    monkeypatch.delenv("WANDB_DATA_DIR")
    send(compared(0.5), offline())
    compared(0.75)
    (run,) = read_offline(Path("wandb"))
    ((_, files),) = [each for each in run["artifacts"].values() if each[0] == "comparison"]
    assert files["report.html"].read_text() == "fvu 0.5"
    assert files["report.html"].is_relative_to(Path("wandb").absolute())


@pytest.mark.slow
def test_a_run_of_the_script_sends_its_comparison(tiny, capsys):
    """Tables of all SAEs, pairs and sources, and the page with every number; nothing the second time."""
    generate("--num_tokens", "2000")
    Path("corpus.txt").write_text("\n".join(f"the quick brown fox number {i} jumps over it" for i in range(300)))
    argv = [*TRAIN, "--random_tokens", "500", "--text_datasets", "corpus.txt", "--layers", "1"]
    argv += ["--wandb_mode", "offline"]
    train_sae.main(argv)
    runs = read_offline(Path("wandb"))
    *trained, run = sorted(runs, key=lambda run: run["job_type"])
    assert len(trained) == 4, "cells, and what is added to them"
    configs = [each["config"] for each in trained if "source" in each["config"]]
    assert {(config["target"], config["source"]) for config in configs} == {
        ("tiny", "tiny_42_1.0_0.9"),
        ("tiny", "corpus.txt"),
    }
    names = ("target", "sources", "n_latents", "k", "layers", "seeds")
    config = ["tiny", ["corpus", "tiny"], 48, 4, [1], [0, 1]]
    assert [run["config"][name] for name in names] == config
    metrics = json.loads((RESULTS / "metrics.json").read_text())
    expected = {name: len(metrics[name]) for name in ("pairs", "agreements", "contrasts")}
    assert {name: len(table["data"]) for name, table in run["tables"].items()} == {"saes": 4 * 2} | expected
    columns, rows = run["tables"]["pairs"]["columns"], run["tables"]["pairs"]["data"]
    assert [row[columns.index("sfr")] for row in rows] == [pair["sfr"] for pair in metrics["pairs"]]
    (files,) = [files for kind, files in run["artifacts"].values() if kind == "comparison"]
    assert {name: path.read_bytes() for name, path in files.items()} == {
        name: (RESULTS / name).read_bytes() for name in ("report.html", "metrics.json", "metrics.csv")
    }
    before = times("results", "checkpoints")
    train_sae.main(argv)
    assert times("results", "checkpoints") == before and len(read_offline(Path("wandb"))) == 5
    assert capsys.readouterr().err == ""


# once, and again when something is new


def test_nothing_is_sent_twice_and_what_is_new_goes_on_in_the_same_run(server):
    send(compared(), online())
    about, n_asked = described(FOLDER), len(server.asked)
    send(compared(), online())
    assert len(server.asked) == n_asked
    send(compared(0.75), online())
    assert list(server.sent) == [about["id"]] and described(FOLDER)["id"] == about["id"]
    assert described(FOLDER)["sent"] != about["sent"]
    assert list(about) == ["id", "mode", "summary_due", "project", "entity", "sent"]


def test_new_results_are_another_version_of_the_artefact():
    send(compared(), offline())
    send(compared(0.75), offline())
    runs = read_offline(Path("wandb"))
    names = [name for run in runs for name, (kind, _) in run["artifacts"].items() if kind == "comparison"]
    assert len({run["id"] for run in runs}) == 1 and len(names) == 2 and len(set(names)) == 1


def test_another_project_has_none_of_it_yet():
    send(compared(), offline())
    send(compared(), Tracking("offline", "elsewhere", None))
    assert [run["run"][1] for run in read_offline(Path("wandb"))] == ["sae-training", "elsewhere"]


def test_two_targets_are_two_runs():
    send_comparisons(offline(), RESULTS, [compared(), compared(target="small")])
    assert sorted(run["run"][2] for run in read_offline(Path("wandb"))) == ["small", "tiny"]


# what fails


def test_disabled_leaves_no_trace():
    """A results folder of who does not use W&B holds nothing of it."""
    send(compared(), Tracking("disabled", "p", None))
    assert not FOLDER.exists() and not Path("wandb").exists()


@pytest.mark.parametrize("query", ["UpsertBucket", "RunResumeStatus"])
def test_a_server_that_hangs_is_waited_for_once_and_the_run_is_offline(server, caplog, query):
    server.answers[query] = no_answer
    tracking = online()
    with little_patience():
        send_comparisons(tracking, RESULTS, [compared(), compared(target="small")])
    (line,) = warnings_of(caplog)
    assert "runs are recorded offline" in line and tracking.has_fallen_back
    assert len(read_offline(Path("wandb"))) == 2


def test_a_server_that_refuses_the_artefact_leaves_it_due(server, caplog):
    """The end of a run says nothing of that."""
    server.answers["CreateArtifact"] = refusal(403, "permission denied")
    send(compared(), online())
    (line,) = warnings_of(caplog)
    assert "permission denied" in line and described(FOLDER)["summary_due"]


def test_a_server_that_goes_away_leaves_it_due_and_it_is_sent_later(server, caplog, monkeypatch):
    def last_answer() -> tuple[int, dict]:
        server.answers[""] = no_answer
        return 200, {"data": server.data_of("UpsertBucket", {"name": "tiny"})}

    monkeypatch.setattr(wandb.Api, "_HTTP_TIMEOUT", 1)  # of W&B's own, 19 s
    server.answers["UpsertBucket"] = last_answer
    with little_patience(start_sec=20.0):
        send(compared(), online())
    (line,) = warnings_of(caplog)
    assert "the comparison of tiny is not there as a run" in line and "--eval_only sends it later" in line
    assert described(FOLDER)["summary_due"] and "sent" not in described(FOLDER)
    server.answers.clear()
    stop_service()
    send(compared(), online())
    assert not described(FOLDER)["summary_due"] and described(FOLDER)["sent"]
    assert len(warnings_of(caplog)) == 1


def test_a_run_on_the_server_waits_for_it(server, caplog):
    """Recorded offline in between, it would be sent behind what comes later."""
    send(compared(), online())
    about = described(FOLDER)
    send(compared(0.75), offline(has_fallen_back=True))
    (line,) = warnings_of(caplog)
    assert "no run can be started online" in line and described(FOLDER) == about
    assert not list(Path("wandb").glob("offline-run-*"))


def test_two_runs_at_once_send_it_once(caplog):
    with Lock(RESULTS, "tiny.wandb", refusal=""):
        send(compared(), offline())
    (line,) = warnings_of(caplog)
    assert "another run is sending it" in line and not Path("wandb").exists()


@pytest.mark.parametrize("spoil", [lambda path: path.write_text("{"), lambda path: path.unlink() or path.mkdir()])
def test_a_damaged_description_is_one_line(caplog, spoil):
    send(compared(), offline())
    spoil(FOLDER / "wandb.json")
    send(compared(), offline())
    (line,) = warnings_of(caplog)
    assert "wandb.json is damaged" in line and "what comes next is a new run" in line
    shutil.rmtree(FOLDER)
    send(compared(), offline())
    assert len(read_offline(Path("wandb"))) == 2
