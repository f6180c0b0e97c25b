"""What, beside target, source and seed, decides the weights of an SAE."""

from dataclasses import dataclass

from sae_utils.errors import InputError, check_positive
from sae_utils.exclusion import parse_exclusion

MAX_LR = 1e30
"""Largest learning rate that is taken for one: float32, in which weights are, ends soon after."""


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of training; every one is compared before anything is continued."""

    layers: tuple[int, ...]
    """Decoder layers whose outputs are encoded, ascending."""

    k: int = 32
    """Latents that may be active on a token."""

    batch_size: int = 2
    """Sequences per batch, of all processes together."""

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

    hookpoint: str = "residual"
    """Where in a layer activations are encoded, a name of `HOOKPOINTS`."""

    exclude: tuple[str, ...] = ()
    """Positions that SAEs do not see, as `parse_exclusion` has them."""

    def __post_init__(self) -> None:
        if self.exclude != parse_exclusion(self.exclude):
            raise InputError(f"exclude must be {parse_exclusion(self.exclude)}, got {self.exclude}")
        check_positive(
            k=self.k,
            batch_size=self.batch_size,
            grad_acc_steps=self.grad_acc_steps,
            micro_acc_steps=self.micro_acc_steps,
        )
        if self.ctx_len < 2:
            raise InputError(f"--ctx_len must be at least 2 tokens, got {self.ctx_len}")
        n_tokens = self.batch_size * self.ctx_len
        if self.micro_acc_steps > n_tokens:
            raise InputError(
                f"--micro_acc_steps must be at most the tokens of a batch, {n_tokens:,} (--batch_size "
                f"{self.batch_size} x --ctx_len {self.ctx_len}), got {self.micro_acc_steps}"
            )
        if not self.layers or len(set(self.layers)) != len(self.layers):
            raise InputError(f"--layers must name at least one layer, each once, got {list(self.layers)}")
        if self.lr is not None and not 0 < self.lr <= MAX_LR:
            raise InputError(f"--lr must be > 0 and at most {MAX_LR:g}, got {self.lr}")
        if self.shuffle_seed < 0:
            raise InputError(f"--shuffle_seed must be >= 0, got {self.shuffle_seed}")

    @property
    def chunks_per_step(self) -> int:
        """Sequences per optimizer step."""
        return self.batch_size * self.grad_acc_steps

    @property
    def tokens_per_micro_batch(self) -> int:
        """Tokens that an SAE encodes at a time."""
        return self.batch_size * self.ctx_len // self.micro_acc_steps
