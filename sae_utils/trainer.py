"""sparsify's trainer with exact resumption, our logging, and progress in tokens; its training loop is used unchanged.

`Trainer.fit` ends each batch with `self.global_step += 1`. Here `global_step` is a property, so that assignment is the
moment at which everything about a step is settled: the optimizer has stepped, the counters are up to date, and the next
batch has not been read. Losses are reported and checkpoints are written then, and nowhere else.
"""

import contextlib
import io
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from schedulefree import ScheduleFreeWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from sae_utils.packing import Chunks
from sae_utils.sparse_coders import ForwardOutput, TrainConfig, Trainer

logger = logging.getLogger(__name__)

STATE_FILE = "state.pt"
"""Name of the resumable state inside a cell's working folder."""

StepReport = Callable[[int, dict[str, dict[str, float]]], None]
"""Called after a step with the number of tokens trained on and, per SAE name, its FVU and dead share."""


class SaeTrainer(Trainer):
    """Trains SAEs for several layers and seeds in one pass of the model, from packed sequences.

    Differences from sparsify's trainer: checkpoints are written in one step, after a step is complete, and hold
    everything (its own store the step before the increment and the weights in evaluation form); nothing is printed;
    losses go to the function in `on_step`; `fit` leaves the global matmul precision as it was. The arithmetic of
    training is sparsify's.
    """

    def __init__(
        self,
        cfg: TrainConfig,
        chunks: Chunks,
        model: PreTrainedModel,
        *,
        work_dir: Path,
    ) -> None:
        """Build the SAEs and their optimizer.

        Args:
            cfg: sparsify's settings; `hookpoints` and `init_seeds` say which SAEs, `save_every` counts optimizer steps.
            chunks: Training sequences in the order of training.
            model: The target, cut after its last hooked layer.
            work_dir: Folder of the resumable state.

        sparsify seeds the global generators, once per SAE; here and in `fit` they are given back as they were.
        """
        self.work_dir = work_dir
        self.on_step: StepReport = lambda n_tokens, report: None
        self._is_fitting = False
        self._fvu_sums: dict[str, Tensor] = {}
        cfg.log_to_wandb = False  # sparsify would start a run of its own
        with torch.random.fork_rng(devices=_cuda_devices(model)), _captured_prints():
            super().__init__(cfg, chunks, model)
        self._sort_parameters_()
        for name, sae in self.saes.items():
            sae.register_forward_hook(self._make_loss_hook(name))

    @property
    def global_step(self) -> int:
        """Batches trained on so far."""
        return self._global_step

    @global_step.setter
    def global_step(self, value: int) -> None:
        self._global_step = value
        if self._is_fitting and value % self.cfg.grad_acc_steps == 0:
            self._end_step()

    @property
    def n_tokens_seen(self) -> int:
        """Tokens that each SAE was trained on so far."""
        return self.global_step * self.cfg.batch_size * self.dataset.ctx_len

    def fit(self) -> None:
        """Train on what is left of the sequences; the SAEs end in evaluation form, as they are to be used."""
        precision = torch.get_float32_matmul_precision()
        self._is_fitting = True
        try:
            with torch.random.fork_rng(devices=_cuda_devices(self.model)), _captured_prints(), _without_bar():
                super().fit()
        finally:
            self._is_fitting = False
            torch.set_float32_matmul_precision(precision)
        for optimizer in self.optimizers:
            if isinstance(optimizer, ScheduleFreeWrapper):
                optimizer.eval()

    def save(self) -> None:
        """Called by sparsify inside a step and after the last one, when state is half way; see `save_state`."""

    def save_state(self) -> None:
        """Write everything that the next batch depends on, in one step: the old state stands until the new one does."""
        state = {
            "global_step": self.global_step,
            "saes": {name: sae.state_dict() for name, sae in self.saes.items()},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "lr_schedulers": [scheduler.state_dict() for scheduler in self.lr_schedulers],
            "num_tokens_since_fired": self.num_tokens_since_fired,
        }
        self.work_dir.mkdir(parents=True, exist_ok=True)
        scratch = self.work_dir / f"writing_{STATE_FILE}"
        with open(scratch, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, self.work_dir / STATE_FILE)

    def load_state(self, path: Path) -> None:
        """Take up training where `save_state` left it."""
        state = torch.load(path, map_location=self.model.device, weights_only=True)
        for name, sae in self.saes.items():
            sae.load_state_dict(state["saes"][name])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for scheduler, saved in zip(self.lr_schedulers, state["lr_schedulers"], strict=True):
            scheduler.load_state_dict(saved)
        for name, counts in state["num_tokens_since_fired"].items():
            self.num_tokens_since_fired[name].copy_(counts)
        self.global_step = state["global_step"]

    def sae_name(self, hookpoint: str, seed: int) -> str:
        """Name in `saes` of one layer's and seed's SAE; sparsify leaves the seed out when there is only one."""
        return hookpoint if len(self.cfg.init_seeds) == 1 else f"{hookpoint}/seed{seed}"

    def _sort_parameters_(self) -> None:
        """Give the optimizers' parameters one order, in place.

        For Muon sparsify hands over a set, whose order changes from process to process, while optimizer state is saved,
        and shared between ranks, by position.
        """
        position = {p: i for i, p in enumerate(p for sae in self.saes.values() for p in sae.parameters())}
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["params"].sort(key=position.__getitem__)

    def _end_step(self) -> None:
        """Report the losses of a complete step, and write a checkpoint when one is due."""
        report = {}
        for name, counts in self.num_tokens_since_fired.items():
            is_dead = counts > self.cfg.dead_feature_threshold
            report[name] = {
                "fvu": float(self._fvu_sums[name] / self.cfg.grad_acc_steps),
                "dead_share": float(is_dead.float().mean()),
            }
        self._fvu_sums.clear()
        self.on_step(self.n_tokens_seen, report)
        if (self.global_step // self.cfg.grad_acc_steps) % self.cfg.save_every == 0:
            self.save_state()

    def _make_loss_hook(self, name: str) -> Callable:
        """A forward hook that adds up the FVU of an SAE's micro-batches."""

        def add_fvu(module: nn.Module, inputs: tuple, output: ForwardOutput) -> None:
            # Every micro-batch's error is divided by the whole batch's variance, so they add up to the batch's FVU.
            self._fvu_sums[name] = self._fvu_sums.get(name, 0) + output.fvu.detach()

        return add_fvu


def _cuda_devices(model: PreTrainedModel) -> list[torch.device]:
    """CUDA devices whose random state sparsify's seeding touches."""
    return [model.device] if model.device.type == "cuda" else []


@contextlib.contextmanager
def _captured_prints():
    """Send what sparsify prints to our debug log."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        for line in printed.getvalue().splitlines():
            logger.debug("sparsify: %s", line)


@contextlib.contextmanager
def _without_bar():
    """Replace sparsify's progress bar, which counts batches, by one that shows nothing; ours counts tokens."""
    module = sys.modules[Trainer.__module__]
    shown = module.tqdm
    module.tqdm = lambda *args, **kwargs: shown(*args, **(kwargs | {"disable": True}))
    try:
        yield
    finally:
        module.tqdm = shown
