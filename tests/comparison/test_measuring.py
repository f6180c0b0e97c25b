"""SAEs of one target on two sources, one of another tokenizer, 2 layers and 3 seeds: what is measured, and when."""

import gc
import itertools
import json
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load, run_killed
from grid_files import (
    COMPARE,
    DETAILS,
    EVAL_ONLY,
    LAYERS,
    LEFT_OUT,
    SEEDS,
    SOURCES,
    arrays,
    change_tensors,
    change_weights,
    compare_all,
    everything,
    features,
    held_out_tokens,
    metrics,
    pair_arrays,
    sae_of,
    sae_record,
    settings,
)
from test_cli import TRAIN, refused
from test_results import numbers_in, rows_of

import train_sae
from sae_utils.comparison import features as feature_step
from sae_utils.comparison import groups, measuring, pairs
from sae_utils.comparison.groups import group_saes
from sae_utils.comparison.measuring import measure, read_known
from sae_utils.comparison.pairs import match_pairs
from sae_utils.comparison.trained import find_all_trained
from sae_utils.comparison.whereabouts import find_sources_of
from sae_utils.evaluation.random_tokens import known_ids, measure_random_firing, random_sequences
from sae_utils.evaluation.reconstruction import measure_reconstruction
from sae_utils.evaluation.splicing import measure_splices
from sae_utils.report import figures


@pytest.fixture
def calls(monkeypatch) -> list[tuple]:
    """What is measured from here on: the step and the keys of its SAEs."""
    made = []

    def count(module, step: str, keys_of) -> None:
        call = getattr(module, step)

        def counted(*args, **options):
            made.append((step, *keys_of(args)))
            return call(*args, **options)

        monkeypatch.setattr(module, step, counted)

    for step in ("measure_reconstruction", "measure_splices", "measure_random_firing"):
        count(measuring, step, lambda args: sorted(args[1]))
    count(feature_step, "find_contexts", lambda args: sorted(args[1]))
    count(pairs, "compare_dictionaries", lambda args: ())
    return made


# what is measured


def test_every_sae_is_measured_on_every_source_and_every_two_seeds_are_compared(grid):
    found = metrics()
    assert found["schema"] == 4
    saes = [(each["target"], each["source"], each["layer"], each["seed"]) for each in found["saes"]]
    assert saes == list(itertools.product(["tiny"], SOURCES, LAYERS, SEEDS))
    for record in found["saes"]:
        assert [each["eval_source"] for each in record["evaluations"]] == list(SOURCES)
        assert record["random_tokens"]["n_tokens"] == 2000
    pairs = [tuple(each[n] for n in ("source", "layer", "seed", "source_b", "seed_b")) for each in found["pairs"]]
    assert pairs == sorted(
        (source, layer, seed, source_b, seed_b)
        for layer in LAYERS
        for (source, seed), (source_b, seed_b) in itertools.combinations(itertools.product(SOURCES, SEEDS), 2)
    )
    datasets = [(each["name"], each["kind"]) for each in found["datasets"]]
    assert datasets == [("other", "generated"), ("tiny", "generated")]
    for each in found["datasets"]:
        assert each["n_tokens"] == 2500 and each["quality"]["mean_length_tokens"] > 1


def test_own_source_is_measured_on_the_tokens_held_out_of_training(grid):
    """The last step of training measures the same: another FVU here would be on tokens that were trained on."""
    for source, seed in itertools.product(SOURCES, SEEDS):
        run = json.loads(Path(f"checkpoints/tiny_from_{source}_seed_{seed}/run.json").read_text())
        for trained in run["saes"]:
            record = sae_record(source, trained["layer"], seed)
            own = next(each for each in record["evaluations"] if each["eval_source"] == source)
            names = ("fvu", "fvu_without_first_position", "dead_share", "l0", "n_tokens")
            assert {name: own[name] for name in names} == {name: trained[name] for name in names}


@pytest.mark.parametrize(("source", "layer", "seed"), [("tiny", 1, 2), ("other", 0, 1)])
def test_numbers_of_an_sae_are_those_of_the_single_functions(grid, source, layer, seed):
    """One SAE measured alone, on every source and on random tokens."""
    target, sae = load(Path("tiny")), sae_of(source, layer, seed)
    hooked, options = {0: (f"layers.{layer}", sae)}, {"batch_size": 2, "exclusion": LEFT_OUT}
    special_ids = target.tokenizer.all_special_ids
    record = sae_record(source, layer, seed)
    for found in record["evaluations"]:
        tokens = held_out_tokens(found["eval_source"])
        measured = measure_reconstruction(target.model, hooked, tokens, **options)
        means = {name: each.all.mean for name, each in measured.layers.items()}
        spliced = measure_splices(target.model, hooked, tokens, means, **options, special_ids=special_ids)[0]
        of_two = ("also_live_share", "firing_overlap")  # of this source and the SAE's own: see test_firing.py
        about = {name: found[name] for name in ("eval_source", "eval_fingerprint", "is_tokenized_again", *of_two)}
        assert about["is_tokenized_again"] == (found["eval_source"] == "other"), "which has a tokenizer of its own"
        numbers = measured.saes[0].record() | spliced
        by_position = zip(numbers.pop("fvu_by_position"), numbers.pop("ce_by_position"), strict=True)
        assert found == about | numbers | {"by_position": [fvu | ce for fvu, ce in by_position]}
        if found["eval_source"] == source:
            stored = arrays(source, layer)
            assert stored[f"firing_rate_{seed}"].dtype == stored[f"max_activation_{seed}"].dtype == np.float32
            assert np.array_equal(stored[f"firing_rate_{seed}"], measured.saes[0].firing_rate.astype(np.float32))
            assert np.array_equal(stored[f"max_activation_{seed}"], measured.saes[0].max_activation.numpy())
    ids = known_ids(target.tokenizer, target.model, LEFT_OUT)
    assert 0 not in ids
    sequences = random_sequences(ids, bos_id=target.bos_id, ctx_len=32, seed=0, n_tokens=2000)
    firing = measure_random_firing(target.model, hooked, sequences, n_tokens=2000, **options)[0]
    about = {"n_drawn": 2000, "generator": "numpy.random.PCG64", "seed": 0}
    assert record["random_tokens"] == about | firing.record()
    assert np.array_equal(stored[f"random_rate_{seed}"], firing.random_rate.astype(np.float32))
    assert np.array_equal(stored[f"is_fake_{seed}"], firing.is_fake)


def test_all_details_are_documented_arrays_of_one_value_per_latent(grid):
    """Figures and readers rely on names, shapes and formats."""
    per_seed = {"firing_rate": "float32", "max_activation": "float32", "random_rate": "float32", "is_fake": "bool"}
    per_seed |= {"stability": "float32"}
    per_pair = {"partner": "int32"} | dict.fromkeys(
        ("cosine", "best", "best_b", "floor_cosine", "firing_jaccard", "activation_correlation"), "float32"
    )
    for source, layer in itertools.product(SOURCES, LAYERS):
        (other,) = set(SOURCES) - {source}
        elsewhere = {f"firing_rate_on_{other}": "float32", f"found_in_{other}": "float32"}
        expected = {f"{name}_{seed}": dtype for name, dtype in (per_seed | elsewhere).items() for seed in SEEDS}
        stored = arrays(source, layer)
        assert {name: str(array.dtype) for name, array in stored.items()} == expected
        assert {array.shape for array in stored.values()} == {(48,)}
        stored = pair_arrays(source, layer, 0, "tiny", 1)
        assert {name: str(array.dtype) for name, array in stored.items()} == per_pair
        assert {array.shape for array in stored.values()} == {(48,)}


def test_every_number_is_in_the_csv_once(grid):
    rows, expected = rows_of(Path("results/metrics.csv")), list(numbers_in(metrics()))
    assert len(set(rows)) == len(rows)
    assert sorted(rows) == sorted((*row[:-1], float(row[-1])) for row in expected)


# nothing twice


def test_a_second_run_measures_nothing_and_changes_no_byte(grid, calls):
    before = everything()
    train_sae.main([*TRAIN, *COMPARE, "--source_models", *SOURCES, "--num_seeds", "3"])
    train_sae.main(EVAL_ONLY)
    assert calls == []
    assert everything() == before


def test_eval_only_over_the_folder_gives_what_the_run_gave(grid):
    """Results are a function of the SAEs and the data, wherever they are made."""
    before = everything()
    shutil.rmtree("results")
    train_sae.main(EVAL_ONLY)
    assert everything() == before


def test_eval_only_asks_nothing_of_the_flags_of_training(grid):
    """It measures what is there, whatever would be trained."""
    train_sae.main([*EVAL_ONLY, "--source_models", "--layers", "3", "3", "--num_seeds", "0", "--dtype", "nonsense"])


def test_report_only_needs_the_numbers_alone(grid, tmp_path, capsys, monkeypatch):
    """Results that were copied from another machine, or recorded in a repository: no model, no SAE, no data."""
    numbers, table = Path("results/metrics.json").read_bytes(), Path("results/metrics.csv").read_bytes()
    alone = tmp_path / "alone"
    (alone / "copied").mkdir(parents=True)
    (alone / "copied/metrics.json").write_bytes(numbers)
    monkeypatch.chdir(alone)
    train_sae.main(["--report_only", "--results_dir", "copied"])
    assert "PW-MCC" in capsys.readouterr().out
    assert Path("copied/metrics.json").read_bytes() == numbers and Path("copied/metrics.csv").read_bytes() == table
    page = Path("copied/report.html").read_text(encoding="utf-8")
    assert 'id="answer-table"' in page and Path("copied/figures/seed_agreement.png").exists()
    assert "--report_only needs results, and nothing/metrics.json has none" in refused(
        capsys, train_sae.main, ["--report_only", "--results_dir", "nothing"]
    )


def test_the_target_is_loaded_once_and_gone_before_the_report(grid, monkeypatch):
    """It is the largest thing there is, and figures do not need it."""
    shutil.rmtree("results")
    load, write, loaded, seen = groups.load_causal_lm, figures.write_figures, [], []

    def watched(*args):
        source = load(*args)
        loaded.append(weakref.ref(source.model))
        return source

    def look(folder):
        gc.collect()
        seen.extend(each() for each in loaded)
        return write(folder)

    monkeypatch.setattr(groups, "load_causal_lm", watched)
    monkeypatch.setattr(figures, "write_figures", look)
    train_sae.main(EVAL_ONLY)
    assert seen == [None]


def test_a_new_seed_adds_records_and_leaves_the_old_ones(grid, calls):
    whole = everything()
    for source in SOURCES:
        shutil.move(f"checkpoints/tiny_from_{source}_seed_2", f"seed_2_{source}")
    shutil.rmtree("results")
    compare_all()
    two = metrics()
    assert len(two["saes"]) == 8 and len(two["pairs"]) == 2 * 6
    three = json.loads(whole["metrics.json"])
    assert {str(each["stability"]) for each in two["saes"]} == {"None"}
    assert all(each in [other | {"stability": None} for other in three["saes"]] for each in two["saes"])
    assert all(each in three["pairs"] for each in two["pairs"])
    for source in SOURCES:
        shutil.move(f"seed_2_{source}", f"checkpoints/tiny_from_{source}_seed_2")
    calls.clear()
    compare_all()
    assert everything() == whole
    measured = {key[-1] for step, *keys in calls for key in keys if step != "find_contexts"}
    assert measured == {2}, "a known SAE was measured again"
    assert calls.count(("compare_dictionaries",)) == 30 - 12


def test_a_new_source_is_measured_on_and_leaves_the_old_numbers(grid, calls):
    """Every SAE is measured on it, also those that were finished before it came."""
    whole = everything()
    for seed in SEEDS:
        shutil.move(f"checkpoints/tiny_from_other_seed_{seed}", f"other_{seed}")
    shutil.rmtree("results")
    compare_all()
    assert [each["eval_source"] for each in sae_record("tiny", 0, 0)["evaluations"]] == ["tiny"]
    for seed in SEEDS:
        shutil.move(f"other_{seed}", f"checkpoints/tiny_from_other_seed_{seed}")
    calls.clear()
    compare_all()
    assert everything() == whole
    assert sorted(len(keys) for step, *keys in calls if step == "measure_reconstruction") == [6, 12]


def test_retrained_weights_are_measured_anew_and_no_others(grid, calls):
    """Numbers of weights that are gone must not stand beside numbers of those that are there."""
    before = metrics()
    change_weights("tiny", 0, 1)
    compare_all()
    after = metrics()
    changed = [
        (new["source"], new["layer"], new["seed"])
        for old, new in zip(before["saes"], after["saes"], strict=True)
        if old | {"stability": None} != new | {"stability": None}
    ]
    assert changed == [("tiny", 0, 1)]
    pairs = [new for old, new in zip(before["pairs"], after["pairs"], strict=True) if old != new]
    ends = [{(each["source"], each["seed"]), (each["source_b"], each["seed_b"])} for each in pairs]
    assert len(pairs) == 5 and all(("tiny", 1) in each for each in ends) and {each["layer"] for each in pairs} == {0}
    measured = {key for step, *keys in calls for key in keys if step != "find_contexts"}
    assert measured == {("tiny", "tiny", 0, 1)}
    incremental = everything()
    shutil.rmtree("results")
    compare_all()
    assert everything() == incremental


def test_a_run_of_fewer_seeds_keeps_what_is_shown_of_the_others(grid, calls):
    before = everything()
    compare_all(seeds=[0], sources=["tiny"])
    assert calls == []
    assert everything() == before


def test_another_number_of_random_tokens_is_counted_and_shown(grid, calls):
    compare_all(n_random_tokens=500)
    assert {step for step, *_ in calls} == {"measure_random_firing", "find_contexts"}
    assert {each["random_tokens"]["n_tokens"] for each in metrics()["saes"]} == {500}
    shown, stored = features("tiny", 1)["seeds"]["0"], arrays("tiny", 1)
    assert [each["random_rate"] for each in shown] == [stored["random_rate_0"][each["latent"]] for each in shown]


def test_lost_arrays_are_measured_again(grid):
    before = everything()
    shutil.rmtree(DETAILS)
    compare_all()
    assert everything() == before


# refusals


@pytest.mark.parametrize("make", [lambda folder: None, Path.mkdir])
def test_eval_only_without_saes_is_refused(tmp_path, capsys, make):
    make(Path("nothing"))
    error = refused(capsys, train_sae.main, [*EVAL_ONLY, "--checkpoint_dir", "nothing"])
    assert "nothing holds no finished SAEs; train some first, without --eval_only" in error


# interruptions and memory


@pytest.mark.parametrize("moments", [(1, 14), (35, 3), (45, 20, 25), (5,)])
def test_killed_comparison_goes_on_and_ends_with_the_same_results(grid, moments):
    """SIGKILL before durable writes: of metrics, arrays, floors and features."""
    before = everything()
    shutil.rmtree("results")
    for moment in moments:
        assert run_killed(lambda argv: compare_all(), [], moment), "killed too late to test anything"
    compare_all()
    assert everything() == before


def test_saes_held_a_few_at_a_time_give_the_same_numbers(grid, monkeypatch, calls):
    """A small device must cost time only."""
    before = everything()
    shutil.rmtree("results")
    monkeypatch.setattr(groups.Group, "batch_bytes", lambda group, saes, target: 0)
    monkeypatch.setattr(groups, "free_bytes", lambda device: 80_000)  # two of 30,976 bytes fit 85 % of it
    compare_all()
    assert {len(keys) for step, *keys in calls if keys} == {1, 2}
    assert everything() == before


# what is wrong with some, and others at the same time


@pytest.mark.parametrize("kind", ["weights", "reconstructions"])
def test_an_sae_that_has_diverged_is_shown_as_such_and_blocks_nothing(grid, kind, capsys):
    """Earlier versions published those; every other number must be as without it."""
    before = metrics()
    value = float("nan") if kind == "weights" else 3e38
    change_tensors("tiny", 0, 1, lambda tensor: torch.full_like(tensor, value))
    capsys.readouterr()
    train_sae.main(EVAL_ONLY)
    said = capsys.readouterr()
    assert "checkpoints/tiny_from_tiny_seed_1/layers.0 has diverged" in said.err
    (row,) = [line for line in said.out.splitlines() if "diverged" in line]
    assert "tiny_from_tiny_seed_1/layers.0" in row
    found = metrics()
    for old, new in zip(before["saes"], found["saes"], strict=True):
        if (new["source"], new["layer"], new["seed"]) == ("tiny", 0, 1):
            assert new["is_diverged"] and new["evaluations"] == []
            assert new["random_tokens"] is new["stability"] is None
        elif new["layer"] == 0:  # how often latents come back is counted over one SAE less
            assert new | {"stability": None} == old | {"stability": None}
            assert (new["stability"] is None) == (new["source"] == "tiny"), "two seeds are left"
        else:
            assert new == old
    lost = [pair for pair in before["pairs"] if pair not in found["pairs"]]
    assert len(lost) == 5 and {pair["layer"] for pair in lost} == {0}
    assert all(("tiny", 1) in [(pair["source"], pair["seed"]), (pair["source_b"], pair["seed_b"])] for pair in lost)
    page = Path("results/report.html").read_text()
    said = "Diverged in training (NaN or infinity), and left out of every number"
    assert f"{said}: layer 0, trained on tiny, seed 1" in page


@pytest.mark.parametrize("file", ["run.json", "layers.1/sae.safetensors", "layers.0/cfg.json", "metrics.jsonl"])
def test_a_damaged_folder_is_named_and_left_out_and_the_others_are_measured(grid, file, capsys):
    shutil.rmtree("results")
    path = Path("checkpoints/tiny_from_other_seed_1") / file
    path.write_bytes(path.read_bytes()[:-20])
    error = refused(capsys, train_sae.main, EVAL_ONLY)
    assert f"left out, all others are measured: {path} is damaged" in error
    assert len(metrics()["saes"]) == 10
    assert Path("results/report.html").exists()


def test_runs_that_share_a_results_folder_add_to_it(grid):
    """Two trainings of other targets end at the same time: the later one knew nothing of what the other wrote."""
    expected = metrics()
    shutil.rmtree("results")
    saes = find_all_trained(Path("checkpoints"))[0]
    halves = [[sae for sae in saes if sae.key[1] == source] for source in SOURCES]
    sources = find_sources_of(saes, settings().where)
    known = [read_known(Path("results"), half, sources) for half in halves]  # both begin with nothing
    for half, results in zip(halves, known, strict=True):
        for group in group_saes(half, sources, settings()):
            measure(group, results)
            match_pairs(group.saes, results, torch.device("cpu"))
        results.save()
    found = metrics()
    assert found["datasets"] == expected["datasets"]
    assert [each | {"stability": None} for each in found["saes"]] == [
        each | {"stability": None} for each in expected["saes"]
    ]
    within = [each for each in expected["pairs"] if each["kind"] == "within"]
    assert [each | {"codes": None} for each in found["pairs"]] == [each | {"codes": None} for each in within]


@pytest.mark.parametrize("name", ["report.html", "metrics.csv", "metrics.json", "figures/mine.png", "features"])
def test_files_of_others_are_left_alone_and_said_before_anything_is_trained(grid, name, capsys):
    shutil.rmtree("results")
    path = Path("results") / name
    path.parent.mkdir(parents=True)
    path.write_text("my own report")
    error = refused(capsys, train_sae.main, [*TRAIN, *COMPARE, "--checkpoint_dir", "others"])
    assert str(path if path.parent.name == "results" else path.parent) in error
    assert path.read_text() == "my own report" and not Path("others").exists()


@pytest.mark.parametrize("kind", ["npz", "features.json"])
def test_damaged_details_are_named_with_what_makes_them_again(grid, kind, capsys):
    before = everything()
    path = next(DETAILS.glob(f"tiny_from_tiny_layers.0.{kind}"))
    path.write_bytes(path.read_bytes()[:-40])
    Path("results/report.json").unlink()
    error = refused(capsys, train_sae.main, EVAL_ONLY)
    assert f"{path} is damaged" in error and f"rm {path}" in error
    path.unlink()
    train_sae.main(EVAL_ONLY)
    assert everything() == before
