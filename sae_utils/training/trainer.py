"""sparsify's trainer with exact resumption, our logging, and progress in tokens; its training loop is used unchanged.

`Trainer.fit` ends each batch with `self.global_step += 1`. Here `global_step` is a property, so that assignment is the
moment at which everything about a step is settled: the optimizer has stepped, the counters are up to date, and the next
batch has not been read. Losses are taken down and checkpoints are written then, and nowhere else.

The host runs ahead of a GPU as long as it asks it for no value. sparsify asks several times a step: which tokens are
excluded, how many are not, every loss. Here the host looks for excluded tokens among the ids that it has itself, ids
are brought over for many sequences at a time, and losses stay on the device and are read back every few steps. Only a
limit for norms has to be waited for, once a layer and batch, and so have masks that processes exchange.

Several processes train as one would: they cut every batch among themselves. Either each has all SAEs, and gradients are
averaged (sparsify's DDP), or, with `distribute_modules`, each has some of the layers and gets their activations for the
whole batch.
"""

import contextlib
import itertools
import logging
import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from schedulefree import ScheduleFreeWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from sae_utils.devices import dtype_name
from sae_utils.distributed import Workers
from sae_utils.errors import InputError, NonFiniteError, remedy_for_non_finite
from sae_utils.exclusion import NOTHING, Exclusion
from sae_utils.files import (
    DamagedFileError,
    check_file,
    checksum_beginning,
    checksum_file,
    read_record,
    reading,
    removal,
    write_record,
    written_whole,
)
from sae_utils.paths import METRICS_FILE
from sae_utils.sources.packing import Chunks, ChunksOnDevice
from sae_utils.sparse_coders import ForwardOutput, TrainConfig, Trainer, are_finite
from sae_utils.stopping import Stopped, StopRequest, stops_deferred
from sae_utils.training.adapters import (
    BatchMask,
    ExcludedTokens,
    SharedBatchMask,
    adapted_sparsify,
    captured_prints,
)

logger = logging.getLogger(__name__)

STATE_FILE = "state.json"
"""Names the files of the last complete checkpoint inside a working folder."""

READ_BACK_STEPS = {"cpu": 1, "cuda": 10}
"""Optimizer steps whose losses are read from the device together; before a checkpoint they are in any case."""

StepReport = Callable[[int, dict[str, dict[str, float]]], None]
"""Called after a step with the number of tokens trained on and, per SAE name, its FVU and dead share."""


@dataclass(frozen=True)
class BatchStatistics:
    """What the activations of one layer that SAEs see are like in one batch, of all processes together; float32."""

    mean: Tensor
    """Over tokens, `(d_model,)`."""

    total_variance: Tensor
    """Squared deviation from the mean, summed over tokens and dimensions, `()`."""


class SaeTrainer(Trainer):
    """Trains SAEs for several layers and seeds in one pass of the model, from packed sequences.

    Differences from sparsify's trainer: checkpoints are complete or absent, are written after a step, and hold
    everything (its own store the step before the increment and the weights in evaluation form); nothing is printed;
    losses go to the function in `on_step`, a few steps together on a GPU; `fit` leaves the global matmul precision as
    it was; SAEs get float32 activations, whatever the model's format (float16 has no room for their variance, so that
    every loss was 0); what is left out may depend on positions and norms, not on ids alone; adam is PyTorch's, whether
    or not bitsandbytes is installed; the batch size counts all processes,
    and what they compute together is what one process computes, up to rounding (its own divides each process's error
    by the variance of that process's part of the batch). With a float32 model and one process on a CPU, the arithmetic
    is sparsify's.
    """

    def __init__(
        self,
        cfg: TrainConfig,
        chunks: Chunks,
        model: PreTrainedModel,
        *,
        work_dir: Path,
        exclusion: Exclusion = NOTHING,
        workers: Workers | None = None,
        keep_at: Collection[int] = (),
    ) -> None:
        """Build the SAEs and their optimizer.

        Args:
            cfg: sparsify's settings; `hookpoints` and `init_seeds` say which SAEs, `save_every` counts optimizer steps,
                `batch_size` counts the sequences of all processes and is divisible by their number.
            chunks: Training sequences in the order of training, for all processes.
            model: The target, cut after its last hooked layer.
            work_dir: Folder of the resumable state.
            exclusion: Positions that SAEs do not see.
            workers: The processes that train together; this one alone if None.
            keep_at: Numbers of tokens, at ends of steps, at which `on_keep` is called with the SAEs as they would be
                if training ended there.

        sparsify seeds the global generators, once per SAE; here and in `fit` they are given back as they were.
        """
        self.work_dir = work_dir
        self.exclusion = exclusion
        self.workers = workers or Workers()
        self.on_step: StepReport = lambda n_tokens, report: None
        self.on_keep: Callable[[int], None] = lambda n_tokens: None
        self.keep_at = frozenset(keep_at)
        self.saves_end = False
        self.read_back_steps = READ_BACK_STEPS[model.device.type]
        self._is_fitting = False
        self._stop_request = StopRequest()
        self._fvu_sums: dict[str, Tensor] = {}
        self._statistics: dict[str, BatchStatistics] = {}
        self._are_finite: dict[str, Tensor] = {}
        self._n_tokens_in_step: dict[str, Tensor] = {}
        self._n_tokens_trained_on = {hookpoint: torch.tensor(0) for hookpoint in cfg.hookpoints}
        self._n_tokens_trained_on_at: dict[int, dict[str, int]] = {}
        self._unread: list[tuple[int, Tensor]] = []
        cfg.log_to_wandb = False  # sparsify would start a run of its own
        own_chunks = chunks.share(self.workers.rank, self.workers.n, cfg.batch_size) if self.workers.n > 1 else chunks
        cfg.batch_size //= self.workers.n
        if model.device.type != "cpu":
            own_chunks = ChunksOnDevice(own_chunks, model.device)
        with torch.random.fork_rng(devices=_cuda_devices(model)), captured_prints(), adapted_sparsify(model.device):
            super().__init__(cfg, own_chunks, model)
        self._sort_parameters_()
        self.exclude_tokens = ExcludedTokens()

    @property
    def has_replicas(self) -> bool:
        """Whether several processes hold the same SAEs."""
        return self.workers.n > 1 and not self.cfg.distribute_modules

    @property
    def owned_saes(self) -> list[str]:
        """SAEs that this process saves and measures: every SAE is owned by one process."""
        return list(self.saes) if self.workers.is_main or not self.has_replicas else []

    @property
    def global_step(self) -> int:
        """Batches trained on so far."""
        return self._global_step

    @global_step.setter
    def global_step(self, value: int) -> None:
        if self._is_fitting:
            assert value == self._global_step + 1, f"step {value} after step {self._global_step}"
        self._global_step = value
        if self._is_fitting and value % self.cfg.grad_acc_steps == 0:
            self._end_step()

    def n_tokens_trained_on(self, hookpoint: str, at: int | None = None) -> int:
        """Tokens so far that the SAEs of a layer have seen: those of `n_tokens_seen` that are not left out.

        Args:
            hookpoint: The layer.
            at: One of `keep_at` that training has passed; now if None.
        """
        return int(self._n_tokens_trained_on[hookpoint]) if at is None else self._n_tokens_trained_on_at[at][hookpoint]

    @property
    def n_tokens_seen(self) -> int:
        """Tokens of the sequences so far, of all processes."""
        return self.global_step * self.cfg.batch_size * self.workers.n * self.dataset.ctx_len

    @property
    def _tokens_per_step(self) -> int:
        """Tokens of an optimizer step."""
        return self.cfg.grad_acc_steps * self.cfg.batch_size * self.workers.n * self.dataset.ctx_len

    def fit(self) -> None:
        """Train on what is left of the sequences; the SAEs end in evaluation form, as they are to be used."""
        precision = torch.get_float32_matmul_precision()
        device, n_backward = self.model.device, self.cfg.grad_acc_steps * self.cfg.micro_acc_steps
        self._is_fitting = True
        try:
            with (
                torch.random.fork_rng(devices=_cuda_devices(self.model)),
                captured_prints(),
                adapted_sparsify(device, n_backward=n_backward),
                self._hooked(),
                stops_deferred() as self._stop_request,
            ):
                super().fit()
            self._read_back()
            self._check_weights()
        finally:
            self._is_fitting = False
            torch.set_float32_matmul_precision(precision)
        for optimizer in self.optimizers:
            if isinstance(optimizer, ScheduleFreeWrapper):
                optimizer.eval()

    @property
    def kept_at(self) -> list[int]:
        """Those of `keep_at` that training has passed."""
        return list(self._n_tokens_trained_on_at)

    @contextlib.contextmanager
    def _evaluation_form(self) -> Iterator[None]:
        """SAEs as they are to be used, while open; then their weights are what they were, bit for bit.

        schedulefree's own way back rounds, so that a run which looked would end otherwise than one which did not.
        """
        optimizers = [each for each in self.optimizers if isinstance(each, ScheduleFreeWrapper)]
        parameters = [p for sae in self.saes.values() for p in sae.parameters()]
        before = [p.detach().to("cpu", copy=True) for p in parameters]
        for optimizer in optimizers:
            optimizer.eval()
        try:
            yield
        finally:
            with torch.no_grad():
                for p, value in zip(parameters, before, strict=True):
                    p.copy_(value)
            for optimizer in optimizers:
                optimizer.train_mode = True

    def maybe_all_reduce(self, x: Tensor, op: str = "mean") -> Tensor | float:
        """sparsify's, but for losses, which it would read from the device to add them up: here a hook does, there."""
        is_loss = x.dim() == 0
        return 0.0 if is_loss else super().maybe_all_reduce(x, op)

    def save(self) -> None:
        """Called by sparsify inside a step and after the last one, when state is half way; see `save_state`."""

    def save_state(self) -> None:
        """Write everything that the next batch depends on: the old state stands until the new one is complete."""
        is_writing = bool(self.owned_saes)
        own = {self._state_path(self.global_step).name: self._write_own_state()} if is_writing else {}
        written = self.workers.gather(own)
        if self.workers.is_main:
            record = {
                "global_step": self.global_step,
                "n_parts": self.workers.n if self.cfg.distribute_modules else 1,
                "checksums": dict(itertools.chain.from_iterable(map(dict.items, written))),
                "losses": self._describe_losses(),
            }
            write_record(self.work_dir / STATE_FILE, record)
        self.workers.wait()
        if is_writing:
            for path in self.work_dir.glob(f"state_*_{self._part}.pt"):
                if path != self._state_path(self.global_step):
                    path.unlink()

    def load_state(self) -> None:
        """Take up training where `save_state` left it.

        Raises:
            InputError: If the layers were distributed over another number of processes, or the state is damaged.
        """
        remedy = f"{removal(self.work_dir)}, and the same command trains this pass anew"
        saved = read_record(self.work_dir / STATE_FILE, remedy, global_step=int, n_parts=int)
        n_parts = self.workers.n if self.cfg.distribute_modules else 1
        if saved["n_parts"] != n_parts:
            raise InputError(
                f"{self.work_dir} was begun {_describe_parts(saved['n_parts'])} and cannot go on "
                f"{_describe_parts(n_parts)}; go on as it was begun, or give --overwrite"
            )
        path = self._state_path(saved["global_step"])
        check_file(path, saved.get("checksums", {}).get(path.name), remedy)
        self._check_losses(saved.get("losses"), remedy)
        # Everything finds its way from there, and Adam's step counters stay on the host, where Adam reads them.
        with reading(path, remedy):
            state = torch.load(path, map_location="cpu", weights_only=True)
            for name, sae in self.saes.items():
                sae.load_state_dict(state["saes"][name])
            for optimizer, each in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(each)
            for scheduler, each in zip(self.lr_schedulers, state["lr_schedulers"], strict=True):
                scheduler.load_state_dict(each)
            for name, counts in state["num_tokens_since_fired"].items():
                self.num_tokens_since_fired[name].copy_(counts)
            self._n_tokens_trained_on = dict(state["n_tokens_trained_on"])
            self._n_tokens_trained_on_at = dict(state.get("n_tokens_trained_on_at", {}))
        self.global_step = saved["global_step"]

    def sae_name(self, hookpoint: str, seed: int) -> str:
        """Name in `saes` of one layer's and seed's SAE; sparsify leaves the seed out when there is only one."""
        return hookpoint if len(self.cfg.init_seeds) == 1 else f"{hookpoint}/seed{seed}"

    @property
    def _part(self) -> int:
        """Which of the state's files is this process's: all read one file when all hold the same."""
        return self.workers.rank if self.cfg.distribute_modules else 0

    def _state_path(self, step: int) -> Path:
        return self.work_dir / f"state_{step}_{self._part}.pt"

    def _write_own_state(self) -> str:
        """Write this process's part of the state, whole or not at all; its checksum."""
        state = {
            "saes": {name: sae.state_dict() for name, sae in self.saes.items()},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "lr_schedulers": [scheduler.state_dict() for scheduler in self.lr_schedulers],
            "num_tokens_since_fired": self.num_tokens_since_fired,
            "n_tokens_trained_on": self._n_tokens_trained_on,
            "n_tokens_trained_on_at": self._n_tokens_trained_on_at,
        }
        with written_whole(self._state_path(self.global_step), n_bytes=_nested_bytes(state)) as file:
            torch.save(state, file.scratch)
            return checksum_file(file.scratch)

    @property
    def _losses_path(self) -> Path:
        """Where `on_step` takes losses down; nothing is, if nobody wants them."""
        return self.work_dir / METRICS_FILE

    def _describe_losses(self) -> dict[str, Any] | None:
        """Size and checksum of the losses so far, to which more will be added."""
        if not self._losses_path.exists():
            return None
        n_bytes = self._losses_path.stat().st_size
        return {"n_bytes": n_bytes, "checksum": checksum_beginning(self._losses_path, n_bytes)}

    def _check_losses(self, saved: dict[str, Any] | None, remedy: str) -> None:
        """Compare the losses up to a checkpoint with what it says of them.

        Raises:
            DamagedFileError: If they are not as they were.
        """
        if saved is None or not self.workers.is_main:
            return
        with reading(self._losses_path, remedy):
            found = checksum_beginning(self._losses_path, saved["n_bytes"])
        if found != saved["checksum"]:
            raise DamagedFileError(self._losses_path, "losses before the last checkpoint have changed", remedy)

    def _sort_parameters_(self) -> None:
        """Give the optimizers' parameters one order, in place.

        For Muon sparsify hands over a set, whose order changes from process to process, while optimizer state is saved
        by position.
        """
        position = {p: i for i, p in enumerate(p for sae in self.saes.values() for p in sae.parameters())}
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["params"].sort(key=position.__getitem__)

    @contextlib.contextmanager
    def _hooked(self) -> Iterator[None]:
        """While open, sparsify asks for our masks, and SAEs get what was measured of layers and leave their losses.

        A hook holds the trainer, and the SAE holds the hook: left in place, they would keep each other in memory.
        """
        self.exclude_tokens.make_mask = self._begin_batch
        module = self.model.base_model.get_submodule
        handles = [module(name).register_forward_hook(self._make_layer_hook(name)) for name in self.cfg.hookpoints]
        for name, sae in self.saes.items():
            handles.append(sae.register_forward_pre_hook(self._make_input_hook(name), with_kwargs=True))
            handles.append(sae.register_forward_hook(self._make_loss_hook(name)))
        try:
            yield
        finally:
            self.exclude_tokens.make_mask = None
            for handle in handles:
                handle.remove()

    def _begin_batch(self, ids: Tensor) -> BatchMask | Tensor:
        """The mask of a batch, for which the host looks at the same ids, `(batch, seq)`, where it has them itself."""
        if not self.exclusion.is_empty:
            start = self.global_step * self.cfg.batch_size
            tokens = self.dataset.tokens[self.dataset.order[start : start + len(ids)]]
            self._kept_by_ids = self.exclusion.keeps_ids(torch.from_numpy(tokens.astype(np.int64)))
            indices = self._kept_by_ids.flatten().nonzero().squeeze(1)
            is_gpu = ids.device.type == "cuda"
            self._kept_indices = (indices.pin_memory() if is_gpu else indices).to(ids.device, non_blocking=True)
        if self.cfg.distribute_modules:
            self._mask = SharedBatchMask(ids.shape, ids.device)
            return self._mask.tensor
        self._mask = BatchMask()
        return self._mask

    def _find_kept(self, activations: Tensor) -> Tensor | None:
        """Which tokens of this process's part of a batch are kept at a layer, int64 `(tokens,)`; None if all are."""
        if self.exclusion.is_empty:
            return None
        if self.exclusion.max_norm is None:
            return self._kept_indices
        kept = self.exclusion.keeps_norms(self._kept_by_ids.to(activations.device), activations)
        return kept.flatten().nonzero().squeeze(1)

    def _make_layer_hook(self, hookpoint: str) -> Callable:
        """A forward hook of a layer that settles what SAEs see of it, and measures that.

        Measured is the batch of all processes, not only this one's part of it. Processes that hold the same SAEs divide
        their errors by an n-th of the batch's variance, as gradients are averaged over n processes: the average is the
        gradient of the whole batch's FVU.
        """

        def measure(module: nn.Module, inputs: tuple, output: Tensor | tuple) -> None:
            activations = output[0] if isinstance(output, tuple) else output  # (batch, seq, d_model)
            kept = self._find_kept(activations)
            self._mask.keep(kept)
            x = activations.flatten(0, 1)
            x = (x if kept is None else x[kept]).float()  # (tokens, d_model)
            self._check_parts(len(x))
            n = self.workers.n
            n_tokens = self.workers.sum_(torch.full((), len(x), device=x.device))
            mean = x.mean(dim=0) if n == 1 else self.workers.sum_(x.sum(dim=0)) / n_tokens
            total_variance = self.workers.sum_((x - mean).pow(2).sum()) / (n if self.has_replicas else 1)
            self._statistics[hookpoint] = BatchStatistics(mean, total_variance)
            self._are_finite[hookpoint] = self._are_finite.get(hookpoint, True) & torch.isfinite(total_variance)
            self._n_tokens_in_step[hookpoint] = self._n_tokens_in_step.get(hookpoint, 0) + n_tokens

        return measure

    def _check_parts(self, n_tokens: int) -> None:
        """Refuse to cut so few tokens into so many parts that processes which wait for each other cut differently.

        Raises:
            InputError: If `micro_acc_steps` parts of equal size, but for the last, are more than there are.
        """
        n_parts = self.cfg.micro_acc_steps
        if self.has_replicas and n_parts > 1 and (not n_tokens or -(-n_tokens // -(-n_tokens // n_parts)) != n_parts):
            raise InputError(
                f"a process has {n_tokens:,} tokens of a batch that are not left out, too few for --micro_acc_steps "
                f"{n_parts}; lower it, or leave out less"
            )

    def _make_input_hook(self, name: str) -> Callable:
        """A hook before an SAE's forward pass: activations in float32, and the statistics of their batch."""
        hookpoint = _hookpoint_of(name)

        def prepare(sae: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
            statistics = self._statistics[hookpoint]
            if self.global_step == 0:  # sparsify begins with the decoder's bias at the mean, in the model's format
                sae.b_dec.data.copy_(statistics.mean)
            x = kwargs["x"].float()  # and what is to be reconstructed
            return args, kwargs | {"x": x, "y": x, "total_variance": statistics.total_variance}

        return prepare

    def _make_loss_hook(self, name: str) -> Callable:
        """A forward hook that adds up the FVU of an SAE's micro-batches."""

        def add_fvu(module: nn.Module, inputs: tuple, output: ForwardOutput) -> None:
            # Every micro-batch's error is divided by the whole batch's variance, so they add up to the batch's FVU.
            self._fvu_sums[name] = self._fvu_sums.get(name, 0) + output.fvu.detach()

        return add_fvu

    def _end_step(self) -> None:
        """Take down the losses of a complete step, and write a checkpoint when one is due."""
        dead_shares = []
        for name, counts in self.num_tokens_since_fired.items():
            # sparsify has counted one token a batch, see `BatchMask`; latents that fired stand at 0.
            counts += (counts > 0) * (self._n_tokens_in_step[_hookpoint_of(name)] - self.cfg.grad_acc_steps)
            dead_shares.append((counts > self.cfg.dead_feature_threshold).float().mean())
        fvus = torch.stack([self._fvu_sums[name].float() for name in self.saes]) / self.cfg.grad_acc_steps
        if self.has_replicas:
            fvus = self.workers.sum_(fvus) / self.workers.n
        have_finite_input = torch.stack([self._are_finite[_hookpoint_of(name)] for name in self.saes]).float()
        for hookpoint, n_tokens in self._n_tokens_in_step.items():
            self._n_tokens_trained_on[hookpoint] = self._n_tokens_trained_on[hookpoint].to(n_tokens.device) + n_tokens
        self._fvu_sums.clear()
        self._are_finite.clear()
        self._n_tokens_in_step.clear()
        self._unread.append((self.n_tokens_seen, torch.stack([fvus, torch.stack(dead_shares), have_finite_input])))
        if self.n_tokens_seen in self.keep_at:
            self._keep()
        is_saving = (self.global_step // self.cfg.grad_acc_steps) % self.cfg.save_every == 0
        is_saving |= self.saves_end and self.global_step == len(self.dataset) // self.cfg.batch_size
        is_alone = self.workers.n == 1
        if is_saving or len(self._unread) >= self.read_back_steps or (is_alone and self._stop_request.signum):
            self._read_back()
            # Several processes look at the same steps, so that all of them stop after the same one.
            if signum := max(self.workers.gather(self._stop_request.signum)):
                self.save_state()
                raise Stopped(signum)
        if is_saving:
            self.save_state()

    def _keep(self) -> None:
        """Hand the SAEs out as they would be if training ended here."""
        self._read_back()
        counts = {hookpoint: int(n_tokens) for hookpoint, n_tokens in self._n_tokens_trained_on.items()}
        self._n_tokens_trained_on_at[self.n_tokens_seen] = counts
        with self._evaluation_form():
            self._check_weights()
            self.on_keep(self.n_tokens_seen)

    def _read_back(self) -> None:
        """Report the losses that were taken down since the last time, step by step; the one wait for the device."""
        if not self._unread:
            return
        n_tokens, losses = zip(*self._unread, strict=True)
        self._unread.clear()
        reports = [
            {
                name: {"fvu": fvu, "dead_share": dead, "has_finite_input": is_finite}
                for name, fvu, dead, is_finite in zip(self.saes, *step, strict=True)
            }
            for step in torch.stack(losses).tolist()  # (steps, 3, n_saes)
        ]
        if self.cfg.distribute_modules:
            by_process = self.workers.gather(reports)
            reports = [
                dict(itertools.chain.from_iterable(map(dict.items, step))) for step in zip(*by_process, strict=True)
            ]
        for n_tokens_seen, report in zip(n_tokens, reports, strict=True):
            self._check_finite(n_tokens_seen, report)
            if self.workers.is_main:
                self.on_step(n_tokens_seen, report)

    def _check_finite(self, n_tokens: int, report: dict[str, dict[str, float]]) -> None:
        """Stop at the first step whose activations or losses are NaN or infinite; what was saved before is kept.

        Raises:
            NonFiniteError: In every process.
        """
        where = f"after {n_tokens:,} tokens (step {n_tokens // self._tokens_per_step:,})"
        for name, each in report.items():
            layer, dtype = _hookpoint_of(name), dtype_name(self.model.dtype)
            if not each.pop("has_finite_input"):
                raise NonFiniteError(
                    f"the activations of {self.model.name_or_path} at {layer} are NaN or infinite {where}, in {dtype}; "
                    f"nothing of it is published: {remedy_for_non_finite(dtype)}"
                )
            if not math.isfinite(each["fvu"]):
                raise NonFiniteError(
                    f"the loss of {name} is {each['fvu']} {where}, on finite activations: training has diverged, or "
                    f"they do not vary; nothing of it is published: lower --lr"
                )

    def _check_weights(self) -> None:
        """Find what the last step has done, which no loss shows yet.

        Raises:
            NonFiniteError: If a weight is NaN or infinite.
        """
        for name, sae in self.saes.items():
            if not are_finite(sae):
                raise NonFiniteError(
                    f"the weights of {name} are NaN or infinite after {self.n_tokens_seen:,} tokens: lower --lr"
                )


def _hookpoint_of(name: str) -> str:
    """The layer that an SAE reads, from its name in `saes`."""
    return name.partition("/")[0]


def _nested_bytes(state: Any) -> int:
    """Bytes of all tensors in nested dictionaries and lists."""
    if isinstance(state, Tensor):
        return state.nbytes
    values = state.values() if isinstance(state, dict) else state if isinstance(state, list) else ()
    return sum(map(_nested_bytes, values))


def _describe_parts(n_parts: int) -> str:
    """How a run's state is cut up, in the user's words."""
    return "without --distribute_modules" if n_parts == 1 else f"with --distribute_modules on {n_parts} processes"


def _cuda_devices(model: PreTrainedModel) -> list[torch.device]:
    """CUDA devices whose random state sparsify's seeding touches."""
    return [model.device] if model.device.type == "cuda" else []
