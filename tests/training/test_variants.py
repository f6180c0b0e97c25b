"""SAEs that were trained in another way stand beside each other, and are compared like with like."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import edit_record
from test_cli import TRAIN, all_bytes, generate, refused, times, train
from transformers import AutoModelForCausalLM, AutoTokenizer

import train_sae
from sae_utils.records import variant_name
from sae_utils.report.findings import read_findings
from sae_utils.sparse_coders import SparseCoder

SETTINGS = {"k": 32, "lr": None, "exclude": ["first"], "excluded_ids": [], "ctx_len": 64, "n_train_tokens": 640}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, ""),
        ({"layers": [3]}, ""),
        ({"k": 64}, "k_64"),
        ({"lr": 0.005, "k": 8}, "k_8_lr_0.005"),
        ({"exclude": [], "excluded_ids": [0]}, "exclude_nothing"),
        ({"exclude": ["first", "norm:1.5"]}, "exclude_first_norm_1.5"),
        ({"n_train_tokens": 1280}, "tokens_1280"),
        ({"excluded_ids": [0]}, None),  # another tokenizer
        ({"k": 64, "ctx_len": 32}, None),
        ({"source_fingerprint": "other"}, None),
    ],
)
def test_names_by_hand(changes, name):
    """Settings that make other rows or other held-out tokens have no name: they stay refused."""
    assert variant_name(SETTINGS, SETTINGS | changes) == name


def compare(*flags: str) -> None:
    train_sae.main([*TRAIN, "--random_tokens", "500", *flags])


def test_settings_side_by_side(tiny, capsys):
    """Another k, then more layers and seeds of it: the weights of a run of its own, and what was there as it was."""
    generate("--num_tokens", "2000")
    compare("--layers", "1")
    before, dates = all_bytes(Path("checkpoints")), times("checkpoints/tiny_from_tiny_seed_0")
    compare("--layers", "1", "--k", "8")
    compare("--k", "8", "--num_seeds", "3")
    train("--k", "8", "--num_seeds", "3", "--checkpoint_dir", "alone")
    grown, alone = all_bytes(Path("checkpoints")), all_bytes(Path("alone"))
    assert {name: grown[name] for name in before} == before
    assert times("checkpoints/tiny_from_tiny_seed_0") == dates
    weights = {name: content for name, content in alone.items() if name.endswith(".safetensors")}
    assert len(weights) == 6
    for name, content in weights.items():
        assert grown[name.replace("tiny_from_tiny", "tiny_from_tiny_k_8")] == content
    run = json.loads(Path("checkpoints/tiny_from_tiny_k_8_seed_0/run.json").read_text())
    assert run["saes"][0]["source"] == "tiny" and run["saes"][0]["variant"] == "k_8" and run["settings"]["k"] == 8
    dates = times("checkpoints", "results")
    compare("--k", "8", "--num_seeds", "3")
    assert times("checkpoints", "results") == dates


def test_only_like_is_compared_with_like(tiny):
    """What SAEs of another k have in common says nothing of sources or seeds; all are measured on the same tokens."""
    generate("--num_tokens", "2000")
    Path("prose.txt").write_text("\n".join(f"the quick brown fox number {i} jumps over it" for i in range(400)))
    sources = ["--text_datasets", "prose.txt", "--layers", "1"]
    compare(*sources)
    pairs = json.loads(Path("results/metrics.json").read_text())["pairs"]
    compare(*sources, "--k", "8")
    found = json.loads(Path("results/metrics.json").read_text())
    assert [pair for pair in found["pairs"] if not pair["source"].endswith("_k_8")] == pairs
    ends = {(pair["source"], pair["source_b"]) for pair in found["pairs"]}
    assert ends == {
        ("prose", "prose"),
        ("prose", "tiny"),
        ("tiny", "tiny"),
        ("prose_k_8", "prose_k_8"),
        ("prose_k_8", "tiny_k_8"),
        ("tiny_k_8", "tiny_k_8"),
    }
    assert {sae["dataset"] for sae in found["saes"]} == {"prose", "tiny"}
    for sae in found["saes"]:
        assert [each["eval_source"] for each in sae["evaluations"]] == ["prose", "tiny"]
    findings = read_findings(Path("results"))
    assert findings.sources == ["tiny", "tiny_k_8", "prose", "prose_k_8"] and findings.eval_sources == ["tiny", "prose"]
    assert all(each.of_evaluations("fvu") is not None for each in findings.comparisons)
    assert "tiny_k_8" in Path("results/report.html").read_text()


def test_a_smaller_source_does_not_train_a_study_anew(tiny, capsys):
    """The smallest source decides how much all are trained on; only who asks for a budget gets another one."""
    generate("--num_tokens", "2000")
    train("--num_seeds", "1", "--layers", "1")
    Path("prose.txt").write_text("\n".join(f"the fox number {i} jumps" for i in range(90)))
    smaller = [*TRAIN, "--num_seeds", "1", "--layers", "1", "--text_datasets", "prose.txt"]
    capsys.readouterr()
    assert "n_train_tokens was 1920 and is now 1280" in refused(capsys, train_sae.main, smaller)
    train("--num_seeds", "1", "--layers", "1", "--max_tokens", "640")
    assert Path("checkpoints/tiny_from_tiny_tokens_640_seed_0/run.json").exists()


def test_what_cannot_stand_side_by_side_is_refused_with_both_values(tiny, capsys):
    generate("--num_tokens", "2000")
    train("--num_seeds", "1")
    capsys.readouterr()
    assert "ctx_len was 32 and is now 16" in refused(capsys, train_sae.main, [*TRAIN, "--ctx_len", "16", "--k", "8"])


def test_overwriting_a_variant_leaves_the_first(tiny):
    generate("--num_tokens", "2000")
    train("--num_seeds", "1", "--layers", "1")
    before = all_bytes(Path("checkpoints"))
    for _ in range(2):
        train("--num_seeds", "1", "--layers", "1", "--k", "8", "--overwrite")
    found = all_bytes(Path("checkpoints"))
    assert {name: found[name] for name in before} == before


def test_records_of_before_variants_are_read(tiny):
    """SAEs that were trained by an earlier version have no name of a variant, and are the first of their source."""
    generate("--num_tokens", "2000")
    compare("--num_seeds", "1", "--layers", "1")
    path = Path("checkpoints/tiny_from_tiny_seed_0/run.json")
    saes = json.loads(path.read_text())["saes"]
    del saes[0]["variant"]
    edit_record(path, saes=saes)
    compare("--eval_only")
    assert json.loads(Path("results/metrics.json").read_text())["saes"][0]["variant"] == ""


def test_outputs_of_mlp_and_attention_beside_the_residual_stream(tiny):
    """Trained and measured on what these modules put out, as a plain hook finds it; each alone gives the same."""
    generate("--num_tokens", "2000")
    compare("--layers", "1", "--num_seeds", "1", "--hookpoint", "residual", "mlp_out", "attn_out")
    train("--layers", "1", "--num_seeds", "1", "--hookpoint", "mlp_out", "--checkpoint_dir", "alone")
    name = "layers.1/sae.safetensors"
    alone = Path("alone/tiny_from_tiny_seed_0", name).read_bytes()
    assert Path("checkpoints/tiny_from_tiny_hook_mlp_out_seed_0", name).read_bytes() == alone
    saes = {sae["variant"]: sae for sae in json.loads(Path("results/metrics.json").read_text())["saes"]}
    assert sorted(saes) == ["", "hook_attn_out", "hook_mlp_out"]
    modules = {"": "layers.1", "hook_attn_out": "layers.1.attention", "hook_mlp_out": "layers.1.mlp"}
    for variant, sae in saes.items():
        config = json.loads((Path(sae["path"]).parent / "config.json").read_text())
        assert config["hookpoints"] == {"layers.1": modules[variant]}
        assert sae["evaluations"][0]["fvu"] == pytest.approx(slow_fvu(Path(sae["path"]), modules[variant]), rel=1e-5)


def slow_fvu(folder: Path, module: str) -> float:
    """On the held-out rows, without their first positions, by a hook on the whole model."""
    (packed,) = (path for path in Path("datasets/.packed").glob("tiny_*_32.npy"))
    n_held_out = json.loads((folder.parent / "run.json").read_text())["n_eval_tokens"] // 32
    ids = torch.from_numpy(np.load(packed)[-n_held_out:]).long()
    model = AutoModelForCausalLM.from_pretrained("tiny", dtype=torch.float32)
    outputs = []
    model.base_model.get_submodule(module).register_forward_hook(lambda _, inputs, output: outputs.append(output))
    with torch.no_grad():
        model(ids)
        x = outputs[0][0] if isinstance(outputs[0], tuple) else outputs[0]
        is_bos = ids == AutoTokenizer.from_pretrained("tiny").bos_token_id
        x = x[:, 1:][~is_bos[:, 1:]].double()
        sae = SparseCoder.load_from_disk(folder, device="cpu").double()
        top = sae.encode(x)
        error = (x - sae.decode(top.top_acts, top.top_indices)).pow(2).sum()
        return float(error / (x - x.mean(dim=0)).pow(2).sum())
