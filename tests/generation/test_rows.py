import numpy as np
from conftest import load

from sae_utils.generation.rows import decode_text


def test_text_leaves_out_bos_and_eos_only(neox):
    source = load(neox)
    ids = source.tokenizer("the fox")["input_ids"]
    sample = np.array([0, *ids, 0, *ids, 0])
    assert decode_text(sample, source.tokenizer, source.bos_id) == "the fox<|endoftext|>the fox"
