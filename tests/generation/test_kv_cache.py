import pytest
import torch
from conftest import llama_config
from transformers import DynamicCache, MistralConfig

from sae_utils.generation import kv_cache
from sae_utils.generation.kv_cache import BlockLayer, can_go_back, go_back_, make_cache


@pytest.mark.parametrize("capacity", [None, 11, 100])
def test_same_contents_as_transformers_own_layer(monkeypatch, capacity):
    """Grown over several blocks or made whole at once, with rows dropped and tokens forgotten on the way."""
    monkeypatch.setattr(kv_cache, "BLOCK_TOKENS", 4)
    torch.manual_seed(0)
    config = llama_config(50)
    ours, theirs = make_cache(config, capacity), DynamicCache(config=config)
    n_rows = 6
    for step in range(11):
        new = [torch.randn(n_rows, 2, 1, 4) for _ in range(4)]
        for layer in (0, 1):
            mine = ours.update(new[2 * layer], new[2 * layer + 1], layer)
            expected = theirs.update(new[2 * layer], new[2 * layer + 1], layer)
            assert all(torch.equal(a, b) for a, b in zip(mine, expected, strict=True))
        if step in (4, 9):
            go_back_(ours, 2)
            theirs.crop(-2)
        assert ours.get_seq_length() == theirs.get_seq_length()
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


def test_a_whole_buffer_is_made_once():
    """On a GPU every growth leaves holes in its memory, and copies what may be half of it."""
    layer = BlockLayer(capacity=64)
    places = set()
    for step in range(64):
        keys, _ = layer.update(torch.ones(4 if step < 20 else 2, 1, 1, 4), torch.ones(4 if step < 20 else 2, 1, 1, 4))
        places.add(keys.untyped_storage().data_ptr())
        if step == 19:
            layer.batch_select_indices(torch.tensor([1, 3]))
    assert len(places) == 1


def test_what_would_not_reach_the_buffers_is_refused():
    """transformers' own methods change the views, and the next token would bring back what they removed."""
    layer = BlockLayer()
    layer.update(torch.ones(2, 1, 3, 4), torch.ones(2, 1, 3, 4))
    for call in (
        layer.reset,
        layer.offload,
        lambda: layer.batch_repeat_interleave(2),
        lambda: layer.reorder_cache(torch.tensor([1, 0])),
    ):
        with pytest.raises(NotImplementedError, match="a BlockLayer"):
            call()
    for wrong in (1, -4):
        with pytest.raises(ValueError, match=r"-3 .. 0, got"):
            layer.crop(wrong)
    own = {name for name in dir(BlockLayer) if callable(getattr(BlockLayer, name)) and not name.startswith("_")}
    harmless = {"get_mask_sizes", "get_max_length", "lazy_initialization", "prefetch"}
    assert own - harmless - set(vars(BlockLayer)) == set(), "inherited, and not looked at"


def test_only_caches_of_block_layers_go_back(monkeypatch):
    monkeypatch.setattr(kv_cache, "_warned", set())
    assert can_go_back(make_cache(llama_config(50)))
    window = make_cache(MistralConfig(num_hidden_layers=2, sliding_window=8))
    assert not can_go_back(window)
