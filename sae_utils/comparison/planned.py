"""The comparison of SAEs that are not trained yet: its pairs, and its work."""

from collections.abc import Sequence

import torch

from sae_utils.comparison.cost import Work
from sae_utils.comparison.groups import batch_bytes_of
from sae_utils.comparison.pairs import count_pairs
from sae_utils.devices import dtype_name
from sae_utils.models import model_bytes
from sae_utils.training.cells import Cell


def pairs_of_grid(cells: Sequence[Cell], seeds: Sequence[int], kinds: Sequence[str]) -> dict[tuple[int, int], int]:
    """How many pairs of SAEs of these kinds the grid has, by `(d_model, n_latents)`."""
    counts: dict[tuple[int, int], int] = {}
    alike = [(cell.target.name, cell.budget.n_train_tokens, cell.settings.hookpoint) for cell in cells]
    for one in dict.fromkeys(alike):
        members = [cell for cell, each in zip(cells, alike, strict=True) if each == one]
        size = members[0].target.d_model, members[0].target.n_latents
        n_pairs = len(members[0].settings.layers) * count_pairs(len(members), len(seeds), kinds)
        counts[size] = counts.get(size, 0) + n_pairs
    return counts


def work_of_grid(
    cells: Sequence[Cell],
    seeds: Sequence[int],
    kinds: Sequence[str],
    *,
    device: torch.device,
    batch_size: int,
    n_random_tokens: int,
) -> list[Work]:
    """The comparison of all SAEs of the grid, target by target.

    Args:
        cells: All that are trained.
        seeds: Of each cell.
        kinds: Of pairs, see `count_pairs`.
        device: Where it is compared.
        batch_size: Sequences per forward pass.
        n_random_tokens: On which fake features are counted.
    """
    works, on_the_way = [], {each.name for cell in cells for each in cell.kept}
    for target in {cell.target.name: cell.target for cell in cells}.values():
        members = [cell for cell in cells if cell.target.name == target.name]
        n_sources, settings = len({cell.source.name for cell in cells}), members[0].settings
        n_of_cell, n_kept = len(settings.layers) * len(seeds), sum(cell.name in on_the_way for cell in members)
        batch_bytes = batch_bytes_of(
            n_tokens=batch_size * settings.ctx_len,
            vocab=target.config.vocab_size,
            d_model=target.d_model,
            n_layers=len(settings.layers),
            n_latents=target.n_latents,
            itemsize=target.dtype.itemsize,
            device=device,
        )
        works.append(
            Work(
                target=target.name,
                dtype=dtype_name(target.dtype),
                layers=settings.layers,
                d_model=target.d_model,
                n_latents=target.n_latents,
                ctx_len=settings.ctx_len,
                batch_size=batch_size,
                n_saes=len(members) * n_of_cell,
                n_evaluations=((len(members) - n_kept) * n_sources + n_kept) * n_of_cell,
                n_eval_tokens=members[0].budget.n_eval_tokens,
                n_random_tokens=n_random_tokens,
                n_pairs=sum(pairs_of_grid(members, seeds, kinds).values()),
                fixed_bytes=model_bytes(target.config, target.dtype),
                batch_bytes=batch_bytes,
            )
        )
    return works
