"""Controls made of other sources."""

from collections import Counter

import numpy as np

from sae_utils.seeding import sample_uniforms
from sae_utils.sources.controls import SHUFFLE_SEED, shuffle_rows, shuffled
from sae_utils.sources.joining import RowCounts
from sae_utils.sources.origins import Source
from sae_utils.sources.packing import Chunks
from sae_utils.sources.packs import Packed

TOKENS = np.random.default_rng(0).integers(0, 50, (40, 33), dtype=np.int32)


def test_shuffled_rows_hold_the_same_tokens_in_random_order():
    """Sorted one by one by numbers of the row's own; BOS stays where every row has it."""
    packed = Packed(Chunks(TOKENS), RowCounts(40))
    found = shuffle_rows(packed)
    assert found.counts == packed.counts and (len(found.chunks), found.chunks.ctx_len) == (40, 33)
    rows = [found.chunks[i]["input_ids"].tolist() for i in range(40)]
    for number, (row, before) in enumerate(zip(rows, TOKENS.tolist(), strict=True)):
        chance = sample_uniforms(SHUFFLE_SEED, [number], 32)[0].tolist()
        assert row == [before[0]] + [token for _, token in sorted(zip(chance, before[1:], strict=True))]
        assert Counter(row) == Counter(before) and row != before
    moved = np.array([np.argsort(sample_uniforms(SHUFFLE_SEED, [i], 32)[0]) for i in range(40)])
    assert len({tuple(order) for order in moved.tolist()}) == 40, "each row has an order of its own"


def test_a_row_is_shuffled_alike_whoever_reads_it():
    """Alone, in a batch, in the order of training, in another process' part."""
    chunks = shuffle_rows(Packed(Chunks(TOKENS), RowCounts(40))).chunks
    whole = chunks.tokens[np.arange(40)]
    assert whole.dtype == np.int32 and whole.shape == TOKENS.shape
    some = np.array([7, 3, 39])
    assert np.array_equal(chunks.tokens[some], whole[some])
    assert [chunks.select(some)[i]["input_ids"].tolist() for i in range(3)] == whole[some].tolist()
    assert chunks.share(1, 2, 4)[0]["input_ids"].tolist() == whole[2].tolist()


def test_a_control_is_a_source_of_its_own():
    """Results of one would be taken for the other's."""
    source = Source("tiny", "datasets/tiny_4_1.0_0.9", 3, 20, "0123", "4567")
    control = shuffled(source)
    assert (control.name, control.base) == ("tiny-shuffled", source)
    assert control.fingerprint not in (source.fingerprint, shuffled(control).fingerprint)
    assert control.is_generated
