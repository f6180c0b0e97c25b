import pytest
import torch

from sae_utils.errors import InputError
from sae_utils.memory import sae_bytes
from sae_utils.training.passes import Pass, PassMemory, estimate_pass_memory, plan_passes


def planned(n_fit: int, **changes) -> list[tuple]:
    return [(each.layers, each.seeds) for each in plan_passes([3, 7, 11], [0, 1], n_fit, **changes)]


@pytest.mark.parametrize(
    ("n_fit", "expected"),
    [
        (6, [((3, 7, 11), (0, 1))]),
        (5, [((3,), (0, 1)), ((7, 11), (0, 1))]),  # two passes are needed, of two layers at most
        (3, [((3,), (0, 1)), ((7,), (0, 1)), ((11,), (0, 1))]),
        (1, [((layer,), (seed,)) for layer in (3, 7, 11) for seed in (0, 1)]),
        (0, [((layer,), (seed,)) for layer in (3, 7, 11) for seed in (0, 1)]),  # estimates may be too careful
    ],
)
def test_as_few_passes_as_fit(n_fit, expected):
    assert planned(n_fit) == expected


def test_distributed_layers_stay_together():
    """Every process has one layer of the pass: with 3 processes all three layers, or with 1 SAE each, seed by seed."""
    assert planned(2, n_layers_together=3) == [((3, 7, 11), (0, 1))]
    assert planned(1, n_layers_together=3) == [((3, 7, 11), (0,)), ((3, 7, 11), (1,))]


def test_halves_hold_the_same_saes():
    assert Pass((3, 7, 11), (0, 1)).halves() == [Pass((3,), (0, 1)), Pass((7, 11), (0, 1))]
    assert Pass((3,), (0, 1)).halves() == [Pass((3,), (0,)), Pass((3,), (1,))]
    with pytest.raises(InputError, match=r"single SAE \(layers 3, seeds 1\); lower --batch_size"):
        Pass((3,), (1,)).halves()


@pytest.mark.parametrize(
    ("device", "n_latents", "k", "n_tokens", "one_turn"),
    [
        ("cuda", 3, 1, 10, 6 * 80 + 2 * 120),  # the forward pass: latents twice
        ("cuda", 3, 3, 10, 6 * 80 + 120 + 3 * 80),  # the backward pass: latents, and the gradients of 3 active ones
        ("cuda", 100, 1, 1, 6 * 8 + 2008),  # the optimizer's step: all weights
        ("cpu", 3, 1, 100, 6 * 800 + 90_000_000 + 1200 - 68),  # the forward pass: latents, and no gradient yet
        ("cpu", 3, 3, 10, 6 * 80 + 90_000_000 + 3 * 80),  # the backward pass
        ("cpu", 100, 1, 1, 6 * 8 + 90_000_000 + 2008),  # the optimizer's step
    ],
)
def test_memory_by_hand(device, n_latents, k, n_tokens, one_turn):
    """d_model 2, all numbers of 4 bytes; an SAE of n latents has 4 n weights and n + 2 biases, held three times."""
    one_sae = 4 * (5 * n_latents + 2)
    assert sae_bytes(2, n_latents) == one_sae
    memory = estimate_pass_memory(
        model_bytes=1000,
        d_model=2,
        n_latents=n_latents,
        k=k,
        optimizer="signum",
        tokens_per_micro_batch=n_tokens,
        device=torch.device(device),
    )
    assert memory == PassMemory(fixed=1000 + one_turn, per_sae=one_sae * 3)
    assert memory.of(2) == 1000 + one_turn + 6 * one_sae


def test_shares_of_the_gradient_are_few_at_a_time_on_a_cpu():
    """Where sparsify makes all of them first: 32 times what a batch has of `d_model`."""
    shape = {"model_bytes": 0, "d_model": 64, "n_latents": 64, "k": 32, "tokens_per_micro_batch": 1000}
    fixed = {
        device: estimate_pass_memory(**shape, optimizer="signum", device=torch.device(device)).fixed
        for device in ("cpu", "cuda")
    }
    dense, latents = 4 * 1000 * 64, 4 * 1000 * 64
    assert fixed == {"cpu": 6 * dense + 90_000_000 + 4 * 2**19, "cuda": 6 * dense + latents + 32 * dense}


def test_replicas_hold_gradients_twice():
    """Processes average them in buffers of their own, and out of memory is the end where several train together."""
    shape = {"model_bytes": 0, "d_model": 2, "n_latents": 3, "k": 1, "tokens_per_micro_batch": 10}
    shape["device"] = torch.device("cpu")
    for optimizer, n_copies in (("signum", 4), ("adam", 5), ("muon", 4)):
        memory = estimate_pass_memory(**shape, optimizer=optimizer, is_replicated=True)
        assert memory.per_sae == n_copies * sae_bytes(2, 3)


def test_as_many_saes_as_fit_into_85_percent():
    memory = PassMemory(fixed=1480, per_sae=204)
    assert memory.fitting(2223) == 2  # 85 % of it is 1,889
    assert memory.fitting(100) == 0
