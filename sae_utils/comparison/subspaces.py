"""Do directions that are not found again one by one span a subspace that is? The overlap of two sets of them."""

from dataclasses import dataclass

import torch
from torch import Tensor

SPANNED_SHARE = 0.9
"""Share of the summed squared lengths that principal directions carry. All directions together span the whole space as
soon as there are d_model of them, whatever they are."""


@dataclass(frozen=True)
class Subspace:
    """The principal directions of some rows."""

    basis: Tensor
    """float64 `(d_model, rank)`, orthonormal columns."""

    @property
    def rank(self) -> int:
        """Number of directions."""
        return self.basis.shape[1]

    @property
    def expected_overlap(self) -> float:
        """Mean of `overlap` over directions drawn at random: `rank / d_model`."""
        return self.rank / self.basis.shape[0]


def overlap_both_ways(a: Tensor, b: Tensor) -> dict[str, float | int] | None:
    """How far the directions of each of two sets lie in the principal subspace of the other.

    Args:
        a: `(any, d_model)`, of any norms.
        b: The same of another SAE; another number of rows.

    Returns:
        - `n`, `n_b`: numbers of directions;
        - `rank`, `rank_b`: of the principal subspaces, see `principal_subspace`;
        - `overlap`: mean over the rows of `a` of their squared length inside the subspace of `b`, `overlap_b` the other
          way round, in [0, 1];
        - `overlap_random`, `overlap_random_b`: what directions drawn at random would have: `rank_b / d_model`, `rank /
          d_model`.

        None if one set is empty.

    Source: after Gerasimov et al. 2026, arXiv:2606.12138, who find that unstable latents lie in subspaces of lower rank
    that do come back.
    """
    if not (len(a) and len(b)):
        return None
    of_a, of_b = principal_subspace(a), principal_subspace(b)
    return {
        "n": len(a),
        "n_b": len(b),
        "rank": of_a.rank,
        "rank_b": of_b.rank,
        "overlap": overlap(a, of_b),
        "overlap_b": overlap(b, of_a),
        "overlap_random": of_b.expected_overlap,
        "overlap_random_b": of_a.expected_overlap,
    }


def principal_subspace(rows: Tensor, share: float = SPANNED_SHARE) -> Subspace:
    """The fewest directions that carry a share of the summed squared lengths of unit rows.

    Args:
        rows: `(any, d_model)`, at least one, none of them zero; their norms do not matter.
        share: In (0, 1].
    """
    unit = _unit(rows)
    strengths, basis = torch.linalg.eigh(unit.T @ unit)  # ascending; (d_model,), (d_model, d_model)
    carried = strengths.flip(0).cumsum(0) / strengths.sum()
    rank = int((carried < share - 1e-12).sum()) + 1
    return Subspace(basis.flip(1)[:, :rank])


def overlap(rows: Tensor, subspace: Subspace) -> float:
    """Mean squared length of unit rows inside a subspace: 1 if all lie in it, `rank / d_model` for random ones.

    >>> overlap(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), Subspace(torch.tensor([[1.0], [0.0]], dtype=torch.float64)))
    0.5
    """
    return float((_unit(rows) @ subspace.basis).pow(2).sum(dim=1).mean())


def _unit(rows: Tensor) -> Tensor:
    """Rows of norm 1, float64."""
    return torch.nn.functional.normalize(rows.double(), dim=1)
