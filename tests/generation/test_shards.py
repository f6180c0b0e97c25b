import numpy as np
import pytest
from conftest import load
from datasets import Dataset

from sae_utils.errors import InputError
from sae_utils.generated_data import fingerprint_samples
from sae_utils.generation.sampling import Sample
from sae_utils.generation.shards import Goal, GrowingDataset

SETTINGS = {"seed": 1, "top_p": 0.9}


def samples(*lengths: int) -> list[Sample]:
    """Samples that can be told apart: sample i holds the ids 5 + i, 5 + i, ..., each token with likelihood i."""
    rows = [np.full(length, i, dtype=np.int32) for i, length in enumerate(lengths)]
    return [Sample(5 + row, row) for row in rows]


def finish(growing, goal, source) -> dict:
    """Assemble and publish as a generation run does."""
    dataset, cut, nll_sum_units = growing.finish(goal, source.tokenizer, source.bos_id)
    record = {
        "settings": SETTINGS,
        "n_samples": len(dataset),
        "n_tokens": sum(dataset["num_tokens"]),
        "fingerprint": fingerprint_samples(dataset),
        "cut_sample": cut,
        "nll_sum_units": nll_sum_units,
    }
    growing.publish(record)
    return record


def build(folder, goal, source, *pieces):
    """Write pieces as shards, one after the other, and finish."""
    with GrowingDataset(folder, SETTINGS, overwrite=False) as growing:
        growing.begin()
        first = growing.progress()[0]
        for piece in pieces:
            growing.add(first, piece, source.tokenizer, source.bos_id)
            first += len(piece)
        finish(growing, goal, source)
    return Dataset.load_from_disk(str(folder))


def arrow_bytes(folder) -> bytes:
    """All the bytes of a data set's Arrow files."""
    return b"".join(path.read_bytes() for path in sorted(folder.glob("*.arrow")))


@pytest.mark.parametrize("budget", [1, 3, 4, 5, 9, 10])
def test_token_budget_is_met_exactly(tmp_path, neox, budget):
    """Samples of 4, 5 and 1 tokens: every budget up to their sum is hit to the token, those below one sample too."""
    rows = build(tmp_path / "d", Goal(None, budget), load(neox), samples(4, 5, 1))
    assert sum(rows["num_tokens"]) == budget
    assert [len(ids) for ids in rows["input_ids"]] == rows["num_tokens"]
    assert rows["id"] == list(range(len(rows)))


def test_how_samples_are_split_into_shards_does_not_show(tmp_path, neox):
    """A run that was killed ten times has other shards than an unbroken one, and must end with the same bytes."""
    source, rows = load(neox), samples(4, 5, 1, 7, 3)
    build(tmp_path / "a", Goal(None, 17), source, rows)
    build(tmp_path / "b", Goal(None, 17), source, rows[:1], rows[1:4], rows[4:])
    assert arrow_bytes(tmp_path / "a") == arrow_bytes(tmp_path / "b")
    state = [(tmp_path / name / "state.json").read_bytes() for name in "ab"]
    assert state[0] == state[1]


def test_extending_makes_the_cut_sample_whole_again(tmp_path, neox):
    """The sample that a budget cut is the same sample in the larger data set, not a new one."""
    source, rows = load(neox), samples(4, 5, 6)
    build(tmp_path / "d", Goal(None, 7), source, rows[:2])
    extended = build(tmp_path / "d", Goal(None, 12), source, rows[2:])
    assert extended["input_ids"][1] == rows[1].ids.tolist()
    build(tmp_path / "fresh", Goal(None, 12), source, rows)
    assert arrow_bytes(tmp_path / "d") == arrow_bytes(tmp_path / "fresh")


def test_likelihoods_are_summed_over_the_tokens_that_are_in(tmp_path, neox):
    """The cut sample counts as far as it is in; extended step by step, the sum is the fresh one's."""
    source, rows = load(neox), samples(4, 5, 6)
    for budget, expected in ((7, 3), (8, 4), (9, 5), (12, 5 + 3 * 2), (15, 5 + 6 * 2)):
        with GrowingDataset(tmp_path / "d", SETTINGS, overwrite=False) as growing:
            growing.begin()
            first = growing.progress()[0]
            if new := rows[first : 2 if budget < 10 else 3]:
                growing.add(first, new, source.tokenizer, source.bos_id)
            assert finish(growing, Goal(None, budget), source)["nll_sum_units"] == expected


def test_a_torn_shard_is_not_counted(tmp_path, neox):
    """SIGKILL while a shard is written leaves a file under another name; it must not count as samples."""
    source = load(neox)
    with GrowingDataset(tmp_path / "d", SETTINGS, overwrite=False) as growing:
        growing.begin()
        growing.add(0, samples(4), source.tokenizer, source.bos_id)
        (growing.work / "writing_samples_000000001_000000002_5.arrow").write_bytes(b"torn")
        assert growing.progress() == (1, 4)


def test_a_gap_ends_what_counts(tmp_path, neox):
    source = load(neox)
    with GrowingDataset(tmp_path / "d", SETTINGS, overwrite=False) as growing:
        growing.begin()
        growing.add(0, samples(4), source.tokenizer, source.bos_id)
        growing.add(2, samples(4), source.tokenizer, source.bos_id)
        assert growing.progress() == (1, 4)


def test_a_kill_between_the_last_two_renames_loses_nothing(tmp_path, neox):
    """While an extended data set is swapped in, there is a moment without one under the final name."""
    source = load(neox)
    build(tmp_path / "d", Goal(1), source, samples(4))
    with GrowingDataset(tmp_path / "d", SETTINGS, overwrite=False) as growing:
        growing.begin()
        growing.add(1, samples(3), source.tokenizer, source.bos_id)
        growing.final.rename(growing.work / "previous")
    with GrowingDataset(tmp_path / "d", SETTINGS, overwrite=False) as growing:
        assert growing.record["n_samples"] == 1
        assert growing.progress() == (2, 7)


def test_other_settings_are_refused_with_both_values(tmp_path, neox):
    source = load(neox)
    with GrowingDataset(tmp_path / "d", SETTINGS, overwrite=False) as growing:
        growing.begin()
        growing.add(0, samples(4), source.tokenizer, source.bos_id)
    with (
        pytest.raises(InputError, match=r"top_p was 0.9 and is now 0.5.*--overwrite"),
        GrowingDataset(tmp_path / "d", SETTINGS | {"top_p": 0.5}, overwrite=False),
    ):
        pass


def test_second_run_on_one_data_set_is_refused(tmp_path):
    """Two runs would count each other's shards and sample everything twice."""
    with (
        GrowingDataset(tmp_path / "d", SETTINGS, overwrite=False),
        pytest.raises(InputError, match="another run is writing"),
        GrowingDataset(tmp_path / "d", SETTINGS, overwrite=False),
    ):
        pass


@pytest.mark.parametrize(("goal", "message"), [((0,), "--n must be at least 1"), ((None, 0), "--num_tokens must be")])
def test_empty_goals_are_refused(goal, message):
    with pytest.raises(InputError, match=message):
        Goal(*goal)
