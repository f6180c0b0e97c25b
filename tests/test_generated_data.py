import torch
from conftest import load

from sae_utils.generated_data import fingerprint_samples
from sae_utils.generation.rows import make_rows


def test_fingerprint_sees_ids_and_where_samples_end(neox):
    source = load(neox)
    rows = [[0, 5, 6], [0, 7]], [[0, 5], [6, 0, 7]], [[0, 5, 6], [0, 8]]
    prints = {fingerprint_samples(make_rows(range(2), [*map(torch.tensor, r)], source.tokenizer, 0)) for r in rows}
    assert len(prints) == 3
