import pytest

from sae_utils.errors import InputError
from sae_utils.passes import Pass, PassMemory, estimate_pass_memory, plan_passes, sae_bytes


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


def test_memory_by_hand():
    """d_model 2, 3 latents: 12 weights and 5 biases of 4 bytes; weights, gradients, one state; 4 arrays of 10 x 3."""
    assert sae_bytes(2, 3) == 68
    memory = estimate_pass_memory(
        model_bytes=1000, d_model=2, n_latents=3, optimizer="signum", tokens_per_micro_batch=10
    )
    assert memory == PassMemory(fixed=1000 + 4 * 4 * 30, per_sae=68 * 3)
    assert memory.of(2) == 1480 + 408
    assert memory.fitting(2223) == 2  # 85 % of it is 1,889
    assert memory.fitting(100) == 0
