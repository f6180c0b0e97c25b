"""One rule makes rows of every source."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CORPUS, edit_record, make_model
from datasets import Dataset
from safetensors.torch import load_file
from test_cli import TRAIN, generate, refused, train
from transformers import AutoModelForCausalLM, AutoTokenizer

import train_sae
from sae_utils.files import checksum_files
from sae_utils.generated_data import FEATURES, fingerprint_samples
from sae_utils.sources.packing import open_chunks

TEXTS = [text[i : i + 9 + 7 * i % 40] for i in range(60) for text in CORPUS]
"""Of many lengths, most of them shorter than a row of 32 tokens."""


def say(folder: Path, texts: list[str]) -> None:
    """Let a generated data set hold these texts, as if its model had said each of them to its end."""
    record = json.loads((folder / "generation.json").read_text())
    bos_id, (eos_id, *_) = record["settings"]["bos_id"], record["settings"]["eos_ids"]
    tokenizer = AutoTokenizer.from_pretrained("tiny")
    ids = [[bos_id, *tokenizer(text, add_special_tokens=False)["input_ids"], eos_id] for text in texts]
    rows = {"id": range(len(ids)), "text": texts, "input_ids": ids, "num_tokens": list(map(len, ids))}
    samples = Dataset.from_dict(rows, features=FEATURES)
    samples.save_to_disk(str(folder.with_name("said")))
    for path in folder.with_name("said").iterdir():
        path.rename(folder / path.name)
    names = [path.name for path in folder.iterdir() if path.name != "generation.json"]
    counts = {"n_samples": len(ids), "n_tokens": sum(map(len, ids)), "cut_sample": None}
    about = {"fingerprint": fingerprint_samples(samples), "checksums": checksum_files(folder, names)}
    edit_record(folder / "generation.json", **counts, **about)


@pytest.fixture(params=["llama", "neox"])
def spoken(request, tmp_path, monkeypatch) -> Path:
    """A model whose BOS has a huge norm, a data set of `TEXTS` that it said, and the same texts as a corpus."""
    monkeypatch.chdir(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(make_model(Path("tiny"), request.param))
    bos_id = AutoTokenizer.from_pretrained("tiny").bos_token_id
    with torch.no_grad():
        model.get_input_embeddings().weight[bos_id] *= 1000
    model.save_pretrained("tiny")
    say(generate("--n", "4"), TEXTS)
    Path("corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return tmp_path


def test_what_a_model_said_and_the_same_texts_as_a_corpus_give_the_same_saes(spoken):
    """Else a difference between own and foreign text would be one between two ways to cut it into rows."""
    train("--text_datasets", "corpus.jsonl")
    own, foreign = (open_chunks(next(Path("datasets/.packed").glob(f"{name}_*.npy"))) for name in ("tiny", "corpus"))
    assert len(own) > 20 and np.array_equal(own.tokens, foreign.tokens)
    bos_id = AutoTokenizer.from_pretrained("tiny").bos_token_id
    assert (own.tokens[:, 0] == bos_id).all()
    runs = [
        json.loads(Path(f"checkpoints/tiny_from_{name}_seed_0/run.json").read_text()) for name in ("tiny", "corpus")
    ]
    assert runs[0]["packing"] == runs[1]["packing"]
    assert runs[0]["packing"]["n_bos"] == int((own.tokens == bos_id).sum()) > len(own)
    for layer in ("layers.0", "layers.1"):
        weights = [
            load_file(f"checkpoints/tiny_from_{name}_seed_0/{layer}/sae.safetensors") for name in ("tiny", "corpus")
        ]
        assert weights[0].keys() == weights[1].keys()
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_rows_are_described_in_the_plan(spoken, capsys):
    """What a model is shown decides what its SAEs find."""
    train_sae.main([flag for flag in [*TRAIN, "--dry_run"] if flag != "--quiet"])
    record = json.loads(next(Path("datasets/.packed").glob("tiny_*.json")).read_text())["packing"]
    assert record["rule"] == 2 and record["n_documents"] <= len(TEXTS)
    line = (
        f"{record['n_rows']:,} rows of {record['n_documents']:,} documents, {record['n_cut_documents']:,} of them cut"
    )
    assert line in capsys.readouterr().out


def test_rows_of_an_older_rule_are_packed_again_and_its_saes_refused(tiny, capsys):
    """The tokens that they were not trained on are elsewhere now."""
    generate("--num_tokens", "2000")
    train()
    (record,) = Path("datasets/.packed").glob("*.json")
    (rows,) = Path("datasets/.packed").glob("*.npy")
    before = rows.read_bytes()
    rows.write_bytes(before[:-4] + b"\0\0\0\0")
    edit_record(record, checksums=checksum_files(rows.parent, [rows.name]), packing={"rule": 1})
    train()
    assert rows.read_bytes() == before
    assert capsys.readouterr().err.count("was packed by rule 1") == 1
    for run in Path("checkpoints").glob("*/run.json"):
        settings = json.loads(run.read_text())["settings"]
        for name in ("packing_rule", "exclude", "excluded_ids"):  # all of them came together
            del settings[name]
        edit_record(run, settings=settings)
    assert "packing_rule was None and is now 2; give --overwrite" in refused(capsys, train_sae.main, TRAIN)
    assert "rows that were packed by rule 1" in refused(capsys, train_sae.main, ["--eval_only"])


def test_a_folder_in_the_place_of_packed_rows_is_replaced(tiny):
    """Packed rows are safe to delete, whatever has become of them."""
    generate("--num_tokens", "2000")
    train("--max_tokens", "640")
    (rows,), (record,) = Path("datasets/.packed").glob("*.npy"), Path("datasets/.packed").glob("*.json")
    before = rows.read_bytes(), record.read_bytes()
    for path in (rows, record):
        path.unlink()
        path.mkdir()
    train("--max_tokens", "640")
    assert (rows.read_bytes(), record.read_bytes()) == before


def test_a_data_set_without_its_record_is_not_called_missing(tiny, capsys):
    """The command that would make it refuses to write where something stands."""
    (generate("--num_tokens", "2000") / "generation.json").unlink()
    error = refused(capsys, train_sae.main, TRAIN)
    assert "datasets/tiny_42_1.0_0.9 has no generation.json; bring back a copy of that" in error


def test_leaving_out_everything_is_refused(tiny, capsys):
    """A batch of one token has no variance, and its loss is no number."""
    generate("--num_tokens", "2000")
    error = refused(capsys, train_sae.main, [*TRAIN, "--exclude", *map(str, range(320))])
    assert "leaves fewer than two tokens of 60 of 60 sequences of tiny; leave out less" in error
    error = refused(capsys, train_sae.main, [*TRAIN, "--ctx_len", "2", "--exclude", "first"])
    assert "leaves fewer than two tokens of" in error
    assert "names the token 320, and the target knows 0 .. 319" in refused(
        capsys, train_sae.main, [*TRAIN, "--exclude", "320"]
    )
