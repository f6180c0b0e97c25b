"""What is finished reaches a hub as it is, once, and what was interrupted goes on."""

import os
import re
import signal
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path

import pytest
from datasets import Dataset
from huggingface_hub import DatasetCard, ModelCard, constants
from test_cli import TRAIN, all_bytes, generate, refused, train

import generate_datasets
import train_sae
from sae_utils.errors import InputError
from sae_utils.sharing.upload import PushChoice

PUSH = PushChoice("somebody", is_public=False)
GENERATE = ["--models", "./tiny", "--max_length", "40", "--n", "12", "--quiet", "--push_to_hub", "somebody"]
SAES = Path("checkpoints/tiny_from_tiny_seed_0")


def make_saes(folder: Path = SAES, **changes: bytes) -> Path:
    """Files as they lie in a finished folder, and what lies there and is nobody else's business."""
    files = {"run.json": b"{}", "config.json": b"{}", "metrics.jsonl": b"", "README.md": b"# SAEs\n"}
    files |= {"layers.7/cfg.json": b"{}", "layers.7/sae.safetensors": bytes(range(256)) * 40}
    files |= {"run_layers.9.json": b"{}", "metrics_layers.9.jsonl": b""}
    others = {
        "wandb.json": b"{}",
        "wandb_layers.9.json": b"{}",
        "writing_run.json": b"",
        "notes.txt": b"",
        ".locks/a.lock": b"",
    }
    for name, data in {**files, **others, **changes}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def sent(folder: Path = SAES) -> dict[str, bytes]:
    """What of them is to arrive."""
    left_out = ("wandb.json", "wandb_layers.9.json", "writing_run.json", "notes.txt", ".locks/a.lock")
    return {name: data for name, data in all_bytes(folder).items() if name not in left_out}


def arrived(hub, repo: str = "somebody/tiny_from_tiny_seed_0", kind: str = "models") -> dict[str, bytes]:
    """What a repository holds, beside what the hub puts there itself."""
    return {name: data for name, data in hub.files(kind, repo).items() if name != ".gitattributes"}


def push(folder: Path = SAES, to: PushChoice = PUSH) -> str:
    (line,) = to.send("model", [folder], quiet=True)
    return line


def pushes(hub) -> list[str]:
    """Requests that sent something of a file."""
    return [call for call in hub.calls if re.search("PUT |/commit/|/repos/create|/preupload/|/objects/batch", call)]


def test_both_scripts_push_what_they_have_finished(hub, tiny, capsys):
    """Byte for byte, private, and with pages that the hub's own library reads; again, nothing is sent."""
    generate_datasets.main(GENERATE)
    train = [*TRAIN, "--train_only", "--num_seeds", "2", "--push_to_hub", "somebody", "--public"]
    train_sae.main(train)
    assert sorted(hub.folders) == [
        ("datasets", "somebody/tiny_42_1.0_0.9"),
        ("models", "somebody/tiny_from_tiny_seed_0"),
        ("models", "somebody/tiny_from_tiny_seed_1"),
    ]
    assert list(hub.visibility.values()) == ["private", "public", "public"]
    assert arrived(hub, "somebody/tiny_42_1.0_0.9", "datasets") == all_bytes(Path("datasets/tiny_42_1.0_0.9"))
    for seed in (0, 1):
        here = all_bytes(Path(f"checkpoints/tiny_from_tiny_seed_{seed}"))
        del here["wandb.json"]
        assert arrived(hub, f"somebody/tiny_from_tiny_seed_{seed}") == here
        ModelCard.load(hub.root / f"models/somebody/tiny_from_tiny_seed_{seed}/README.md").validate()
    DatasetCard.load(hub.root / "datasets/somebody/tiny_42_1.0_0.9/README.md").validate(repo_type="dataset")
    assert capsys.readouterr().out.count(": sent 8 of 8 files") == 2
    hub.calls.clear()
    generate_datasets.main(GENERATE)
    train_sae.main(train)
    assert pushes(hub) == []
    assert capsys.readouterr().out.count("has it all already") == 3


def test_a_data_set_on_the_hub_is_read_by_its_name(hub, tiny, tmp_path):
    """Records lie beside the samples, and none of them may be taken for a table."""
    generate_datasets.main(GENERATE)
    code = """
from datasets import load_dataset
for row in load_dataset("somebody/tiny_42_1.0_0.9", split="train"):
    print(row["id"], row["input_ids"])
"""
    environment = os.environ | {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    rows = Dataset.load_from_disk("datasets/tiny_42_1.0_0.9")
    assert done.stdout.splitlines() == [f"{row['id']} {row['input_ids']}" for row in rows]


def test_nothing_else_leaves_this_machine(hub):
    make_saes()
    assert push() == f"{hub.address}/somebody/tiny_from_tiny_seed_0: sent 8 of 8 files, 0.0 MB"
    assert arrived(hub) == sent()


def test_only_what_has_changed_is_sent_and_what_is_gone_is_removed(hub):
    """Else a record would stand beside weights of another time."""
    make_saes()
    push()
    make_saes(**{"config.json": b"[]", "README.md": b"# Others\n"})
    (SAES / "run_layers.9.json").unlink()
    (hub.root / "models/somebody/tiny_from_tiny_seed_0/LICENSE").write_text("of somebody")
    hub.calls.clear()
    assert "sent 2 of 7 files" in push()
    assert not any(call.startswith("PUT") for call in hub.calls)
    assert arrived(hub) == sent() | {"LICENSE": b"of somebody"}
    make_saes(**{"layers.7/sae.safetensors": bytes(reversed(range(256))) * 40})
    assert "sent 4 of 8 files" in push()
    assert arrived(hub) == sent() | {"LICENSE": b"of somebody"}


def test_a_card_that_was_edited_on_the_hub_stays(hub, caplog):
    """That is where people add a licence, which we do not know."""
    make_saes()
    push()
    hub.edit("models", "somebody/tiny_from_tiny_seed_0", "README.md", "---\nlicense: mit\n---\n")
    make_saes(**{"run.json": b"[]", "README.md": b"# Others\n"})
    assert "sent 1 of 8 files" in push()
    assert arrived(hub)["README.md"] == b"---\nlicense: mit\n---\n"
    assert "its README.md was edited there, and is left as it is" in caplog.text


@pytest.mark.parametrize("moment", ["PUT /lfs", "POST /api/models/somebody/tiny_from_tiny_seed_0/commit"])
def test_a_killed_push_goes_on(hub, moment):
    """What the hub has taken is not sent again, and until all is there, nothing is."""
    make_saes(**{f"layers.{i}/sae.safetensors": bytes([i]) * 100_000 for i in range(5)})
    process = get_context("fork").Process(target=push)
    n_puts = 0

    def kill(call: str) -> int | None:
        nonlocal n_puts
        n_puts += call.startswith("PUT")
        if call.startswith(moment) and (n_puts == 4 or not moment.startswith("PUT")):
            os.kill(process.pid, signal.SIGKILL)
            return 500
        return None

    hub.before = kill
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert arrived(hub) == {} and hub.commits == []
    there = list(hub.objects)
    assert len(there) >= 3
    hub.before = lambda call: None
    hub.calls.clear()
    push()
    assert [call for call in hub.calls if call.startswith("PUT") and call.rpartition("/")[2] in there] == []
    assert arrived(hub) == sent() and hub.commits == ["somebody/tiny_from_tiny_seed_0"]


def test_one_that_fails_does_not_keep_others_from_being_sent(hub):
    folders = [make_saes(Path(f"checkpoints/tiny_from_tiny_seed_{seed}")) for seed in range(3)]
    hub.before = lambda call: 500 if "seed_1/commit" in call else None
    lines = PUSH.send("model", folders, quiet=True)
    assert [next(lines), next(lines)] == [
        f"{hub.address}/somebody/tiny_from_tiny_seed_{seed}: sent 8 of 8 files, 0.0 MB" for seed in (0, 2)
    ]
    with pytest.raises(InputError, match=r"all else is done: somebody/tiny_from_tiny_seed_1 could not be sent \(500"):
        next(lines)


def test_a_damaged_data_set_is_not_sent(hub, tiny, capsys):
    folder = generate("--n", "12")
    data = next(folder.glob("*.arrow"))
    data.write_bytes(data.read_bytes()[:-40] + bytes(40))
    assert "is damaged" in refused(capsys, generate_datasets.main, GENERATE)
    assert hub.folders == {}


# what is refused, and when


def test_what_was_left_out_is_said_beside_what_was_not_sent(hub, tiny, capsys):
    """Whoever mends one of them and looks no further would miss the other."""
    generate("--num_tokens", "1500")
    train("--num_seeds", "2")
    (SAES.with_name("tiny_from_tiny_seed_1") / "run.json").write_text("cut")
    compare = ["--eval_only", "--random_tokens", "500", "--quiet", "--push_to_hub", "somebody"]
    hub.before = lambda call: 403 if "/tree/" in call else None
    error = refused(capsys, train_sae.main, compare)
    assert "all else is done: somebody/tiny_from_tiny_seed_0 could not be sent: this login has no right to" in error
    assert "| checkpoints/tiny_from_tiny_seed_1/run.json is damaged" in error
    assert Path("results/report.html").exists()
    hub.before = lambda call: None
    error = refused(capsys, train_sae.main, compare)
    assert "left out, all others are measured: checkpoints/tiny_from_tiny_seed_1/run.json is damaged" in error
    assert arrived(hub) == sent()


def test_a_missing_login_is_found_before_anything_is_loaded(hub, tiny, capsys, monkeypatch):
    """Found out at the end, it costs a run of days."""
    monkeypatch.delenv("HF_TOKEN")
    assert "--push_to_hub somebody needs a login, and there is none; run `hf auth login`" in refused(
        capsys, generate_datasets.main, GENERATE
    )
    error = refused(capsys, train_sae.main, [*TRAIN, "--push_to_hub", "somebody"])
    assert "needs a login" in error and hub.calls == [] and not Path("datasets").exists()


def test_a_hub_that_does_not_answer_costs_no_training(hub, tiny, capsys, monkeypatch):
    """One line at the beginning, one at the end, and all that was asked for is there."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SystemExit) as stop:
        generate_datasets.main(GENERATE)
    first, last = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert first.endswith("tried again when all else is done") and "when the hub can be reached, the same" in last
    assert len(Dataset.load_from_disk("datasets/tiny_42_1.0_0.9")) == 12


@pytest.mark.parametrize("limit", ["a name", "no rights", "offline", "no push"])
def test_what_cannot_work_is_one_line(limit, hub, tiny, capsys, monkeypatch):
    """Whatever the hub's library makes of it."""
    generate("--n", "12")
    flags, message = GENERATE, ""
    if limit == "a name":
        flags, message = [*GENERATE, "--push_to_hub", "some/body"], "some/body: the login"
        message = "may not write there, but to me, somebody"
    elif limit == "no rights":
        hub.before = lambda call: 403 if "/repos/create" in call else None
        message = "all else is done: somebody/tiny_42_1.0_0.9 could not be sent: this login has no right to"
    elif limit == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        message = "HF_HUB_OFFLINE says is not to be asked"
    else:
        flags, message = [*GENERATE[:-2], "--public"], "--public says who sees what --push_to_hub sends"
    assert message in refused(capsys, generate_datasets.main, flags)


def test_a_dry_run_lists_what_would_be_sent_and_asks_nobody(hub, tiny, capsys, monkeypatch):
    """Also without a login, which it names."""
    size = next(generate("--n", "12").glob("*.arrow")).stat().st_size
    train_sae.main([*TRAIN, "--train_only", "--num_seeds", "1"])
    capsys.readouterr()
    monkeypatch.delenv("HF_TOKEN")
    generate_datasets.main([*GENERATE, "--dry_run"])
    said = capsys.readouterr().out
    assert "to the hub: data set somebody/tiny_42_1.0_0.9 (private if it is new), 5 files, 0.0 MB" in said
    assert f"  data-00000-of-00001.arrow: {size:,} bytes\n" in said and "needs a login" in said
    train_sae.main([*TRAIN, "--train_only", "--num_seeds", "2", "--push_to_hub", "somebody", "--public", "--dry_run"])
    said = capsys.readouterr().out
    assert "to the hub: model somebody/tiny_from_tiny_seed_0 (seen by all if it is new), 8 files" in said
    assert "  layers.1/sae.safetensors: 6," in said and "wandb" not in said
    assert "tiny_from_tiny_seed_1 (seen by all if it is new), when it is finished" in said
    assert hub.calls == []
