import torch
from conftest import llama_config, neox_config

from sae_utils.generation.sample_memory import MemoryEstimate, estimate_memory, kv_bytes_per_token

GB = 10**9


def test_cache_by_hand():
    """Llama of 3 layers, 2 key-value heads of 4 dimensions: keys and values, 2 x 3 x 2 x 4 numbers of 4 bytes."""
    assert kv_bytes_per_token(llama_config(50, n_layers=3), torch.float32) == 192


def test_weights_are_counted_without_being_made():
    config = neox_config(100)
    memory = estimate_memory(config, torch.bfloat16, max_length=10)
    n_layer = 12 * 16 * 16 + 13 * 16  # weights and biases of attention and MLP, two layer norms
    assert memory.n_parameters == 2 * 100 * 16 + 2 * n_layer + 2 * 16
    assert memory.model_bytes == 2 * memory.n_parameters


def test_batch_is_what_fits_in_multiples_of_32():
    """Whole warps and tiles above 32 rows; below, every row counts."""
    memory = MemoryEstimate(n_parameters=0, model_bytes=2 * GB, row_bytes=GB // 10)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert memory.fitting_rows(12 * GB, cuda) == 64  # 8.2 GB usable: 82 rows
    assert memory.fitting_rows(14 * GB, cuda) == 96  # 9.9 GB usable: 99 rows
    assert memory.fitting_rows(5 * GB, cuda) == 22  # 2.25 GB usable
    assert memory.fitting_rows(1000 * GB, cuda) == 1024
    assert memory.fitting_rows(1000 * GB, cpu) == 128
    assert memory.fitting_rows(1 * GB, cuda) == 1  # tried one at a time, and refused if that fails
