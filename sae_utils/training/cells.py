"""One cell of the target x source grid: what is trained on what, and everything that decides its weights."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from sae_utils.devices import dtype_name
from sae_utils.exclusion import Exclusion
from sae_utils.paths import cell_name, series_name, short_name
from sae_utils.planned_models import StandInTokenizer
from sae_utils.sources.budget import Budget
from sae_utils.sources.catalog import Source
from sae_utils.sources.joining import PACKING_RULE
from sae_utils.sources.packing import Chunks, split_chunks
from sae_utils.sources.packs import Packed
from sae_utils.training.passes import PassMemory, estimate_pass_memory
from sae_utils.training.settings import TrainingSettings


@dataclass(frozen=True)
class Target:
    """A model to train SAEs on."""

    reference: str
    """Hub id or folder."""

    dtype: torch.dtype
    """Number format of its weights; SAEs are float32."""

    tokenizer: PreTrainedTokenizerBase
    """Its tokenizer."""

    config: PretrainedConfig
    """Its configuration."""

    n_latents: int
    """Latents of each SAE."""

    exclusion: Exclusion
    """Positions that SAEs do not see."""

    trunk_bytes: int
    """Its weights up to the last layer that is encoded."""

    @property
    def name(self) -> str:
        """Short name."""
        return short_name(self.reference)

    @property
    def d_model(self) -> int:
        """Width of its residual stream."""
        return self.config.hidden_size


@dataclass(frozen=True)
class Cell:
    """One target trained on one source: all that decides the weights of its SAEs, but their seeds."""

    target: Target
    """The model whose activations are encoded."""

    source: Source
    """The data set that they are computed on."""

    packed: Packed
    """All of the source as rows, in the target's ids."""

    settings: TrainingSettings
    """How SAEs are trained."""

    budget: Budget
    """Sequences to train on and to hold out."""

    variant: str = ""
    """What sets it apart from the first cell of its target and source; empty if it is that one."""

    kept: tuple["Cell", ...] = ()
    """The same with smaller budgets, whose SAEs are kept on the way to this one's."""

    @property
    def name(self) -> str:
        """Name of the cell's files."""
        return cell_name(self.target.name, series_name(self.source.name, self.variant))

    @property
    def is_assumed(self) -> bool:
        """Whether its rows are not there yet, and it is only planned."""
        return self.source.missing is not None or isinstance(self.target.tokenizer, StandInTokenizer)

    def with_layers(self, layers: Sequence[int]) -> "Cell":
        """The same cell with SAEs of these layers."""
        kept = tuple(each.with_layers(layers) for each in self.kept)
        return replace(self, settings=replace(self.settings, layers=tuple(layers)), kept=kept)

    def split(self) -> tuple[Chunks, Chunks]:
        """Training sequences in the order of training, held-out sequences in the source's order."""
        return split_chunks(
            self.packed.chunks,
            n_train=self.budget.n_train_chunks,
            n_eval=self.budget.n_eval_chunks,
            shuffle_seed=self.settings.shuffle_seed,
        )

    def memory(self, device: torch.device, *, is_replicated: bool) -> PassMemory:
        """What training takes, in each of several processes that hold the same SAEs if it `is_replicated`."""
        return estimate_pass_memory(
            model_bytes=self.target.trunk_bytes,
            d_model=self.target.d_model,
            n_latents=self.target.n_latents,
            k=self.settings.k,
            optimizer=self.settings.optimizer,
            tokens_per_micro_batch=self.settings.tokens_per_micro_batch,
            device=device,
            is_replicated=is_replicated,
        )

    def identity(self) -> dict[str, Any]:
        """Everything, beside the seed, that decides the weights; compared before anything is continued."""
        return {
            "target": self.target.name,
            "source": self.source.label,
            "source_fingerprint": self.source.fingerprint,
            **asdict(self.settings),
            "layers": list(self.settings.layers),
            "exclude": list(self.settings.exclude),
            "excluded_ids": list(self.target.exclusion.ids),
            "num_latents": self.target.n_latents,
            "dtype": dtype_name(self.target.dtype),
            "packing_rule": PACKING_RULE,
            "n_train_tokens": self.budget.n_train_tokens,
            "n_eval_tokens": self.budget.n_eval_tokens,
        }
