"""Probes of finished SAEs on labelled texts: which numbers, of which weights and texts, and when."""

import itertools
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CORPUS, edit_record, load, run_killed
from grid_files import (
    DETAILS,
    EVAL_ONLY,
    LAYERS,
    LEFT_OUT,
    METRICS,
    SEEDS,
    SOURCES,
    change_tensors,
    change_weights,
    compare_all,
    metrics,
    sae_of,
    sae_record,
    settings,
)
from test_cli import all_bytes, refused

import train_sae
from sae_utils.comparison import probes
from sae_utils.comparison.groups import ComparisonSettings, group_saes
from sae_utils.comparison.measuring import read_known
from sae_utils.comparison.probes import probe
from sae_utils.comparison.results import Results
from sae_utils.comparison.trained import find_all_trained
from sae_utils.comparison.whereabouts import find_sources_of
from sae_utils.errors import NonFiniteError
from sae_utils.evaluation.activations import layer_outputs
from sae_utils.evaluation.last_tokens import LastStates, encode_states
from sae_utils.evaluation.probing import score_dense, score_sae, split_texts
from sae_utils.sources.labelled import find_labelled

N_TEXTS, N_SAES = 45, 12
SAE_KEYS = list(itertools.product(SOURCES, LAYERS, SEEDS))


def write_texts(name: str = "topics.jsonl", *, n_texts: int = N_TEXTS, seed: int = 0) -> str:
    """Texts of three classes: sentences of which the last words are another sentence's; some are longer than a row."""
    rng, lines = np.random.default_rng(seed), []
    for number in range(n_texts):
        words = CORPUS[number % 3].split()
        text = " ".join(rng.choice(words, rng.integers(1, 40)))
        lines.append(json.dumps({"text": text, "label": f"topic {number % 3}"}) + "\n")
    Path(name).write_text("".join(lines))
    return name


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """Numbers of layers and texts whose states are asked for from here on."""
    made, call = [], probes.last_states

    def counted(model, hookpoints, texts, **options):
        made.append((len(hookpoints), len(texts)))
        return call(model, hookpoints, texts, **options)

    monkeypatch.setattr(probes, "last_states", counted)
    return made


def probe_all(*names: str, how: ComparisonSettings | None = None) -> Results:
    """Probe all SAEs of the grid, and nothing else."""
    saes, how = find_all_trained(Path("checkpoints"))[0], how or settings()
    sources = find_sources_of(saes, how.where)
    results = read_known(Path("results"), saes, sources)
    labelled = find_labelled(names, how.where.packs)
    for group in group_saes(saes, sources, how):
        probe(group, labelled, results)
    return results


def test_numbers_are_those_of_the_single_functions(grid):
    """Texts one by one through the model, BOS first, cut to 32 tokens: the last of these is what is probed."""
    probe_all(write_texts())
    rows = [json.loads(line) for line in Path("topics.jsonl").read_text().splitlines()]
    target, classes = load(Path("tiny")), np.arange(N_TEXTS) % 3
    split, x = split_texts(classes), []
    for row in rows:
        ids = [0, *target.tokenizer.encode(row["text"], add_special_tokens=False)][:32]
        x.append(layer_outputs(target.model, ["layers.1"], torch.tensor([ids]))["layers.1"][0, -1])
    x = torch.stack(x)
    assert LEFT_OUT.ids == (0,) and all(row["text"] for row in rows), "every last token is kept"
    encoded = encode_states(sae_of("other", 1, 2), LastStates(x, torch.ones(len(x), dtype=torch.bool)))
    expected = {"hidden_state": score_dense(x.numpy(), classes, split)} | score_sae(encoded, classes, split)
    (found,) = sae_record("other", 1, 2)["probes"]
    for name, scores in expected.items():
        assert {what: found["scores"][name][what] for what in ("accuracy", "macro_f1")} == {
            what: scores[what] for what in ("accuracy", "macro_f1")
        }
    assert [*found] == ["name", "fingerprint", "n_classes", "n_train", "n_test", "majority_share", "scores"]
    assert (found["name"], found["n_classes"], found["n_train"], found["n_test"]) == ("topics", 3, 36, 9)
    assert found["majority_share"] == 3 / 9


def test_every_sae_is_probed_and_a_layer_has_one_hidden_state(grid, calls):
    probe_all(write_texts())
    hidden = {(each["layer"], json.dumps(each["probes"][0]["scores"]["hidden_state"])) for each in metrics()["saes"]}
    assert len(hidden) == 2 and calls == [(2, N_TEXTS)], "one pass of the target for all layers and SAEs"


def test_a_second_run_measures_nothing_and_changes_no_byte(grid, calls):
    names = write_texts(), write_texts("more.jsonl", seed=1)
    probe_all(*names)
    before = all_bytes(Path("results"))
    assert len(calls) == 2
    probe_all(*names)
    probe_all()  # not asked for, and still known
    assert len(calls) == 2 and all_bytes(Path("results")) == before


def test_results_of_before_there_were_probes_have_none(grid):
    """They are taken over, and the field is documented as a list."""
    saes = metrics()["saes"]
    for record in saes:
        del record["probes"]
    edit_record(METRICS, saes=saes)
    assert {len(record["probes"]) for record in probe_all().saes.values()} == {0}
    probe_all(write_texts())
    assert {len(record["probes"]) for record in metrics()["saes"]} == {1}


def test_other_batch_sizes_give_the_same_numbers(grid):
    """On a CPU in float32: states differ in their last bits, which no score sees here."""
    name, found = write_texts(), []
    for batch_size in (1, 50):
        saes = probe_all(name, how=replace(settings(), batch_size=batch_size)).saes
        scores = {key: record["probes"][0]["scores"] for key, record in saes.items()}
        found.append({(key, what): each["accuracy"] for key in scores for what, each in scores[key].items()})
        shutil.rmtree("results")
    assert found[0] == found[1] and len(found[0]) == 6 * N_SAES


def test_other_texts_under_the_same_name_replace_what_is_known(grid, calls):
    probe_all(write_texts(), write_texts("more.jsonl", seed=1))
    (_, old), other = sae_record("tiny", 0, 0)["probes"], sae_record("tiny", 0, 0)["probes"][0]
    probe_all(write_texts(seed=5))
    known = sae_record("tiny", 0, 0)["probes"]
    assert [each["name"] for each in known] == ["more", "topics"] and known[0] == other
    assert known[1]["fingerprint"] != old["fingerprint"] and len(calls) == 3


def test_retrained_weights_are_probed_anew_and_no_others(grid, calls):
    name = write_texts()
    probe_all(name)
    change_weights("tiny", 0, 1)
    after = probe_all(name).saes
    assert calls == [(2, N_TEXTS), (1, N_TEXTS)]
    incremental = {key: record["probes"] for key, record in after.items()}
    shutil.rmtree("results")
    assert {key: record["probes"] for key, record in probe_all(name).saes.items()} == incremental


def test_what_is_done_is_kept_when_a_run_is_killed(grid):
    """Written as soon as an SAE is done; the rest is done by the same command."""
    name = write_texts()
    assert run_killed(lambda argv: probe_all(name), [], 30), "killed too late to test anything"
    n_done = sum(bool(each["probes"]) for each in metrics()["saes"])
    assert 0 < n_done < N_SAES
    continued = {key: record["probes"] for key, record in probe_all(name).saes.items()}
    shutil.rmtree("results")
    assert {key: record["probes"] for key, record in probe_all(name).saes.items()} == continued


def test_an_sae_that_has_diverged_is_not_probed_and_keeps_no_numbers(grid):
    name = write_texts()
    probe_all(name)
    change_tensors("tiny", 0, 1, lambda tensor: torch.full_like(tensor, float("nan")))
    compare_all()
    assert sae_record("tiny", 0, 1)["is_diverged"]
    probe_all(name)
    assert [key for key in SAE_KEYS if not sae_record(*key)["probes"]] == [("tiny", 0, 1)]


def test_reconstructions_that_are_not_finite_are_named(grid):
    """scikit-learn's own words would be of an input X."""
    name = write_texts()
    change_tensors("tiny", 1, 0, lambda tensor: tensor * 3e38)
    with pytest.raises(NonFiniteError, match=r"seed_0/layers\.1 gives NaN or infinity on a text of topics in float32"):
        probe_all(name)


def test_texts_of_which_nothing_is_kept_have_no_latent_and_are_counted(grid, caplog):
    """What `--exclude` leaves out SAEs do not see, here as elsewhere; on the other texts nothing changes."""
    Path("topics.jsonl").write_text(
        "".join(json.dumps({"text": "<|endoftext|>", "label": i % 2}) + "\n" for i in range(20))
    )
    probe_all("topics.jsonl")
    assert "topics: --exclude leaves out every position of 20 texts; no latent fires on them" in caplog.text
    scores = sae_record("tiny", 0, 0)["probes"][0]["scores"]
    assert scores["latents"]["n_steps"] == 0 and scores["latents"]["accuracy"] == 0.5
    assert scores["hidden_state"] == scores["reconstruction"]


def test_the_terminal_has_a_table_of_what_was_asked_for(grid, capsys):
    train_sae.main([*EVAL_ONLY, "--probe_datasets", write_texts(), write_texts("more.jsonl", seed=1)])
    capsys.readouterr()
    train_sae.main([*EVAL_ONLY, "--probe_datasets", "topics.jsonl"])
    out, times = capsys.readouterr().out, {each: each.stat().st_mtime_ns for each in Path("results").rglob("*.*")}
    assert len(re.findall("^topics +tiny +", out, flags=re.MULTILINE)) == N_SAES and "\nmore" not in out
    assert "\ntopics: accuracy on 9 held-out texts of 3 classes, learned from 36\n" in out
    train_sae.main(EVAL_ONLY)
    assert "probed on" not in capsys.readouterr().out
    assert '<section id="probes"' in Path("results/report.html").read_text(), "the page has what is known"
    for each in Path("results").rglob("*"):
        assert each.stat().st_mtime_ns == times.get(each, each.stat().st_mtime_ns), "nothing is drawn or written anew"


@pytest.mark.parametrize("argv", [EVAL_ONLY, [*EVAL_ONLY, "--dry_run"]])
def test_what_cannot_be_probed_on_is_said_before_anything_is_measured(grid, capsys, argv):
    """Not after days of training."""
    shutil.rmtree("results")
    Path("one.jsonl").write_text('{"text": "x", "label": 1}\n' * 9)
    error = refused(capsys, train_sae.main, [*argv, "--probe_datasets", "one.jsonl"])
    said = "--probe_datasets one.jsonl must have at least two classes in the column `label`, found 1 alone\n"
    assert error.endswith(f": error: {said}")
    assert not DETAILS.exists()
