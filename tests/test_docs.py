"""README, dependency lists and environment held to the code."""

import ast
import importlib.metadata
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from conftest import make_model
from packaging.requirements import Requirement

import generate_datasets
import train_sae
from sae_utils.dependencies import SPARSIFY

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPTS = {"generate_datasets.py": generate_datasets, "train_sae.py": train_sae}
IMPORT_NAMES = {"eai-sparsify": "sparsify", "pyyaml": "yaml"}


def readme_commands() -> list[str]:
    """Every `python <one of our scripts> ...` line in the README's shell blocks, continued lines joined."""
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if re.search(r"\b(generate_datasets|train_sae)\.py\b", line)]


def script_and_flags(command: str) -> tuple[str, list[str]]:
    words = shlex.split(command)
    i = next(i for i, word in enumerate(words) if word in SCRIPTS)
    return words[i], [word for word in words[i + 1 :] if word != "--"]


def flags_of(script: str) -> dict[str, object]:
    """Long flags of a script and their actions."""
    parser = SCRIPTS[script].build_parser()
    return {action.option_strings[-1]: action for action in parser._actions if action.option_strings[-1] != "--help"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_is_in_the_readme_with_its_default(script):
    """The tables are what people read before a run of days."""
    section = README.split(f"### `{script}`")[1].split("\n### ")[0].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `(--\w+)` \| ([^|]+?) \|", section, flags=re.MULTILINE))
    actions = flags_of(script)
    assert set(rows) == set(actions)
    for flag, action in actions.items():
        assert action.help, f"{flag} has no help"
        default = action.default
        if default is None or default is False or default == []:
            continue  # described in words
        shown = " ".join(map(str, default)) if isinstance(default, list) else str(default)
        assert rows[flag].strip("`").replace(",", "") == shown, flag


DOCUMENTED_DEFAULTS = {
    "generate_datasets.py": "models=EleutherAI/pythia-1.4b seed=42 temperature=1.0 top_p=0.9 n=400000 max_length=1024 "
    "output_dir=datasets num_tokens=None batch_size=None device=auto dtype=auto overwrite=False dry_run=False",
    "train_sae.py": "org_name=EleutherAI target_models=pythia-1.4b,pythia-2.8b source_models=pythia-1.4b "
    "dataset_seed=4 dataset_temperature=1.0 dataset_top_p=0.9 num_seeds=2 layers=7,15 project_name=sae-training "
    "batch_size=2 datasets_dir=datasets checkpoint_dir=checkpoints results_dir=results ctx_len=2048 max_tokens=None "
    "eval_tokens=None k=32 expansion_factor=None num_latents=None save_every=1000 wandb_mode=auto shuffle_seed=42 "
    "text_datasets= "
    "lr=None optimizer=signum grad_acc_steps=1 micro_acc_steps=1 device=auto dtype=auto overwrite=False dry_run=False",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_documented_flags_keep_their_defaults(script, monkeypatch):
    """People's scripts rely on them: a promise, so the literals stand here and not in the code under test."""
    args = vars(SCRIPTS[script].build_parser().parse_args([]))
    for pair in DOCUMENTED_DEFAULTS[script].split():
        name, default = pair.split("=")
        value = args[name]
        assert (",".join(map(str, value)) if isinstance(value, list) else str(value)) == default, name


@pytest.mark.parametrize("command", readme_commands())
def test_readme_commands_parse(command):
    script, flags = script_and_flags(command)
    SCRIPTS[script].build_parser().parse_args(flags)


@pytest.mark.slow
def test_readme_examples_run_verbatim():
    """The section "First examples", line by line, where `EleutherAI/pythia-1.4b` is a local folder."""
    for seed, name in enumerate(["pythia-1.4b", "pythia-2.8b"]):
        make_model(Path("EleutherAI") / name, "neox", seed=seed, n_layers=16)
    section = README.split("## First examples")[1].split("\n## ")[0]
    commands = [command for command in readme_commands() if command in section.replace("\\\n", " ")]
    assert len(commands) >= 3
    for command in commands:
        script, flags = script_and_flags(command)
        SCRIPTS[script].main(flags)
    folders = sorted(path.name for path in Path("checkpoints").glob("*_seed_*"))
    assert folders == [f"pythia-{size}_from_pythia-1.4b_seed_{seed}" for size in ("1.4b", "2.8b") for seed in (0, 1)]
    assert all((Path("checkpoints") / folder / "layers.15" / "sae.safetensors").exists() for folder in folders)


@pytest.mark.slow
def test_full_size_commands_are_planned_as_written():
    """The section "The full run": the models are found and every setting fits; only the work is left out."""
    for name in ("pythia-1.4b", "pythia-2.8b"):
        make_model(Path("EleutherAI") / name, "neox", n_layers=16)
    section = README.split("## The full run")[1].split("\n## ")[0].replace("\\\n", " ")
    commands = [command for command in readme_commands() if command in section]
    generation = [command for command in commands if "generate_datasets.py" in command]
    assert generation
    for command in generation:
        generate_datasets.main([*script_and_flags(command)[1], "--dry_run"])


def test_public_ci_runs_the_two_commands_on_the_supported_pythons():
    """What the README promises a newcomer is what is tried on machines that are nobody's."""
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
    (job,) = workflow["jobs"].values()
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert sorted(commands) == sorted(re.findall(r"^\| `(make \w+)` \|", README, flags=re.MULTILINE))
    assert set(job["env"]) == {"TORCH_INDEX_URL"}
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]) for step in job["steps"] if "uses" in step)
    matrix = job["strategy"]["matrix"]
    assert {system.split("-")[0] for system in matrix["system"]} == {"ubuntu", "macos"}
    supported = int(re.search(r'target-version = "py3(\d+)"', (ROOT / "pyproject.toml").read_text())[1])
    assert matrix["python"] == [f"3.{supported + i}" for i in range(len(matrix["python"]))]
    assert all(f"TORCH_INDEX_URL={url}`" in README for url in matrix["torch_index_url"])
    ordinary = {"system": "ubuntu-latest", "python": f"3.{supported}", "torch_index_url": ""}
    assert matrix["include"] == [ordinary], "one of them with PyTorch's ordinary build, as most users have it"


# dependencies


def requirements() -> list[str]:
    """Names in requirements.txt."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [Requirement(line.split("#")[0]).name for line in lines if line.split("#")[0].strip()]


def constraints() -> dict[str, str]:
    """Pins in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.lower().split("==") for line in lines if line and not line.startswith("#"))


def test_every_requirement_is_pinned_and_has_a_reason():
    assert set(requirements()) <= set(constraints())
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.search(r"\s# \w", line) for line in lines)


def test_triton_is_pinned_as_pytorch_asks_for_it():
    """The CPU build does not ask: there, continuous integration installs the pinned one beside it."""
    asked = [line.split(";")[0].strip() for line in importlib.metadata.requires("torch") if line.startswith("triton")]
    assert {f"triton=={constraints()['triton']}"} >= set(asked)


def test_every_record_that_the_readme_names_is_there():
    """A measurement without its record is a claim."""
    named = re.findall(r"benchmarks/results/[\w.]+\.json", README)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_sparsify_is_bound_to_the_versions_that_are_leaned_on():
    """In the list that pip reads and in the check at the start; the tested version is one of them."""
    assert SPARSIFY in (ROOT / "requirements.txt").read_text()
    assert Requirement(SPARSIFY).specifier.contains(constraints()["eai-sparsify"])


def test_conda_takes_the_same_lists_and_the_tested_python():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert environment["name"] == "ucl-sae"
    assert pip == ["-r requirements.txt", "-c constraints.txt"]
    (python,) = [entry for entry in environment["dependencies"] if str(entry).startswith("python=")]
    supported = re.search(r'target-version = "py3(\d+)"', (ROOT / "pyproject.toml").read_text())[1]
    assert python == f"python=3.{supported}"
    others = [entry for entry in environment["dependencies"] if isinstance(entry, str) and entry != python]
    assert others == ["pip", "c-compiler"], "the first lines of the file say what comes from conda-forge"
    assert f"Python >= 3.{supported}" in (ROOT / "Makefile").read_text()
    assert f"Python >= 3.{supported}" in README


def test_nothing_is_imported_that_is_not_required_and_nothing_required_for_nothing():
    allowed = {IMPORT_NAMES.get(name, name) for name in requirements()}
    imported = set()
    for path in [
        *ROOT.glob("*.py"),
        *(p for d in ("sae_utils", "tests", "demo", "benchmarks") for p in (ROOT / d).rglob("*.py")),
    ]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(node.module.split(".")[0])
    ours = {"sae_utils"} | {path.stem for folder in ("tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")}
    ours |= {path.stem for path in ROOT.glob("*.py")}
    elsewhere = {"sae_lens"}  # has an environment of its own, which its benchmarks make
    third_party = imported - set(sys.stdlib_module_names) - ours - elsewhere
    assert third_party <= allowed
    assert allowed - third_party <= {"gguf", "ruff"}, "gguf is loaded by transformers, ruff by make"


def test_file_tree_in_the_readme_is_complete():
    """A newcomer looks there first for where things are; the files of a wing are listed in the wing."""
    tree = README.split("## Files")[1].split("\n## ")[0]
    wings = [f"{path.parent.name}/" for path in (ROOT / "sae_utils").rglob("__init__.py")]
    names = [path.name for path in ROOT.glob("*.py")] + wings
    assert [name for name in names if name not in tree] == []
