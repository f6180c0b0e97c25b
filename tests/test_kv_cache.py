import torch
from conftest import llama_config
from transformers import DynamicCache

from sae_utils import kv_cache
from sae_utils.kv_cache import BlockLayer, make_cache


def test_same_contents_as_transformers_own_layer(monkeypatch):
    """Grown over several blocks, with rows dropped on the way."""
    monkeypatch.setattr(kv_cache, "BLOCK_TOKENS", 4)
    torch.manual_seed(0)
    config = llama_config(50)
    ours, theirs = make_cache(config), DynamicCache(config=config)
    n_rows = 6
    for step in range(11):
        new = [torch.randn(n_rows, 2, 1, 4) for _ in range(4)]
        for layer in (0, 1):
            mine = ours.update(new[2 * layer], new[2 * layer + 1], layer)
            expected = theirs.update(new[2 * layer], new[2 * layer + 1], layer)
            assert all(torch.equal(a, b) for a, b in zip(mine, expected, strict=True))
        assert ours.get_seq_length() == theirs.get_seq_length() == step + 1
        if step in (2, 7):
            keep = torch.arange(n_rows)[::2]
            ours.batch_select_indices(keep)
            theirs.batch_select_indices(keep)
            n_rows = len(keep)


def test_the_cache_is_not_copied_at_every_step(monkeypatch):
    """The point of blocks: between two growths, new tokens are written into the same memory."""
    monkeypatch.setattr(kv_cache, "BLOCK_TOKENS", 8)
    layer = BlockLayer()
    places = [layer.update(torch.ones(2, 1, 1, 4), torch.ones(2, 1, 1, 4))[0].data_ptr() for _ in range(24)]
    assert len(set(places[:8])) == len(set(places[8:16])) == len(set(places[16:])) == 1


def test_what_is_not_filled_is_zero():
    """Whole buffers enter matrix products with weight 0 there; a NaN would survive that."""
    layer = BlockLayer()
    layer.update(torch.ones(2, 1, 3, 4), torch.ones(2, 1, 3, 4))
    assert not layer.key_buffer[:, :, 3:].any()
    assert not layer.value_buffer[:, :, 3:].any()
