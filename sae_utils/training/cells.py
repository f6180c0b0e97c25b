"""One cell of the target x source grid: what is trained on what, and everything that decides its weights."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from sae_utils.devices import dtype_name
from sae_utils.distributed import Workers
from sae_utils.errors import InputError
from sae_utils.paths import UNFINISHED_SUFFIX, cell_name, seed_dir, short_name
from sae_utils.sources.budget import Budget
from sae_utils.sources.catalog import Source
from sae_utils.sources.packing import Chunks
from sae_utils.training.passes import Pass, PassMemory, plan_passes


@dataclass(frozen=True)
class TrainingSettings:
    """What, beside target, source and seed, decides the weights of an SAE."""

    layers: tuple[int, ...]
    """Decoder layers whose outputs are encoded, ascending."""

    k: int = 32
    """Latents that may be active on a token."""

    batch_size: int = 2
    """Sequences per batch."""

    grad_acc_steps: int = 1
    """Batches per optimizer step."""

    micro_acc_steps: int = 1
    """Parts a batch's activations are cut into for the SAEs, to save memory."""

    lr: float | None = None
    """Learning rate; None for sparsify's, which depends on the optimizer and the number of latents."""

    optimizer: str = "signum"
    """sparsify's optimizer: signum, adam or muon."""

    ctx_len: int = 2048
    """Tokens per sequence."""

    shuffle_seed: int = 42
    """Order of the training sequences."""

    def __post_init__(self) -> None:
        for flag in ("k", "batch_size", "grad_acc_steps", "micro_acc_steps"):
            if getattr(self, flag) < 1:
                raise InputError(f"--{flag} must be at least 1, got {getattr(self, flag)}")
        if self.ctx_len < 2:
            raise InputError(f"--ctx_len must be at least 2 tokens, got {self.ctx_len}")
        if not self.layers or len(set(self.layers)) != len(self.layers):
            raise InputError(f"--layers must name at least one layer, each once, got {list(self.layers)}")
        if self.lr is not None and not self.lr > 0:
            raise InputError(f"--lr must be > 0, got {self.lr}")
        if self.shuffle_seed < 0:
            raise InputError(f"--shuffle_seed must be >= 0, got {self.shuffle_seed}")


@dataclass(frozen=True)
class Target:
    """A model to train SAEs on."""

    reference: str
    """Hub id or folder."""

    tokenizer: PreTrainedTokenizerBase
    """Its tokenizer."""

    d_model: int
    """Width of its residual stream."""

    n_latents: int
    """Latents of each SAE."""

    memory: PassMemory
    """What training takes."""

    @property
    def name(self) -> str:
        """Short name."""
        return short_name(self.reference)


@dataclass(frozen=True)
class Run:
    """What all cells of a run share."""

    settings: TrainingSettings
    """What decides the weights."""

    budget: Budget
    """Sequences to train on and to hold out."""

    n_seeds: int
    """SAEs per layer, from seeds 0 .. n_seeds - 1."""

    save_every: int
    """Optimizer steps between resumable checkpoints."""

    checkpoint_dir: Path
    """Folder of the SAEs."""

    device: torch.device
    """Where to compute."""

    free_bytes: int | None
    """Memory that the device had left when the run was planned; None for a GPU that is not here."""

    dtype: torch.dtype
    """Number format of the target model; SAEs are float32."""

    workers: Workers
    """The processes that train together."""

    distribute_modules: bool
    """Whether each process trains some of the layers, instead of all on a part of each batch."""

    overwrite: bool
    """Throw away what stands there."""

    wandb: dict[str, Any]
    """`mode`, `project` and `entity` of the W&B runs."""

    quiet: bool = False
    """No bars, no status lines."""


@dataclass(frozen=True)
class Cell:
    """One target trained on one source."""

    target: Target
    """The model whose activations are encoded."""

    source: Source
    """The data set that they are computed on."""

    chunks: Chunks
    """All packed sequences of the source, in the target's ids."""

    run: Run
    """What is shared."""

    @property
    def name(self) -> str:
        """Name of the cell's files."""
        return cell_name(self.target.name, self.source.name)

    @property
    def work_dir(self) -> Path:
        """Folder of the resumable state; it is gone when the cell is finished."""
        return self.run.checkpoint_dir / (self.name + UNFINISHED_SUFFIX)

    def seed_dir(self, seed: int) -> Path:
        """Folder of the finished SAEs of a seed."""
        return seed_dir(self.run.checkpoint_dir, self.target.name, self.source.name, seed)

    def plan_passes(self, seeds: Sequence[int]) -> list[Pass]:
        """How the SAEs of these seeds are trained, given the memory there is; in one pass if that is not known."""
        run = self.run
        layers, n_together = run.settings.layers, run.workers.n if run.distribute_modules else 1
        n_fit = len(layers) * len(seeds) if run.free_bytes is None else self.target.memory.fitting(run.free_bytes)
        return plan_passes(layers, seeds, n_fit, n_layers_together=n_together)

    def identity(self) -> dict[str, Any]:
        """Everything, beside the seed, that decides the weights; compared before anything is continued."""
        return {
            "target": self.target.name,
            "source": self.source.label,
            "source_fingerprint": self.source.fingerprint,
            **asdict(self.run.settings),
            "layers": list(self.run.settings.layers),
            "num_latents": self.target.n_latents,
            "dtype": dtype_name(self.run.dtype),
            "n_train_tokens": self.run.budget.n_train_tokens,
            "n_eval_tokens": self.run.budget.n_eval_tokens,
        }
