"""README and the pages behind it, dependency lists and environment, held to the code."""

import ast
import importlib
import importlib.metadata
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import make_model
from packaging.requirements import Requirement

import generate_datasets
import train_sae
from sae_utils.dependencies import SPARSIFY

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [
        *sorted(ROOT.glob("*.md")),
        *sorted((ROOT / "docs").glob("*.md")),
        ROOT / "benchmarks/README.md",
        ROOT / "faults/README.md",
        *sorted((ROOT / "studies").rglob("*.md")),
    ]
}
"""Every page by its path."""

SCRIPTS = {"generate_datasets.py": generate_datasets, "train_sae.py": train_sae}
IMPORT_NAMES = {"eai-sparsify": "sparsify", "pyyaml": "yaml", "scikit-learn": "sklearn"}
STUDY = ROOT / "docs/study.sbatch"


def shell_lines(text: str) -> list[str]:
    """Lines of a page's shell blocks, continued lines joined, comments left out."""
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


def commands_in(text: str) -> list[str]:
    """Every `python <one of our scripts> ...` line among them."""
    return [line for line in shell_lines(text) if re.search(r"\b(generate_datasets|train_sae)\.py\b", line)]


def section_of(text: str, heading: str) -> str:
    """What stands under a heading, up to the next one of the same or a higher rank; comments in blocks are none."""
    parts = re.split(r"(^```.*?^```$)", text, flags=re.DOTALL | re.MULTILINE)  # every second one is a block
    marked = "".join(re.sub("^#", "\0", part, flags=re.MULTILINE) if i % 2 else part for i, part in enumerate(parts))
    _, body = re.split(rf"^{re.escape(heading)}$", marked, flags=re.MULTILINE)
    rank = heading.index(" ")
    return re.split(rf"^#{{1,{rank}}} ", body, flags=re.MULTILINE)[0].replace("\0", "#")


def script_and_flags(command: str) -> tuple[str, list[str]]:
    words = shlex.split(command)
    i = next(i for i, word in enumerate(words) if word in SCRIPTS)
    return words[i], [word for word in words[i + 1 :] if word != "--"]


def flags_of(script: str) -> dict[str, object]:
    """Long flags of a script and their actions."""
    parser = SCRIPTS[script].build_parser()
    return {action.option_strings[-1]: action for action in parser._actions if action.option_strings[-1] != "--help"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_is_in_the_options_with_its_default(script):
    """The tables are what people read before a run of days."""
    section = section_of(PAGES["docs/options.md"], f"## `{script}`")
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


@pytest.mark.parametrize("command", [each for text in PAGES.values() for each in commands_in(text)])
def test_commands_parse(command):
    script, flags = script_and_flags(command)
    SCRIPTS[script].build_parser().parse_args(flags)


def test_pages_have_commands():
    """Or the test above would have nothing to parse."""
    assert {page for page, text in PAGES.items() if commands_in(text)} == {
        "README.md",
        "docs/clusters.md",
        "docs/options.md",
    }


@pytest.mark.slow
def test_readme_examples_run_verbatim():
    """The section "First examples", line by line, where `EleutherAI/pythia-1.4b` is a local folder."""
    for seed, name in enumerate(["pythia-1.4b", "pythia-2.8b"]):
        make_model(Path("EleutherAI") / name, "neox", seed=seed, n_layers=16)
    commands = commands_in(section_of(README, "## First examples"))
    assert len(commands) >= 3
    for command in commands:
        script, flags = script_and_flags(command)
        SCRIPTS[script].main(flags)
    folders = sorted(path.name for path in Path("first/checkpoints").glob("*_seed_*"))
    assert folders == [f"pythia-{size}_from_pythia-1.4b_seed_{seed}" for size in ("1.4b", "2.8b") for seed in (0, 1)]
    assert all((Path("first/checkpoints") / folder / "layers.15" / "sae.safetensors").exists() for folder in folders)


def cut_down(script: str, flags: list[str]) -> list[str]:
    """A command on less of everything: lengths a sixteenth of what is asked for, so that they differ where they did."""
    asked = SCRIPTS[script].build_parser().parse_args(flags)
    if script == "generate_datasets.py":
        n_tokens = min(asked.num_tokens // 20, 3000)
        return [*flags, "--max_length", str(asked.max_length // 16), "--num_tokens", str(n_tokens)]
    n_latents = (asked.num_latents or 40_960) // 64
    return [*flags, "--ctx_len", str(asked.ctx_len // 16), "--num_latents", str(n_latents), "--train_only"]


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def test_the_readme_can_be_typed_from_top_to_bottom():
    """All its commands and code, in order, in one fresh folder: none may refuse what an earlier one has left."""
    for seed, name in enumerate(["pythia-1.4b", "pythia-2.8b"]):
        make_model(Path("EleutherAI") / name, "neox", seed=seed, n_layers=16)
    for command in commands_in(README):
        script, flags = script_and_flags(command)
        SCRIPTS[script].main([*cut_down(script, flags), "--quiet"])
    made = [path.relative_to(".").as_posix() for path in Path().glob("**/*_seed_1/layers.15")]
    of_1, of_2 = (f"checkpoints/pythia-{size}_from_pythia-" for size in ("1.4b", "2.8b"))
    first = [f"first/{each}1.4b_seed_1/layers.15" for each in (of_1, of_2)]
    names = [
        f"{each}{source}{variant}" for each in (of_1, of_2) for source in ("1.4b", "2.8b") for variant in ("", "_k_64")
    ]
    full = [f"{name}_seed_1/layers.15" for name in names]
    assert sorted(made) == sorted(first + full)
    for block in python_blocks(README):
        exec(block, {"activations": torch.ones(3, 16)})


@pytest.mark.slow
def test_full_size_commands_are_planned_as_written():
    """The section "The full run": the models are found and every setting fits; only the work is left out."""
    for name in ("pythia-1.4b", "pythia-2.8b"):
        make_model(Path("EleutherAI") / name, "neox", n_layers=16)
    commands = commands_in(section_of(README, "## The full run"))
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


@pytest.mark.parametrize("page", PAGES)
def test_every_record_that_is_named_is_there(page):
    """A measurement without its record is a claim."""
    start = "`results/" if page == "benchmarks/README.md" else "benchmarks/results/"
    named = re.findall(rf"{start}([\w.]+\.json)", PAGES[page])
    assert named or page not in ("README.md", "docs/options.md", "benchmarks/README.md")
    assert [name for name in named if not (ROOT / "benchmarks/results" / name).exists()] == []


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
        *(
            p
            for d in ("sae_utils", "tests", "demo", "benchmarks", "faults", "studies")
            for p in (ROOT / d).rglob("*.py")
        ),
    ]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(node.module.split(".")[0])
    ours = {"sae_utils"} | {
        path.stem for folder in ("tests", "benchmarks", "faults", "studies") for path in (ROOT / folder).rglob("*.py")
    }
    ours |= {path.stem for path in ROOT.glob("*.py")}
    elsewhere = {"sae_lens", "sae_bench", "transformer_lens"}  # in environments of their own, which benchmarks make
    third_party = imported - set(sys.stdlib_module_names) - ours - elsewhere
    assert third_party <= allowed
    unseen = {"gguf", "ruff", "pytest-xdist"}
    assert allowed - third_party <= unseen, "gguf is loaded by transformers, ruff by make, pytest-xdist by pytest"


def test_file_tree_in_the_readme_is_complete():
    """A newcomer looks there first for where things are; the files of a wing are listed in the wing."""
    tree = section_of(README, "## Files")
    wings = [f"{path.parent.name}/" for path in (ROOT / "sae_utils").rglob("__init__.py")]
    names = [path.name for path in ROOT.glob("*.py")] + wings
    assert [name for name in names if name not in tree] == []


# pages


def test_the_readme_is_read_at_once():
    """What is longer has a page of its own."""
    assert len(README.splitlines()) <= 180


def links_in(page: str) -> list[tuple[str, str]]:
    """Path, from the project's folder, and anchor of every link of a page that stays in the project."""
    targets = re.findall(r"\[[^]]*\]\(([^)\s]+)\)", PAGES[page])
    inside = [target.partition("#") for target in targets if not target.startswith("http")]
    here = (ROOT / page).parent
    return [(os.path.relpath(here / path if path else ROOT / page, ROOT), anchor) for path, _, anchor in inside]


def anchors_of(page: str) -> set[str]:
    """Names under which a page's headings are linked to."""
    text = re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    """To files that are there, and to headings that these have."""
    for path, anchor in links_in(page):
        assert (ROOT / path).exists(), path
        assert not anchor or anchor in anchors_of(path), f"{path}#{anchor}"


def test_every_page_is_reached_from_the_readme():
    """A page that nothing leads to is not read."""
    reached = {"README.md"}
    while new := {path for page in reached & PAGES.keys() for path, _ in links_in(page)} - reached:
        reached |= new
    assert [page for page in PAGES if page not in reached] == []
    assert "docs/study.sbatch" in reached


@pytest.mark.parametrize("page", PAGES)
def test_paths_that_are_named_exist(page):
    """Files move; the pages that name them have to come along."""
    named = re.findall(
        r"(?<![\w/.])(?:sae_utils|tests|benchmarks|faults|studies|docs|demo)/[\w/.-]*(?<=[\w/])", PAGES[page]
    )
    assert [path for path in dict.fromkeys(named) if not (ROOT / path).exists()] == []


def test_the_design_names_every_wing_and_what_they_share():
    """Where a new file goes is asked there."""
    page = PAGES["docs/design.md"]
    wings = {path.parent.name for path in (ROOT / "sae_utils").glob("*/__init__.py")}
    rows = re.findall(r"^\| `sae_utils/(\w+)/` \|", section_of(page, "## Who may know whom"), flags=re.MULTILINE)
    assert sorted(rows) == sorted(wings)
    shared = {path.stem for path in (ROOT / "sae_utils").glob("*.py")} - {"__init__"}
    first = section_of(page, "## Where things are").split("\n\n")[1]
    assert set(re.findall(r"`(\w+)`", first)) == shared


def test_every_benchmark_and_every_record_is_listed():
    """One that is not is not run again."""
    rows = re.findall(r"^\| `(\w+\.py)` \| .* \| (.*) \|$", PAGES["benchmarks/README.md"], flags=re.MULTILINE)
    assert sorted(script for script, _ in rows) == sorted(path.name for path in (ROOT / "benchmarks").glob("*.py"))
    records = {name for _, record in rows for name in re.findall(r"`results/(.*?)`", record)}
    assert records == {path.name for path in (ROOT / "benchmarks/results").glob("*.json")}


@pytest.fixture
def benchmark_page(load_benchmark):
    """`benchmarks/page.py`."""
    return load_benchmark("page")


def test_tables_of_benchmarks_are_made_of_the_records(benchmark_page):
    """One that was changed by hand, or not made again after a new record, says what nobody has measured."""
    for name, table in benchmark_page.tables().items():
        assert benchmark_page.with_table(PAGES["benchmarks/README.md"], name, table) == PAGES["benchmarks/README.md"]


def test_what_a_peer_does_better_stands_out(benchmark_page):
    assert [benchmark_page.times(ratio) for ratio in (0.82, 1.0, 11.36)] == ["**0.82**", "1.0", "11.4"]
    settings = "python benchmarks/x.py --model a/b --top_p 1.0 --early --rounds 2 --contenders ours 'bare passes'"
    assert benchmark_page.settings_of(settings) == "`--top_p 1.0 --early`"


def test_every_file_of_the_faults_is_listed():
    """Whoever adds a fault looks there."""
    rows = re.findall(r"^\| `(\w+\.py)` \|", PAGES["faults/README.md"], flags=re.MULTILINE)
    assert sorted(rows) == sorted(path.name for path in (ROOT / "faults").glob("*.py"))


def tool_commands() -> list[str]:
    """Every command of a benchmark or of the faults, in shell blocks and within lines."""
    inline = [each for text in PAGES.values() for each in re.findall(r"`(python\s+(?:benchmarks|faults)/[^`]*)`", text)]
    lines = [line for text in PAGES.values() for line in shell_lines(text)]
    return inline + [line for line in lines if re.search(r"python (benchmarks|faults)/", line)]


@pytest.mark.parametrize("command", tool_commands())
def test_commands_of_benchmarks_and_faults_parse(command, monkeypatch):
    _, script, *flags = shlex.split(command)
    folder = ROOT / Path(script).parent
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "argv", [script, *flags])
    before = set(sys.modules)
    try:
        importlib.import_module(Path(script).stem).parse_args()
    finally:
        for name in set(sys.modules) & {path.stem for path in folder.glob("*.py")} - before:
            del sys.modules[name]


# citation


def test_the_citation_has_what_its_format_asks_for_and_the_licence():
    """Reference managers read it, and stop at what is missing."""
    citation, licence = yaml.safe_load((ROOT / "CITATION.cff").read_text()), (ROOT / "LICENSE").read_text()
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert (citation["cff-version"], citation["type"], citation["title"]) == ("1.2.0", "software", "ucl-sae")
    assert licence.startswith(f"{citation['license']} License")
    (holder,) = re.findall(r"^Copyright \(c\) \d+ (.*)$", licence, flags=re.MULTILINE)
    assert [author["name"] for author in citation["authors"]] == [holder]
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= reference.keys(), reference
        assert all("name" in author or "family-names" in author for author in reference["authors"])


def test_the_citation_credits_whom_the_readme_credits():
    section = " ".join(section_of(README, "## Credits").split())
    entries = re.findall(r"(?<= )- (.*?)(?= - | The demo's model)", section)
    references = yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"]
    assert len(entries) == len(references)
    for entry, reference in zip(entries, references, strict=True):
        first = reference["authors"][0]
        assert reference["title"].lower() in entry.lower()
        assert first.get("family-names", first.get("name")) in entry
        assert re.findall(r"arXiv:[\d.]+\d", entry) == [each["value"] for each in reference.get("identifiers", [])]


# a whole study


STUDY_ON_CPU = {
    "ORG_NAME": ".",
    "SOURCES": "tiny",
    "TARGETS": "tiny",
    "LAYERS": "0 1",
    "NUM_TOKENS": "1200",
    "MAX_LENGTH": "40",
    "CTX_LEN": "32",
    "GENERATE_FLAGS": "--quiet",
    "TRAIN_FLAGS": "--num_latents 48 --k 4 --quiet --train_only",
    "DEVICE": "cpu",
    "N_PROCESSES": "2",
    "CODE": str(ROOT),
    "TORCHRUN": f"{sys.executable} -m torch.distributed.run",
}


def run_study(**variables: str) -> str:
    """Run `docs/study.sbatch` with these variables and none of Slurm's; what it printed."""
    ours = {name for name, _ in study_defaults()}
    env = {name: value for name, value in os.environ.items() if name not in ours and not name.startswith("SLURM")}
    done = subprocess.run(["bash", str(STUDY)], env=env | variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def study_defaults() -> list[tuple[str, str]]:
    """Variables that it takes from the environment, and what they are if they are not there."""
    return re.findall(r"^([A-Z_]+)=\$\{\1:-(.*?)\}(?=\s|$)", STUDY.read_text(), flags=re.MULTILINE)


def note_calls(*names: str) -> str:
    """PATH on which programs of these names only note down what they are called with, in `calls`."""
    for name in names:
        path = Path("bin") / name
        path.parent.mkdir(exist_ok=True)
        said = "echo first" if name == "scontrol" else f'{{ echo {name}; printf "%s\\n" "$@"; echo; }} >> calls'
        path.write_text(f"#!/bin/sh\n{said}\n")
        path.chmod(0o755)
    return f"{Path('bin').absolute()}{os.pathsep}{os.environ['PATH']}"


def noted_calls() -> list[list[str]]:
    return [call.splitlines() for call in Path("calls").read_text().split("\n\n") if call]


def test_the_study_parses():
    subprocess.run(["bash", "-n", str(STUDY)], check=True)


def test_settings_of_the_study_are_listed_with_their_defaults():
    section = section_of(PAGES["docs/clusters.md"], "## Slurm")
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| (.*?) \|", section, flags=re.MULTILINE))
    defaults = dict(study_defaults())
    assert set(rows) == set(defaults)
    for name, default in defaults.items():
        if "$" not in default:  # those are described in words
            assert rows[name] == (default or "none"), name


def test_the_study_is_the_full_run_unless_told_otherwise():
    """One torchrun for each of the two commands of the README, with the same settings."""
    run_study(PATH=note_calls("torchrun"))
    commands = commands_in(section_of(README, "## The full run"))[1:3]  # a dry run before, how a study grows behind
    for call, command in zip(noted_calls(), commands, strict=True):
        assert call[:5] == ["torchrun", "--standalone", "--nproc_per_node", "1", "--"]
        script, flags = script_and_flags(command)
        parser = SCRIPTS[script].build_parser()
        assert call[5] == f"./{script}"
        assert parser.parse_args(call[6:]) == parser.parse_args(flags)


def test_in_a_job_the_study_is_a_torchrun_on_every_machine():
    """As far as that can be seen without Slurm: what srun would be given, and that torchrun reads it."""
    from torch.distributed.run import get_args_parser

    slurm = {
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_NUM_NODES": "3",
        "SLURM_GPUS_ON_NODE": "4",
        "SLURM_JOB_NODELIST": "n[1-3]",
    }
    run_study(PATH=note_calls("srun", "scontrol"), **slurm)
    for call, script in zip(noted_calls(), SCRIPTS, strict=True):
        assert call[:3] == ["srun", "--ntasks-per-node=1", "torchrun"]
        asked = get_args_parser().parse_args(call[3:])
        assert (asked.nnodes, asked.nproc_per_node, asked.rdzv_id) == ("3", "4", "77")
        assert (asked.rdzv_backend, asked.rdzv_endpoint) == ("c10d", "first:29500")
        words = [asked.training_script, *asked.training_script_args]
        flags = words[words.index(f"./{script}") + 1 :]
        args = SCRIPTS[script].build_parser().parse_args(flags)
    assert args.batch_size == 12, "a sequence for each process"


@pytest.mark.slow
def test_the_study_runs_on_one_machine(tiny):
    """Two processes from a model to SAEs; given again, it finds everything done."""
    run_study(**STUDY_ON_CPU)
    record = json.loads(Path("datasets/tiny_4_1.0_0.9/generation.json").read_text())
    assert record["n_tokens"] == 1200
    for seed in (0, 1):
        folder = Path(f"checkpoints/tiny_from_tiny_seed_{seed}")
        assert all((folder / f"layers.{layer}" / "sae.safetensors").exists() for layer in (0, 1))
        assert json.loads((folder / "run.json").read_text())["n_processes"] == 2
