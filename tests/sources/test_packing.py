import numpy as np
import torch

from sae_utils.exclusion import Exclusion
from sae_utils.sources import packing
from sae_utils.sources.packing import Chunks, ChunksOnDevice, split_chunks, write_chunks


def test_rows_are_written_without_knowing_how_many_will_come(tmp_path):
    """Or texts would have to be tokenized twice, or kept in memory."""
    rows = [np.array([0, 1, 2]), np.array([0, 3, 4]), np.array([0, 5, 6])]
    for n in (1, 3):
        chunks = write_chunks(iter(rows[:n]), 3, tmp_path / f"{n}.npy")
        assert [chunks[i]["input_ids"].tolist() for i in range(len(chunks))] == [row.tolist() for row in rows[:n]]
        assert chunks[0]["input_ids"].dtype == torch.int64
        assert np.array_equal(np.load(tmp_path / f"{n}.npy"), np.stack(rows[:n]))


def test_held_out_sequences_are_the_last_and_never_trained_on():
    tokens = np.arange(20, dtype=np.int32).reshape(10, 2)
    train, held_out = split_chunks(Chunks(tokens), n_train=7, n_eval=3, shuffle_seed=1)
    trained = {tuple(train[i]["input_ids"].tolist()) for i in range(len(train))}
    assert [held_out[i]["input_ids"].tolist() for i in range(3)] == [[14, 15], [16, 17], [18, 19]]
    assert trained == {(2 * i, 2 * i + 1) for i in range(7)}


def test_a_smaller_budget_sees_the_beginning_of_the_same_order():
    """Runs with different --max_tokens must differ in length only."""
    tokens = np.arange(40, dtype=np.int32).reshape(20, 2)
    longer, _ = split_chunks(Chunks(tokens), n_train=15, n_eval=2, shuffle_seed=3)
    shorter, _ = split_chunks(Chunks(tokens), n_train=5, n_eval=2, shuffle_seed=3)
    other, _ = split_chunks(Chunks(tokens), n_train=15, n_eval=2, shuffle_seed=4)
    assert shorter.order.tolist() == longer.order[:5].tolist()
    assert other.order.tolist() != longer.order.tolist()


def test_sequences_come_to_a_device_many_at_a_time(monkeypatch):
    """A copy a step makes the host wait for a GPU at every step. Here a device that holds no data stands for it."""
    monkeypatch.setattr(packing, "SEQUENCES_PER_COPY", 4)
    chunks = ChunksOnDevice(Chunks(np.zeros((10, 3), dtype=np.int32)), torch.device("meta"))
    copied, copy = [], chunks._copied
    chunks._copied = lambda block: (copied.append(block), copy(block))[1]
    rows = [chunks[i]["input_ids"] for i in range(10)]
    assert {(row.device.type, row.dtype, tuple(row.shape)) for row in rows} == {("meta", torch.int64, (3,))}
    assert copied == [0, 1, 2]


def test_sequences_on_a_device_are_the_same(monkeypatch):
    """Also from the middle on, as training goes on after an interruption."""
    monkeypatch.setattr(packing, "SEQUENCES_PER_COPY", 4)
    chunks = Chunks(np.arange(30, dtype=np.int32).reshape(10, 3), order=np.arange(10)[::-1])
    for rows in (range(10), range(3, 9)):
        expected, found = chunks.select(rows), ChunksOnDevice(chunks, torch.device("cpu")).select(rows)
        assert len(found) == len(expected) and found.ctx_len == 3
        for i in [*range(len(expected)), 0]:
            assert torch.equal(found[i]["input_ids"], expected[i]["input_ids"])


def test_kept_tokens_are_counted_by_sequence(monkeypatch):
    """In the order of the sequences, however many are looked through together."""
    tokens = np.array([[1, 5, 1, 6], [1, 1, 1, 1], [1, 7, 8, 9]], np.int32)
    for n in (1, 2, 100):
        monkeypatch.setattr(packing, "SEQUENCES_AT_ONCE", n)
        chunks = Chunks(tokens, order=np.array([2, 0, 1]))
        assert chunks.count_kept(Exclusion(ids=(1,))).tolist() == [3, 2, 0]
        assert chunks.count_kept(Exclusion(has_first=True)).tolist() == [3, 3, 3]
