"""One rule makes rows of every source."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CORPUS, edit_record, make_model
from datasets import Dataset
from safetensors.torch import load_file
from test_cli import TRAIN, generate, parsed, refused, train
from transformers import AutoModelForCausalLM, AutoTokenizer

import train_sae
from sae_utils.distributed import Workers
from sae_utils.errors import InputError
from sae_utils.files import checksum_files
from sae_utils.generated_data import FEATURES, fingerprint_samples
from sae_utils.sources.corpora import fingerprint_texts
from sae_utils.sources.origins import Source
from sae_utils.sources.packing import open_chunks
from sae_utils.training.cells import Cell
from sae_utils.training.grid import plan_grid

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


# corpora as far as they are needed


def plan(*flags: str, workers: Workers | None = None) -> list[Cell]:
    """The cells of a run."""
    args = parsed(*flags)
    choice, settings = train_sae.grid_choice(args), train_sae.training_settings(args)
    return plan_grid(choice, settings, torch.float32, torch.device("cpu"), workers or Workers())


@pytest.fixture
def long_corpus(tiny) -> list[str]:
    """A data set of 2,000 tokens and a corpus of many more."""
    generate("--num_tokens", "2000")
    texts = [f"{i} {text}" for i, text in enumerate(TEXTS * 20)]
    Path("corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return texts


def test_of_a_corpus_is_taken_what_the_smallest_generated_source_needs(long_corpus):
    """Not less, or the control would decide for all how much they are trained on."""
    alone, own, corpus = plan()[0], *plan("--text_datasets", "corpus.jsonl")
    assert own.budget == alone.budget
    assert own.packed.counts.n_rows <= corpus.packed.counts.n_rows < 1.1 * own.packed.counts.n_rows
    fingerprint = fingerprint_texts(Dataset.from_dict({"text": long_corpus[: corpus.source.n_samples]}))
    assert corpus.source.fingerprint == fingerprint and corpus.source.n_samples < len(long_corpus) / 10


def test_text_tokens_is_a_beginning_of_every_corpus(long_corpus):
    _, some = plan("--text_datasets", "corpus.jsonl", "--text_tokens", "3000")
    assert some.packed.counts.n_rows == pytest.approx(3000 / 31, rel=0.1)
    _, whole = plan("--text_datasets", "corpus.jsonl", "--text_tokens", str(10**9))
    (alone,) = plan("--source_models", "--text_datasets", "corpus.jsonl")
    everything = fingerprint_texts(Dataset.from_dict({"text": long_corpus}))
    assert whole.source.fingerprint == alone.source.fingerprint == everything
    assert whole.packed.counts == alone.packed.counts


def test_only_one_process_reads_corpora(long_corpus):
    """The others would fetch and tokenize as much again, each of them. Here there is nothing left for them to read."""
    flags = ["--text_datasets", "corpus.jsonl", "--controls", "shuffled"]
    cells = plan(*flags)
    Path("corpus.jsonl").unlink()
    shutil.rmtree("datasets/.packed/texts")

    class Other(Workers):
        def agree(self, value: None) -> list[Source]:
            return [cell.source for cell in cells]

    found = plan(*flags, workers=Other(rank=1, n=1))
    assert [cell.source for cell in found] == [cell.source for cell in cells]
    assert [cell.packed.counts for cell in found] == [cell.packed.counts for cell in cells]
    assert not Path("datasets/.packed/texts").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--source_models", "--text_datasets", "a/b"], "a/b may be of any size, .*; give --text_tokens"),
        (["--text_datasets", "corpus.jsonl", "--text_tokens", "0"], "--text_tokens must be at least 1, got 0"),
        (
            ["--text_datasets", "tiny-shuffled.txt", "--controls", "shuffled"],
            "and --controls must have different short",
        ),
        (["--controls", "shuffled:prose"], "or shuffled:NAME for one of tiny, got shuffled:prose"),
        (["--controls", "reversed"], "--controls must be shuffled, .* got reversed"),
    ],
)
def test_what_cannot_be_a_source_is_refused(tiny, flags, message):
    generate("--num_tokens", "500")
    with pytest.raises(InputError, match=message):
        plan(*flags)


def test_token_ids_are_a_source_of_targets_with_their_tokenizer(tiny, llama, caplog):
    """They give the rows that their texts give; to another tokenizer they mean other texts."""
    tokenizer = AutoTokenizer.from_pretrained("tiny")
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    Path("texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    Dataset.from_dict({"input_ids": [[0, *each, 0] for each in ids]}).save_to_disk("ids")
    texts, own = plan("--source_models", "--text_datasets", "texts.jsonl", "ids")
    assert np.array_equal(texts.packed.chunks.tokens, own.packed.chunks.tokens)
    assert caplog.text.count("ids holds token ids and does not say of which tokenizer") == 1
    Path("other").symlink_to(llama)
    with pytest.raises(InputError, match=r"ids holds token ids alone, which fit one tokenizer, and that of other is"):
        plan("--source_models", "--text_datasets", "ids", "--target_models", "tiny", "other")
    Dataset.from_dict({"input_ids": [[0, 5, 320]] * 50}).save_to_disk("foreign")
    with pytest.raises(InputError, match=r"has token ids from 5 to 320, and the target knows 0 .. 319"):
        plan("--source_models", "--text_datasets", "foreign")


def test_controls_are_sources_with_the_rows_of_theirs(long_corpus, capsys):
    """Equal budgets, and held out are the same rows: the order of the tokens is the only difference."""
    flags = ["--text_datasets", "corpus.jsonl", "--controls", "shuffled"]
    cells = plan(*flags)
    assert [cell.source.name for cell in cells] == ["tiny", "tiny-shuffled", "corpus", "corpus-shuffled"]
    for own, control in (cells[:2], cells[2:]):
        assert (own.budget, own.packed.counts) == (control.budget, control.packed.counts)
        for rows, shuffled_rows in zip(own.split(), control.split(), strict=True):
            pairs = [(rows[i]["input_ids"], shuffled_rows[i]["input_ids"]) for i in range(len(rows))]
            assert all(torch.equal(row.sort().values, other.sort().values) for row, other in pairs)
            assert not any(torch.equal(row, other) for row, other in pairs)
    (_, _, of_one) = plan(*flags[:2], "--controls", "shuffled:corpus")
    assert of_one.source == cells[3].source, "of one source it is the control that it is where all have one"
    train_sae.main([flag for flag in [*TRAIN, *flags, "--dry_run"] if flag != "--quiet"])
    assert "tokens of each row of corpus in random order behind its BOS" in capsys.readouterr().out
