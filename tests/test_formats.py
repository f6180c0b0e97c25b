"""docs/formats.md and docs/metrics.md held to what both scripts write, on small models: files, fields and types."""

import contextlib
import csv
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_model
from datasets import Dataset
from safetensors.numpy import load_file
from test_cli import TRAIN

import generate_datasets
import train_sae
from sae_utils.report.feature_files import CALL, feature_files
from sae_utils.report.page import write_report
from sae_utils.training.wandb_login import stop_service

ROOT = Path(__file__).resolve().parent.parent
FORMATS = (ROOT / "docs/formats.md").read_text(encoding="utf-8")
METRICS = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")

PLACEHOLDERS = {
    "seed": r"\d+",
    "seed_b": r"\d+",
    "layer": r"\d+",
    "file": r"[\w./-]+",
    "module": r"layers\.\d+",
    "package": r"[a-z-]+",
    "quantile": r"0\.\d+",
    "threshold": r"0\.\d",
    "n": r"\d",
    "times": r"\d+",
    "rate": r"never|0|0\.\d+|1e-05",
    "source": r"tiny|corpus",
    "n_rows": r"\d+",
    "representation": r"[a-z_]+\d*",
}
"""What stands for `<...>` in a field's name."""

SEED_DIR, LAYER_DIR = "checkpoints/tiny_from_tiny_seed_0", "checkpoints/tiny_from_tiny_seed_0/layers.0"
UNFINISHED = "killed/tiny_from_tiny.unfinished"
PASS = f"{UNFINISHED}/layers_0_1_seeds_0_1"
DATASET, GROWING = "datasets/tiny_42_1.0_0.9", "growing/tiny_42_1.0_0.9.unfinished"
ON_A_GPU = "on a GPU only"


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """A finished study of a model's own text and a corpus, and beside it a data set and a cell that were killed."""
    folder = tmp_path_factory.mktemp("study")
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        patch.setenv("WANDB_DATA_DIR", str(folder / "wandb_data"))
        make_model(Path("tiny"), "neox")
        Path("corpus.txt").write_text("\n".join(f"the quick brown fox number {i} jumps over it" for i in range(400)))
        sample = ["--models", "./tiny", "--max_length", "40", "--quiet"]
        generate_datasets.main([*sample, "--num_tokens", "2505"])  # in the middle of a sample
        compare = ["--random_tokens", "500", "--export", "saelens", "--text_datasets", "corpus.txt", "--num_seeds", "3"]
        Path("topics.csv").write_text("text,label\n" + "".join(f"the fox number {i},{i % 3}\n" for i in range(30)))
        compare += ["--probe_datasets", "topics.csv"]
        train_sae.main([*TRAIN, *compare])
        train_sae.main([*TRAIN, *compare, "--eval_only", "--wandb_mode", "offline"])
        stop_service()
        write_report(Path(shutil.copytree("results", "large")), max_bytes=1)
        kill_after(
            "samples_*", generate_datasets.main, [*sample, "--n", "40", "--batch_size", "8", "--output_dir", "growing"]
        )
        train = [*TRAIN, "--train_only", "--save_every", "5", "--checkpoint_dir", "killed"]
        kill_after("records.json", train_sae.main, train)
        for layers in (["1"], ["0", "1"]):
            grow = [
                "--train_only",
                "--num_seeds",
                "1",
                "--checkpoint_dir",
                "grown",
                "--keep_state",
                "--layers",
                *layers,
            ]
            train_sae.main([*TRAIN, *grow])
    return folder


@pytest.fixture(autouse=True)
def within(study, monkeypatch) -> None:
    """The study is the working folder."""
    monkeypatch.chdir(study)


def kill_after(pattern: str, main: Callable, argv: list[str]) -> None:
    """Run a script in a process that gets SIGKILL as soon as a file of this name is in its place."""

    def deadly(before: Any, after: Any) -> None:
        rename(before, after)
        if fnmatch(Path(after).name, pattern):
            os.kill(os.getpid(), signal.SIGKILL)

    def run() -> None:
        os.replace = deadly
        main(argv)

    rename = os.replace
    process = get_context("fork").Process(target=run)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "killed too late"


# the page


def section(heading: str, text: str = FORMATS) -> str:
    """What stands below a heading, up to the next one."""
    _, body = re.split(rf"^#+ {re.escape(heading)}$", text, flags=re.MULTILINE)
    return re.split(r"^#+ ", body, flags=re.MULTILINE)[0]


def tables(text: str) -> list[list[dict[str, str]]]:
    """The tables of a text: a dict per row, by column."""
    found = []
    for lines in re.findall(r"((?:^\|.*\n)+)", text, flags=re.MULTILINE):
        head, _, *rows = ([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines.splitlines())
        found.append([dict(zip(head, row, strict=True)) for row in rows])
    return found


def documented(heading: str, number: int = 0, *, without: str = ON_A_GPU) -> dict[str, str]:
    """Types of the fields or arrays in a section's table, by name."""
    rows = [list(row.values()) for row in tables(section(heading))[number]]
    return {row[0].strip("`"): row[1] for row in rows if without not in row[-1]}


def as_pattern(name: str) -> str:
    """A regular expression for a name with placeholders."""
    parts = re.split(r"<(\w+)>", name)
    return "".join(f"(?:{PLACEHOLDERS[part]})" if i % 2 else re.escape(part) for i, part in enumerate(parts))


def fits(value: Any, kind: str) -> bool:
    """Whether a JSON value is of a type as the page spells it."""
    items = kind.removesuffix(" or null").partition("list of ")[2]
    if items and value is None:
        return kind.endswith(" or null")
    if items:
        return isinstance(value, list) and all(fits(each, items.removesuffix("s")) for each in value)
    kinds = {
        "string": str,
        "integer": int,
        "number": int | float,
        "boolean": bool,
        "null": type(None),
        "object": dict,
        "list": list,
    }
    allowed = [kinds[each] for each in kind.split(" or ")]
    return any(isinstance(value, each) for each in allowed) and (not isinstance(value, bool) or bool in allowed)


def fields_of(record: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every field inside a record, with its path: objects, what is in them, and what is in lists of objects."""
    if path:
        yield path, record
    if isinstance(record, dict):
        for name, value in record.items():
            yield from fields_of(value, (*path, name))
    elif isinstance(record, list) and path:
        for each in record:
            if isinstance(each, dict):
                for name, value in each.items():
                    yield from fields_of(value, (*path[:-1], path[-1] + "[]", name))


def compare_fields(record: Any, types: dict[str, str]) -> None:
    """Each field is documented once and of its type, and each that is documented is there."""
    patterns = {tuple(name.split(".")): kind for name, kind in types.items()}
    regexes = {path: [re.compile(as_pattern(part)) for part in path] for path in patterns}
    seen = set()
    for path, value in fields_of(record):
        (*matching,) = (
            each
            for each, parts in regexes.items()
            if len(parts) == len(path) and all(p.fullmatch(word) for p, word in zip(parts, path, strict=True))
        )
        is_inside = any(len(parts) > len(path) and leads_to(parts, path) for parts in regexes.values())
        assert matching or (isinstance(value, dict | list) and is_inside), f"{'.'.join(path)} is not documented"
        for each in matching:
            seen.add(each)
            assert fits(value, patterns[each]), f"{'.'.join(path)} is {value!r} and not {patterns[each]}"
    assert {".".join(each) for each in patterns} - {".".join(each) for each in seen} == set(), "nowhere written"


def leads_to(parts: list[re.Pattern], path: tuple[str, ...]) -> bool:
    """Whether a field is an object, or a list of them, that a documented field lies in."""
    heads = [part.pattern.removesuffix(r"\[\]") if i == len(path) - 1 else part.pattern for i, part in enumerate(parts)]
    return all(re.fullmatch(head, word) for head, word in zip(heads, path, strict=False))


def compare_arrays(arrays: dict[str, np.ndarray], types: dict[str, str]) -> None:
    """Names, number formats and numbers of axes of arrays are those of the page."""
    found = {}
    for name, array in arrays.items():
        (matching,) = (each for each in types if re.fullmatch(as_pattern(each), name))
        found[matching] = f"{'text' if array.dtype.kind == 'U' else array.dtype} {array.ndim}"
    spelled = {name: re.fullmatch(r"(\w+) `\((.*)\)`", kind).groups() for name, kind in types.items()}
    axes = {name: len([axis for axis in shape.split(",") if axis]) for name, (_, shape) in spelled.items()}
    assert found == {name: f"{dtype} {axes[name]}" for name, (dtype, _) in spelled.items()}


def read(path: str) -> Any:
    return json.loads(Path(path).read_text())


# files


def file_patterns() -> dict[str, str]:
    """When each file of the list is there, by its pattern."""
    return {row["file"].strip("`"): row["when"] for row in tables(section("Files"))[0]}


def all_files() -> set[str]:
    """Every file of the study under the name that it has in the page's folders."""
    named = {"growing": "datasets", "killed": "checkpoints", "grown": "checkpoints", "large": "results"}
    folders = ["datasets", "checkpoints", "results", *named]
    paths = [path for folder in folders for path in Path(folder).rglob("*") if path.is_file()]
    return {"/".join([named.get(path.parts[0], path.parts[0]), *path.parts[1:]]) for path in paths}


def matches(file: str, pattern: str) -> bool:
    """`<...>` stands for a part of a name, `**` for anything below."""
    parts = re.split(r"(<[^>]+>|\*\*)", pattern)
    regex = "".join(".*" if part == "**" else r"[^/]+" if part.startswith("<") else re.escape(part) for part in parts)
    return re.fullmatch(regex, file) is not None


def test_every_file_is_listed():
    """A file that nobody explains is kept for ever, or deleted at the wrong moment."""
    patterns = file_patterns()
    assert sorted(file for file in all_files() if not any(matches(file, each) for each in patterns)) == []


def test_every_file_that_is_listed_is_written():
    files, patterns = all_files(), file_patterns()
    missing = {pattern for pattern in patterns if not any(matches(file, pattern) for file in files)}
    assert missing <= {pattern for pattern, when in patterns.items() if when == "running"}
    others = {"unfinished", "running", "text corpus", "layers added later", "`--keep_state`", "`--export saelens`"}
    others |= {"large results"}
    assert set(patterns.values()) == {"always", "W&B"} | others


def test_nothing_is_left_of_a_lock_when_nothing_is_running():
    """Empty files beside the data sets are taken for something."""
    assert [
        path for folder in ("datasets", "checkpoints") for path in Path(folder).glob("**/*.lock") if is_ours(path)
    ] == []


def is_ours(path: Path) -> bool:
    """Whether a file is not in the folder where `datasets` keeps what it makes of texts."""
    return ".packed" not in path.parts


def test_figures_are_those_that_are_listed():
    (row,) = (row for row in tables(section("Files"))[1] if row["placeholder"] == "`<figure>`")
    names = re.findall(r"`(\w+)`", row["what it is"])
    of_settings = {"agreement_over_tokens", "quality_over_l0"}  # of SAEs that this study lacks
    assert {path.stem for path in Path("results/figures").iterdir()} == set(names) - of_settings


# fields


@pytest.mark.parametrize(
    ("path", "heading"),
    [
        (f"{DATASET}/generation.json", "`generation.json`"),
        (f"{LAYER_DIR}/cfg.json", "`cfg.json`"),
        (f"{SEED_DIR}/config.json", "`config.json`"),
        (f"{SEED_DIR}/run.json", "`run.json`"),
        ("grown/tiny_from_tiny_seed_0/run_layers.0.json", "`run.json`"),
        (f"{SEED_DIR}/wandb.json", "`wandb.json`"),
        (f"{UNFINISHED}/wandb.json", "`wandb.json`"),
        (f"{UNFINISHED}/settings.json", "While a cell is trained"),
        ("checkpoints/saelens/tiny_from_tiny_seed_0/layers.0/cfg.json", "`saelens`"),
        ("results/metrics.json", "`metrics.json`"),
        ("results/report.json", "`report.json`"),
        ("results/wandb_runs/tiny/wandb.json", "`wandb_runs/<target>/wandb.json`"),
        ("results/details/tiny_from_tiny_layers.0.features.json", "`<cell>_layers.<layer>.features.json`"),
    ],
)
def test_fields_are_those_that_are_documented(path, heading):
    """Readers of the files have nothing else to go by."""
    compare_fields(read(path), documented(heading))


def test_fields_of_features_beside_the_page():
    paths = feature_files(Path("large"))
    assert len(paths) == 2 * 2 * 3, "layers, sources, seeds"
    for path in paths:
        call = path.read_text(encoding="ascii").removeprefix(CALL).removesuffix(");\n")
        name, data = json.loads(f"[{call}]")
        assert name == f"features/{path.name}"
        compare_fields(data, documented("`features/<cell>_seed_<seed>_layers.<layer>.<checksum>.js`"))


@pytest.mark.parametrize(("folder", "number"), [("checkpoints", 0), ("datasets", 1), ("results", 2)])
def test_fields_of_rates(folder, number):
    compare_fields(read(f"{folder}/.rates.json"), documented("Rates", number))


def test_fields_of_a_checkpoint():
    compare_fields(read(f"{PASS}/state.json"), documented("While a cell is trained", 1))
    (path,) = Path(PASS).glob("state_*_0.pt")
    keys = [row["key"].strip("`") for row in tables(section("While a cell is trained"))[2]]
    assert list(torch.load(path, weights_only=True)) == keys
    records = {name: kind for name, kind in documented("`run.json`").items() if name.startswith("saes[]")}
    stored = read(f"{PASS}/records.json")
    compare_fields({"saes": stored["saes"]}, records)
    assert list(stored["checksums"]) == ["metrics.jsonl"]


@pytest.mark.parametrize("folder", [SEED_DIR, "checkpoints/tiny_from_tiny_seed_1", PASS])
def test_lines_of_losses(folder):
    types = documented("`metrics.jsonl`")
    seen = set()
    for line in Path(folder, "metrics.jsonl").read_text().splitlines():
        for name, value in json.loads(line).items():
            (matching,) = (each for each in types if re.fullmatch(as_pattern(each), name))
            assert fits(value, types[matching])
            seen.add(name)
    n_saes = 4 if folder == PASS else 2
    assert len(seen) == 1 + 2 * n_saes


def test_fields_that_only_a_gpu_leaves_are_in_the_code():
    """No test without one can see them written."""
    names = set(documented("`generation.json`", without="nothing")) - set(documented("`generation.json`"))
    assert names == {"device_name", "batches"}
    code = "".join(path.read_text() for path in (ROOT / "sae_utils/generation").glob("*.py"))
    assert all(f'"{name}"' in code for name in names)


def test_what_a_growing_data_set_was_begun_with():
    """The same fields as in the record of the finished one."""
    assert read(f"{GROWING}/settings.json")["settings"].keys() == read(f"{DATASET}/generation.json")["settings"].keys()
    assert read(f"{GROWING}/batches.json")["batches"] == [[8, False]]


@pytest.mark.parametrize(
    ("pattern", "heading"),
    [(f"{DATASET}/data-*.arrow", "`data-<i>-of-<n>.arrow`"), (f"{GROWING}/samples_*.arrow", "While it grows")],
)
def test_columns_are_those_that_are_documented(pattern, heading):
    (path,) = Path().glob(pattern)
    features = Dataset.from_file(str(path)).features
    kinds = {
        name: f"list of {each.feature.dtype}" if hasattr(each, "feature") else each.dtype
        for name, each in features.items()
    }
    assert kinds == documented(heading)


def test_the_beginning_of_a_corpus():
    """What `datasets` says of a place is its own."""
    (path,) = Path("datasets/.packed/texts/excerpts").glob("corpus_*/excerpt.json")
    record = read(str(path))
    for piece in record["pieces"]:
        piece["place"] = {}
    compare_fields(record, documented("The beginning of a corpus"))
    rows, tokens = (Dataset.from_file(str(next(path.parent.glob(f"{kind}_*")))) for kind in ("rows", "tokens"))
    assert (rows.features["text"].dtype, tokens.features["input_ids"].feature.dtype) == ("string", "int32")


def test_packed_sequences():
    (path,) = Path("datasets/.packed").glob("tiny_*_32.npy")
    packed, packing = np.load(path), read(f"{SEED_DIR}/run.json")["packing"]
    assert (packed.dtype, packed.shape) == (np.int32, (packing["n_rows"], 32))
    record = read(path.with_suffix(".json"))["packing"]
    assert set(record) == set(packing) | {"bos_id", "eos_id"}


@pytest.mark.parametrize(
    ("path", "heading", "number"),
    [
        (f"{LAYER_DIR}/sae.safetensors", "`sae.safetensors`", 0),
        ("checkpoints/saelens/tiny_from_tiny_seed_0/layers.0/sae_weights.safetensors", "`saelens`", 1),
    ],
)
def test_weights_are_those_that_are_documented(path, heading, number):
    arrays, types = load_file(path), documented(heading, number)
    compare_arrays(arrays, types)
    sizes = {"n_latents": 48, "d_model": 16}
    for name, kind in types.items():
        assert arrays[name].shape == tuple(sizes[axis] for axis in re.findall(r"n_latents|d_model", kind))


@pytest.mark.parametrize(
    ("path", "heading"),
    [
        ("results/details/tiny_from_tiny_layers.0.npz", "`<cell>_layers.<layer>.npz`"),
        (
            "results/details/floors/16_48_seeds_0_1_cpu.npz",
            "`<d_model>_<n_latents>_seeds_<seed>_<seed_b>_<device>.npz`",
        ),
        (
            "results/details/tiny_layers.0.pairs/corpus_seed_0_with_tiny_seed_1.npz",
            "`<source>_seed_<seed>_with_<source_b>_seed_<seed_b>.npz`",
        ),
    ],
)
def test_arrays_are_those_that_are_documented(path, heading):
    with np.load(path) as arrays:
        compare_arrays(dict(arrays), documented(heading))


def test_columns_of_the_csv():
    with open("results/metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(documented("`metrics.csv`"))
    assert all(float(row["value"]) is not None for row in rows)


# numbers


def defined(heading: str) -> set[str]:
    """Names in the tables of a section of docs/metrics.md."""
    rows = [row for table in tables(section(heading, METRICS)) for row in table]
    return {name for row in rows for name in re.findall(r"`(\w+)`", row.get("name") or row["representation"])}


def numbers(record: dict[str, Any], *others: str) -> set[str]:
    """Names in a record that are not names of what it is about."""
    return set(record) - {"target", "source", "layer", "seed", "seed_b", *others}


def test_every_number_is_defined():
    """A number that can be read in two ways is not a result."""
    metrics, quality = read("results/metrics.json"), read(f"{DATASET}/generation.json")["quality"]
    sae, pair = metrics["saes"][0], metrics["pairs"][0]
    about = {"eval_source", "eval_fingerprint", "is_tokenized_again", "by_position"}
    assert numbers(sae["evaluations"][0], *about) == defined("Per SAE and source, on held-out tokens")
    assert numbers(sae["evaluations"][0]["by_position"][0], "first", "last") == defined("By position")
    assert numbers(sae["random_tokens"], "n_drawn", "generator", "seed") == defined("Per SAE, on random tokens")
    (probe,) = sae["probes"]
    of_probe = numbers(probe, "name", "fingerprint", "scores").union(*probe["scores"].values())
    assert of_probe | set(probe["scores"]) == defined("Per SAE, on labelled texts")
    about = {"source_b", "kind", "weights_fingerprints", "by_firing_rate", "unstable", "codes"}
    assert numbers(pair, *about) == defined("Per pair of SAEs")
    assert numbers(next(iter(pair["by_firing_rate"].values()))) == defined("By firing rate")
    assert numbers(pair["unstable"]) == defined("Directions that are not found again")
    assert numbers(pair["codes"], "tokens") == defined("What matched latents do")
    assert numbers(sae["stability"], "elsewhere", "of") == defined("Per latent")
    assert numbers(sae["stability"]["elsewhere"]["tiny"], "seeds") == defined("In other sources")
    about = {"source_b", "n_latents", "of", "kind", "measure"}
    assert numbers(metrics["agreements"][0], *about) == defined("Agreement of sources")
    assert numbers(metrics["contrasts"][0], *about) == defined("Between sources and within them")
    assert set(quality) == defined("Of a generated data set")
    about = {"path", "d_model", "n_latents", "k", "n_train_tokens", "weights_fingerprint"}
    about |= {"n_tokens_trained_on", "exclude", "packing", "dataset", "variant"}
    assert numbers(sae, "evaluations", "random_tokens", "probes", "stability", *about) == defined("Of the weights")
    assert {name.split("/")[0] for name in documented("`metrics.jsonl`")} - {"tokens"} == defined("While training")


def test_what_can_be_null_is_the_same_on_both_pages():
    rows = [row for table in tables(METRICS) for row in table if "null" in row]
    never = {name for row in rows if row["null"] == "never" for name in re.findall(r"`(\w+)`", row["name"])}
    at_times = {name for row in rows if row["null"] != "never" for name in re.findall(r"`(\w+)`", row["name"])}
    kinds = documented("`metrics.json`")
    del kinds["datasets[].n_tokens"]  # not a number that is measured
    leaves = {re.sub(r"\.<\w+>$", "", name).split(".")[-1]: kind for name, kind in kinds.items()}
    for name in never | at_times:
        assert leaves[name].endswith("or null") == (name in at_times), name
