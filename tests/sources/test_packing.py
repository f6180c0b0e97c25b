import numpy as np
import torch
from datasets import Dataset

from sae_utils.generated_data import FEATURES
from sae_utils.sources import packing
from sae_utils.sources.packing import Chunks, ChunksOnDevice, pack_tokens, sampled_ids, split_chunks


def dataset_of(*samples: list[int]) -> Dataset:
    """A generated data set with these token ids."""
    rows = {"id": range(len(samples)), "text": ["" for _ in samples], "input_ids": samples}
    return Dataset.from_dict({**rows, "num_tokens": [len(ids) for ids in samples]}, features=FEATURES)


def stream(dataset, bos_id, eos_id) -> list[int]:
    return np.concatenate(list(sampled_ids(dataset, bos_id=bos_id, eos_id=eos_id))).tolist()


def test_partial_last_sequence_is_dropped(tmp_path):
    """Padding it would put tokens in the training set that the model never said."""
    rows = iter([np.array([0, 1, 2], dtype=np.int32), np.array([0, 3, 4, 5], dtype=np.int32)])
    chunks = pack_tokens(rows, ctx_len=3, n_chunks=2, path=tmp_path / "p.npy")
    assert [chunks[i]["input_ids"].tolist() for i in range(len(chunks))] == [[0, 1, 2], [0, 3, 4]]
    assert chunks[0]["input_ids"].dtype == torch.int64
    assert [path.name for path in tmp_path.iterdir()] == ["p.npy"]


def test_sampled_ids_are_used_as_they_are():
    assert stream(dataset_of([1, 5, 6, 2], [1, 7]), bos_id=1, eos_id=2) == [1, 5, 6, 2, 1, 7]


def test_one_token_separates_documents_where_bos_is_eos():
    """Pythia never saw two <|endoftext|> in a row; a sample of BOS and EOS alone keeps one of them."""
    assert stream(dataset_of([0, 5, 0], [0, 6], [0, 0], [0, 7, 0]), bos_id=0, eos_id=0) == [0, 5, 0, 6, 0, 0, 7]


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
