"""Bytes on the disk that a plan of sampling foretells, held against those that were written."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peaks import DiskPeak
from test_cli import generate
from test_unsampled import RATES

from sae_utils.disk import DiskUse
from sae_utils.distributed import Workers
from sae_utils.files import read_record
from sae_utils.generation.dataset_size import Amount, disk_use, mean_text_bytes, text_bytes_of
from sae_utils.generation.job import GenerationJob, check_jobs
from sae_utils.generation.sampling import SamplingSettings
from sae_utils.generation.shards import Goal

FOLDER = Path("datasets/tiny_42_1.0_0.9")


def foretold(n_tokens: int) -> DiskUse:
    """By the plan of sampling, as things stand."""
    chosen = SamplingSettings(max_length=40), Goal(None, n_tokens)
    job = GenerationJob("./tiny", Path("datasets"), *chosen, 64, torch.device("cpu"), torch.float32, overwrite=False)
    (checked,) = check_jobs([job], Workers())
    return checked.disk


@pytest.mark.parametrize("first", ["another seed", "a part of it"])
def test_a_foretold_disk_is_within_a_twentieth_of_what_was_written(tiny, first):
    """Too little ends a run of days at its last step; the text of a token is known of a first try."""
    generate("--num_tokens", "2000", *(["--seed", "1"] if first == "another seed" else []))
    disk = foretold(40_000)
    with DiskPeak(Path("datasets")) as peak:
        generate("--num_tokens", "40000", "--batch_size", "64")
    there_before = peak.n_before
    assert disk.n_peak == pytest.approx(peak.n_peak - there_before, rel=0.05)
    added = peak.n_final - (there_before if first == "another seed" else 0)
    assert disk.n_final == pytest.approx(added, rel=0.05)


def test_the_text_of_a_token_is_what_it_is_in_the_data_set(tiny):
    """By the size of the files alone, and by the text itself; 28 bytes a token are for English only."""
    generate("--num_tokens", "20000")
    rows = Dataset.load_from_disk(str(FOLDER))
    exact = sum(len(text.encode()) for text in rows["text"]) / 20000
    assert mean_text_bytes(rows) == pytest.approx(exact)
    assert text_bytes_of(FOLDER.glob("data-*.arrow"), len(rows), 20000) == pytest.approx(exact, rel=0.1)
    (entry,) = read_record(RATES, "")["rates"]
    assert entry["text_bytes"] == pytest.approx(exact)


def test_english_takes_28_bytes_a_token_on_the_way_and_8_in_the_end():
    """By hand, of samples of 1,024 tokens: 4 + 4 + 4 in a shard, and 4 + 4 twice."""
    whole = Amount(n_samples=100_000, n_tokens=102_400_000)
    use = disk_use(whole, whole, n_together=1024)
    assert use.n_peak / whole.n_tokens == pytest.approx(28.06, abs=0.01)
    assert use.n_final / whole.n_tokens == pytest.approx(8.02, abs=0.01)


def test_an_extension_writes_its_own_shards_and_the_whole_twice():
    part, whole = Amount(100, 100_000), Amount(1_000, 1_000_000)
    grown = disk_use(whole, part, n_together=128)
    assert grown.n_final == disk_use(whole, whole, n_together=128).n_final
    assert grown.n_peak - 2 * grown.n_final == pytest.approx(12 * 100_000, rel=0.05)
