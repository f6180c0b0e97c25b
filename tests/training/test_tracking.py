import json
import time
from pathlib import Path

import psutil
import pytest
from test_cli import TRAIN, generate
from wandb_offline import read_offline
from wandb_server import deaf_port, log_in, logged_in, warnings_of

import train_sae
from sae_utils.training import wandb_login, wandb_runs
from sae_utils.training.tracking import Tracker
from sae_utils.training.wandb_login import Tracking, stop_service


@pytest.fixture(autouse=True)
def own_service():
    """W&B reads its variables once per process of its own."""
    yield
    stop_service()


@pytest.fixture
def server(monkeypatch):
    """A server and a login, and little patience."""
    monkeypatch.setattr(wandb_runs, "FINISH_LIMIT_SEC", 1.0)
    with logged_in(monkeypatch) as server:
        yield server


def start(folder, mode="disabled", from_tokens=0, **changes) -> Tracker:
    settings = {
        "tracking": Tracking(mode, "sae-training", "team"),
        "group": "pythia-1.4b",
        "name": "a_from_b",
        "tags": ["k:32"],
        "config": {"k": 32},
    }
    tracker = Tracker(folder=folder, **(settings | changes))
    tracker.write_to(folder, from_tokens)
    return tracker


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_numbers_are_kept_without_wandb(tmp_path):
    tracker = start(tmp_path)
    tracker.log(256, {"fvu/layers.7/seed_0": 0.5})
    tracker.close()
    assert lines(tmp_path) == [{"tokens": 256, "fvu/layers.7/seed_0": 0.5}]


def test_a_resumed_run_has_every_step_once(tmp_path):
    """Steps after the last checkpoint are trained again: their first lines, and a torn one, are dropped."""
    tracker = start(tmp_path)
    for n_tokens in (100, 200, 300):
        tracker.log(n_tokens, {"fvu": n_tokens / 1000})
    tracker.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"tokens": 4')
    tracker = start(tmp_path, from_tokens=200)
    tracker.log(300, {"fvu": 0.9})
    tracker.close()
    assert lines(tmp_path) == [{"tokens": 100, "fvu": 0.1}, {"tokens": 200, "fvu": 0.2}, {"tokens": 300, "fvu": 0.9}]


def test_a_server_that_goes_away_costs_no_step(tmp_path, server, caplog):
    """The end of the run waits for it, but not for long, and later runs do not ask for it at all."""
    tracker = start(tmp_path, mode="online")
    tracker.log(100, {"fvu": 0.5})
    server.go_away()
    tracker.log(200, {"fvu": 0.4})
    tracker.summarise({"eval/fvu": 0.4})
    tracker.close()
    assert lines(tmp_path) == [{"tokens": 100, "fvu": 0.5}, {"tokens": 200, "fvu": 0.4}]
    (line,) = warnings_of(caplog)
    folder = Path(line.split("`wandb sync --include-online ")[1].rstrip("`"))
    assert "did not take the rest of the run in time" in line and list(folder.glob("run-*.wandb"))
    assert tracker.tracking == Tracking("offline", "sae-training", "team", has_fallen_back=True)


def test_a_process_of_wandb_that_dies_costs_no_step(tmp_path, server, caplog):
    """It is killed where memory runs out, as the largest or the last; every call to it fails from then on."""
    tracker = start(tmp_path / "one", mode="online")
    tracker.log(100, {"fvu": 0.5})
    kill_service()
    for n_tokens in (200, 300):
        tracker.log(n_tokens, {"fvu": 0.4})
    tracker.close()
    assert [line["tokens"] for line in lines(tmp_path / "one")] == [100, 200, 300]
    (line,) = warnings_of(caplog)
    assert "its process failed (" in line
    again = start(tmp_path / "two", tracking=tracker.tracking)
    again.log(100, {"fvu": 0.5})
    again.close()
    about = json.loads((tmp_path / "two" / "wandb.json").read_text())
    assert about["id"] in server.sent and len(warnings_of(caplog)) == 1, "the next run has a process of its own"


def kill_service() -> None:
    """Kill the process that sends what runs record."""
    (service,) = [each for each in psutil.Process().children() if each.name() == "wandb-core"]
    service.kill()
    service.wait()
    time.sleep(0.2)  # until this process's end of the connection knows


@pytest.mark.slow
def test_training_goes_on_without_the_server(tiny, monkeypatch, capsys):
    """A key on a node without a network, which is how most clusters are: from the first line to the last."""
    monkeypatch.setattr(wandb_login, "ANSWER_LIMIT_SEC", 1.0)
    generate("--num_tokens", "2000")
    with deaf_port(listens=False) as url:
        log_in(monkeypatch, url)
        train_sae.main([*TRAIN, "--random_tokens", "500"])
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "runs are recorded offline" in error
    assert len(list(Path("wandb").glob("offline-run-*"))) == 3, "training, what is added to it, the comparison"
    assert Path("results/report.html").exists()


@pytest.mark.slow
def test_offline_record_read_back(tmp_path, monkeypatch):
    """What a later `wandb sync` will send: project, team, group, tags, config, losses over tokens, summary."""
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    tracker = start(tmp_path, mode="offline")
    tracker.log(256, {"fvu/layers.7/seed_0": 0.5})
    tracker.log(512, {"fvu/layers.7/seed_0": 0.25})
    tracker.summarise({"eval/fvu/layers.7/seed_0": 0.3})
    tracker.close()
    (record,) = read_offline(tmp_path)
    assert record["run"] == ("team", "sae-training", "pythia-1.4b", "a_from_b", ["k:32"])
    assert record["config"]["k"] == 32
    assert [row["fvu/layers.7/seed_0"] for row in record["history"]] == [0.5, 0.25]
    assert [row["tokens"] for row in record["history"]] == [256, 512]
    assert record["summary"]["eval/fvu/layers.7/seed_0"] == 0.3
