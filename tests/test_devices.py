"""What `--device` means on a machine with GPUs, without, and with cards that PyTorch cannot use."""

import logging
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from conftest import pretend_gpus, pretend_launch, pretend_nvidia_smi
from test_cli import ROOT, TRAIN, generate, refused

import generate_datasets
import train_sae
from sae_utils import devices
from sae_utils.devices import choose_device, choose_dtype, find_cards
from sae_utils.errors import InputError

GENERATE = ["--models", "./tiny", "--max_length", "40"]
SCRIPTS = [(generate_datasets.main, GENERATE), (train_sae.main, TRAIN)]

CARD = """[ "$*" = "--query-gpu=name,driver_version --format=csv,noheader" ] && echo "Tesla K80, 470.57.02" """
NAMED = "Tesla K80 (driver 470.57.02) cannot be used by PyTorch"
NO_KERNEL = "CUDA error: no kernel image is available for execution on the device\nCompile with `TORCH_USE_CUDA_DSA`"


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    """A machine without GPUs, until a test pretends that there are some."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


# which GPU


def test_the_gpu_that_is_named_becomes_the_current_one(monkeypatch):
    """Triton starts its kernels on the current GPU, where tensors of another one are not."""
    current = pretend_gpus(monkeypatch, 2)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    assert current == [torch.device("cuda", 1)]


@pytest.mark.parametrize("name", ["cuda", "auto"])
def test_a_process_alone_takes_the_first_gpu(monkeypatch, name):
    current = pretend_gpus(monkeypatch, 2)
    assert [choose_device(name)] == current == [torch.device("cuda", 0)]


@pytest.mark.parametrize("name", ["cuda", "auto"])
def test_processes_of_a_machine_take_a_gpu_each(monkeypatch, name):
    """The third process of the second machine: its number there counts, not its number among all."""
    current = pretend_gpus(monkeypatch, 4)
    pretend_launch(monkeypatch, rank=6, n=8, local_rank=2, n_local=4)
    assert [choose_device(name)] == current == [torch.device("cuda", 2)]


@pytest.mark.parametrize("n", [1, 2])
def test_one_process_a_machine_may_name_its_gpu(monkeypatch, n):
    current = pretend_gpus(monkeypatch, 2)
    pretend_launch(monkeypatch, n=n)
    assert [choose_device("cuda:1")] == current == [torch.device("cuda", 1)]


def test_the_cpu_is_left_to_as_many_processes_as_asked_for(monkeypatch):
    current = pretend_gpus(monkeypatch, 1)
    pretend_launch(monkeypatch, rank=2, n=3, local_rank=2, n_local=3)
    assert choose_device("cpu") == torch.device("cpu")
    assert current == []


@pytest.mark.parametrize(("main", "argv"), SCRIPTS)
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("n_gpus", "name", "message"),
    [
        (2, "cuda:0", "--device cuda:0 names one GPU, and torchrun started 2 processes on this machine"),
        (
            1,
            "cuda",
            "torchrun started 2 processes on this machine, each of which takes a GPU of its own, and PyTorch sees",
        ),
        (1, "auto", "PyTorch sees 1 CUDA GPU; lower --nproc_per_node to 1, or give --device cpu"),
    ],
)
def test_processes_that_would_share_a_gpu_are_refused_before_they_join(
    monkeypatch, capsys, main, argv, rank, n_gpus, name, message
):
    """One that joins first waits for others that have stopped. No model is there: nothing is looked up, either."""
    pretend_gpus(monkeypatch, n_gpus)
    pretend_launch(monkeypatch, rank=rank, n=2, local_rank=rank, n_local=2)
    assert message in refused(capsys, main, [*argv, "--device", name])


@pytest.mark.parametrize("name", ["gpu", "mps", "cuda:-1", "cuda:300", "cuda:x", ""])
def test_other_spellings_are_refused(name):
    """PyTorch itself takes cuda:300 for cuda:44."""
    with pytest.raises(InputError, match=f"--device must be auto, cpu, cuda or cuda:N, got '{name}'"):
        choose_device(name)


def test_a_gpu_beyond_the_last_is_refused(monkeypatch):
    pretend_gpus(monkeypatch, 2)
    for is_plan in (False, True):
        with pytest.raises(InputError, match="--device cuda:2 does not exist: this machine has 2 CUDA GPUs"):
            choose_device("cuda:2", is_plan=is_plan)


# plans for a GPU that is not here


@pytest.mark.parametrize(("name", "index"), [("cuda", 0), ("cuda:3", 3)])
def test_a_gpu_of_another_machine_can_be_planned_for(tiny, capsys, name, index):
    """The plan is made on a laptop before a GPU is paid for."""
    generate_datasets.main([*GENERATE, "--dry_run", "--device", name])
    out = capsys.readouterr().out
    assert f"in bfloat16 on cuda:{index}: " in out
    assert "1024 samples together" in out
    assert "GB; PyTorch sees no GPU here, so its memory is not known\n" in out
    generate("--num_tokens", "3000")
    capsys.readouterr()
    train_sae.main([*TRAIN, "--dry_run", "--device", name])
    out = capsys.readouterr().out
    assert f"; cuda:{index}, bfloat16; PyTorch sees no GPU here, so its memory is not known\n" in out
    planned = (
        r"48 latents, k 4, 1 pass \(layers 0 1, seeds 0 1\), about 0\.00 GB, 0\.1 MB on disk, at most 0\.1 MB "
        r"on the way, of \d+\.\d\d GB free\n"
    )
    assert re.search(planned, out)
    assert not Path("checkpoints").exists()


def test_a_plan_for_a_gpu_that_is_not_here_keeps_what_was_asked_for(tiny, capsys):
    generate_datasets.main([*GENERATE, "--dry_run", "--device", "cuda", "--batch_size", "7", "--dtype", "float16"])
    out = capsys.readouterr().out
    assert "in float16 on cuda:0" in out and "; 7 samples together" in out


@pytest.mark.parametrize(("main", "argv"), SCRIPTS)
def test_a_gpu_that_is_not_here_is_not_computed_on(capsys, main, argv):
    error = refused(capsys, main, [*argv, "--device", "cuda"])
    assert "--device cuda needs a CUDA GPU and PyTorch sees none (CUDA_VISIBLE_DEVICES is '')" in error


def test_a_number_of_latents_that_a_gpu_cannot_train_is_refused_in_the_plan(tiny, capsys):
    """Or sparsify's kernels end the first step with a bare assertion, after everything was loaded."""
    generate("--num_tokens", "3000")
    argv = [*TRAIN, "--dry_run", "--num_latents", "50"]
    train_sae.main([*argv, "--device", "cpu"])
    capsys.readouterr()
    assert (
        "on a GPU the number of latents must be a multiple of 8, got 50 for tiny; change --num_latents or "
        "--expansion_factor, the nearest numbers are 48 and 56"
    ) in refused(capsys, train_sae.main, [*argv, "--device", "cuda"])


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_a_full_gpu_is_not_passed_over(monkeypatch, name):
    """Somebody else's job on the card is no reason to compute on the CPU for days."""
    pretend_gpus(monkeypatch, 1)

    def full(*shape, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB. GPU 0 has")

    monkeypatch.setattr(torch, "zeros", full)
    with pytest.raises(InputError, match=r"cuda:0 works and is full \(CUDA out of memory"):
        choose_device(name)


@pytest.mark.parametrize("has_it", [True, False])
def test_bfloat16_that_a_gpu_only_imitates_is_not_chosen(monkeypatch, has_it):
    """Cards before Ampere compute it by way of float32, slower than that."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_it or including_emulation)
    assert choose_dtype("auto", torch.device("cuda", 0)) is (torch.bfloat16 if has_it else torch.float32)


def test_bfloat16_is_assumed_of_a_gpu_that_is_not_here():
    assert choose_dtype("auto", torch.device("cuda", 0)) is torch.bfloat16
    assert choose_dtype("auto", torch.device("cpu")) is torch.float32


# cards that PyTorch cannot use


@pytest.mark.parametrize(("main", "argv"), SCRIPTS)
def test_a_card_that_is_not_used_is_named_by_both_scripts(tiny, monkeypatch, capsys, main, argv):
    """Days on a CPU beside an idle GPU, and nobody was told: in one line, also under --quiet."""
    generate("--num_tokens", "3000")
    pretend_nvidia_smi(monkeypatch, CARD)
    capsys.readouterr()
    main([*argv, "--dry_run", "--quiet"])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "Tesla" in line]
    assert line.startswith(f"{NAMED} {torch.__version__}")
    assert line.endswith("; going on on the CPU")
    assert line[:-23] in refused(capsys, main, [*argv, "--device", "cuda"])


def test_the_device_is_chosen_once_for_training_and_comparison(tiny, monkeypatch, capsys):
    """A GPU that comes or goes while training runs must not move the comparison; and one line is enough."""
    generate("--num_tokens", "2000")
    pretend_nvidia_smi(monkeypatch, CARD)
    for flags in (["--num_seeds", "1"], ["--eval_only"]):
        capsys.readouterr()
        train_sae.main([*TRAIN, "--random_tokens", "500", *flags])
        assert capsys.readouterr().err.count(NAMED) == 1


def test_a_plan_for_another_gpu_names_the_card_that_is_here(monkeypatch, caplog):
    pretend_nvidia_smi(monkeypatch, CARD)
    assert choose_device("cuda", is_plan=True) == torch.device("cuda", 0)
    assert NAMED in caplog.text and "planning for a GPU that can be used" in caplog.text


@pytest.mark.parametrize(
    ("cuda", "reason"), [(None, ", a build without CUDA (pytorch.org has those with it)"), ("12.6", "")]
)
def test_a_build_without_cuda_is_said_to_be_one(monkeypatch, caplog, cuda, reason):
    pretend_nvidia_smi(monkeypatch, CARD)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    choose_device("auto")
    assert caplog.messages == [f"{NAMED} {torch.__version__}{reason}; going on on the CPU"]


def test_the_reason_is_pytorchs_own_and_is_printed_once(monkeypatch, caplog, recwarn):
    """PyTorch warns in five lines of a driver that is too old; the first says what is wrong."""

    def warn_and_see_none() -> bool:
        warnings.warn("CUDA initialization: The NVIDIA driver is too old (found 11040). Please\nupdate", stacklevel=1)
        return False

    pretend_nvidia_smi(monkeypatch, CARD)
    monkeypatch.setattr(torch.cuda, "is_available", warn_and_see_none)
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    assert choose_device("auto") == torch.device("cpu")
    reason = "CUDA initialization: The NVIDIA driver is too old (found 11040). Please"
    assert caplog.messages == [f"{NAMED} {torch.__version__}: {reason}; going on on the CPU"]
    with pytest.raises(InputError, match=r"--device cuda needs a CUDA GPU that works; Tesla K80 .*too old"):
        choose_device("cuda")
    assert len(recwarn) == 0


def test_a_card_on_which_no_kernel_runs_is_not_used(monkeypatch, caplog):
    """A card older or newer than a build of PyTorch is seen by it all the same."""
    pretend_nvidia_smi(monkeypatch, CARD)
    current = pretend_gpus(monkeypatch, 1, fails_with=NO_KERNEL)
    assert choose_device("auto") == torch.device("cpu")
    (line,) = caplog.messages
    assert line.startswith("Tesla K80 (driver 470.57.02), as cuda:0, cannot be used by PyTorch")
    assert line.endswith("CUDA error: no kernel image is available for execution on the device; going on on the CPU")
    with pytest.raises(InputError, match=r"--device cuda:0 needs a CUDA GPU that works; Tesla .*no kernel image"):
        choose_device("cuda:0", is_plan=True)
    assert current == []


def test_processes_do_not_go_on_some_on_gpus_and_some_on_cpus(monkeypatch):
    """Each knows its own card only; those that wait for it on a GPU would wait for ever."""
    pretend_nvidia_smi(monkeypatch, "echo No devices were found")
    pretend_gpus(monkeypatch, 2, fails_with=NO_KERNEL)
    pretend_launch(monkeypatch, rank=1, n=2, local_rank=1, n_local=2)
    with pytest.raises(
        InputError, match=r"the GPU, as cuda:1, cannot be used by .*no kernel image.*; use --device cpu$"
    ):
        choose_device("auto")


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_cards_hidden_on_purpose_are_not_mentioned(monkeypatch, caplog, hidden):
    pretend_nvidia_smi(monkeypatch, CARD)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert choose_device("auto") == torch.device("cpu")
    assert caplog.messages == []


def test_a_machine_without_a_card_is_not_warned_of(monkeypatch, caplog):
    pretend_nvidia_smi(monkeypatch, "echo No devices were found")
    assert choose_device("auto") == torch.device("cpu")
    assert caplog.messages == []


def test_only_the_main_process_warns(monkeypatch, caplog):
    pretend_nvidia_smi(monkeypatch, CARD)
    for rank in (0, 1):
        pretend_launch(monkeypatch, rank=rank, n=2, local_rank=rank, n_local=2)
        assert choose_device("auto") == torch.device("cpu")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_every_kind_of_card_is_named_once(monkeypatch):
    pretend_nvidia_smi(monkeypatch, "printf 'NVIDIA A100, 550.1\\nNVIDIA A100, 550.1\\nTesla K80, 550.1\\n'")
    assert find_cards() == "NVIDIA A100 and Tesla K80 (driver 550.1)"


@pytest.mark.parametrize("commands", ["echo Driver/library version mismatch; exit 18", "exec sleep 30"])
def test_the_kernel_names_the_driver_where_nvidia_smi_does_not_answer(monkeypatch, tmp_path, commands):
    """It fails where the driver was updated and the machine not started again, and may hang with a broken card."""
    pretend_nvidia_smi(monkeypatch, commands)
    monkeypatch.setattr(devices, "SMI_TIMEOUT_SEC", 0.5)
    monkeypatch.setattr(devices, "DRIVER_FILE", tmp_path / "version")
    assert find_cards() is None
    text = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\nGCC version: 12.3"
    devices.DRIVER_FILE.write_text(text)
    assert find_cards() == "an NVIDIA card (driver 535.104.05)"


@pytest.mark.slow
def test_processes_of_torchrun_plan_and_warn_once(tiny, monkeypatch):
    """As a user starts them, from the flags to the end."""
    pretend_nvidia_smi(monkeypatch, CARD)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "99")  # a GPU that not even a machine with some has
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--"]
    command += [str(ROOT / "generate_datasets.py"), *GENERATE, "--dry_run", "--device", "cuda"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("so its memory is not known") == 1
    assert done.stderr.count(NAMED) == 1
