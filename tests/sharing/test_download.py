"""A data set fetched from a hub is one that lies here: whole, checked, asked for once."""

import os
import shutil
import signal
from multiprocessing import get_context
from pathlib import Path

import pytest
from conftest import edit_record
from huggingface_hub import constants
from test_cli import TRAIN, all_bytes, generate, parsed, refused

import train_sae
from sae_utils.errors import InputError
from sae_utils.locks import Lock
from sae_utils.sharing.download import fetch, find_shared
from sae_utils.sharing.upload import PushChoice

NAME = "tiny_42_1.0_0.9"
REFERENCE = f"hf://datasets/somebody/{NAME}"
FOLDER = Path("fetched") / NAME


@pytest.fixture
def published(hub, tiny) -> Path:
    """A data set of two files of samples that is on the hub; what stands here is what it holds there."""
    folder = generate("--num_tokens", "1500")
    list(PushChoice("somebody", is_public=False).send("dataset", [folder], quiet=True))
    hub.calls.clear()
    return folder


def fetch_it(reference: str = REFERENCE) -> None:
    (shared,) = find_shared([reference])
    fetch(shared, FOLDER.parent, quiet=True)


def fetched(hub) -> list[str]:
    """Files that were asked for with their content."""
    return [call.rpartition("/")[2] for call in hub.calls if call.startswith("GET /datasets/")]


@pytest.mark.parametrize("reference", [REFERENCE, f"hf://somebody/{NAME}"])
def test_it_comes_as_it_was_and_is_asked_for_once(hub, published, reference):
    """The second time it lies here; a machine without network trains on it."""
    fetch_it(reference)
    assert all_bytes(FOLDER) == all_bytes(published)
    assert [path.name for path in FOLDER.parent.iterdir()] == [NAME]
    hub.calls.clear()
    fetch_it(reference)
    assert hub.calls == []


def test_saes_are_those_of_the_same_data_set_generated_here(hub, published):
    """Nothing of a run says where its data came from but what it was."""
    here = [*TRAIN, "--train_only", "--num_seeds", "1"]
    train_sae.main([*here, "--checkpoint_dir", "own"])
    own = all_bytes(Path("own/tiny_from_tiny_seed_0"))
    published.rename("elsewhere")
    there = [*here, "--source_models", REFERENCE, "--dataset_seed", "7", "--checkpoint_dir", "own"]
    train_sae.main(there)
    assert len(fetched(hub)) == 5
    assert all_bytes(Path("own/tiny_from_tiny_seed_0")) == own, "it is found to be the one that was trained on"
    train_sae.main([*there, "--overwrite"])
    again = all_bytes(Path("own/tiny_from_tiny_seed_0"))
    assert {name: data for name, data in again.items() if name != "wandb.json"} == {
        name: data for name, data in own.items() if name != "wandb.json"
    }
    assert len(fetched(hub)) == 5


def test_it_stands_beside_data_sets_of_other_models(hub, published):
    """Each with its own seed: the flags that choose one are of those that are named by their models."""
    choice = ["--source_models", REFERENCE, "other", "--dataset_seed", "7"]
    args = parsed(*choice)
    sources = train_sae.grid_choice(args).sources
    assert [sources.key_of(model).folder for model in sources.models] == [NAME, "other_7_1.0_0.9"]
    with pytest.raises(InputError, match="must have different short names, got tiny tiny"):
        train_sae.grid_choice(parsed("--source_models", "tiny", REFERENCE))


@pytest.mark.parametrize("n_before", [0, 1, 3, 4])
def test_a_killed_fetch_goes_on(hub, published, n_before):
    """What came before is not asked for again, and until all is there, nothing is."""
    process = get_context("fork").Process(target=fetch_it)

    def kill(call: str) -> int | None:
        if call.startswith("GET /datasets/") and len(fetched(hub)) > n_before:
            os.kill(process.pid, signal.SIGKILL)
            return 500
        return None

    hub.before = kill
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and not FOLDER.exists()
    hub.before = lambda call: None
    hub.calls.clear()
    fetch_it()
    assert all_bytes(FOLDER) == all_bytes(published)
    assert [path.name for path in FOLDER.parent.iterdir()] == [NAME]
    assert len(fetched(hub)) == 5 - n_before


def test_what_was_left_of_an_earlier_commit_does_not_come_along(hub, published):
    """A data set that was extended on the hub between two tries."""
    work = FOLDER.with_name(f"{NAME}.fetching")
    work.mkdir(parents=True)
    (work / "data-00007-of-00009.arrow").write_bytes(b"old")
    fetch_it()
    assert all_bytes(FOLDER) == all_bytes(published)


# what is refused


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("hf://", "must be hf://datasets/ORG/NAME or hf://ORG/NAME"),
        (f"hf://datasets/{NAME}", "must be hf://datasets/ORG/NAME or hf://ORG/NAME"),
        (f"hf://spaces/somebody/{NAME}", "must be hf://datasets/ORG/NAME or hf://ORG/NAME"),
        (f"hf://some body/{NAME}", "must be hf://datasets/ORG/NAME or hf://ORG/NAME"),
        ("hf://datasets/somebody/wikitext", "must end in the name of a generated data set"),
        (f"hf://datasets/somebody/{NAME}.unfinished", "must end in the name of a generated data set"),
        (f"hf://datasets/others/{NAME}", "the hub has no such repository, or does not show it to this login"),
    ],
)
def test_what_names_no_such_data_set_is_one_line(hub, tiny, capsys, reference, message):
    error = refused(capsys, train_sae.main, [*TRAIN, "--source_models", reference])
    assert f"--source_models {reference}" in error and message in error
    assert list(Path().glob("datasets/**/*")) == []


def spoil(hub, name: str, data: bytes | None) -> None:
    """Other bytes in a file on the hub, or none."""
    path = hub.folders["datasets", f"somebody/{NAME}"] / name
    path.unlink() if data is None else path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("generation.json", None, "has no generation.json, so it is no data set of generate_datasets.py"),
        ("generation.json", b"{}", "is no whole data set of generate_datasets.py: generation.json (no field"),
        ("data-00000-of-00001.arrow", b"cut", "data-00000-of-00001.arrow (its checksum was"),
        ("data-00000-of-00001.arrow", None, "is no whole data set of generate_datasets.py"),
        ("state.json", b"{}", "state.json (its checksum was"),
    ],
)
def test_what_is_not_whole_on_the_hub_leaves_nothing_here(hub, published, name, data, message):
    """It is checked like one that lies here, and what came of it would only come again."""
    before = hub.files("datasets", f"somebody/{NAME}")[name]
    spoil(hub, name, data)
    with pytest.raises(InputError) as refusal:
        fetch_it()
    assert message in str(refusal.value) and "\n" not in str(refusal.value)
    assert not FOLDER.parent.exists() or list(FOLDER.parent.iterdir()) == []
    spoil(hub, name, before)
    fetch_it()
    assert all_bytes(FOLDER) == all_bytes(published)


def test_a_data_set_by_another_name_is_refused(hub, published):
    """Its results would be taken for those of another seed."""
    shutil.copytree(hub.folders["datasets", f"somebody/{NAME}"], "renamed")
    hub.folders["datasets", "somebody/tiny_43_1.0_0.9"] = Path("renamed").absolute()
    with pytest.raises(InputError, match=r"somebody/tiny_43_1.0_0.9 holds tiny_42_1.0_0.9; give its repository that"):
        fetch_it("hf://somebody/tiny_43_1.0_0.9")
    assert not Path("fetched/tiny_43_1.0_0.9").exists()


@pytest.mark.parametrize("how", ["nobody there", "offline", "no login"])
def test_without_an_answer_it_is_one_line(hub, published, capsys, monkeypatch, how):
    published.rename("elsewhere")
    if how == "nobody there":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        message = "when the hub can be reached, the same command goes on"
    elif how == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        message = "HF_HUB_OFFLINE says that the hub is not to be asked"
    else:
        monkeypatch.delenv("HF_TOKEN")
        message = "or does not show it to this login; look at its name, or run `hf auth login`"
    error = refused(capsys, train_sae.main, [*TRAIN, "--source_models", REFERENCE])
    assert message in error and f"--source_models {REFERENCE} could not be fetched" in error


def test_two_runs_do_not_fetch_into_one_folder(hub, published):
    with Lock(FOLDER.parent, NAME, refusal=""), pytest.raises(InputError, match="another run is at fetched/tiny_42"):
        fetch_it()
    edit_record(published / "generation.json", git_commit="another")
    fetch_it()
    assert all_bytes(FOLDER) != all_bytes(published), "what is on the hub counts, and not what stands elsewhere"
