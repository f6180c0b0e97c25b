"""From finished SAEs to the results: measured on every source, on random tokens, and against each other across seeds.

Every number is tied to the weights and the data it was measured on. What is known is not measured again, what is new
is written as soon as a step is done, and a run that was stopped goes on with the next step.
"""

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from sae_utils.comparison.results import Results, pair_key, read_arrays, read_results, write_arrays
from sae_utils.comparison.stability import Floor, compare_dictionaries, directions, untrained_floor
from sae_utils.comparison.trained import TrainedSae
from sae_utils.devices import DTYPES
from sae_utils.errors import InputError
from sae_utils.evaluation.contexts import HOW_CHOSEN, choose_latents, find_contexts
from sae_utils.evaluation.random_tokens import RandomFiring, known_ids, measure_random_firing, random_sequences
from sae_utils.evaluation.reconstruction import measure_reconstruction
from sae_utils.evaluation.splicing import LOGITS_AT_ONCE, measure_splices
from sae_utils.memory import DENSE_COPIES, LATENT_COPIES, USABLE_SHARE, free_bytes, release_memory, sae_bytes
from sae_utils.models import LoadedModel, load_causal_lm
from sae_utils.progress import token_bar
from sae_utils.records import read_json, write_json
from sae_utils.sources.catalog import Source, pack_source, source_at
from sae_utils.sources.packing import Chunks
from sae_utils.sparse_coders import SparseCoder

logger = logging.getLogger(__name__)

N_SHOWN = 300
"""Latents per SAE whose contexts are kept for the report, at most."""

STATUS_INTERVAL_SEC = 20.0
"""Time between status lines of a matching."""

LOGIT_SETS = 2
"""Logits of a batch, `(tokens, vocab)`, side by side: of the untouched model, and with a layer's output replaced."""

PIECE_COPIES = 5
"""Float32 arrays side by side while pieces of them are compared: log-probabilities of both, and steps to their KL."""

RANDOM_SEED = 0
"""Seed of the random tokens: the same for all SAEs, so that their fake features compare."""


@dataclass(frozen=True)
class ComparisonSettings:
    """How SAEs are compared."""

    datasets_dir: Path
    """Folder of the generated data sets, where packed sequences are kept."""

    device: torch.device
    """Where to compute."""

    batch_size: int = 2
    """Sequences per forward pass."""

    n_random_tokens: int = 1_000_000
    """Random tokens on which fake features are counted."""

    quiet: bool = False
    """No bars."""


@dataclass(frozen=True)
class Group:
    """SAEs of one target that are measured on the same sequences."""

    saes: list[TrainedSae]
    """The SAEs."""

    sources: dict[str, Source]
    """Every source that an SAE of the run was trained on, by name."""

    settings: ComparisonSettings
    """How."""

    @property
    def name(self) -> str:
        """Short name of the target."""
        return self.saes[0].record["target"]

    def load_target(self) -> LoadedModel:
        """The whole target model."""
        reference, dtype, _, _ = self.saes[0].eval_shape
        return load_causal_lm(reference, self.settings.device, DTYPES[dtype])

    def held_out(self, source: Source, target: LoadedModel) -> Chunks:
        """The last sequences of a source, which no SAE of the group was trained on."""
        _, _, ctx_len, n_tokens = self.saes[0].eval_shape
        chunks = pack_source(source, target.tokenizer, ctx_len, self.settings.datasets_dir)
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
        sizes = [sae_bytes(sae.record["d_model"], sae.record["n_latents"]) for sae in saes]
        room = int(free_bytes(self.settings.device) * USABLE_SHARE) - self.batch_bytes(saes, target)
        n_fit = max(1, room // max(sizes))
        for part in _batched(saes, n_fit):
            hooked = {sae.key: (sae.hookpoint, sae.load(self.settings.device)) for sae in part}
            yield hooked
            hooked.clear()  # the caller still has a name for it while the next ones are loaded

    def batch_bytes(self, saes: Sequence[TrainedSae], target: LoadedModel) -> int:
        """Memory that measuring these SAEs takes beside them, whatever their number, for one batch.

        Two sets of logits and the pieces of them that become log-probabilities; the layers' outputs, also in float64;
        and all latents of every token, for one SAE at a time.
        """
        n_tokens = self.settings.batch_size * saes[0].eval_shape[2]
        vocab, d_model = target.model.get_output_embeddings().weight.shape
        n_layers = len({sae.layer for sae in saes})
        n_latents = max(sae.record["n_latents"] for sae in saes)
        logits = LOGIT_SETS * n_tokens * vocab * target.model.dtype.itemsize
        pieces = PIECE_COPIES * 4 * min(LOGITS_AT_ONCE, n_tokens * vocab)
        outputs = (n_layers * target.model.dtype.itemsize + DENSE_COPIES * 8) * n_tokens * d_model
        return logits + pieces + outputs + LATENT_COPIES * 4 * n_tokens * n_latents


def compare(saes: Sequence[TrainedSae], results_dir: Path, settings: ComparisonSettings) -> Results:
    """Measure what is not known yet about these SAEs; everything that is known about them and others.

    Raises:
        InputError: If a source has changed since an SAE was trained on it.
    """
    results = read_results(results_dir)
    sources = find_sources_of(saes, settings.datasets_dir)
    results.datasets |= {name: dataset_record(source) for name, source in sources.items()}
    groups: dict[tuple, list[TrainedSae]] = {}
    for sae in saes:
        groups.setdefault(sae.eval_shape, []).append(sae)
        results.saes[sae.key] = known_record(results, sae)
    results.pairs = {key: pair for key, pair in results.pairs.items() if is_current(results, pair)}
    for members in groups.values():
        group = Group(members, sources, settings)
        target: list[LoadedModel] = []  # loaded when the first step needs it

        def load(group: Group = group, target: list[LoadedModel] = target) -> LoadedModel:
            if not target:
                target.append(group.load_target())
            return target[0]

        for source in sources.values():
            evaluate_on(group, source, results, load)
        count_fakes(group, results, load)
        match_seeds(group, results)
        show_features(group, results, load)
    results.save()
    return results


def find_sources_of(saes: Sequence[TrainedSae], datasets_dir: Path) -> dict[str, Source]:
    """The sources that SAEs were trained on, by name.

    Raises:
        InputError: If one is not what it was, or two have one name.
    """
    sources: dict[str, Source] = {}
    for sae in saes:
        name, reference, fingerprint = sae.record["source"], sae.run["dataset"], sae.run["dataset_fingerprint"]
        if name not in sources:
            sources[name] = source_at(reference, datasets_dir)
        source = sources[name]
        if source.fingerprint != fingerprint and Path(source.reference) != Path(reference):
            raise InputError(
                f"{source.reference} and {reference} are both called {name}, so their results would be taken for each "
                f"other; keep SAEs of either in a --checkpoint_dir and a --results_dir of their own"
            )
        if source.fingerprint != fingerprint:
            raise InputError(
                f"{sae.folder} was trained on {reference} with the fingerprint {fingerprint}, and what is found there "
                f"({source.reference}) has {source.fingerprint}; its held-out tokens are not known any more: bring the "
                f"data back, or train again with --overwrite"
            )
    return sources


def known_record(results: Results, sae: TrainedSae) -> dict[str, Any]:
    """The record of an SAE, with what was measured on these weights before."""
    known = results.saes.get(sae.key)
    is_same = known is not None and known["weights_fingerprint"] == sae.weights_fingerprint
    if is_same and results.arrays_path(*sae.key[:3]).exists():
        return known | {"path": sae.record["path"]}
    names = ("target", "source", "layer", "seed", "path", "d_model", "n_latents", "k", "n_train_tokens")
    record = {name: sae.record[name] for name in names}
    record |= {"max_decoder_norm_deviation": sae.record["max_decoder_norm_deviation"]}
    return record | {"weights_fingerprint": sae.weights_fingerprint, "evaluations": [], "random_tokens": None}


def is_current(results: Results, pair: dict[str, Any]) -> bool:
    """Whether the weights and the arrays of a pair of seeds are still those that were measured."""
    keys = [(pair["target"], pair["source"], pair["layer"], seed) for seed in (pair["seed"], pair["seed_b"])]
    now = [results.saes[key]["weights_fingerprint"] for key in keys]
    return pair["weights_fingerprints"] == now and results.arrays_path(*keys[0][:3]).exists()


def evaluate_on(group: Group, source: Source, results: Results, load: Callable[[], LoadedModel]) -> None:
    """Reconstruction and its effect on the model, on the held-out tokens of one source."""
    todo = [sae for sae in group.saes if not _evaluation(results, sae, source)]
    if not todo:
        return
    target = load()
    chunks = group.held_out(source, target)
    for hooked in group.in_memory(todo, target):
        options = {"batch_size": group.settings.batch_size}
        with _bar(f"{group.name} on {source.name}", 2 * chunks.order.size * chunks.ctx_len, group) as bar:
            measured = measure_reconstruction(target.model, hooked, chunks, **options, on_tokens=bar.update)
            means = {layer: each.all.mean for layer, each in measured.layers.items()}
            spliced = measure_splices(target.model, hooked, chunks, means, **options, on_tokens=bar.update)
        for key, counted in measured.saes.items():
            about = {"eval_source": source.name, "eval_fingerprint": source.fingerprint}
            _, source_name, layer, seed = key
            record = results.saes[key]
            others = [each for each in record["evaluations"] if each["eval_source"] != source.name]
            everywhere = [*others, about | counted.record() | spliced[key]]
            record["evaluations"] = sorted(everywhere, key=lambda each: each["eval_source"])
            results.changed.add(key[:2])
            if source.name == source_name:
                arrays = {
                    f"firing_rate_{seed}": counted.firing_rate.astype(np.float32),
                    f"max_activation_{seed}": counted.max_activation.float().cpu().numpy(),
                }
                results.add_arrays(group.name, source_name, layer, **arrays)
        results.save()


def count_fakes(group: Group, results: Results, load: Callable[[], LoadedModel]) -> None:
    """Firing on random tokens."""
    n_tokens = group.settings.n_random_tokens
    todo = [sae for sae in group.saes if (results.saes[sae.key]["random_tokens"] or {}).get("n_tokens") != n_tokens]
    if not todo:
        return
    target = load()
    chunks = random_sequences(
        known_ids(target.tokenizer, target.model),
        bos_id=target.bos_id,
        ctx_len=todo[0].run["settings"]["ctx_len"],
        seed=RANDOM_SEED,
        n_tokens=n_tokens,
    )
    for hooked in group.in_memory(todo, target):
        with _bar(f"{group.name} on random tokens", chunks.order.size * chunks.ctx_len, group) as bar:
            firing: dict[Any, RandomFiring] = measure_random_firing(
                target.model,
                hooked,
                chunks,
                batch_size=group.settings.batch_size,
                n_tokens=n_tokens,
                on_tokens=bar.update,
            )
        for key, counted in firing.items():
            results.saes[key]["random_tokens"] = counted.record()
            results.changed.add(key[:2])
            _, source_name, layer, seed = key
            arrays = {
                f"random_rate_{seed}": counted.random_rate.astype(np.float32),
                f"is_fake_{seed}": counted.is_fake,
            }
            results.add_arrays(group.name, source_name, layer, **arrays)
        results.save()


def match_seeds(group: Group, results: Results) -> None:
    """Agreement of every two seeds of a source and layer."""
    for a, b in itertools.combinations(group.saes, 2):
        if a.key[:3] != b.key[:3]:
            continue
        about = {"target": a.key[0], "source": a.key[1], "layer": a.layer, "seed": a.seed, "seed_b": b.seed}
        if pair_key(about) in results.pairs:
            continue
        logger.info("matching %s, layer %d, seeds %d and %d", a.record["source"], a.layer, a.seed, b.seed)
        arrays = results.arrays(*a.key[:3])
        sae_a, sae_b = (sae.load(group.settings.device) for sae in (a, b))
        agreement = compare_dictionaries(
            directions(sae_a),
            directions(sae_b),
            floor_of(sae_a, (a.seed, b.seed), results.folder, group.settings.device),
            live_a=arrays[f"firing_rate_{a.seed}"] > 0,
            live_b=arrays[f"firing_rate_{b.seed}"] > 0,
            on_status=_now_and_then(),
        )
        pair = f"{a.seed}_{b.seed}"
        found = {
            f"partner_{pair}": agreement.partner,
            f"cosine_{pair}": agreement.cosine,
            f"floor_cosine_{pair}": agreement.floor_cosine,
        }
        results.add_arrays(*a.key[:3], **found)
        results.changed.add(a.key[:2])
        fingerprints = {"weights_fingerprints": [a.weights_fingerprint, b.weights_fingerprint]}
        results.pairs[pair_key(about)] = about | agreement.record | fingerprints
        results.save()


def floor_of(sae: SparseCoder, seeds: tuple[int, int], results_dir: Path, device: torch.device) -> Floor:
    """Agreement of the untrained SAEs of this size and these seeds; matched once and kept."""
    shape = f"{sae.d_in}_{sae.num_latents}_seeds_{seeds[0]}_{seeds[1]}_{device.type}"
    path = results_dir / "details" / f"floor_{shape}.npz"
    if not path.exists():
        floor = untrained_floor(sae.d_in, sae.cfg, seeds, device=device)
        write_arrays(path, {"cosine": floor.cosine, "sfr": floor.sfr, "mean_cosine": floor.mean_cosine})
    stored = read_arrays(path)
    return Floor(float(stored["sfr"]), float(stored["mean_cosine"]), stored["cosine"])


def show_features(group: Group, results: Results, load: Callable[[], LoadedModel]) -> None:
    """Top contexts of some latents of every SAE, for the report's feature browser."""
    for source_name, layer in dict.fromkeys(sae.key[1:3] for sae in group.saes):
        members = [sae for sae in group.saes if sae.key[1:3] == (source_name, layer)]
        path = results.arrays_path(group.name, source_name, layer).with_suffix(".features.json")
        identity = [[sae.seed, sae.weights_fingerprint] for sae in members]
        if _are_shown(path, identity, group.settings.n_random_tokens):
            continue
        arrays = results.arrays(group.name, source_name, layer)
        matches = {sae.seed: best_matches(sae.seed, [each.seed for each in members], arrays) for sae in members}
        chosen = {
            sae.key: choose_latents(
                arrays[f"firing_rate_{sae.seed}"],
                matches[sae.seed]["cosine"] if matches[sae.seed] else None,
                arrays[f"is_fake_{sae.seed}"],
                N_SHOWN,
            )
            for sae in members
        }
        target = load()
        chunks = group.held_out(group.sources[source_name], target)
        seeds: dict[str, list[dict[str, Any]]] = {}
        for hooked in group.in_memory(members, target):
            with _bar(f"{group.name} contexts of layer {layer}", chunks.order.size * chunks.ctx_len, group) as bar:
                found = find_contexts(
                    target.model,
                    hooked,
                    chosen,
                    chunks,
                    target.tokenizer,
                    batch_size=group.settings.batch_size,
                    on_tokens=bar.update,
                )
            for key, contexts in found.items():
                seed = key[-1]
                seeds[str(seed)] = [
                    feature_record(latent, seed, arrays, matches[seed], contexts[int(latent)]) for latent in chosen[key]
                ]
        n_latents = members[0].record["n_latents"]
        about = {"n_latents": n_latents, "how_chosen": HOW_CHOSEN, "weights_fingerprints": identity}
        about |= {"n_random_tokens": group.settings.n_random_tokens}
        write_json(path, about | {"seeds": seeds})


def best_matches(seed: int, seeds: Sequence[int], arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    """For each latent of a seed, the best of its matches in the others of these seeds; None if there is no other.

    Returns:
        `cosine`, `partner` and `partner_seed`, each `(n_latents,)`.
    """
    best: dict[str, np.ndarray] | None = None
    for first, second in itertools.combinations(sorted(seeds), 2):
        if seed not in (first, second):
            continue
        partner, cosine = arrays[f"partner_{first}_{second}"], arrays[f"cosine_{first}_{second}"]
        if seed == second:  # the matching is one to one: read it from the other side
            order = np.argsort(partner)
            partner, cosine = order.astype(np.int32), cosine[order]
        other = np.full(len(partner), second if seed == first else first)
        if best is None:
            best = {"cosine": cosine, "partner": partner, "partner_seed": other}
        else:
            is_better = cosine > best["cosine"]
            found = {"cosine": cosine, "partner": partner, "partner_seed": other}
            best = {what: np.where(is_better, found[what], best[what]) for what in best}
    return best


def feature_record(
    latent: int, seed: int, arrays: dict[str, np.ndarray], match: dict[str, np.ndarray] | None, contexts: list[dict]
) -> dict[str, Any]:
    """What the report shows of one latent."""
    return {
        "latent": int(latent),
        "firing_rate": float(arrays[f"firing_rate_{seed}"][latent]),
        "max_activation": float(arrays[f"max_activation_{seed}"][latent]),
        "best_cosine": float(match["cosine"][latent]) if match else None,
        "partner": int(match["partner"][latent]) if match else None,
        "partner_seed": int(match["partner_seed"][latent]) if match else None,
        "is_fake": bool(arrays[f"is_fake_{seed}"][latent]),
        "random_rate": float(arrays[f"random_rate_{seed}"][latent]),
        "contexts": contexts,
    }


def dataset_record(source: Source) -> dict[str, Any]:
    """What is known about a source."""
    quality = read_json(Path(source.reference) / "generation.json")["quality"] if source.is_generated else None
    return {
        "name": source.name,
        "kind": "generated" if source.is_generated else "text",
        "reference": source.reference,
        "n_samples": source.n_samples,
        "n_tokens": source.n_tokens,
        "quality": quality,
    }


def _evaluation(results: Results, sae: TrainedSae, source: Source) -> dict[str, Any] | None:
    """What was measured of an SAE on a source, if it was."""
    for each in results.saes[sae.key]["evaluations"]:
        if (each["eval_source"], each["eval_fingerprint"]) == (source.name, source.fingerprint):
            return each
    return None


def _are_shown(path: Path, identity: list[list], n_random_tokens: int) -> bool:
    """Whether a features file has all of these weights, and fake features by this many random tokens."""
    if not path.exists():
        return False
    known = read_json(path)
    return known.get("n_random_tokens") == n_random_tokens and all(
        each in known["weights_fingerprints"] for each in identity
    )


def _bar(what: str, n_tokens: int, group: Group) -> tqdm:
    """A progress bar for a step."""
    return token_bar(what, total=n_tokens, quiet=group.settings.quiet)


def _now_and_then() -> Callable[[str], None]:
    """A function that logs the lines it is given, but not more often than `STATUS_INTERVAL_SEC`."""
    last_sec = time.monotonic()

    def log(line: str) -> None:
        nonlocal last_sec
        if time.monotonic() - last_sec > STATUS_INTERVAL_SEC:
            last_sec = time.monotonic()
            logger.info("  %s", line)

    return log


def _batched(saes: Sequence[TrainedSae], n: int) -> Iterator[Sequence[TrainedSae]]:
    """Runs of at most `n`."""
    for start in range(0, len(saes), n):
        yield saes[start : start + n]
