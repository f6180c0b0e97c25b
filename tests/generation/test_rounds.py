import weakref
from pathlib import Path

import pytest
import torch
from conftest import edit_record, load
from datasets import Dataset
from test_cli import generate

from sae_utils.errors import InputError
from sae_utils.generation import rounds
from sae_utils.generation.rounds import sample_within_memory
from sae_utils.generation.sampling import SamplingSettings, sample_tokens


def shapes_seen(monkeypatch) -> list[tuple[list[int], bool]]:
    """Which samples were decoded together from now on, and whether in one shape."""
    real, seen = rounds.sample_tokens, []

    def watched(source, sample_ids, settings, **kwargs):
        seen.append((list(sample_ids), kwargs["is_fixed"]))
        return real(source, sample_ids, settings, **kwargs)

    monkeypatch.setattr(rounds, "sample_tokens", watched)
    return seen


@pytest.mark.parametrize("goal", [["--n", "21"], ["--num_tokens", "700"]])
def test_fixed_batches_put_every_sample_in_its_place(tiny, monkeypatch, goal):
    """A GPU rounds by shape and place: sample 13 must be in row 5 of 8, whatever was asked for before."""
    expected = Dataset.load_from_disk(str(generate(*goal, "--batch_size", "8")))["input_ids"][:]
    seen = shapes_seen(monkeypatch)
    generate("--n", "3", "--batch_size", "8", "--fixed_batches", "--output_dir", "fixed")
    generate("--n", "11", "--batch_size", "8", "--fixed_batches", "--output_dir", "fixed")
    folder = generate(*goal, "--batch_size", "8", "--fixed_batches", "--output_dir", "fixed")
    assert folder == Path("datasets/tiny_42_1.0_0.9")
    assert Dataset.load_from_disk("fixed/tiny_42_1.0_0.9")["input_ids"][:] == expected
    assert {(len(ids), ids[0] % 8, is_fixed) for ids, is_fixed in seen} == {(8, 0, True)}
    starts = [ids[0] for ids, _ in seen]
    assert starts[:4] == [0, 0, 8, 8]
    assert len(set(starts[3:])) == len(starts[3:]), "a batch was decoded twice by one run"


def test_halved_fixed_batches_stay_aligned(neox, monkeypatch):
    source, settings, real = load(neox), SamplingSettings(max_length=16), sample_tokens
    seen = []

    def small_device(source, sample_ids, settings, **kwargs):
        if len(sample_ids) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        seen.append(list(sample_ids))
        return real(source, sample_ids, settings, **kwargs)

    monkeypatch.setattr(rounds, "sample_tokens", small_device)
    samples, n_together = sample_within_memory(source, range(5, 14), settings, 8, lambda n: None, is_fixed=True)
    assert n_together == 4
    assert seen == [[4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
    assert [s.ids.tolist() for s in samples] == [s.ids.tolist() for s in real(source, range(5, 14), settings)]


def test_every_way_of_decoding_together_is_kept(tiny, monkeypatch):
    """On a GPU it tells which shapes the ids were rounded in: asked for, halved for lack of memory, of one shape."""
    real = rounds.sample_tokens

    def small_device(source, sample_ids, settings, **kwargs):
        if len(sample_ids) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(source, sample_ids, settings, **kwargs)

    monkeypatch.setattr(rounds, "sample_tokens", small_device)
    noted = []
    add = rounds.GrowingDataset.add_batches
    monkeypatch.setattr(
        rounds.GrowingDataset,
        "add_batches",
        lambda self, n, *, is_fixed: (add(self, n, is_fixed=is_fixed), noted.append(self.batches)),
    )
    generate("--n", "20", "--batch_size", "10")
    assert noted[-1] == [[10, False], [5, False]]
    edit_record(Path("datasets/tiny_42_1.0_0.9/generation.json"), batches=noted[-1])
    generate("--n", "30", "--batch_size", "4", "--fixed_batches")
    assert noted[-1] == [[10, False], [5, False], [4, True]]


def test_out_of_memory_halves_the_batch_and_changes_nothing(neox, monkeypatch, caplog):
    source, settings, real = load(neox), SamplingSettings(max_length=16), sample_tokens

    def small_device(source, sample_ids, settings, **kwargs):
        if len(sample_ids) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(source, sample_ids, settings, **kwargs)

    monkeypatch.setattr(rounds, "sample_tokens", small_device)
    samples, n_together = sample_within_memory(source, range(10), settings, 8, lambda n: None)
    assert n_together == 2
    assert [s.ids.tolist() for s in samples] == [s.ids.tolist() for s in real(source, range(10), settings)]
    assert "out of memory with 8 samples together; going on with 4" in caplog.text


def test_memory_is_given_back_when_nothing_holds_it_any_more(neox, monkeypatch):
    """Inside the `except` block the exception still holds the batch that did not fit, and giving back gives nothing."""
    real, held, seen = sample_tokens, [], []

    def small_device(source, sample_ids, settings, **kwargs):
        if len(sample_ids) > 3:
            batch = torch.zeros(1000)
            held.append(weakref.ref(batch))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(source, sample_ids, settings, **kwargs)

    monkeypatch.setattr(rounds, "sample_tokens", small_device)
    monkeypatch.setattr(rounds, "release_memory", lambda device: seen.append([each() for each in held]))
    sample_within_memory(load(neox), range(8), SamplingSettings(max_length=8), 8, lambda n: None)
    assert seen == [[None], [None, None]]


def test_a_sample_that_never_fits_is_said(neox, monkeypatch):
    def no_memory(*args, **kwargs):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")

    monkeypatch.setattr(rounds, "sample_tokens", no_memory)
    with pytest.raises(InputError, match="not even one sample of --max_length 16 fits on cpu; lower it"):
        sample_within_memory(load(neox), range(4), SamplingSettings(max_length=16), 4, lambda n: None)


def test_other_errors_are_not_taken_for_lack_of_memory(neox, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(rounds, "sample_tokens", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        sample_within_memory(load(neox), range(4), SamplingSettings(max_length=16), 4, lambda n: None)
