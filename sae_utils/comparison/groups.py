"""SAEs that are measured together: those of one target on the same sequences, as many at a time as memory allows."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from sae_utils.comparison.trained import TrainedSae
from sae_utils.comparison.whereabouts import Whereabouts
from sae_utils.devices import DTYPES
from sae_utils.errors import InputError, check_positive
from sae_utils.evaluation.random_tokens import firing_bytes
from sae_utils.evaluation.splicing import logits_at_once
from sae_utils.exclusion import Exclusion
from sae_utils.memory import DENSE_COPIES, LATENT_COPIES, USABLE_SHARE, free_bytes, release_memory, sae_bytes
from sae_utils.models import LoadedModel, fingerprint_trunk, load_causal_lm
from sae_utils.progress import token_bar
from sae_utils.sources.catalog import Source, pack_source
from sae_utils.sources.packing import Chunks
from sae_utils.sparse_coders import SparseCoder

logger = logging.getLogger(__name__)

LOGIT_SETS = 2
"""Logits of a batch, `(tokens, vocab)`, side by side: of the untouched model, and with a layer's output replaced."""

LOG_PROBABILITY_SETS = 1
"""The same in float32, of the untouched model."""

PIECE_COPIES = 4
"""Float32 arrays side by side while pieces are compared: log-probabilities of the other model, and steps to the KL."""


@dataclass(frozen=True)
class ComparisonSettings:
    """How SAEs are compared."""

    where: Whereabouts
    """Where models and data sets are looked for."""

    device: torch.device
    """Where to compute."""

    batch_size: int = 2
    """Sequences per forward pass."""

    n_random_tokens: int = 1_000_000
    """Random tokens on which fake features are counted."""

    quiet: bool = False
    """No bars."""

    def __post_init__(self) -> None:
        check_positive(batch_size=self.batch_size, random_tokens=self.n_random_tokens)


@dataclass
class Group:
    """SAEs of one target that are measured on the same sequences."""

    saes: list[TrainedSae]
    """The SAEs."""

    sources: dict[str, Source]
    """Every source that an SAE of the run was trained on, by name."""

    settings: ComparisonSettings
    """How."""

    _target: LoadedModel | None = None
    """The target, once a step has needed it."""

    @property
    def name(self) -> str:
        """Short name of the target."""
        return self.saes[0].record["target"]

    @property
    def key(self) -> tuple:
        """What its SAEs have in common, and no other group's."""
        return self.saes[0].eval_shape

    @property
    def n_eval_tokens(self) -> int:
        """Tokens that are held out of every source."""
        return self.saes[0].eval_shape[3]

    def load_target(self) -> LoadedModel:
        """The whole target model, loaded once.

        Raises:
            InputError: If it is not the one that the SAEs were trained on.
        """
        if self._target is None:
            reference = self.settings.where.find_target(self.saes[0])
            target = load_causal_lm(reference, self.settings.device, DTYPES[self.saes[0].eval_shape[1]])
            for (last_layer, fingerprint), folder in dict(map(_trunk_of, self.saes)).items():
                if (found := fingerprint_trunk(target.model, last_layer)) != fingerprint:
                    raise InputError(
                        f"{folder} was trained on the model {fingerprint}, and {reference} is {found}; bring the model "
                        f"back, or give its folder as one of --target_models"
                    )
            self._target = target
        return self._target

    def take_target_of(self, part: "Group") -> None:
        """Go on with the model that a part of this group has loaded, if it has."""
        self._target = part._target

    @property
    def exclusion(self) -> Exclusion:
        """Positions that none of the SAEs sees."""
        return self.saes[0].exclusion

    def release_target(self) -> None:
        """Give the target's memory back."""
        self._target = None
        release_memory(self.settings.device)

    def held_out(self, source: Source, target: LoadedModel) -> Chunks:
        """The last sequences of a source, which no SAE of the group was trained on."""
        _, _, ctx_len, n_tokens, _ = self.saes[0].eval_shape
        chunks = pack_source(source, target.tokenizer, target.model.config, ctx_len, self.settings.where.packs).chunks
        start = len(chunks) - n_tokens // ctx_len
        if start < 0:
            logger.warning(
                "%s has fewer tokens than were held out of others (%s); all it has are measured on",
                source.name,
                f"{n_tokens:,}",
            )
        return chunks.select(range(max(0, start), len(chunks)))

    def in_memory(
        self, saes: Sequence[TrainedSae], target: LoadedModel
    ) -> Iterator[dict[tuple, tuple[str, SparseCoder]]]:
        """These SAEs with the layers they read, as many at a time as fit the device beside what is there already."""
        release_memory(self.settings.device)  # what was measured before is not counted as free otherwise
        sizes = [
            sae_bytes(sae.record["d_model"], sae.record["n_latents"]) + firing_bytes(sae.record["n_latents"])
            for sae in saes
        ]
        room = int(free_bytes(self.settings.device) * USABLE_SHARE) - self.batch_bytes(saes, target)
        n_fit = max(1, room // max(sizes))
        for part in _batched(saes, n_fit):
            hooked = {sae.key: (sae.hookpoint, sae.load(self.settings.device)) for sae in part}
            yield hooked
            hooked.clear()  # the caller still has a name for it while the next ones are loaded

    def batch_bytes(self, saes: Sequence[TrainedSae], target: LoadedModel) -> int:
        """Memory that measuring these SAEs takes beside them, whatever their number, for one batch.

        Two sets of logits, log-probabilities of one and of pieces of the other; the layers' outputs, also in float64;
        and all latents of every token, for one SAE at a time.
        """
        vocab, d_model = target.model.get_output_embeddings().weight.shape
        return batch_bytes_of(
            n_tokens=self.settings.batch_size * saes[0].eval_shape[2],
            vocab=vocab,
            d_model=d_model,
            n_layers=len({sae.layer for sae in saes}),
            n_latents=max(sae.record["n_latents"] for sae in saes),
            itemsize=target.model.dtype.itemsize,
            device=self.settings.device,
        )

    def bar(self, what: str, n_tokens: int) -> tqdm:
        """A progress bar for a step."""
        return token_bar(f"{self.name} {what}", total=n_tokens, quiet=self.settings.quiet)


def batch_bytes_of(
    *, n_tokens: int, vocab: int, d_model: int, n_layers: int, n_latents: int, itemsize: int, device: torch.device
) -> int:
    """The same by the numbers that decide it; `itemsize` is that of the target's number format."""
    logits = (LOGIT_SETS * itemsize + LOG_PROBABILITY_SETS * 4) * n_tokens * vocab
    pieces = PIECE_COPIES * 4 * min(logits_at_once(device), n_tokens * vocab)
    outputs = (n_layers * itemsize + DENSE_COPIES * 8) * n_tokens * d_model
    return logits + pieces + outputs + LATENT_COPIES * 4 * n_tokens * n_latents


def group_saes(
    saes: Sequence[TrainedSae], sources: Mapping[tuple[str, str], Source], settings: ComparisonSettings
) -> Iterator[Group]:
    """SAEs put together by target, its number format, and the sequences that they are measured on.

    Whoever goes through the groups has the target of one at a time in memory.
    """
    by_shape: dict[tuple, list[TrainedSae]] = {}
    for sae in saes:
        by_shape.setdefault(sae.eval_shape, []).append(sae)
    for members in by_shape.values():
        group = Group(members, sources_for(members, sources), settings)
        yield group
        group.release_target()


def sources_for(saes: Sequence[TrainedSae], sources: Mapping[tuple[str, str], Source]) -> dict[str, Source]:
    """Every source by name, in the form that these SAEs were trained on; else in the longest.

    The tokens that were held out of a shorter form are tokens to train on of a longer one.
    """
    longest = sorted(sources.items(), key=lambda item: item[1].n_samples)
    of_these = {sae.source: sources[sae.source, sae.run["dataset_fingerprint"]] for sae in saes}
    return {name: source for (name, _), source in longest} | of_these


def _trunk_of(sae: TrainedSae) -> tuple[tuple[int, str], Path]:
    """Last layer and fingerprint of the part of the target that was used for an SAE; and the folder that says so."""
    return (max(sae.run["settings"]["layers"]), sae.run["target_fingerprint"]), sae.folder.parent


def _batched(saes: Sequence[TrainedSae], n: int) -> Iterator[Sequence[TrainedSae]]:
    """Runs of at most `n`."""
    for start in range(0, len(saes), n):
        yield saes[start : start + n]
