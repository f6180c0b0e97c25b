"""SAEs that are kept on the way to a larger budget: those of smaller budgets, for nothing.

The learning rate does not depend on where training ends, and a smaller budget reads the beginning of what a larger one
reads: so what is there after so many tokens is, bit for bit, what a run with that budget ends with.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from transformers import PreTrainedModel

from sae_utils.evaluation.reconstruction import evaluate_reconstruction
from sae_utils.sources.packing import Chunks
from sae_utils.sparse_coders import SparseCoder
from sae_utils.training.cells import Cell
from sae_utils.training.finished import SaeKey, TrainingTokens, check_measured, make_record, stage_sae
from sae_utils.training.folders import CellFolders
from sae_utils.training.remaining import finished_layers
from sae_utils.training.trainer import SaeTrainer

TrainedOn = Mapping[int, Mapping[int, int]]
"""Tokens that SAEs had seen at each number of tokens, by layer."""


def keep_on_the_way(
    cell: Cell, folders: CellFolders, trainer: SaeTrainer, keys: Mapping[str, SaeKey], *, overwrite: bool
) -> Callable[[int], None]:
    """What a trainer calls at the budgets that are kept: its SAEs are staged beside those of the end.

    Args:
        cell: What is trained.
        folders: Its folders.
        trainer: Its trainer.
        keys: Layer and seed of each of the trainer's SAEs.
        overwrite: Keep also what is finished already.
    """
    by_tokens = {each.budget.n_train_tokens: each for each in cell.kept}

    def keep(n_tokens: int) -> None:
        own = folders.of_variant(by_tokens[n_tokens].variant)
        for name in trainer.owned_saes:
            # Of a seed that has one of these layers the others are trained on their own, if at all.
            if overwrite or not finished_layers(own, keys[name][1]) & set(cell.settings.layers):
                stage_sae(own, keys[name], trainer.saes[name])

    return keep


def counts_at(trainer: SaeTrainer, hookpoints: Mapping[int, str]) -> dict[int, dict[int, int]]:
    """Tokens that SAEs have seen at each budget that was passed since they are kept, by layer."""
    return {
        n_tokens: {layer: trainer.n_tokens_trained_on(name, at=n_tokens) for layer, name in hookpoints.items()}
        for n_tokens in trainer.kept_at
    }


def measure_kept(
    cell: Cell,
    folders: CellFolders,
    hooked: Mapping[SaeKey, str],
    trained_on: TrainedOn,
    model: PreTrainedModel,
    eval_chunks: Chunks,
) -> Iterator[dict[str, Any]]:
    """Records of the SAEs of a pass that are staged on the way, one budget in memory after the other.

    Args:
        cell: What is trained.
        folders: Its folders.
        hooked: The SAEs of the pass that this process owns, with the names of their layers.
        trained_on: What `counts_at` has found.
        model: The target.
        eval_chunks: Held-out sequences.
    """
    options = {"batch_size": cell.settings.batch_size, "exclusion": cell.target.exclusion}
    for each in cell.kept:
        own, n_tokens = folders.of_variant(each.variant), each.budget.n_train_tokens
        saes = {
            key: (name, SparseCoder.load_from_disk(own.staged_sae(*key), device=model.device).requires_grad_(False))
            for key, name in hooked.items()
            if own.staged_sae(*key).exists()
        }
        if not saes:
            continue
        measured = evaluate_reconstruction(model, saes, eval_chunks, **options)
        check_measured(measured)
        for key, (_, sae) in saes.items():
            seen = TrainingTokens(n_tokens, trained_on[n_tokens][key[0]])
            yield make_record(own, key, sae, seen, measured[key])
