"""SAEs of one target on two sources, one of another tokenizer, 2 layers and 3 seeds: what is measured, and when."""

import contextlib
import itertools
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load, run_killed
from safetensors.torch import load_file, save_file
from test_cli import TRAIN, refused
from test_results import numbers_in, rows_of

import generate_datasets
import train_sae
from sae_utils.comparison import measuring
from sae_utils.comparison.measuring import ComparisonSettings, Group, best_matches, compare
from sae_utils.comparison.results import read_arrays
from sae_utils.comparison.stability import compare_dictionaries, directions, untrained_floor
from sae_utils.comparison.trained import find_all_trained
from sae_utils.evaluation.activations import layer_outputs
from sae_utils.evaluation.random_tokens import known_ids, measure_random_firing, random_sequences
from sae_utils.evaluation.reconstruction import measure_reconstruction
from sae_utils.evaluation.splicing import measure_splices
from sae_utils.sources.packing import Chunks, open_chunks
from sae_utils.sparse_coders import SparseCoder

COMPARE = ["--random_tokens", "2000", "--quiet", "--wandb_mode", "disabled"]
EVAL_ONLY = ["--eval_only", *COMPARE]
SOURCES, LAYERS, SEEDS = ("other", "tiny"), (0, 1), (0, 1, 2)
METRICS, DETAILS = Path("results/metrics.json"), Path("results/details")


@pytest.fixture(scope="module")
def trained_grid(tmp_path_factory, neox, llama) -> Path:
    """Models, data sets, SAEs and results, made once; only copies of them are changed."""
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
def calls(monkeypatch) -> list[tuple]:
    """What is measured from here on: the step and the keys of its SAEs."""
    made = []

    def count(step: str, keys_of) -> None:
        call = getattr(measuring, step)

        def counted(*args, **options):
            made.append((step, *keys_of(args)))
            return call(*args, **options)

        monkeypatch.setattr(measuring, step, counted)

    for step in ("measure_reconstruction", "measure_splices", "measure_random_firing", "find_contexts"):
        count(step, lambda args: sorted(args[1]))
    count("compare_dictionaries", lambda args: ())
    return made


def metrics() -> dict:
    return json.loads(METRICS.read_text())


def features(source: str, layer: int) -> dict:
    return json.loads((DETAILS / f"tiny_from_{source}_layers.{layer}.features.json").read_text())


def arrays(source: str, layer: int) -> dict[str, np.ndarray]:
    return read_arrays(DETAILS / f"tiny_from_{source}_layers.{layer}.npz")


def everything() -> dict:
    """All that the comparison wrote: files as bytes, arrays as lists, as an archive has the time in it."""
    files = {path.name: path.read_bytes() for path in sorted(DETAILS.glob("*.json"))}
    numbers = {path.name: {name: a.tolist() for name, a in read_arrays(path).items()} for path in DETAILS.glob("*.npz")}
    return files | numbers | {name: Path("results", name).read_bytes() for name in ("metrics.json", "metrics.csv")}


def sae_record(source: str, layer: int, seed: int) -> dict:
    (record,) = [
        each for each in metrics()["saes"] if (each["source"], each["layer"], each["seed"]) == (source, layer, seed)
    ]
    return record


def held_out_tokens(source: str) -> Chunks:
    """The last sequences of a source, as many as the runs say, found without the code that is tested."""
    run = json.loads(Path("checkpoints/tiny_from_tiny_seed_0/run.json").read_text())
    (packed,) = Path("datasets/.packed").glob(f"{source}_*_32.npy")
    return Chunks(open_chunks(packed).tokens[-run["n_eval_tokens"] // 32 :])


def sae_of(source: str, layer: int, seed: int) -> SparseCoder:
    return SparseCoder.load_from_disk(f"checkpoints/tiny_from_{source}_seed_{seed}/layers.{layer}")


def change_weights(source: str, layer: int, seed: int) -> None:
    """As if the SAE had been trained again."""
    path = f"checkpoints/tiny_from_{source}_seed_{seed}/layers.{layer}/sae.safetensors"
    save_file({name: tensor + 0.01 * torch.sin(tensor * 9) for name, tensor in load_file(path).items()}, path)


def settings(n_random_tokens: int = 2000) -> ComparisonSettings:
    return ComparisonSettings(Path("datasets"), torch.device("cpu"), n_random_tokens=n_random_tokens, quiet=True)


def compare_all(*, seeds: Sequence[int] = SEEDS, sources: Sequence[str] = SOURCES, n_random_tokens: int = 2000) -> None:
    """The comparison alone, without figures and page, of what a run of these sources and seeds has trained."""
    saes = [sae for sae in find_all_trained(Path("checkpoints")) if sae.seed in seeds and sae.key[1] in sources]
    compare(saes, Path("results"), settings(n_random_tokens))


# what is measured


def test_every_sae_is_measured_on_every_source_and_every_two_seeds_are_compared(grid):
    found = metrics()
    assert found["schema"] == 2
    saes = [(each["target"], each["source"], each["layer"], each["seed"]) for each in found["saes"]]
    assert saes == list(itertools.product(["tiny"], SOURCES, LAYERS, SEEDS))
    for record in found["saes"]:
        assert [each["eval_source"] for each in record["evaluations"]] == list(SOURCES)
        assert record["random_tokens"]["n_tokens"] == 2000
    pairs = [(each["source"], each["layer"], each["seed"], each["seed_b"]) for each in found["pairs"]]
    assert pairs == [(*cell, *two) for cell in itertools.product(SOURCES, LAYERS) for two in [(0, 1), (0, 2), (1, 2)]]
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
    hooked, options = {0: (f"layers.{layer}", sae)}, {"batch_size": 2}
    record = sae_record(source, layer, seed)
    for found in record["evaluations"]:
        tokens = held_out_tokens(found["eval_source"])
        measured = measure_reconstruction(target.model, hooked, tokens, **options)
        means = {name: each.all.mean for name, each in measured.layers.items()}
        spliced = measure_splices(target.model, hooked, tokens, means, **options)[0]
        about = {name: found[name] for name in ("eval_source", "eval_fingerprint")}
        assert found == about | measured.saes[0].record() | spliced
        if found["eval_source"] == source:
            stored = arrays(source, layer)
            assert stored[f"firing_rate_{seed}"].dtype == stored[f"max_activation_{seed}"].dtype == np.float32
            assert np.array_equal(stored[f"firing_rate_{seed}"], measured.saes[0].firing_rate.astype(np.float32))
            assert np.array_equal(stored[f"max_activation_{seed}"], measured.saes[0].max_activation.numpy())
    ids = known_ids(target.tokenizer, target.model)
    sequences = random_sequences(ids, bos_id=target.bos_id, ctx_len=32, seed=0, n_tokens=2000)
    firing = measure_random_firing(target.model, hooked, sequences, n_tokens=2000, **options)[0]
    assert record["random_tokens"] == firing.record()
    assert np.array_equal(stored[f"random_rate_{seed}"], firing.random_rate.astype(np.float32))
    assert np.array_equal(stored[f"is_fake_{seed}"], firing.is_fake)


@pytest.mark.parametrize(("source", "layer", "seeds"), [("tiny", 0, (0, 2)), ("other", 1, (1, 2))])
def test_numbers_of_a_pair_are_those_of_the_single_functions(grid, source, layer, seeds):
    a, b = (sae_of(source, layer, seed) for seed in seeds)
    (found,) = [
        each
        for each in metrics()["pairs"]
        if (each["source"], each["layer"], each["seed"], each["seed_b"]) == (source, layer, *seeds)
    ]
    stored = arrays(source, layer)
    live_a, live_b = (stored[f"firing_rate_{seed}"] > 0 for seed in seeds)
    floor = untrained_floor(16, a.cfg, seeds)
    expected = compare_dictionaries(directions(a), directions(b), floor, live_a=live_a, live_b=live_b)
    assert {name: found[name] for name in expected.record} == expected.record
    pair = f"{seeds[0]}_{seeds[1]}"
    assert np.array_equal(stored[f"partner_{pair}"], expected.partner)
    assert np.array_equal(stored[f"cosine_{pair}"], expected.cosine)
    assert np.array_equal(stored[f"floor_cosine_{pair}"], floor.cosine)


def test_all_details_are_documented_arrays_of_one_value_per_latent(grid):
    """Figures and readers rely on names, shapes and formats."""
    per_seed = {"firing_rate": "float32", "max_activation": "float32", "random_rate": "float32", "is_fake": "bool"}
    per_pair = {"partner": "int32", "cosine": "float32", "floor_cosine": "float32"}
    expected = {f"{name}_{seed}": dtype for name, dtype in per_seed.items() for seed in SEEDS}
    expected |= {f"{name}_{a}_{b}": dtype for name, dtype in per_pair.items() for a, b in [(0, 1), (0, 2), (1, 2)]}
    for source, layer in itertools.product(SOURCES, LAYERS):
        stored = arrays(source, layer)
        assert {name: str(array.dtype) for name, array in stored.items()} == expected
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


def test_a_new_seed_adds_records_and_leaves_the_old_ones(grid, calls):
    whole = everything()
    for source in SOURCES:
        shutil.move(f"checkpoints/tiny_from_{source}_seed_2", f"seed_2_{source}")
    shutil.rmtree("results")
    compare_all()
    two = metrics()
    assert len(two["saes"]) == 8 and len(two["pairs"]) == 4
    assert all(each in json.loads(whole["metrics.json"])["saes"] for each in two["saes"])
    assert all(each in json.loads(whole["metrics.json"])["pairs"] for each in two["pairs"])
    for source in SOURCES:
        shutil.move(f"seed_2_{source}", f"checkpoints/tiny_from_{source}_seed_2")
    calls.clear()
    compare_all()
    assert everything() == whole
    measured = {key[-1] for step, *keys in calls for key in keys if step != "find_contexts"}
    assert measured == {2}, "a known SAE was measured again"
    assert calls.count(("compare_dictionaries",)) == 8


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
    changed = [new for old, new in zip(before["saes"], after["saes"], strict=True) if old != new]
    assert [(each["source"], each["layer"], each["seed"]) for each in changed] == [("tiny", 0, 1)]
    pairs = [new for old, new in zip(before["pairs"], after["pairs"], strict=True) if old != new]
    assert [(each["source"], each["layer"], each["seed"], each["seed_b"]) for each in pairs] == [
        ("tiny", 0, 0, 1),
        ("tiny", 0, 1, 2),
    ]
    measured = {key for step, *keys in calls for key in keys if step != "find_contexts"}
    assert measured == {("tiny", "tiny", 0, 1)}
    incremental = everything()
    shutil.rmtree("results")
    compare_all()
    assert everything() == incremental


def test_a_pair_with_weights_that_are_gone_is_dropped(grid):
    """Only one of its seeds is in the run that meets the new weights."""
    change_weights("tiny", 0, 0)
    compare_all(seeds=[0])
    pairs = [(each["source"], each["layer"], each["seed"], each["seed_b"]) for each in metrics()["pairs"]]
    assert len(pairs) == 10
    assert ("tiny", 0, 0, 1) not in pairs and ("tiny", 0, 0, 2) not in pairs
    shown = features("tiny", 0)["seeds"]
    assert list(shown) == ["0"]
    assert {each["partner"] for each in shown["0"]} == {None}, "a match of weights that are gone"


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


def test_changed_data_are_refused(grid, capsys):
    """Held-out tokens of other data may be in what was trained on."""
    generate_datasets.main(["--models", "./tiny", "--num_tokens", "3000", "--max_length", "40", "--quiet"])
    capsys.readouterr()
    error = refused(capsys, train_sae.main, EVAL_ONLY)
    assert "tiny_from_tiny_seed_0/layers.0 was trained on datasets/tiny_42_1.0_0.9 with the fingerprint" in error
    assert "bring the data back, or train again with --overwrite" in error


def test_lost_data_are_refused(grid, capsys):
    shutil.rmtree("datasets/tiny_42_1.0_0.9")
    error = refused(capsys, train_sae.main, EVAL_ONLY)
    assert "the data set datasets/tiny_42_1.0_0.9 is gone" in error


@pytest.mark.parametrize("make", [lambda folder: None, Path.mkdir])
def test_eval_only_without_saes_is_refused(tmp_path, capsys, make):
    make(Path("nothing"))
    error = refused(capsys, train_sae.main, [*EVAL_ONLY, "--checkpoint_dir", "nothing"])
    assert "nothing holds no finished SAEs; train some first, without --eval_only" in error


def test_two_data_sets_of_one_name_are_refused(grid, capsys):
    """Their columns in the matrix of sources would be one."""
    folder, moved = Path("datasets/tiny_42_1.0_0.9"), Path("datasets/tiny_43_1.0_0.9")
    generate_datasets.main(
        ["--models", "./tiny", "--seed", "43", "--num_tokens", "2500", "--max_length", "40", "--quiet"]
    )
    path = Path("checkpoints/tiny_from_tiny_seed_1/run.json")
    run = json.loads(path.read_text())
    run |= {
        "dataset": str(moved),
        "dataset_fingerprint": json.loads((moved / "generation.json").read_text())["fingerprint"],
    }
    path.write_text(json.dumps(run))
    capsys.readouterr()
    error = refused(capsys, train_sae.main, EVAL_ONLY)
    assert f"{folder} and {moved} are both called tiny" in error


# interruptions and memory


@pytest.mark.parametrize("moments", [(1, 14), (35, 3), (60, 20, 70), (5,)])
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
    monkeypatch.setattr(measuring.Group, "batch_bytes", lambda group, saes, target: 0)
    monkeypatch.setattr(measuring, "free_bytes", lambda device: 16_000)  # two of 6,400 bytes fit 85 % of it
    compare_all()
    assert {len(keys) for step, *keys in calls if keys} == {1, 2}
    assert everything() == before


def test_saes_that_were_measured_leave_memory_before_the_next_come(grid, monkeypatch):
    """Or a device that holds n of them would have to hold 2 n."""
    monkeypatch.setattr(measuring, "free_bytes", lambda device: 0)
    saes = find_all_trained(Path("checkpoints"))
    group, parts = Group(saes, {}, settings()), []
    for hooked in group.in_memory(saes, group.load_target()):
        assert [len(part) for part in parts] == [0] * len(parts)
        assert len(hooked) == 1
        parts.append(hooked)
    assert len(parts) == 12


def test_room_is_left_for_what_a_batch_needs(grid, monkeypatch):
    """Filled with SAEs alone, a device has no place for the logits of a large vocabulary."""
    saes = find_all_trained(Path("checkpoints"))
    group = Group(saes, {}, settings())
    target = group.load_target()
    n_tokens, vocab = 2 * 32, len(target.tokenizer)
    logits, pieces = 2 * 4 * n_tokens * vocab, 5 * 4 * n_tokens * vocab
    outputs, latents = (2 * 4 + 6 * 8) * n_tokens * 16, 2 * 4 * n_tokens * 48
    assert group.batch_bytes(saes, target) == logits + pieces + outputs + latents
    needed = group.batch_bytes(saes, target) + 3 * 6_400  # for three SAEs
    for n_bytes, n_together in ((needed - 1, 2), (needed, 3)):
        monkeypatch.setattr(measuring, "free_bytes", lambda device, n_bytes=n_bytes: math.ceil(n_bytes / 0.85))
        assert len(next(group.in_memory(saes, target))) == n_together


def test_a_source_shorter_than_what_is_held_out_is_used_whole(grid, caplog):
    """No sequence may be counted twice, and the number of tokens says how many there were."""
    saes = [sae for sae in find_all_trained(Path("checkpoints")) if sae.seed == 0]
    for sae in saes:
        sae.run["settings"]["n_eval_tokens"] = 10**6
    results = compare(saes, Path("others"), settings())
    for record in results.saes.values():
        for each in record["evaluations"]:
            (packed,) = Path("datasets/.packed").glob(f"{each['eval_source']}_*_32.npy")
            assert each["n_tokens"] == open_chunks(packed).tokens.size
    assert "has fewer tokens than were held out of others" in caplog.text


# features


def test_contexts_have_the_activations_that_the_sae_gives(grid):
    """Each context is found among the held-out sequences, and encoded again from there."""
    target = load(Path("tiny"))
    names = [target.tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in range(len(target.tokenizer))]
    for source, layer in itertools.product(SOURCES, LAYERS):
        tokens = held_out_tokens(source)
        texts = [[names[i] for i in row] for row in tokens.tokens.tolist()]
        outputs = layer_outputs(target.model, [f"layers.{layer}"], torch.from_numpy(tokens.tokens.astype(np.int64)))
        for seed, latents in features(source, layer)["seeds"].items():
            sae = sae_of(source, layer, int(seed))
            with torch.no_grad():
                top = sae.encode(outputs[f"layers.{layer}"].flatten(0, 1))
            dense = torch.zeros(len(top.top_acts), 48).scatter(1, top.top_indices, top.top_acts).view(-1, 32, 48)
            for each in latents:
                expected = dense[:, :, each["latent"]]
                peaks = expected.max(dim=1).values.sort(descending=True).values
                n_expected = min(6, int((peaks > 0).sum()))
                assert len(each["contexts"]) == n_expected
                for context, peak in zip(each["contexts"], peaks, strict=False):
                    row = expected[texts.index(context["tokens"])]
                    assert context["activations"] == pytest.approx(row.tolist(), rel=1e-3, abs=1e-6)
                    assert context["peak"] == int(row.argmax())
                    assert context["activations"][context["peak"]] == pytest.approx(float(peak), rel=1e-3)


def test_features_repeat_the_arrays(grid):
    for source, layer in itertools.product(SOURCES, LAYERS):
        stored, shown = arrays(source, layer), features(source, layer)
        assert (shown["n_latents"], list(shown["seeds"])) == (48, ["0", "1", "2"])
        for seed, latents in shown["seeds"].items():
            assert len(latents) == int(((stored[f"firing_rate_{seed}"] > 0) | stored[f"is_fake_{seed}"]).sum())
            for each in latents:
                for name in ("firing_rate", "max_activation", "random_rate", "is_fake"):
                    assert each[name] == stored[f"{name}_{seed}"][each["latent"]]


def test_with_two_seeds_the_partner_of_a_partner_is_oneself(grid):
    for source, layer in itertools.product(SOURCES, LAYERS):
        stored = arrays(source, layer)
        pair = {name: array for name, array in stored.items() if name in ("partner_0_1", "cosine_0_1")}
        first, second = best_matches(0, [0, 1], pair), best_matches(1, [0, 1], pair)
        assert sorted(first["partner"]) == list(range(48))
        assert second["partner"][first["partner"]].tolist() == list(range(48))
        assert np.array_equal(second["cosine"][first["partner"]], first["cosine"])
        assert (set(first["partner_seed"]), set(second["partner_seed"])) == ({1}, {0})


def test_best_match_is_the_highest_cosine_over_all_other_seeds(grid):
    """Cosines computed again from the weights; the matching read entry by entry, from either side."""
    for source, layer in itertools.product(SOURCES, LAYERS):
        stored = arrays(source, layer)
        decoders = {seed: torch.nn.functional.normalize(sae_of(source, layer, seed).W_dec.data) for seed in SEEDS}
        for seed in SEEDS:
            found = best_matches(seed, list(SEEDS), stored)
            for latent in range(48):
                candidates = []
                for other in set(SEEDS) - {seed}:
                    a, b = sorted((seed, other))
                    partner = stored[f"partner_{a}_{b}"].tolist()
                    match = partner[latent] if seed == a else partner.index(latent)
                    candidates.append((float(decoders[seed][latent] @ decoders[other][match]), match, other))
                best = max(candidates)
                assert found["cosine"][latent] == pytest.approx(best[0], abs=1e-6)
                if not math.isclose(candidates[0][0], candidates[1][0], abs_tol=1e-6):
                    assert (found["partner"][latent], found["partner_seed"][latent]) == best[1:]
            (example, *_) = features(source, layer)["seeds"][str(seed)]
            assert example["best_cosine"] == found["cosine"][example["latent"]]
            assert example["partner"] == found["partner"][example["latent"]]
            assert example["partner_seed"] == found["partner_seed"][example["latent"]]


def test_best_match_of_a_single_seed_is_none(grid):
    assert best_matches(0, [0], arrays("tiny", 0)) is None
