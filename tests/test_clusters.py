"""Both scripts as on two machines: a torchrun each, with a working folder, a host name and process ids of its own.

They have nothing in common but the folders whose absolute paths they are given.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from conftest import make_model
from test_cli import ROOT, all_bytes, compared

import generate_datasets
import train_sae
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


@pytest.mark.slow
@pytest.mark.parametrize("script", ["generate_datasets.py", "train_sae.py"])
def test_a_model_that_is_another_one_on_the_other_machine_is_refused(tiny, script):
    """One that was copied before it was changed, say: half of a data set, or of every batch, would be of that."""
    for seed, host in enumerate(MACHINES):
        make_model(Path(host) / "models" / "tiny", seed=seed)
    generate_datasets.main([*generation("data")[:-2], "--output_dir", "data"])
    make, flag, model = (
        (generation, "--models", "models/tiny")
        if script == "generate_datasets.py"
        else (training, "--org_name", "models")
    )
    flags = make("out")
    flags[flags.index(flag) + 1] = model
    said = on_two_machines(ROOT / script, flags)
    assert "the model models/tiny must be the same in all processes, and is" in said and "[1, 1]" in said
    assert not list(Path("out").rglob("*.arrow")) + list(Path("out").rglob("*.safetensors"))


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


# what goes over the network


@pytest.fixture
def scaling(load_benchmark):
    """`benchmarks/scaling.py`."""
    return load_benchmark("scaling")


def test_what_was_counted_is_what_the_formula_says(scaling):
    """To the byte, for gradients, activations, and all the little things; but for numbers that are pickled."""
    runs = json.loads((ROOT / "benchmarks/results/scaling_cpu.json").read_text())[-1]["results"]
    kinds = set()
    for run in runs.values():
        counted = {name: n for name, n in run["payload_bytes_per_step"].items() if name != "objects"}
        shape, n, is_distributed = scaling.Shape(**run["shape"]), run["n_processes"], run["distribute_modules"]
        assert counted == (scaling.payload_bytes(shape, n, distribute_modules=is_distributed) if n > 1 else {})
        kinds.add((n, is_distributed))
    assert kinds == {(1, False), (2, False), (4, False), (2, True), (4, True)}


def test_the_page_says_what_a_network_must_carry(scaling):
    """By the formula, and the rate that was measured on a GPU."""
    measured = json.loads((ROOT / "benchmarks/results/training_gpu.json").read_text())[0]["results"]
    step_sec = 4 * 2 * 2048 / measured["2 seeds, layers 7 15"]["ours"]["sae_tokens_per_sec"]
    page = (ROOT / "docs/clusters.md").read_text()
    assert f"beside the {step_sec:.4f} s that such a step took" in page
    rows = re.findall(r"^\| (\d) \| ([\d.]+) \| ([\d.]+) \| (.+?) \| (.*?) ?\|$", page, flags=re.MULTILINE)
    assert [row[0] for row in rows] == ["2", "4", "8"]
    for n_said, *said in rows:
        n = int(n_said)
        shape = scaling.Shape(2048, 40960, 2, 2, n * 2 * 2048, 2)
        expected = []
        for is_distributed in (False, True):
            sent = scaling.sent_bytes(scaling.payload_bytes(shape, n, distribute_modules=is_distributed), n) / 1e9
            expected += [f"{sent:.3f}", f"{sent / step_sec:.1f}"]
        assert said == (expected if n == 2 else [*expected[:2], f"needs {n} layers", ""])


# jobs that do not wait for each other


def test_steps_of_the_targets_are_commands_of_the_scripts():
    """Each target is trained by one job, as the comparison expects it, and each data set is made by one."""
    Path("python").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    Path("python").chmod(0o755)
    env = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    env |= {"PYTHON": "./python", "SOURCES": "a b", "TARGETS": "c d", "ORG_NAME": "org", "TRAIN_FLAGS": "--layers 3 5"}

    def step(*words: str, **variables: str) -> list[str]:
        command = ["bash", str(ROOT / "docs/targets.sbatch"), *words]
        return subprocess.run(command, env=env | variables, capture_output=True, text=True, check=True).stdout.split()

    made = [generate_datasets.build_parser().parse_args(step("generate", str(i))[1:]) for i in range(2)]
    assert [args.models for args in made] == [["org/a"], ["org/b"]]
    trained = [train_sae.build_parser().parse_args(step("train", SLURM_ARRAY_TASK_ID=str(i))[1:]) for i in range(2)]
    assert [(args.target_models, args.train_only) for args in trained] == [(["c"], True), (["d"], True)]
    compared = train_sae.build_parser().parse_args(step("compare")[1:])
    assert (compared.target_models, compared.eval_only) == (["c", "d"], True)
    for args in [*trained, compared]:
        assert (args.source_models, args.layers, args.dataset_seed) == (["a", "b"], [3, 5], made[0].seed)


def test_without_variables_the_targets_are_those_of_the_full_run():
    page = (ROOT / "docs/targets.sbatch").read_text()
    study = (ROOT / "docs/study.sbatch").read_text()
    found = [dict(re.findall(r"\$\{([A-Z_]+):-([^}$]*)\}", each)) for each in (page, study)]
    assert {name: value for name, value in found[0].items() if name in found[1]}.items() <= found[1].items()
