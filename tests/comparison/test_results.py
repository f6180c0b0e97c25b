import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import edit_record

from sae_utils.comparison.results import (
    CSV_COLUMNS,
    Results,
    check_are_ours,
    pair_key,
    read_arrays,
    read_results,
    tidy_csv,
    write_arrays,
)
from sae_utils.disk import DiskFullError
from sae_utils.errors import InputError

QUANTILES = {"0.01": 0.0, "0.5": 0.1}


def sae_of(source: str, layer: int, seed: int, **values) -> dict:
    """A record with all kinds of fields that there are."""
    return {
        "target": "tiny",
        "source": source,
        "layer": layer,
        "seed": seed,
        "path": f"checkpoints/tiny_from_{source}_seed_{seed}/layers.{layer}",
        "n_latents": 48,
        "weights_fingerprint": "a1",
        "evaluations": [
            {"eval_source": "tiny", "eval_fingerprint": "0123", "fvu": 0.25, "firing_rate_quantiles": QUANTILES},
            {"eval_source": "other", "eval_fingerprint": "4567", "fvu": None, "firing_rate_quantiles": QUANTILES},
        ],
        "random_tokens": {"n_tokens": 2000, "ffr": 1 / 3},
        **values,
    }


def pair_of(source: str, layer: int, seed: int, seed_b: int, source_b: str | None = None, **values) -> dict:
    about = {"target": "tiny", "source": source, "layer": layer, "seed": seed}
    about |= {"source_b": source_b or source, "seed_b": seed_b, "kind": "between" if source_b else "within"}
    numbers = {"sfr": 0.5, "sfr_at": {"0.5": 0.7, "0.9": 0.0}, "sfr_live": None, "n_live": 40}
    intervals = {"sfr_interval": [0.25, 0.75], "sfr_at_interval": {"0.5": [0.5, 1.0], "0.9": None}}
    return about | numbers | intervals | {"sfr_live_interval": None, "weights_fingerprints": ["a1", "b2"]} | values


def results_of(saes: list[dict], pairs: list[dict], folder: Path = Path("results")) -> Results:
    """In the order given."""
    results = Results(folder)
    for each in saes:
        results.saes[each["target"], each["source"], each["layer"], each["seed"]] = each
    for each in pairs:
        results.pairs[pair_key(each)] = each
    results.datasets["tiny"] = {"name": "tiny", "kind": "generated", "n_samples": 3, "n_tokens": 50, "quality": None}
    return results


def numbers_in(metrics: dict) -> Iterator[tuple]:
    """Every number of metrics.json that is not undefined, as a row of metrics.csv."""

    def walk(value, where: tuple, name: str):
        if isinstance(value, dict):
            for key, each in value.items():
                yield from walk(each, where, f"{name}.{key}" if name else key)
        elif isinstance(value, float | int) and not isinstance(value, bool):
            yield (*where, name, value)
        elif name == "by_position":
            for each in value:
                yield from walk(each, where, f"by_position.{each['first']}")
        elif isinstance(value, list) and "_interval" in name:
            for end, each in zip(("_low", "_high"), value, strict=True):
                yield (*where, name.replace("_interval", "") + end, each)

    for record in metrics["saes"] + metrics["pairs"] + metrics["agreements"] + metrics["contrasts"]:
        rest = dict(record)
        names = ("target", "source", "layer", "seed", "source_b", "seed_b", "kind", "measure")
        identity = tuple(str(rest.pop(name, "")) for name in names)
        for probe in rest.pop("probes", []):
            yield from walk(probe, (*identity, probe["name"]), "probe")
        for evaluation in rest.pop("evaluations", []):
            values = dict(evaluation)
            yield from walk(values, (*identity, values.pop("eval_source")), "")
        yield from walk(rest, (*identity, ""), "")


def rows_of(path: Path) -> list[tuple]:
    with path.open(newline="", encoding="utf-8") as file:
        return [(*list(row.values())[:-1], float(row["value"])) for row in csv.DictReader(file)]


def test_csv_by_hand():
    """Nested names by dots; empty cells where a column does not apply; undefined numbers and texts left out."""
    contrast = {"target": "tiny", "layer": 7, "source": "tiny", "source_b": "other", "measure": "sfr", "ratio": 0.5}
    saes, pairs = [sae_of("tiny", 7, 0)], [pair_of("tiny", 7, 0, 1, "other")]
    text = tidy_csv({"saes": saes, "pairs": pairs, "agreements": [], "contrasts": [contrast]})
    assert text.splitlines() == [
        "target,source,layer,seed,source_b,seed_b,kind,measure,eval_source,metric,value",
        "tiny,tiny,7,0,,,,,tiny,fvu,0.25",
        "tiny,tiny,7,0,,,,,tiny,firing_rate_quantiles.0.01,0.0",
        "tiny,tiny,7,0,,,,,tiny,firing_rate_quantiles.0.5,0.1",
        "tiny,tiny,7,0,,,,,other,firing_rate_quantiles.0.01,0.0",
        "tiny,tiny,7,0,,,,,other,firing_rate_quantiles.0.5,0.1",
        "tiny,tiny,7,0,,,,,,n_latents,48",
        "tiny,tiny,7,0,,,,,,random_tokens.n_tokens,2000",
        "tiny,tiny,7,0,,,,,,random_tokens.ffr,0.3333333333333333",
        "tiny,tiny,7,0,other,1,between,,,sfr,0.5",
        "tiny,tiny,7,0,other,1,between,,,sfr_at.0.5,0.7",
        "tiny,tiny,7,0,other,1,between,,,sfr_at.0.9,0.0",
        "tiny,tiny,7,0,other,1,between,,,n_live,40",
        "tiny,tiny,7,0,other,1,between,,,sfr_low,0.25",
        "tiny,tiny,7,0,other,1,between,,,sfr_high,0.75",
        "tiny,tiny,7,0,other,1,between,,,sfr_at.0.5_low,0.5",
        "tiny,tiny,7,0,other,1,between,,,sfr_at.0.5_high,1.0",
        "tiny,tiny,7,,other,,,sfr,,ratio,0.5",
    ]


def test_every_number_of_the_json_is_in_the_csv_once_to_the_last_digit():
    saes = [
        sae_of(source, layer, seed, fvu=seed / 7) for source in ("tiny", "a,b") for layer in (7, 15) for seed in (0, 1)
    ]
    path = results_of(saes, [pair_of("a,b", 7, 0, 1), pair_of("tiny", 7, 0, 1)]).save()
    rows, expected = rows_of(Path("results/metrics.csv")), list(numbers_in(json.loads(path.read_text())))
    assert len(set(rows)) == len(rows) == 8 * 9 + 2 * 8
    assert sorted(rows) == sorted((*row[:-1], float(row[-1])) for row in expected)


def test_a_probe_has_its_data_set_where_an_evaluation_has_its_source():
    """Two data sets would have one name otherwise."""
    scores = {"latents": {"accuracy": 0.75, "accuracy_interval": [0.5, 1.0], "n_steps": 7}}
    probes = [{"name": name, "fingerprint": "01", "n_test": n, "scores": scores} for n, name in ((9, "a"), (4, "b"))]
    saes = [sae_of("tiny", 7, 0) | {"probes": probes}]
    lines = tidy_csv({"saes": saes, "pairs": [], "agreements": [], "contrasts": []}).splitlines()
    assert [line for line in lines if ",a," in line] == [
        "tiny,tiny,7,0,,,,,a,probe.n_test,9",
        "tiny,tiny,7,0,,,,,a,probe.scores.latents.accuracy,0.75",
        "tiny,tiny,7,0,,,,,a,probe.scores.latents.accuracy_low,0.5",
        "tiny,tiny,7,0,,,,,a,probe.scores.latents.accuracy_high,1.0",
        "tiny,tiny,7,0,,,,,a,probe.scores.latents.n_steps,7",
    ]
    assert len([line for line in lines if ",b,probe." in line]) == 5


def test_csv_opens_with_pandas():
    pandas = pytest.importorskip("pandas")
    results_of([sae_of("tiny", 7, 0)], [pair_of("tiny", 7, 0, 1)]).save()
    table = pandas.read_csv("results/metrics.csv")
    assert table.shape == (16, len(CSV_COLUMNS))
    assert (table["value"].dtype, table["layer"].dtype) == (np.float64, np.int64)
    sfr = table[table["metric"] == "sfr"]
    assert sfr[["seed", "seed_b", "value"]].to_numpy().tolist() == [[0, 1, 0.5]]


def test_what_is_read_again_is_what_was_saved():
    results = results_of([sae_of("tiny", 7, 0), sae_of("tiny", 7, 1)], [pair_of("tiny", 7, 0, 1)])
    results.save()
    again = read_results(Path("results"))
    assert (again.saes, again.pairs, again.datasets) == (results.saes, results.pairs, results.datasets)
    assert again.changed == set()


def test_records_are_in_the_order_of_their_names_whenever_they_came():
    """Layer 15 comes after layer 7: numbers are not compared as text."""
    saes = [sae_of("tiny", layer, seed) for layer in (15, 7) for seed in (1, 0)]
    first = results_of(saes, [pair_of("tiny", 7, 1, 2), pair_of("tiny", 7, 0, 2)]).save().read_bytes()
    pairs = [pair_of("tiny", 7, 0, 2), pair_of("tiny", 7, 1, 2)]
    assert results_of(saes[::-1], pairs).save().read_bytes() == first
    metrics = json.loads(first)
    assert list(metrics) == ["schema", "saes", "pairs", "agreements", "contrasts", "datasets", "checksum"]
    assert [(each["layer"], each["seed"]) for each in metrics["saes"]] == [(7, 0), (7, 1), (15, 0), (15, 1)]


def test_results_of_another_schema_are_not_taken_over(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps({"schema": 1, "saes": [{"target": "tiny"}]}))
    assert read_results(tmp_path).saes == read_results(tmp_path / "nowhere").saes == {}


def test_saes_of_the_schema_before_are_taken_over_without_their_pairs(tmp_path):
    """Measuring them takes hours; pairs lack numbers."""
    results_of([sae_of("tiny", 7, 0)], [pair_of("tiny", 7, 0, 1)], tmp_path).save()
    edit_record(tmp_path / "metrics.json", schema=3)
    again = read_results(tmp_path)
    assert list(again.saes) == [("tiny", "tiny", 7, 0)] and again.pairs == {}


def test_what_is_known_of_a_pair_is_beside_its_arrays():
    """A run that is stopped after a pair has not written metrics.json again."""
    results, key = Results(Path("results")), ("tiny", "a", 7, 0, "b", 1)
    record = pair_of("a", 7, 0, 1, "b")
    assert not results.take_in_pair(key, ["a1", "b2"])
    results.write_pair(record, {"cosine": np.float32([0.5, 0.25])})
    assert not results.take_in_pair(key, ["a1", "b3"]), "of other weights"
    assert results.take_in_pair(key, ["a1", "b2"])
    assert results.pairs == {key: record} and results.changed == {("tiny", "a"), ("tiny", "b")}
    assert {name: array.tolist() for name, array in results.pair_arrays(key).items()} == {"cosine": [0.5, 0.25]}
    path = results.pair_path(key)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"with_b_seed_1.npz is damaged"):
        results.take_in_pair(key, ["a1", "b2"])


def test_infinite_numbers_are_refused():
    """JSON has none, and readers would fail far from here."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        results_of([sae_of("tiny", 7, 0, fvu=float("inf"))], []).save()
    assert not Path("results/metrics.json").exists()


def test_arrays_are_added_to_those_that_are_there():
    results = Results(Path("results"))
    assert results.arrays("tiny", "other", 7) == {}
    results.add_arrays("tiny", "other", 7, firing_rate_0=np.float32([0.5, 0]), is_fake_0=np.array([True, False]))
    results.add_arrays("tiny", "other", 7, firing_rate_1=np.float32([1, 0]), is_fake_0=np.array([False, False]))
    with np.load("results/details/tiny_from_other_layers.7.npz") as stored:
        found = dict(stored)
    assert {name: array.tolist() for name, array in found.items()} == {
        "firing_rate_0": [0.5, 0],
        "firing_rate_1": [1, 0],
        "is_fake_0": [False, False],
    }
    assert {str(array.dtype) for array in found.values()} == {"float32", "bool"}
    assert results.arrays("tiny", "other", 15) == {}


def test_arrays_are_in_the_order_of_their_names_whenever_they_came(tmp_path):
    """One seed may be measured later than another; the file must be the same, as the report is tied to its bytes."""
    for name, order in (("a", "xy"), ("b", "yx")):
        write_arrays(tmp_path / f"{name}.npz", {each: np.array([ord(each)]) for each in order})
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_figures_beside_a_table_or_a_page_of_ours_are_ours(tmp_path):
    """Where metrics.json is damaged, the advice is to remove it; the next run must not take figures for others'."""
    results_of([sae_of("tiny", 7, 0)], [], tmp_path).save()
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "a.png").touch()
    (tmp_path / "metrics.json").unlink()
    check_are_ours(tmp_path)
    (tmp_path / "metrics.csv").unlink()
    with pytest.raises(InputError, match="figures is not of this project"):
        check_are_ours(tmp_path)


def test_a_damaged_table_is_written_anew():
    """It is made of metrics.json, and may not even be UTF-8."""
    results = results_of([sae_of("tiny", 7, 0)], [])
    table = results.save().with_suffix(".csv")
    before = table.read_bytes()
    table.write_bytes(before[:-5] + b"\xff" + before[-4:])
    results.save()
    assert table.read_bytes() == before


def test_arrays_that_fail_to_be_written_leave_the_old_ones(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    write_arrays(path, {"a": np.arange(3)})

    def full(*args, **options):
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(DiskFullError, match=r"a\.npz needs"):
        write_arrays(path, {"a": np.arange(4)})
    assert read_arrays(path)["a"].tolist() == [0, 1, 2]
