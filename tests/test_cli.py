"""Both scripts as a user runs them, in-process, on small models in the working folder."""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import edit_record, make_model, run_killed
from datasets import Dataset

import generate_datasets
import train_sae
from sae_utils import disk
from sae_utils.files import checksum_files, write_record
from sae_utils.generated_data import fingerprint_samples
from sae_utils.generation.shards import GrowingDataset
from sae_utils.rates import RATES_FILE
from sae_utils.sources import packs
from sae_utils.sparse_coders import SparseCoder
from sae_utils.training import machines

ROOT = Path(__file__).resolve().parent.parent
TRAIN = [
    *("--org_name", ".", "--target_models", "tiny", "--source_models", "tiny", "--dataset_seed", "42"),
    *("--layers", "0", "1", "--num_latents", "48", "--k", "4", "--ctx_len", "32", "--quiet"),
]


def generate(*flags: str) -> Path:
    """Run generation for the model in `tiny`; the folder of its data set."""
    generate_datasets.main(["--models", "./tiny", "--max_length", "40", "--quiet", *flags])
    return Path("datasets/tiny_42_1.0_0.9")


def train(*flags: str) -> list[dict]:
    """Train, without the comparison, and return the SAEs' records."""
    train_sae.main([*TRAIN, "--train_only", *flags])
    folder = flags[flags.index("--checkpoint_dir") + 1] if "--checkpoint_dir" in flags else "checkpoints"
    records = [record for path in Path(folder).glob("*/run.json") for record in json.loads(path.read_text())["saes"]]
    return sorted(records, key=lambda record: (record["source"], record["layer"], record["seed"]))


def parsed(*flags: str) -> argparse.Namespace:
    """What `train_sae.py` makes of its flags before it does anything."""
    args = train_sae.build_parser().parse_args([*TRAIN, *flags])
    train_sae.split_folders(args)
    return args


def refused(capsys, main, argv) -> str:
    """The one line a script stops with."""
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.count("\n") == 1, "one line"
    return error


def all_bytes(folder: Path) -> dict[str, bytes]:
    """Every file but that of rates, which holds the times that things took."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != RATES_FILE)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# generation


@pytest.mark.parametrize("budget", [1, 7, 1234])
def test_token_budget_is_exact(tiny, budget):
    folder = generate("--num_tokens", str(budget))
    rows, record = Dataset.load_from_disk(str(folder)), json.loads((folder / "generation.json").read_text())
    assert sum(rows["num_tokens"]) == sum(map(len, rows["input_ids"])) == record["n_tokens"] == budget
    assert rows.column_names == ["id", "text", "input_ids", "num_tokens"]
    assert all(ids[0] == record["settings"]["bos_id"] for ids in rows["input_ids"])
    assert "sampled from **tiny**" in (folder / "README.md").read_text()


def test_same_command_gives_the_same_bytes_and_another_seed_does_not(tiny):
    first = all_bytes(generate("--n", "20"))
    assert all_bytes(generate("--n", "20", "--overwrite")) == first
    generate("--n", "20", "--seed", "43")
    other = Dataset.load_from_disk("datasets/tiny_43_1.0_0.9")
    assert other["input_ids"] != Dataset.load_from_disk("datasets/tiny_42_1.0_0.9")["input_ids"]


def test_larger_data_set_begins_with_the_smaller_and_extending_is_sampling_anew(tiny):
    short = Dataset.load_from_disk(str(generate("--n", "10")))["input_ids"]
    extended = all_bytes(generate("--n", "30"))
    rows = Dataset.load_from_disk("datasets/tiny_42_1.0_0.9")
    assert rows["input_ids"][:10] == short
    assert all_bytes(generate("--n", "30", "--overwrite")) == extended


def test_extending_a_token_budget_is_sampling_anew(tiny):
    generate("--num_tokens", "333")
    extended = all_bytes(generate("--num_tokens", "1000"))
    fresh = all_bytes(generate("--num_tokens", "1000", "--overwrite"))
    records = [json.loads(files.pop("generation.json")) for files in (extended, fresh)]
    # Likelihoods are computed in other batches here, which shows in the last digits.
    nlls = [record["quality"].pop("mean_nll_nats") for record in records]
    assert nlls[0] == pytest.approx(nlls[1], rel=1e-6)
    for record in records:
        del record["nll_sum_units"], record["cut_sample"]["rest_nll"], record["checksum"]
        del record["checksums"]["README.md"]  # where the likelihood stands, too
    assert (extended, records[0]) == (fresh, records[1])


def test_finished_data_set_is_left_alone(tiny, capsys):
    before = all_bytes(generate("--n", "10"))
    capsys.readouterr()
    generate("--n", "10")
    assert "is finished (10 samples" in capsys.readouterr().out
    assert all_bytes(Path("datasets/tiny_42_1.0_0.9")) == before


def test_other_settings_in_the_same_folder_are_refused(tiny, capsys):
    generate("--n", "10")
    error = refused(capsys, generate_datasets.main, ["--models", "./tiny", "--n", "20", "--max_length", "50"])
    assert "max_length was 40 and is now 50" in error


def test_killed_generation_goes_on_and_ends_with_the_same_bytes(tiny):
    """SIGKILL at ten moments, one after the other: nothing of an unbroken run may differ, no sample is lost."""
    expected = all_bytes(generate("--n", "40", "--batch_size", "4"))
    argv = ["--models", "./tiny", "--max_length", "40", "--n", "40", "--batch_size", "4", "--quiet"]
    argv += ["--output_dir", "killed"]
    final = Path("killed/tiny_42_1.0_0.9")
    work = final.with_name(final.name + ".unfinished")
    n_shards = 0
    for moment in (1, 2, 3, 4, 5, 6, 2, 5, 7, 3):
        assert run_killed(generate_datasets.main, argv, moment), "killed too late to test anything"
        assert not final.exists()
        assert len(list(work.glob("samples_*"))) >= n_shards, "a finished sample was lost"
        n_shards = len(list(work.glob("samples_*")))
    generate_datasets.main(argv)
    assert all_bytes(final) == expected
    assert not work.exists()


@pytest.mark.parametrize("moment", [1, 2, 4, 7, 8, 9, 10])
def test_killed_extension_keeps_the_data_set(tiny, moment):
    """While a finished data set is extended, the old one or the new one is always there to be had."""
    generate("--n", "20")
    extended = ["--models", "./tiny", "--max_length", "40", "--n", "30", "--quiet"]
    assert run_killed(generate_datasets.main, extended, moment), "killed too late to test anything"
    generate("--n", "30")
    folder = all_bytes(Path("datasets/tiny_42_1.0_0.9"))
    assert folder == all_bytes(generate("--n", "30", "--overwrite"))


def test_dry_run_of_generation_writes_nothing(tiny, capsys):
    generate("--dry_run")
    assert "400,000 samples of up to 40 tokens" in capsys.readouterr().out
    assert not Path("datasets").exists()


@pytest.mark.parametrize(
    ("spoil", "flags", "message"),
    [
        (lambda folder: None, ["--max_length", "50"], "max_length was 40 and is now 50"),
        (lambda folder: None, ["--max_length", "50", "--n", "5"], "max_length was 40 and is now 50"),
        (
            lambda folder: folder.rename(f"{folder}.unfinished") and unfinish(Path(f"{folder}.unfinished"), 50),
            [],
            "max_length was 50 and is now 40",
        ),
        (lambda folder: next(folder.glob("*.arrow")).write_bytes(b"cut"), [], "is damaged"),
        (lambda folder: (folder / "generation.json").unlink(), [], "exists and has no generation.json"),
        (lambda folder: (folder / "generation.json").unlink(), ["--overwrite"], "exists and has no generation.json"),
        (lambda folder: Path(f"{folder}.unfinished").mkdir() or spoilt_shard(folder), [], "is damaged"),
    ],
)
def test_dry_run_refuses_what_the_run_would_refuse(tiny, capsys, spoil, flags, message):
    """Whoever looks first, and is told that all is well, comes back after a weekend to find nothing done."""
    folder = generate("--n", "10")
    spoil(folder)
    before = all_bytes(Path("datasets"))
    argv = ["--models", "./tiny", "--max_length", "40", "--n", "20", "--quiet", *flags]
    said = {refused(capsys, generate_datasets.main, [*argv, *dry]) for dry in ([], ["--dry_run"])}
    assert len(said) == 1 and message in said.pop()
    assert all_bytes(Path("datasets")) == before


def unfinish(work: Path, max_length: int) -> None:
    """Leave of a data set what is there while it grows, with another longest length."""
    settings = json.loads((work / "generation.json").read_text())["settings"]
    settings["max_length"] = max_length
    write_record(work / "settings.json", {"settings": settings, "replaces_finished": False})


def spoilt_shard(folder: Path) -> None:
    """A first shard of an extension, with other bytes than its name says."""
    record = json.loads((folder / "generation.json").read_text())
    work = Path(f"{folder}.unfinished")
    write_record(work / "settings.json", {"settings": record["settings"], "replaces_finished": False})
    (work / f"samples_{record['n_samples']:09d}_{record['n_samples'] + 5:09d}_99_0123456789abcdef.arrow").touch()


def test_dry_run_refuses_a_data_set_that_is_being_written(tiny, capsys):
    lock = GrowingDataset(Path("datasets/tiny_42_1.0_0.9"), {}, overwrite=False).lock
    argv = ["--models", "./tiny", "--n", "10", "--dry_run"]
    with lock:
        assert "another run is writing datasets/tiny_42_1.0_0.9" in refused(capsys, generate_datasets.main, argv)
    generate_datasets.main(argv)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--models", "./nowhere"], "'./nowhere' is not a model folder"),
        (["--models", "EleutherAI/pythia-9b"], "model 'EleutherAI/pythia-9b' could not be loaded; looked in"),
        (["--models", "./tiny", "--top_p", "0"], "--top_p must be in (0, 1], got 0.0"),
        (
            ["--models", "./tiny", "--max_length", "4096"],
            "--max_length must fit the context of tiny, 2048 tokens, got 4096",
        ),
        (["--models", "./tiny", "--batch_size", "0"], "--batch_size must be at least 1 sample, got 0"),
        (["--models", "./tiny", "--num_tokens", "0"], "--num_tokens must be at least 1, got 0"),
        (["--models", "./tiny", "./tiny"], "would both be written to"),
        (["--models", "./tiny", "--device", "cuda:99"], "--device cuda:99"),
        (["--models", "./tiny", "--dtype", "int8"], "--dtype must be one of auto, float32"),
    ],
)
def test_generation_refuses_in_one_line(tiny, capsys, flags, message):
    assert message in refused(capsys, generate_datasets.main, flags)


# training


def test_both_scripts_chained(tiny, capsys):
    """From a model folder to SAEs that sparsify loads, with everything in its documented place."""
    folder = generate("--num_tokens", "3000")
    train_sae.main([*TRAIN, "--random_tokens", "500", "--export", "saelens"])
    table = capsys.readouterr().out
    records = json.loads(Path("results/metrics.json").read_text())["saes"]
    assert "Do the features" in Path("results/report.html").read_text()
    assert Path("checkpoints/saelens/tiny_from_tiny_seed_1/layers.0/sae_weights.safetensors").exists()
    assert [(r["layer"], r["seed"]) for r in records] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for seed in (0, 1):
        path = Path(f"checkpoints/tiny_from_tiny_seed_{seed}")
        saes = SparseCoder.load_many(str(path), local=True)
        assert list(saes) == ["layers.0", "layers.1"]
        assert SparseCoder.load_from_disk(path / "layers.0").num_latents == 48
        assert json.loads((path / "layers.0" / "cfg.json").read_text())["num_latents"] == 48
        run = json.loads((path / "run.json").read_text())
        assert run["dataset_fingerprint"] == json.loads((folder / "generation.json").read_text())["fingerprint"]
        assert (run["n_train_tokens"], run["n_eval_tokens"]) == (2944, 128)  # 4 sequences held out, whole steps
        assert run["versions"]["eai-sparsify"] and run["settings"]["k"] == 4 and run["seed"] == seed
        assert json.loads((path / "config.json").read_text())["ctx_len"] == 32
        assert len((path / "metrics.jsonl").read_text().splitlines()) == 46
        assert str(path / "layers.1") in table
    weights = [SparseCoder.load_from_disk(f"checkpoints/tiny_from_tiny_seed_{s}/layers.0").W_dec for s in (0, 1)]
    assert not torch.equal(*weights)
    assert sorted(p.name for p in Path("checkpoints").iterdir() if not p.name.startswith(".")) == [
        "saelens",
        "tiny_from_tiny_seed_0",
        "tiny_from_tiny_seed_1",
    ]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_other_families_train(kind, request):
    Path("tiny").symlink_to(request.getfixturevalue(kind))
    generate("--num_tokens", "1500")
    records = train("--num_seeds", "1")
    assert [(r["layer"], r["seed"]) for r in records] == [(0, 0), (1, 0)]
    assert list(SparseCoder.load_many("checkpoints/tiny_from_tiny_seed_0", local=True)) == ["layers.0", "layers.1"]


def test_finished_cell_is_skipped_and_more_seeds_are_added(tiny):
    """N seeds in one pass are N single runs, so a third seed can be trained later, alone."""
    generate("--num_tokens", "2000")
    train("--num_seeds", "1")
    before = all_bytes(Path("checkpoints/tiny_from_tiny_seed_0"))
    records = train("--num_seeds", "2")
    assert all_bytes(Path("checkpoints/tiny_from_tiny_seed_0")) == before
    assert {r["seed"] for r in records} == {0, 1}
    weights = Path("checkpoints/tiny_from_tiny_seed_1/layers.1/sae.safetensors").read_bytes()
    train("--num_seeds", "2", "--checkpoint_dir", "anew")
    assert Path("anew/tiny_from_tiny_seed_1/layers.1/sae.safetensors").read_bytes() == weights


def test_changed_settings_are_refused_with_both_values(tiny, capsys):
    generate("--num_tokens", "2000")
    train()
    capsys.readouterr()
    refusal = refused(capsys, train_sae.main, [*TRAIN, "--shuffle_seed", "5"])
    assert "shuffle_seed was 42 and is now 5" in refusal


@pytest.mark.parametrize("moments", [(1,), (2, 3), (4, 5), (6, 9), (10, 11, 12), (13, 7), (18,), (21,)])
def test_killed_training_goes_on_and_ends_with_the_same_weights(tiny, moments):
    """SIGKILL while training, saving and publishing; the next run ends with the bytes of an unbroken one."""
    generate("--num_tokens", "2000")
    train("--save_every", "5")
    argv = [*TRAIN, "--train_only", "--save_every", "5", "--checkpoint_dir", "killed"]
    Path("killed/tiny_from_other.unfinished").mkdir(parents=True)
    for moment in moments:
        assert run_killed(train_sae.main, argv, moment), "killed too late to test anything"
    train_sae.main(argv)
    for seed in (0, 1):
        folder = f"tiny_from_tiny_seed_{seed}"
        assert compared(Path("killed") / folder) == compared(Path("checkpoints") / folder)
    assert not Path("killed/tiny_from_tiny.unfinished").exists()
    assert Path("killed/tiny_from_other.unfinished").exists(), "resumable state of another run was removed"


def compared(folder: Path) -> dict[str, bytes]:
    """Everything in a folder of SAEs that must not depend on interruptions or on where it stands."""
    files = all_bytes(folder)
    del files["wandb.json"]  # every run is another one there
    run = json.loads(files.pop("run.json"))
    del run["checksum"]
    for record in run["saes"]:
        del record["path"]
    return files | {"run.json": run}


def test_every_cell_trains_on_the_same_tokens(tiny, llama):
    """Sources of different size and tokenizer: the budget is the smallest one's, for all."""
    Path("other").symlink_to(llama)
    generate("--num_tokens", "4000")
    generate_datasets.main(["--models", "./other", "--num_tokens", "2500", "--max_length", "40", "--quiet"])
    train("--source_models", "tiny", "other", "--num_seeds", "1")
    runs = [json.loads(path.read_text()) for path in Path("checkpoints").glob("*/run.json")]
    assert len(runs) == 2
    assert len({(run["n_train_tokens"], run["n_eval_tokens"]) for run in runs}) == 1


def test_other_tokenizer_is_said_and_texts_are_tokenized_again(tiny, llama, capsys):
    Path("other").symlink_to(llama)
    generate_datasets.main(["--models", "./other", "--num_tokens", "3000", "--max_length", "40", "--quiet"])
    train("--source_models", "other", "--num_seeds", "1")
    assert "its texts are tokenized again" in capsys.readouterr().err


def test_missing_data_set_names_those_that_exist_and_their_flags(tiny, capsys):
    """Generation's default seed is 42 and training's is 4: everybody meets this on the first day."""
    generate("--n", "10")
    capsys.readouterr()
    error = refused(capsys, train_sae.main, [*TRAIN, "--dataset_seed", "4"])
    assert "no data set datasets/tiny_4_1.0_0.9; of tiny there is: tiny_42_1.0_0.9 (--dataset_seed 42" in error
    error = refused(capsys, train_sae.main, [*TRAIN, "--source_models", "other"])
    assert "none of other at all; make it with: python generate_datasets.py --models ./other --seed 42" in error


def test_quiet_leaves_the_results_and_what_is_wrong(tiny, capsys):
    """Whoever asks for quiet reads every line that is left; without it, what will be done is said first."""
    sampled = "datasets/tiny_42_1.0_0.9: 30 samples, "
    generate("--n", "30")
    assert "".join(capsys.readouterr()).startswith(sampled)
    train("--num_seeds", "1")
    assert capsys.readouterr() == ("", "")
    refused(capsys, generate_datasets.main, ["--models", "./tiny", "--top_p", "2", "--quiet"])
    loud = ["--models", "./tiny", "--max_length", "40", "--n", "30", "--output_dir", "loud"]
    generate_datasets.main(loud)
    assert capsys.readouterr().out.startswith("tiny -> loud/tiny_42_1.0_0.9\n")


def test_dry_run_of_training_writes_no_checkpoint(tiny, capsys):
    generate("--num_tokens", "3000")
    train_sae.main([*TRAIN, "--dry_run"])
    out = capsys.readouterr().out
    assert "1 cells x 2 layers x 2 seeds; per SAE 2,944 training tokens in 46 steps, 128 tokens held out" in out
    assert not Path("checkpoints").exists() and not Path("results").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--layers", "7"], "--layers must be in 0 .. 1 for tiny, got 7"),
        (["--layers", "1", "1"], "--layers must name at least one layer, each once"),
        (["--k", "64"], "--k must be <= the number of latents, got k=64 with 48 latents"),
        (["--k", "0"], "--k must be at least 1, got 0"),
        (["--num_seeds", "0"], "--num_seeds must be at least 1, got 0"),
        (["--expansion_factor", "2"], "--expansion_factor and --num_latents both set the dictionary size"),
        (["--ctx_len", "4096"], "--ctx_len must fit the context of tiny, 2048 tokens, got 4096"),
        (["--lr", "-1"], "--lr must be > 0 and at most 1e+30, got -1.0"),
        (
            ["--ctx_len", "1000"],
            "does not fill one sequence of --ctx_len 1000 in the target's tokens; lower --ctx_len, or give more text",
        ),
        (["--ctx_len", "250"], "nothing is left to train on: the smallest source has 1 sequences"),
        (["--target_models", "tiny", "./tiny"], "--target_models must have different short names"),
    ],
)
def test_training_refuses_in_one_line(tiny, capsys, flags, message):
    generate("--num_tokens", "300")
    capsys.readouterr()
    assert message in refused(capsys, train_sae.main, [*TRAIN, *flags])


@pytest.mark.parametrize(
    ("installed", "message"),
    [
        ({"sparsify": "1.0"}, "pip uninstall -y sparsify eai-sparsify && pip install 'eai-sparsify>=1.3.2,<1.4'"),
        ({}, "run: pip install 'eai-sparsify>=1.3.2,<1.4' (not `sparsify`)"),
        ({"eai-sparsify": "1.4.0"}, "eai-sparsify 1.4.0 is installed, and this project, which"),
        (
            {"eai-sparsify": "1.3.1"},
            "error: eai-sparsify 1.3.1 is installed, and this project, which leans on its insides, needs "
            "eai-sparsify>=1.3.2,<1.4; run: pip install 'eai-sparsify>=1.3.2,<1.4'\n",
        ),
    ],
)
def test_wrong_sparsify_is_named(tiny, capsys, monkeypatch, installed, message):
    """`pip install sparsify` installs another project under the same import name; other versions train otherwise."""
    from sae_utils import dependencies

    monkeypatch.setattr(dependencies, "_version", installed.get)
    assert message in refused(capsys, train_sae.main, TRAIN)


def test_more_training_lowers_fvu(tmp_path):
    """The least that training must do; on tokens that it did not see."""
    make_model(Path("tiny"), "neox", d_model=32)
    generate("--num_tokens", "22000", "--batch_size", "512")
    fvu = {}
    for n_tokens in (1_000, 20_000):
        flags = ["--max_tokens", str(n_tokens), "--num_seeds", "1", "--layers", "1", "--num_latents", "256"]
        (record,) = train_records(flags, n_tokens)
        fvu[n_tokens] = record["fvu"]
    assert fvu[20_000] < 0.85 * fvu[1_000]


def train_records(flags: list[str], n_tokens: int) -> list[dict]:
    """Train into a folder of its own."""
    return train(*flags, "--checkpoint_dir", f"c{n_tokens}")


def test_importing_and_help_print_nothing_else():
    """Importing any file prints, parses, downloads and seeds nothing; --help is quick because it loads no library."""
    paths = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / "sae_utils").rglob("*.py")]
    modules = [".".join(path.parts).removesuffix(".__init__") for path in paths]
    code = f"import importlib; [importlib.import_module(name) for name in {modules!r}]"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
    for script in ("generate_datasets", "train_sae"):
        code = f"import {script}, sys; {script}.build_parser().format_help(); print('torch' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        assert re.fullmatch("False\n", done.stdout)


# stopped, replaced, run again


def times(*folders: str) -> dict[str, int]:
    """When every file was last written."""
    return {str(path): path.stat().st_mtime_ns for folder in folders for path in Path(folder).rglob("*")}


def test_a_second_run_over_everything_finished_changes_no_time(tiny):
    """Nor any byte: backups and build tools go by times."""
    generate("--num_tokens", "2000")
    argv = [*TRAIN, "--random_tokens", "300", "--export", "saelens"]
    train_sae.main(argv)
    before = times("datasets", "checkpoints", "results")
    generate("--num_tokens", "2000")
    train_sae.main(argv)
    train_sae.main([*argv, "--eval_only"])
    after = times("datasets", "checkpoints", "results")
    folders = {path for path in after if Path(path).is_dir()}
    assert {path: time for path, time in after.items() if path not in folders} == {
        path: time for path, time in before.items() if path not in folders
    }


@pytest.mark.parametrize("moment", [2, 5, 8, 9, 10, 11])
def test_overwrite_keeps_a_data_set_until_the_new_one_is_complete(tiny, moment):
    """Days of sampling must not go because the machine went down in the first minute of the next."""
    folder = generate("--n", "12")
    old = all_bytes(folder)
    generate("--n", "9", "--max_length", "30", "--output_dir", "new")
    new = all_bytes(Path("new") / folder.name)
    argv = ["--models", "./tiny", "--quiet", "--n", "9", "--max_length", "30"]
    if run_killed(generate_datasets.main, [*argv, "--overwrite"], moment):
        work = Path("datasets/tiny_42_1.0_0.9.unfinished")
        assert all_bytes(folder) in (old, new) or (not folder.exists() and all_bytes(work / "previous") == old)
        is_begun = (work / "settings.json").exists()
        generate_datasets.main(argv if is_begun else [*argv, "--overwrite"])  # goes on, without the flag
    assert all_bytes(folder) == new
    assert [path.name for path in Path("datasets").iterdir() if path.name != ".rates.json"] == ["tiny_42_1.0_0.9"]


@pytest.mark.parametrize("moment", [1, 4, 12, 20, 26, 27, 28, 29, 30, 31])
def test_overwrite_keeps_saes_until_the_new_ones_are_complete(tiny, moment):
    generate("--num_tokens", "1500")
    train("--num_seeds", "2")
    old = {seed: compared(Path(f"checkpoints/tiny_from_tiny_seed_{seed}")) for seed in (0, 1)}
    train("--num_seeds", "2", "--shuffle_seed", "5", "--checkpoint_dir", "new")
    new = {seed: compared(Path(f"new/tiny_from_tiny_seed_{seed}")) for seed in (0, 1)}
    argv = [*TRAIN, "--train_only", "--shuffle_seed", "5"]
    if run_killed(train_sae.main, [*argv, "--overwrite"], moment):
        for seed in (0, 1):
            folder = Path(f"checkpoints/tiny_from_tiny_seed_{seed}")
            kept = folder if folder.exists() else Path(f"checkpoints/tiny_from_tiny.unfinished/previous/{folder.name}")
            assert compared(kept) in (old[seed], new[seed])
        is_begun = Path("checkpoints/tiny_from_tiny.unfinished/settings.json").exists()
        train_sae.main(argv if is_begun else [*argv, "--overwrite"])
    assert {seed: compared(Path(f"checkpoints/tiny_from_tiny_seed_{seed}")) for seed in (0, 1)} == new
    assert not list(Path("checkpoints").glob("*tiny.unfinished"))


def test_overwrite_that_cannot_begin_removes_nothing(tiny, capsys):
    """A wrong flag, or a model that is gone, is found before."""
    generate("--num_tokens", "1500")
    train()
    before = all_bytes(Path("checkpoints"))
    for flags in (["--layers", "9"], ["--ctx_len", "4000"], ["--source_models", "nowhere"], ["--lr", "inf"]):
        refused(capsys, train_sae.main, [*TRAIN, "--overwrite", *flags])
    assert all_bytes(Path("checkpoints")) == before


@pytest.mark.parametrize("where", ["datasets/tiny_42_1.0_0.9", "datasets/tiny_42_1.0_0.9.unfinished"])
def test_folders_of_others_are_not_thrown_away_by_overwrite(tiny, capsys, where):
    Path(where).mkdir(parents=True)
    (Path(where) / "thesis.tex").write_text("mine")
    argv = ["--models", "./tiny", "--max_length", "40", "--n", "5", "--quiet", "--overwrite"]
    assert f"{where} exists and has no" in refused(capsys, generate_datasets.main, argv)
    assert (Path(where) / "thesis.tex").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_ends_a_script_in_one_line_and_the_same_command_goes_on(tiny, signum, code):
    generate("--num_tokens", "30000")
    train("--num_seeds", "1")
    argv = [*TRAIN, "--num_seeds", "1", "--train_only", "--checkpoint_dir", "stopped", "--save_every", "100000"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train_sae.py"), *argv], stderr=subprocess.PIPE, text=True, env=os.environ
    )
    while not list(Path("stopped").glob("*.unfinished/*/metrics.jsonl")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signum)
    error = process.communicate()[1]
    assert (process.returncode, error) == (code, "stopped; the same command goes on from the last checkpoint\n")
    assert list(Path("stopped").rglob("state.json")), "the step was kept"
    train_sae.main(argv)
    name = "tiny_from_tiny_seed_0"
    assert compared(Path("stopped") / name) == compared(Path("checkpoints") / name)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["generate_datasets.py", "train_sae.py"])
def test_under_torchrun_one_process_says_what_is_wrong(tiny, script):
    """As many tracebacks as GPUs hide the line that counts."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--"]
    flags = [*TRAIN] if script == "train_sae.py" else ["--models", "./nowhere", "--quiet"]
    done = subprocess.run([*command, str(ROOT / script), *flags], capture_output=True, text=True, env=os.environ)
    assert done.returncode != 0
    assert done.stderr.count(f"{script}: error: ") == 1
    assert "exitcode  : 2" in done.stderr
    assert "most recent call last" not in done.stderr.split("ChildFailedError")[0].split(f"{script}: error:")[0]


@pytest.mark.slow
def test_whoever_reads_may_leave(tiny):
    """`| head` has seen enough: no traceback."""
    command = f"{sys.executable} {ROOT / 'generate_datasets.py'} --models ./tiny --dry_run --max_length 40 | true"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, env=os.environ)
    assert (done.returncode, done.stderr) == (141, "")


def test_ids_that_the_target_does_not_know_are_refused(tiny, capsys):
    """On a GPU they end the process with an assertion of the driver's."""
    folder = generate("--num_tokens", "2000")
    samples = Dataset.load_from_disk(str(folder))
    record = json.loads((folder / "generation.json").read_text())
    wrong = samples.map(lambda row: row | {"input_ids": [min(each + 250, 10**6) for each in row["input_ids"]]})
    for name in record["checksums"]:
        (folder / name).unlink()
    Dataset(wrong.data, info=samples.info).save_to_disk("wrong")
    for path in Path("wrong").iterdir():
        path.rename(folder / path.name)
    names = [path.name for path in folder.iterdir() if path.name != "generation.json"]
    edit_record(
        folder / "generation.json", fingerprint=fingerprint_samples(wrong), checksums=checksum_files(folder, names)
    )
    error = refused(capsys, train_sae.main, TRAIN)
    assert "has token ids from 250 to" in error and "the target knows 0 .. 319" in error


def test_read_only_data_sets_are_packed_elsewhere(tiny, monkeypatch, capsys):
    """They may be shared by a group, and only one may write them."""
    generate("--num_tokens", "2000")
    monkeypatch.setattr(packs, "is_writable", lambda folder: "datasets" not in folder.parts)
    train_sae.main([flag for flag in [*TRAIN, "--train_only"] if flag != "--quiet"])
    assert not Path("datasets/.packed").exists()
    assert len(list(Path("checkpoints/.packed").glob("*.npy"))) == 1
    assert "datasets cannot be written, so packed sequences go to checkpoints/.packed" in capsys.readouterr().err


def test_what_does_not_fit_is_refused_with_what_is_needed_and_free(tiny, monkeypatch, capsys):
    """Nothing is loaded or sampled that could not be finished."""
    folder = generate("--num_tokens", "2000")
    with monkeypatch.context() as patched:
        patched.setattr(machines, "free_bytes", lambda device: 10_000)
        error = refused(capsys, train_sae.main, [*TRAIN, "--dry_run"])
    assert "one SAE of 48 latents beside the model needs about 0.09 GB of memory on cpu, and 0.00 GB are free" in error
    monkeypatch.setattr(disk, "free_disk_bytes", lambda folder: 1000)
    sample = ["--models", "./tiny", "--num_tokens", "9000", "--max_length", "40"]
    for main, argv in ((train_sae.main, TRAIN), (generate_datasets.main, sample)):
        assert "is full: " in refused(capsys, main, [*argv, "--quiet"])
    assert folder.exists() and not Path("checkpoints").exists()
