"""Both scripts as on two machines: a torchrun each, with a working folder, a host name and process ids of its own.

They have nothing in common but the folders whose absolute paths they are given.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from test_cli import ROOT, all_bytes, compared

import generate_datasets
from sae_utils.distributed import Workers
from sae_utils.generation.shards import GrowingDataset
from sae_utils.shared_folders import check_shared

MACHINES = {"first": "127.0.0.1", "second": "127.0.0.2"}
"""Host names, and addresses at which the others find them: torchrun tells machines apart by address and process id."""

KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
from {module} import {owner}
import {script}
real, calls = {owner}.{method}, []
def deadly(self, *args):
    calls.append(args)
    if len(calls) == {moment} and os.environ["RANK"] == {rank!r}:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, *args)
{owner}.{method} = deadly
{script}.main(sys.argv[1:])
"""
"""A script, one process of which is killed when it calls a method for the so-manieth time."""


@cache
def apart() -> list[str]:
    """What makes a machine of a process, where this user may: the first argument behind it is its host name.

    Processes of both count from 1, so that ids of the one are ids of the other.
    """
    command = ["unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c"]
    command += ['hostname "$0" && exec "$@"']
    may = shutil.which("unshare") and subprocess.run([*command, "name", "true"], capture_output=True).returncode == 0
    return command if may else ["sh", "-c", 'exec "$@"']


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def on_two_machines(script: str | Path, flags: list[str], *, n_each: int = 1, others: list[str] | None = None) -> str:
    """Run a script in this many processes on each of two machines; what they printed, and the exit codes of both.

    Args:
        script: Its absolute path.
        flags: Its flags.
        n_each: Processes on a machine.
        others: Flags of the second machine, if they are not the same.
    """
    port, running = free_port(), []
    for (host, address), argv in zip(MACHINES.items(), (flags, others or flags), strict=True):
        Path(host).mkdir(exist_ok=True)
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", str(n_each)]
        torchrun += ["--rdzv_id", "study", "--rdzv_backend", "c10d", "--rdzv_endpoint", f"127.0.0.1:{port}"]
        command = [*apart(), host, *torchrun, "--local_addr", address, "--", str(script), *argv]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        running.append(subprocess.Popen(command, cwd=host, env=os.environ, **pipes))
    said = [process.communicate()[0] for process in running]
    return "\n".join([*said, f"exit codes {[process.returncode for process in running]}"])


def killed(script: str, module: str, method: str, *, moment: int, rank: int) -> Path:
    """A script one process of which kills itself."""
    owner, _, name = method.partition(".")
    code = KILLED.format(
        root=str(ROOT), script=script, module=module, owner=owner, method=name, moment=moment, rank=str(rank)
    )
    path = Path("killed.py").absolute()
    path.write_text(code)
    return path


def generation(folder: str) -> list[str]:
    """Flags with absolute paths alone."""
    here = Path().absolute()
    goal = ["--n", "60", "--batch_size", "8", "--max_length", "40", "--quiet"]
    return ["--models", f"{here / 'tiny'}", *goal, "--output_dir", f"{here / folder}"]


def training(folder: str, *flags: str) -> list[str]:
    """Flags with absolute paths alone."""
    here = Path().absolute()
    what = ["--org_name", str(here), "--target_models", "tiny", "--source_models", "tiny", "--dataset_seed", "42"]
    sizes = ["--layers", "0", "1", "--num_latents", "48", "--k", "4", "--ctx_len", "32", "--batch_size", "4"]
    places = [f"--{name}_dir={here / folder / name}" for name in ("checkpoint", "results")]
    return [*what, *sizes, *places, f"--datasets_dir={here / 'data'}", "--quiet", *flags]


@pytest.mark.slow
def test_a_data_set_of_two_machines_is_that_of_one(tiny):
    """Also when a process of the second was killed in the middle of a round, and the same command was given again."""
    generate_datasets.main(generation("one"))
    deadly = killed("generate_datasets", "sae_utils.generation.shards", "GrowingDataset.add", moment=3, rank=1)
    said = on_two_machines(deadly, generation("two"))
    assert "exit codes [1, 1]" in said and "Signal 9" in said
    names = [path.name.split("_")[1] for path in sorted(Path("two").glob("*.unfinished/samples_*"))]
    assert names[:4] == ["000000000", "000000008", "000000016", "000000024"] and "000000040" not in names
    assert "exit codes [0, 0]" in on_two_machines(ROOT / "generate_datasets.py", generation("two"))
    assert all_bytes(Path("two")) == all_bytes(Path("one"))
    assert [list(Path(host).iterdir()) for host in MACHINES] == [[], []], "written elsewhere"


@pytest.mark.slow
def test_two_machines_of_two_processes_train_what_four_processes_do(tiny):
    """Killed in one process of the second machine and given again, to the last bit; then compared by all four."""
    generate_datasets.main([*generation("data")[:-2], "--output_dir", "data"])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "4", "--"]
    flags = ["--save_every", "3", "--train_only"]
    Path("alone").mkdir()
    command = [*torchrun, str(ROOT / "train_sae.py"), *training("four", *flags)]
    subprocess.run(command, check=True, cwd="alone", env=os.environ)
    deadly = killed("train_sae", "sae_utils.training.trainer", "SaeTrainer._end_step", moment=5, rank=3)
    said = on_two_machines(deadly, training("two", *flags), n_each=2)
    assert "exit codes [1, 1]" in said and "Signal 9" in said
    assert json.loads(next(Path("two").rglob("state.json")).read_text())["global_step"] == 3
    said = on_two_machines(ROOT / "train_sae.py", training("two", *flags), n_each=2)
    assert "exit codes [0, 0]" in said
    folders = sorted(path.name for path in Path("four/checkpoint").glob("tiny_*"))
    assert len(folders) == 2
    for name in folders:
        assert compared(Path("two/checkpoint") / name) == compared(Path("four/checkpoint") / name)
    assert [list(Path(host).iterdir()) for host in MACHINES] == [[], []], "written elsewhere"


@pytest.mark.slow
@pytest.mark.parametrize("script", ["generate_datasets.py", "train_sae.py"])
def test_folders_that_are_not_one_are_refused(tiny, script):
    """Each machine would write its part where the other never sees it; of training, after hours."""
    generate_datasets.main([*generation("data")[:-2], "--output_dir", "data"])
    make = generation if script == "generate_datasets.py" else training
    said = on_two_machines(ROOT / script, make("here"), others=make("there"))
    name = "output_dir" if script == "generate_datasets.py" else "checkpoint_dir"
    assert f"--{name} must be one folder for all processes, and what is written into" in said
    if len(apart()) > 3:
        assert f"{Path('there').absolute()}" not in said.split("is not there on second")[0].split("written into")[1]
    assert not list(Path("here").rglob("writing_*"))


def test_a_process_alone_shares_with_nobody():
    check_shared(Workers(), output_dir=Path("nowhere"))
    assert not Path("nowhere").exists()


def test_a_shard_that_a_folder_does_not_list_yet_is_found_by_its_name(monkeypatch):
    """As on NFS, which shows a folder as it was some seconds ago: the round would be sampled once more."""
    growing = GrowingDataset(Path("data"), {}, overwrite=False)
    growing.work.mkdir()
    (growing.work / "samples_000000000_000000004_40.arrow").touch()
    monkeypatch.setattr(Path, "glob", lambda folder, pattern: iter(()))
    assert growing.progress() == (0, 0)
    growing.take_in("samples_000000000_000000004_40.arrow")
    assert growing.progress() == (4, 40)
