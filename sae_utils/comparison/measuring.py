"""Finished SAEs measured on every source and on random tokens.

Every number is tied to the weights and the data it was measured on. What is known is not measured again, what is new
is written as soon as a step is done, and a run that was stopped goes on with the next step.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sae_utils.comparison.groups import Group
from sae_utils.comparison.results import Results, read_results
from sae_utils.comparison.trained import TrainedSae
from sae_utils.evaluation.random_tokens import RandomFiring, known_ids, measure_random_firing, random_sequences
from sae_utils.evaluation.reconstruction import measure_reconstruction
from sae_utils.evaluation.splicing import measure_splices
from sae_utils.records import read_json
from sae_utils.sources.catalog import Source

RANDOM_SEED = 0
"""Seed of the random tokens: the same for all SAEs, so that their fake features compare."""


def read_known(results_dir: Path, saes: Sequence[TrainedSae], sources: Mapping[str, Source]) -> Results:
    """What earlier runs found about these SAEs, as far as it still holds, and about others."""
    results = read_results(results_dir)
    results.datasets |= {name: dataset_record(source) for name, source in sources.items()}
    results.saes |= {sae.key: known_record(results, sae) for sae in saes}
    results.pairs = {key: pair for key, pair in results.pairs.items() if is_current(results, pair)}
    return results


def measure(group: Group, results: Results) -> None:
    """Add what is not known yet about the SAEs of a group, on every source and on random tokens."""
    for source in group.sources.values():
        evaluate_on(group, source, results)
    count_fakes(group, results)


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


def evaluate_on(group: Group, source: Source, results: Results) -> None:
    """Reconstruction and its effect on the model, on the held-out tokens of one source."""
    todo = [sae for sae in group.saes if not _evaluation(results, sae, source)]
    if not todo:
        return
    target = group.load_target()
    chunks = group.held_out(source, target)
    for hooked in group.in_memory(todo, target):
        options = {"batch_size": group.settings.batch_size}
        with group.bar(f"on {source.name}", 2 * chunks.order.size * chunks.ctx_len) as bar:
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


def count_fakes(group: Group, results: Results) -> None:
    """Firing on random tokens."""
    n_tokens = group.settings.n_random_tokens
    todo = [sae for sae in group.saes if (results.saes[sae.key]["random_tokens"] or {}).get("n_tokens") != n_tokens]
    if not todo:
        return
    target = group.load_target()
    chunks = random_sequences(
        known_ids(target.tokenizer, target.model),
        bos_id=target.bos_id,
        ctx_len=todo[0].run["settings"]["ctx_len"],
        seed=RANDOM_SEED,
        n_tokens=n_tokens,
    )
    for hooked in group.in_memory(todo, target):
        with group.bar("on random tokens", chunks.order.size * chunks.ctx_len) as bar:
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
