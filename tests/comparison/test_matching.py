import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize

from sae_utils.comparison import matching
from sae_utils.comparison.matching import match_rows
from sae_utils.errors import InputError


def draw(seed: int, n: int, d_model: int) -> Tensor:
    return torch.randn(n, d_model, generator=torch.Generator().manual_seed(seed))


def independent(n: int) -> tuple[Tensor, Tensor]:
    """Like untrained SAEs: all cosines small."""
    return draw(0, n, 16), draw(1, n, 16)


def wide(n: int) -> tuple[Tensor, Tensor]:
    """Nearly orthogonal: all cosines small and near one another."""
    return draw(0, n, 1024), draw(1, n, 1024)


def half_shared(n: int) -> tuple[Tensor, Tensor]:
    """Half of the rows come back with noise, in another order."""
    a, b = independent(n)
    b[: n // 2] = a[: n // 2] + 0.3 * b[: n // 2]
    return a, b[torch.randperm(n, generator=torch.Generator().manual_seed(2))]


def common_direction(n: int) -> tuple[Tensor, Tensor]:
    """All rows lean the same way, some more: those are everybody's nearest, and best candidates say little."""
    a, b = independent(n)
    generator = torch.Generator().manual_seed(n)
    return tuple(each + 4 * torch.rand(n, 1, generator=generator) for each in (a, b))


def few_dimensions(n: int) -> tuple[Tensor, Tensor]:
    """In a plane: long chains of exchanges."""
    return draw(0, n, 2), draw(1, n, 2)


def clusters(n: int) -> tuple[Tensor, Tensor]:
    """Many near copies of few directions, unequally many on the two sides."""
    centres = draw(0, 5, 8)
    return centres[torch.arange(n) % 5] + 0.01 * draw(1, n, 8), centres[torch.arange(n) % 3] + 0.01 * draw(2, n, 8)


def duplicates(n: int) -> tuple[Tensor, Tensor]:
    """Exact copies of few rows: ties everywhere, and float16 cannot tell them from contradictions."""
    rows = draw(0, 4, 8)
    return rows[torch.arange(n) % 4], rows[torch.arange(n) % 3]


def one_direction(n: int) -> tuple[Tensor, Tensor]:
    return torch.ones(n, 3), torch.ones(n, 3)


def signs(n: int) -> tuple[Tensor, Tensor]:
    """Cosines from a handful of values: ties that are not copies."""
    return draw(0, n, 5).sign(), draw(1, n, 5).sign()


def zeros_on_both_sides(n: int) -> tuple[Tensor, Tensor]:
    a, b = independent(n)
    a[::3], b[::2] = 0, 0
    return a, b


def opposite(n: int) -> tuple[Tensor, Tensor]:
    """All cosines negative."""
    return draw(0, n, 4).abs(), -draw(1, n, 4).abs()


KINDS = [
    independent,
    wide,
    half_shared,
    common_direction,
    few_dimensions,
    clusters,
    duplicates,
    one_direction,
    signs,
    zeros_on_both_sides,
    opposite,
]


def dense(a: Tensor, b: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """SciPy on all cosines in float64: partners, and the cosines of all pairs."""
    cosines = (normalize(a.double(), dim=1) @ normalize(b.double(), dim=1).T).numpy()
    return linear_sum_assignment(cosines, maximize=True)[1], cosines


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("n_candidates", [1, 3, 16])
@pytest.mark.parametrize("n", [1, 2, 7, 300])
def test_total_is_the_dense_optimum(kind, n, n_candidates):
    """One candidate per row misses most of the answer: what is missing has to be found again."""
    a, b = kind(n)
    partner, cosines = dense(a, b)
    found = match_rows(a, b, n_candidates=n_candidates)
    rows = np.arange(n)
    assert sorted(found.partner) == rows.tolist()
    assert cosines[rows, found.partner].sum() == pytest.approx(cosines[rows, partner].sum(), rel=1e-6, abs=1e-6)
    assert found.cosine == pytest.approx(cosines[rows, found.partner], abs=1e-6)


@pytest.mark.parametrize("kind", [independent, wide, half_shared, common_direction, few_dimensions, opposite])
def test_partners_are_the_dense_ones_where_the_optimum_is_unique(kind):
    a, b = kind(400)
    assert match_rows(a, b, n_candidates=4).partner.tolist() == dense(a, b)[0].tolist()


@pytest.mark.parametrize("seed", range(20))
def test_many_random_problems(seed):
    """Sizes, widths and numbers of shared rows at random, from one candidate."""
    random = np.random.default_rng(seed)
    n, d_model = int(random.integers(2, 200)), int(random.integers(1, 40))
    a, b = draw(seed, n, d_model), draw(seed + 100, n, d_model)
    b[: n // 3] = a[: n // 3] + float(random.uniform(0, 1)) * b[: n // 3]
    partner, cosines = dense(a, b)
    found = match_rows(a, b, n_candidates=1)
    rows = np.arange(n)
    assert cosines[rows, found.partner].sum() == pytest.approx(cosines[rows, partner].sum(), rel=1e-6, abs=1e-6)


def test_better_than_every_row_for_itself():
    """By hand, in degrees: rows at 0 and 30 both want the column at 20; the other column is at 100.

    20 to 0 and 100 to 30: 0.940 + 0.342 = 1.282. The greedy 20 to 30 and 100 to 0: 0.985 - 0.174 = 0.811.
    """
    angles_a, angles_b = torch.tensor([0.0, 30.0]).deg2rad(), torch.tensor([20.0, 100.0]).deg2rad()
    a, b = (torch.stack([angles.cos(), angles.sin()], dim=1) for angles in (angles_a, angles_b))
    found = match_rows(a, b, n_candidates=1)
    assert found.partner.tolist() == [0, 1]
    assert found.cosine == pytest.approx([0.9397, 0.3420], abs=1e-4)


@pytest.mark.parametrize("kind", [independent, half_shared])
def test_more_than_one_block_of_rows(kind):
    """Blocks must not mistake one row for another, nor lose the best of a column that an earlier block held."""
    a, b = kind(1500)
    assert 1500 > matching.BLOCK_ROWS > 1500 // 2
    assert match_rows(a, b, n_candidates=4).partner.tolist() == dense(a, b)[0].tolist()


@pytest.mark.parametrize("n_numbers", [1, 100])
def test_cosines_of_pairs_do_not_depend_on_how_many_are_computed_at_a_time(n_numbers, monkeypatch):
    """Also where a single row is more than that."""
    a, b = half_shared(300)
    keys = torch.randint(0, 300 * 300, (50,), generator=torch.Generator().manual_seed(0))
    expected = [float(a[key // 300] @ b[key % 300]) for key in keys.tolist()]
    monkeypatch.setattr(matching, "GATHERED_NUMBERS", n_numbers)
    assert matching._cosines_of_pairs(a, b, keys) == pytest.approx(expected, abs=1e-5)


def test_permuted_rows_are_found_again():
    a, order = draw(0, 500, 32), torch.randperm(500, generator=torch.Generator().manual_seed(1))
    found = match_rows(a, a[order])
    assert order[found.partner].tolist() == list(range(500))
    assert found.cosine == pytest.approx(np.ones(500))


def test_norms_do_not_matter():
    a, b = half_shared(200)
    scales = torch.logspace(-6, 6, 200)[:, None]
    assert match_rows(a * scales, b * scales.flip(0)).partner.tolist() == match_rows(a, b).partner.tolist()


def test_exchanging_the_two_inverts_the_matching():
    a, b = half_shared(200)
    there, back = match_rows(a, b), match_rows(b, a)
    assert back.partner[there.partner].tolist() == list(range(200))
    assert back.cosine[there.partner] == pytest.approx(there.cosine, abs=1e-6)


def test_two_rows_can_always_be_matched():
    """The solver alone calls some of these impossible: three pairs of two rows, whose cosines are -0.28, 0.92, 0.88."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(1000):
        a, b = (torch.randn(2, 3, generator=generator) + 2 * torch.rand(2, 1, generator=generator) for _ in range(2))
        assert sorted(match_rows(a, b, n_candidates=1).partner) == [0, 1]


def test_rows_of_zeros_have_cosine_0():
    """A row of zeros takes what is left over: 0 beats the -1 of the other column for the second row."""
    a = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    found = match_rows(a, torch.tensor([[-1.0, 0.0], [0.0, 1.0]]))
    assert found.partner.tolist() == [0, 1]
    assert found.cosine.tolist() == [0, 0]


def test_same_input_same_output():
    a, b = duplicates(100)
    assert match_rows(a, b).partner.tolist() == match_rows(a, b).partner.tolist()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_number_formats(dtype):
    a, b = (x.to(dtype) for x in half_shared(200))
    found = match_rows(a, b)
    partner, cosines = dense(a, b)
    assert cosines[np.arange(200), found.partner].sum() == pytest.approx(
        cosines[np.arange(200), partner].sum(), rel=1e-6
    )
    assert (found.partner.dtype, found.cosine.dtype) == (np.int64, np.float32)


def test_inputs_and_settings_are_left_alone():
    """The trainer's coarse float32 products must not reach the matching, nor the matching's fine ones the trainer."""
    a, b = half_shared(50)
    before = a.clone(), b.clone()
    torch.set_float32_matmul_precision("high")
    try:
        match_rows(a.requires_grad_(), b)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(a, before[0])
    assert torch.equal(b, before[1])


def test_status_tells_of_the_rounds():
    lines = []
    match_rows(*common_direction(100), n_candidates=1, on_status=lines.append)
    assert lines[0] == "all cosines of 100 x 100"
    assert len(lines) > 2
    assert "100 pairs, 0 to be added" not in lines[1]
    assert lines[-1].endswith(" 0 to be added")


@pytest.mark.parametrize("shape", [(4, 3), (5, 2), (5,), (0, 3)])
def test_shapes_that_cannot_be_matched_are_refused(shape):
    other = (5, 3) if shape != (0, 3) else shape
    with pytest.raises(InputError, match=r"same number of latents, got \("):
        match_rows(torch.ones(other), torch.ones(shape))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_numbers_that_are_not_finite_are_refused(value):
    a = draw(0, 5, 3)
    b = a.clone()
    b[2, 1] = value
    with pytest.raises(InputError, match="must be finite, 1 of 5 are not"):
        match_rows(a, b)


@pytest.mark.gpu
def test_gpu_and_cpu_agree():
    a, b = half_shared(1500)
    assert match_rows(a.cuda(), b.cuda()).partner.tolist() == match_rows(a, b).partner.tolist()
