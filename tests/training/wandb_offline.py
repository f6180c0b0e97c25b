"""What W&B's process wrote of runs that were recorded offline, read back with W&B's own definition of its records."""

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2


def read_offline(folder: Path) -> list[dict]:
    """The runs recorded below a folder, in the order in which they were; waits until the files are complete."""
    paths = sorted(folder.rglob("offline-run-*/*.wandb"))
    runs = [read_run(path) for path in paths]
    while not all(run["is_complete"] for run in runs):  # the process ends a file after `finish` has returned
        time.sleep(0.1)
        runs = [read_run(path) for path in paths]
    return runs


def read_run(path: Path) -> dict:
    """Run, config, history, summary, tables and artefacts from a .wandb file."""
    found = {"config": {}, "history": [], "summary": {}, "artifacts": {}, "is_complete": False}
    for data in leveldb_records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        found["is_complete"] |= kind == "exit"
        if kind == "run":
            run = record.run
            found["run"] = (run.entity, run.project, run.run_group, run.display_name, list(run.tags))
            found |= {"id": run.run_id, "job_type": run.job_type}
            found["config"] |= values_of(run.config.update)
        elif kind == "config":
            found["config"] |= values_of(record.config.update)
        elif kind == "history":
            found["history"].append(values_of(record.history.item))
        elif kind == "summary":
            found["summary"] |= values_of(record.summary.update)
        elif kind == "artifact":
            contents = {each.path: Path(each.local_path) for each in record.artifact.manifest.contents}
            found["artifacts"][record.artifact.name] = record.artifact.type, contents
    logged = {name: value for row in found["history"] for name, value in row.items()}
    tables = [name.removesuffix("._type") for name, value in logged.items() if value == "table-file"]
    found["tables"] = {
        name: json.loads((path.parent / "files" / logged[f"{name}.path"]).read_text()) for name in tables
    }
    return found


def values_of(items: Iterable[Any]) -> dict:
    """Values by name, as they are kept in several records."""
    return {item.key or ".".join(getattr(item, "nested_key", [])): json.loads(item.value_json) for item in items}


def leveldb_records(data: bytes) -> Iterator[bytes]:
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
