import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import edit_record
from datasets import Dataset
from test_cli import ROOT, all_bytes, generate, refused
from test_rounds import shapes_seen

import generate_datasets
from sae_utils.generation import job, rounds
from sae_utils.generation.packed_attention import NAME
from sae_utils.generation.packed_linear import PackedLinear


def test_same_tokens_for_every_model(tiny, llama):
    """Two data sets of one budget hold the same number of tokens, to the token."""
    Path("other").symlink_to(llama)
    flags = ["--max_length", "40", "--quiet", "--num_tokens", "12345"]
    generate_datasets.main(["--models", "./tiny", "./other", *flags])
    for name in ("tiny", "other"):
        rows = Dataset.load_from_disk(f"datasets/{name}_42_1.0_0.9")
        assert sum(map(len, rows["input_ids"])) == 12345


def torchrun(n: int, *flags: str) -> None:
    """Run generation with several processes, as a user would; without `--`, torchrun takes `--n` for one of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(n), "--"]
    command += [str(ROOT / "generate_datasets.py"), "--models", "./tiny", "--max_length", "40", "--quiet", *flags]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("goal", [["--n", "50"], ["--num_tokens", "1500"]])
def test_two_processes_make_the_data_set_of_one(tiny, goal):
    """Shards are shared out; what a shard holds does not depend on who made it."""
    expected = all_bytes(generate(*goal, "--batch_size", "8"))
    torchrun(2, *goal, "--batch_size", "8", "--output_dir", "two")
    assert all_bytes(Path("two/tiny_42_1.0_0.9")) == expected
    assert not list(Path("two").glob("*.unfinished"))


@pytest.mark.slow
def test_another_number_of_processes_finishes_a_data_set(tiny, monkeypatch):
    """Begun with one process and left after three shards, finished by two."""
    expected = all_bytes(generate("--n", "60", "--batch_size", "8"))
    real, calls = rounds.sample_tokens, []

    def stop_at_the_fourth(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(rounds, "sample_tokens", stop_at_the_fourth)
    with pytest.raises(SystemExit) as stop:
        generate("--n", "60", "--batch_size", "8", "--output_dir", "mixed")
    assert stop.value.code == 130
    assert len(list(Path("mixed").glob("*.unfinished/samples_*"))) == 3
    torchrun(2, "--n", "60", "--batch_size", "8", "--output_dir", "mixed")
    assert all_bytes(Path("mixed/tiny_42_1.0_0.9")) == expected


@pytest.mark.slow
def test_two_processes_with_fixed_batches_make_the_data_set_of_one(tiny):
    """Begun by one process in the middle of a batch, finished by two."""
    expected = all_bytes(generate("--n", "50", "--batch_size", "8"))
    generate("--n", "12", "--batch_size", "8", "--output_dir", "two", "--fixed_batches")
    torchrun(2, "--n", "50", "--batch_size", "8", "--output_dir", "two", "--fixed_batches")
    found = all_bytes(Path("two/tiny_42_1.0_0.9"))
    assert {name: found[name] for name in found if name.endswith(".arrow")} == {
        name: expected[name] for name in expected if name.endswith(".arrow")
    }


def test_models_are_prepared_before_they_sample(tiny, monkeypatch):
    """Without it a data set takes three times as long, and nothing else would tell."""
    real, seen = rounds.sample_tokens, []

    def watched(source, *args, **kwargs):
        linears = sum(isinstance(module, PackedLinear) for module in source.model.modules())
        seen.append((source.model.config._attn_implementation, linears))
        return real(source, *args, **kwargs)

    monkeypatch.setattr(rounds, "sample_tokens", watched)
    generate("--n", "3", "--dtype", "bfloat16")
    ((attention, n_linears),) = seen
    assert attention == NAME
    assert (n_linears > 0) == torch.ops.mkldnn._is_mkldnn_bf16_supported(), (
        "where the processor has no use for it, none"
    )


def test_a_data_set_goes_on_in_batches_of_the_size_it_was_begun_with(tiny, monkeypatch):
    """What fits is another number at every start, and on a GPU the shape of a batch shows in the ids."""
    work = Path("datasets/tiny_42_1.0_0.9.unfinished")
    real, calls = rounds.sample_tokens, []

    def stop_at_the_third(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(rounds, "sample_tokens", stop_at_the_third)
        patched.setattr(job, "free_bytes", lambda device: 500_000)
        with pytest.raises(SystemExit):
            generate("--n", "200")
    ((begun_with, is_fixed),) = json.loads((work / "batches.json").read_text())["batches"]
    assert begun_with < 30 and not is_fixed
    seen = shapes_seen(monkeypatch)
    generate("--n", "200")
    assert seen[0][0] == [*range(2 * begun_with, 3 * begun_with)]


def test_fewer_samples_go_together_where_fewer_fit(tiny, monkeypatch, capsys):
    """Begun on a large machine, finished on a small one, or by several processes that share one."""
    generate("--n", "40", "--batch_size", "20")
    edit_record(Path("datasets/tiny_42_1.0_0.9/generation.json"), batches=[[20, False]])
    monkeypatch.setattr(job, "free_bytes", lambda device: 200_000)
    capsys.readouterr()
    seen = shapes_seen(monkeypatch)
    generate("--n", "60")
    n_fit = len(seen[0][0])
    assert n_fit < 20
    assert f"was begun with 20 samples together, and {n_fit} fit here; going on with those" in capsys.readouterr().err


def test_finished_data_set_is_found_without_loading_the_model(tiny, monkeypatch, capsys):
    """Asked again, a script over ten models must say so at once, not load them one by one."""
    generate("--n", "10")
    monkeypatch.setattr(job, "load_causal_lm", lambda *args: pytest.fail("the model was loaded"))
    generate("--n", "10")
    assert "is finished (10 samples" in capsys.readouterr().out


def test_unfinished_data_set_with_other_settings_is_refused(tiny, capsys):
    """Both values are shown, and nothing is thrown away."""
    generate("--n", "10")
    Path("datasets/tiny_42_1.0_0.9").rename("aside")
    work = Path("datasets/tiny_42_1.0_0.9.unfinished")
    work.mkdir()
    settings = json.loads(Path("aside/generation.json").read_text())["settings"]
    (work / "settings.json").write_text(json.dumps(settings | {"max_length": 99}))
    argv = ["--models", "./tiny", "--max_length", "40", "--n", "10", "--quiet"]
    assert "max_length was 99 and is now 40" in refused(capsys, generate_datasets.main, argv)
    assert work.exists()


def test_dry_run_says_what_it_takes(tiny, capsys):
    generate("--num_tokens", "1000000", "--dry_run", "--batch_size", "16")
    out = capsys.readouterr().out
    assert "1,000,000 tokens of up to 40 tokens" in out
    assert "16 samples together" in out and "8.5 MB on disk, at most 32.6 MB on the way" in out
    assert "a token's text is taken for 4 bytes, as none was sampled yet" in out
    assert not Path("datasets").exists()


def test_record_and_card_hold_the_statistics(tiny):
    folder = generate("--n", "300")
    record = json.loads((folder / "generation.json").read_text())
    rows, quality = Dataset.load_from_disk(str(folder)), record["quality"]
    lengths = rows["num_tokens"]
    assert quality["mean_length_tokens"] == pytest.approx(sum(lengths) / 300)
    assert quality["distinct_sample_share"] == len({tuple(ids) for ids in rows["input_ids"]}) / 300
    assert 0 < quality["mean_nll_nats"] < 10
    assert quality["first_token_outside_share"] == 0
    card = (folder / "README.md").read_text()
    assert f"{quality['mean_nll_nats']:.3f} nats per token" in card
    assert "{" not in card
