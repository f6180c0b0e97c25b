import json
import time

import pytest
from wandb.proto import wandb_internal_pb2

from sae_utils.training.tracking import Tracker, choose_wandb_mode


def start(folder, mode="disabled", from_tokens=0, **changes) -> Tracker:
    settings = {
        "project": "sae-training",
        "entity": "team",
        "group": "pythia-1.4b",
        "name": "a_from_b",
        "tags": ["k:32"],
        "config": {"k": 32},
    }
    tracker = Tracker(folder=folder, mode=mode, **(settings | changes))
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


def test_auto_mode_is_offline_without_a_login(monkeypatch, caplog):
    """Nobody to ask on a cluster: the run must neither wait for a key nor fail."""
    monkeypatch.delenv("WANDB_MODE")
    with caplog.at_level("INFO", logger="sae_utils"):
        assert choose_wandb_mode("auto") == "offline"
    assert "no login found" in caplog.text


@pytest.mark.parametrize("given", ["online", "offline", "disabled"])
def test_a_given_mode_is_taken(given):
    assert choose_wandb_mode(given) == given


def test_environment_decides_in_auto_mode(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert choose_wandb_mode("auto") == "offline"


def test_netrc_counts_as_a_login(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_MODE")
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password 0123456789")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert choose_wandb_mode("auto") == "online"


@pytest.mark.slow
def test_offline_record_read_back(tmp_path, monkeypatch):
    """What a later `wandb sync` will send: project, team, group, tags, config, losses over tokens, summary."""
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    tracker = start(tmp_path, mode="offline")
    tracker.log(256, {"fvu/layers.7/seed_0": 0.5})
    tracker.log(512, {"fvu/layers.7/seed_0": 0.25})
    tracker.summarise({"eval/fvu/layers.7/seed_0": 0.3})
    tracker.close()
    record = read_offline(tmp_path)
    while not record["is_complete"]:  # W&B's own process writes the end of the file, after `finish` has returned
        time.sleep(0.1)
        record = read_offline(tmp_path)
    assert record["run"] == ("team", "sae-training", "pythia-1.4b", "a_from_b", ["k:32"])
    assert record["config"]["k"] == 32
    assert [row["fvu/layers.7/seed_0"] for row in record["history"]] == [0.5, 0.25]
    assert [row["tokens"] for row in record["history"]] == [256, 512]
    assert record["summary"]["eval/fvu/layers.7/seed_0"] == 0.3


def read_offline(folder) -> dict:
    """Run, config, history and summary from the one .wandb file below a folder."""
    (path,) = folder.rglob("*.wandb")
    found = {"config": {}, "history": [], "summary": {}, "is_complete": False}
    for data in leveldb_records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        found["is_complete"] |= kind == "exit"
        if kind == "run":
            run = record.run
            found["run"] = (run.entity, run.project, run.run_group, run.display_name, list(run.tags))
            found["config"] |= {item.key: json.loads(item.value_json) for item in run.config.update}
        elif kind == "config":
            found["config"] |= {item.key: json.loads(item.value_json) for item in record.config.update}
        elif kind == "history":
            found["history"].append(
                {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            )
        elif kind == "summary":
            found["summary"] |= {
                item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.summary.update
            }
    return found


def leveldb_records(data: bytes):
    """Records of a .wandb file: a header of 7 bytes, then LevelDB's log format in blocks of 32 KiB."""
    position, parts = 7, b""
    while position + 7 <= len(data):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""
