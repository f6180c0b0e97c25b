"""Small random models and tokenizers, made here, so that every test runs offline on a CPU in seconds."""

import contextlib
import importlib
import itertools
import os
import re
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read by huggingface_hub on import: without it, a missing model is retried

import pytest
import torch
from hub_server import TOKEN, Hub, running
from huggingface_hub import constants
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, PreTrainedTokenizerFast

from sae_utils.files import read_record, write_record
from sae_utils.generation.packed_attention import use_packed_attention_
from sae_utils.models import LoadedModel, load_causal_lm

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
torch.set_num_threads(1)  # these models are too small for two threads to do anything but wait for each other
if sys.platform == "darwin":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0")  # a Mac's own name often leads to no address

HIDDEN_GPUS = "a plain run sees no GPU; run them with `pytest -m gpu`"
NO_GPUS = "PyTorch sees no CUDA GPU"

CORPUS = [
    "the quick brown fox jumps over the lazy dog and runs away into the deep dark forest",
    "a sparse autoencoder writes an activation as a sum of few directions from a large dictionary",
    "she sells sea shells by the sea shore, and the shells she sells are sea shells for sure",
    "numbers must be right: 0 1 2 3 4 5 6 7 8 9, and the second run gives what the first one gave",
]


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs from the tests and all that they start, before anything has looked for one, and let signals through.

    Test modules look for GPUs while they are imported (sparsify asks for bfloat16), which comes after this. What is
    started in the background, or by nohup, ignores SIGINT or SIGHUP, and so would all processes that tests send them.
    """
    for signum, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(signum) == signal.SIG_IGN:
            signal.signal(signum, handler)
    if not selects_gpu_tests_only(config.option.markexpr):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def selects_gpu_tests_only(marks: str) -> bool:
    """Whether `pytest -m marks` leaves out every test that is not marked `gpu`, however it is marked otherwise."""
    names = sorted(set(re.findall(r"\w+", marks)) - {"and", "or", "not", "gpu"})
    choices = (dict(zip(names, chosen, strict=True)) for chosen in itertools.product([False, True], repeat=len(names)))
    return marks != "" and not any(eval(marks, {"gpu": False, **choice}) for choice in choices)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the tests of a GPU where they can see none."""
    is_seen = selects_gpu_tests_only(config.option.markexpr)
    for item in items:
        if item.get_closest_marker("gpu") and not (is_seen and torch.cuda.is_available()):
            item.add_marker(pytest.mark.skip(reason=NO_GPUS if is_seen else HIDDEN_GPUS))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was skipped and why: one dot more or less is seen by nobody."""
    skipped = terminalreporter.stats.get("skipped", [])
    for reason, n in Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped).most_common():
        terminalreporter.write_line(f"SKIPPED {n} test{'s' * (n > 1)}: {reason}", yellow=True, bold=True)


def train_tokenizer(*, bos: str | None, eos: str | None, vocab_size: int = 320) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on a few sentences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = list(dict.fromkeys(token for token in ("<|endoftext|>", bos, eos) if token))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos)


def neox_config(vocab_size: int, *, n_layers: int = 2, d_model: int = 16) -> GPTNeoXConfig:
    """Pythia's architecture, small."""
    return GPTNeoXConfig(
        vocab_size=vocab_size,
        hidden_size=d_model,
        num_hidden_layers=n_layers,
        num_attention_heads=2,
        intermediate_size=4 * d_model,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.6,  # wide, so that next-token distributions are far from uniform
    )


def llama_config(vocab_size: int, *, n_layers: int = 2, d_model: int = 16) -> LlamaConfig:
    """Llama's architecture, small, with grouped queries."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=d_model,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=4 * d_model,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.6,
    )


def gpt2_config(vocab_size: int, *, n_layers: int = 2, d_model: int = 16) -> GPT2Config:
    """GPT-2's architecture, small."""
    return GPT2Config(
        vocab_size=vocab_size,
        n_embd=d_model,
        n_layer=n_layers,
        n_head=2,
        n_positions=2048,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.6,
    )


CONFIGS = {"neox": neox_config, "llama": llama_config, "gpt2": gpt2_config}


def make_model(folder: Path, kind: str = "neox", *, seed: int = 0, **shape: int) -> Path:
    """Save a random model with a tokenizer, as a user would have it on disk."""
    if kind == "llama":
        tokenizer = train_tokenizer(bos="<s>", eos="</s>", vocab_size=300)
    else:
        # GPT-2 knows EOS only; GPT-NeoX calls the same token BOS as well.
        tokenizer = train_tokenizer(bos="<|endoftext|>" if kind == "neox" else None, eos="<|endoftext|>")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(CONFIGS[kind](len(tokenizer), **shape))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def load(folder: Path, dtype: torch.dtype = torch.float32) -> LoadedModel:
    """Load a saved model for sampling on the CPU.

    In float64 two ways to compute the same differ too little to part two samples; in float32 they may, at a token that
    stands at the edge of the nucleus, on one processor and not on another.
    """
    source = load_causal_lm(str(folder), torch.device("cpu"), dtype)
    use_packed_attention_(source.model)
    return source


def edit_record(path: Path, **changes: object) -> None:
    """Change fields of a record, with its checksum, as if they had always been so."""
    write_record(path, read_record(path, "") | changes)


def run_killed(main: Callable, argv: list[str], moment: int) -> bool:
    """Run a script in a process that gets SIGKILL at its `moment`-th durable write; whether it was killed.

    Moments are counted in calls of `os.fsync`, `os.replace` and `os.rename`, of ours and of libraries, and the kill
    comes before the call is carried out: these are the points at which files on disk are half way.
    """
    process = get_context("fork").Process(target=_run_until, args=(main, argv, moment))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def _run_until(main: Callable, argv: list[str], moment: int) -> None:
    n_calls = 0

    def deadly(call: Callable) -> Callable:
        def counted(*args, **kwargs):
            nonlocal n_calls
            n_calls += 1
            if n_calls == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return counted

    for name in ("fsync", "replace", "rename"):
        setattr(os, name, deadly(getattr(os, name)))
    main(argv)


def pretend_gpus(monkeypatch, n_gpus: int, *, fails_with: str | None = None) -> list[torch.device]:
    """Let PyTorch see this many GPUs; the list fills with those that are made current.

    A first computation on one of them ends with the error `fails_with`, if that is given.
    """
    current: list[torch.device] = []
    zeros = torch.zeros

    def zeros_on_gpu(*shape, device=None, **options):
        if device is None or torch.device(device).type == "cpu":
            return zeros(*shape, device=device, **options)
        if fails_with:
            raise RuntimeError(fails_with)
        return zeros(*shape, **options)

    monkeypatch.setattr(torch, "zeros", zeros_on_gpu)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    return current


def pretend_nvidia_smi(monkeypatch, commands: str) -> None:
    """Put an `nvidia-smi` on PATH that runs these shell commands; the cards are not hidden from PyTorch."""
    path = Path("bin/nvidia-smi").absolute()
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\n{commands}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(path.parent), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def pretend_launch(monkeypatch, *, rank: int = 0, n: int = 1, local_rank: int = 0, n_local: int = 1) -> None:
    """Set what torchrun tells a process; whoever joins the others then fails for want of their address."""
    values = {"RANK": rank, "WORLD_SIZE": n, "LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": n_local}
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """No test reaches a hub or an account, and none writes outside its own folder."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb_data"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[Hub]:
    """An empty hub on this machine, at which this process is logged in."""
    with running(Hub({}, tmp_path / "hub")) as hub:
        read_on_import = {
            "ENDPOINT": hub.address,
            "HUGGINGFACE_CO_URL_TEMPLATE": constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(
                constants.ENDPOINT, hub.address
            ),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
        }
        for name, value in read_on_import.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture(scope="session")
def neox(tmp_path_factory) -> Path:
    """A Pythia-shaped model of 2 layers."""
    return make_model(tmp_path_factory.mktemp("models") / "tiny-neox", "neox")


@pytest.fixture(scope="session")
def llama(tmp_path_factory) -> Path:
    """A Llama-shaped model of 2 layers, with another tokenizer."""
    return make_model(tmp_path_factory.mktemp("models") / "tiny-llama", "llama")


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory) -> Path:
    """A GPT-2-shaped model of 2 layers whose tokenizer has no BOS."""
    return make_model(tmp_path_factory.mktemp("models") / "tiny-gpt2", "gpt2")


@pytest.fixture
def tiny(tmp_path, neox) -> Path:
    """A model folder `tiny` in the working folder."""
    Path("tiny").symlink_to(neox)
    return Path("tiny")


@pytest.fixture(scope="session")
def trained_grid(tmp_path_factory, neox, llama) -> Path:
    """Models, data sets, SAEs and results, made once; only copies of them are changed."""
    from grid_files import COMPARE, SOURCES
    from test_cli import TRAIN

    import generate_datasets
    import train_sae

    folder = tmp_path_factory.mktemp("grid")
    with contextlib.chdir(folder):
        shutil.copytree(neox, "tiny")
        shutil.copytree(llama, "other")
        generate = "--models ./tiny ./other --num_tokens 2500 --max_length 40 --quiet"
        generate_datasets.main(generate.split())
        train_sae.main([*TRAIN, *COMPARE, "--source_models", *SOURCES, "--num_seeds", "3"])
    return folder


@pytest.fixture
def grid(trained_grid, tmp_path) -> Path:
    """A copy of them in the working folder."""
    shutil.copytree(trained_grid, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def load_benchmark(monkeypatch):
    """Imports a script of the benchmarks by its name, for one test: others have files of the same names."""
    folder = Path(__file__).resolve().parent.parent / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) & {path.stem for path in folder.glob("*.py")} - before:
        del sys.modules[name]
