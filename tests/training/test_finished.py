import json
import os
from pathlib import Path

import pytest
import torch
from test_model_card import a_run

from sae_utils.sparse_coders import SparseCoder, SparseCoderConfig
from sae_utils.training.finished import TrainingTokens, make_record, publish, stage_sae
from sae_utils.training.folders import CellFolders

FOLDERS = CellFolders(Path("checkpoints"), "tiny", "prose")
CONFIG = {"model": "./tiny", "ctx_len": 32}


def tiny_sae() -> SparseCoder:
    return SparseCoder(8, SparseCoderConfig(num_latents=16, k=2), device="cpu")


def write_pass(name: str, losses: list[dict]) -> Path:
    """The losses of a pass, as the trainer leaves them."""
    path = FOLDERS.work_dir / name / "metrics.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(each) + "\n" for each in losses))
    return path


def stage_all() -> list[Path]:
    """Two seeds of one layer, trained in two passes."""
    for seed in (0, 1):
        stage_sae(FOLDERS, (7, seed), tiny_sae())
    (FOLDERS.work_dir / "wandb.json").write_text('{"id": "one"}')
    return [
        write_pass("a", [{"tokens": 64, "fvu/layers.7/seed_0": 0.5}, {"tokens": 128, "fvu/layers.7/seed_0": 0.25}]),
        write_pass("b", [{"tokens": 64, "fvu/layers.7/seed_1": 0.75}]),
    ]


def test_every_seed_gets_a_whole_folder_of_its_own():
    """Losses of its own SAEs alone, whichever pass they were trained in."""
    publish(FOLDERS, {seed: a_run(7, seed=seed) for seed in (0, 1)}, CONFIG, stage_all())
    assert list(FOLDERS.staged_dir(0).parent.iterdir()) == [], "what is left is removed by who has called"
    for seed, fvus in ((0, {64: 0.5, 128: 0.25}), (1, {64: 0.75})):
        folder = FOLDERS.seed_dir(seed)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [line["tokens"] for line in lines] == [64, 128]
        assert {n["tokens"]: n[name] for n in lines for name in n if name == f"fvu/layers.7/seed_{seed}"} == fvus
        assert not any(f"seed_{1 - seed}" in name for line in lines for name in line)
        run = json.loads((folder / "run.json").read_text())
        assert run["seed"] == seed and sorted(run["checksums"]) == ["config.json", "metrics.jsonl"]
        assert json.loads((folder / "config.json").read_text()) == CONFIG
        assert json.loads((folder / "wandb.json").read_text()) == {"id": "one"}
        assert SparseCoder.load_from_disk(folder / "layers.7").num_latents == 16


def test_a_seed_that_was_published_before_the_kill_is_left_alone():
    metrics = stage_all()
    os.replace(FOLDERS.staged_dir(0), FOLDERS.seed_dir(0))
    before = sorted(FOLDERS.seed_dir(0).rglob("*"))
    publish(FOLDERS, {0: a_run(7, seed="again"), 1: a_run(7)}, CONFIG, metrics)
    assert sorted(FOLDERS.seed_dir(0).rglob("*")) == before
    assert (FOLDERS.seed_dir(1) / "run.json").exists()


def test_record_by_hand():
    """Where it will be, not where it is now; and how far decoder rows are off unit norm."""
    sae = tiny_sae()
    with torch.no_grad():
        sae.W_dec.copy_(torch.nn.functional.normalize(sae.W_dec, dim=1))
        sae.W_dec[3] *= 1.25
    stage_sae(FOLDERS, (7, 1), sae)
    record = make_record(FOLDERS, (7, 1), sae, TrainingTokens(640, 600), {"fvu": 0.5})
    assert sorted(record.pop("checksums")) == ["cfg.json", "sae.safetensors"]
    assert record.pop("max_decoder_norm_deviation") == pytest.approx(0.25)
    assert record == {
        "target": "tiny",
        "source": "prose",
        "variant": "",
        "layer": 7,
        "seed": 1,
        "d_model": 8,
        "n_latents": 16,
        "k": 2,
        "n_train_tokens": 640,
        "n_tokens_trained_on": 600,
        "fvu": 0.5,
        "path": "checkpoints/tiny_from_prose_seed_1/layers.7",
    }
