"""Finished SAEs measured on every source and on random tokens.

Every number is tied to the weights and the data it was measured on. What is known is not measured again, what is new
is written as soon as a step is done, and a run that was stopped goes on with the next step.
"""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sae_utils.comparison.firing import COUNTED, compare_firing, rates_name
from sae_utils.comparison.groups import Group
from sae_utils.comparison.outlook import RANDOM_TOKENS, RECONSTRUCTION, SPLICING, Count, Outlook
from sae_utils.comparison.pairs import ALONE
from sae_utils.comparison.results import Results, read_results
from sae_utils.comparison.sharing_out import begin_as_main, put_together, share_of
from sae_utils.comparison.trained import TrainedSae
from sae_utils.distributed import Workers
from sae_utils.errors import NonFiniteError
from sae_utils.evaluation.random_tokens import (
    RANDOM_DRAW,
    RandomFiring,
    known_ids,
    measure_random_firing,
    random_sequences,
)
from sae_utils.evaluation.reconstruction import LayerStatistics, measure_reconstruction
from sae_utils.evaluation.splicing import measure_splices
from sae_utils.generated_data import read_generation_record
from sae_utils.records import largest_budgets
from sae_utils.sources.catalog import Source
from sae_utils.sources.controls import SHUFFLED
from sae_utils.sparse_coders import are_finite

logger = logging.getLogger(__name__)


def read_known(results_dir: Path, saes: Sequence[TrainedSae], sources: Mapping[tuple[str, str], Source]) -> Results:
    """What earlier runs found about these SAEs, as far as it still holds, and about others."""
    results = read_results(results_dir)
    by_length = sorted(sources.values(), key=lambda source: source.n_samples)
    results.datasets |= {source.name: dataset_record(source) for source in by_length}
    results.saes |= {sae.key: known_record(results, sae) for sae in saes}
    results.pairs = {key: pair for key, pair in results.pairs.items() if results.is_current(pair)}
    results.own = {sae.key for sae in saes}
    return results


def measure(group: Group, results: Results, outlook: Outlook | None = None, workers: Workers = ALONE) -> None:
    """Add what is not known yet about the SAEs of a group, on every source and on random tokens.

    An SAE that has diverged is marked as such, and nothing else is measured of it. All processes come here; after each
    step all know what was found, and the main one has written it.

    Args:
        group: The SAEs.
        results: What is known; what is found is added.
        outlook: Is told how far it has got; None where nobody looks.
        workers: The processes that share the SAEs.
    """
    outlook = outlook or Outlook()
    begin_as_main(group, results, workers)
    part = share_of(group, workers)
    if part:
        find_diverged(part, results)
    for source in group.sources.values():
        if part:
            evaluate_on(part, source, results, outlook)
        put_together(part, results, workers)
    if part:
        compare_firing(converged(part.saes, results), results)
        count_fakes(part, results, outlook)
        group.take_target_of(part)
    put_together(part, results, workers)
    outlook.pause()


def find_diverged(group: Group, results: Results) -> None:
    """Mark SAEs whose weights are not finite, where it is not known whether they are."""
    for sae in group.saes:
        record = results.saes[sae.key]
        if record.get("is_diverged") is None:
            has_finite_weights = record["evaluations"] or are_finite(sae.load("cpu"))
            _set_diverged(results, sae.key, not has_finite_weights)


def plan_measuring(group: Group, results: Results, outlook: Outlook) -> None:
    """Take down how much is to be measured of a group, by what is known now."""
    wanted, part = wanted_evaluations(group, results), outlook.part(group.key)
    n_left, n_all = sum(_evaluation(results, *each) is None for each in wanted), len(wanted)
    part.cells = Count(n_all - n_left, n_all)
    part.left |= dict.fromkeys((RECONSTRUCTION, SPLICING), n_left * group.n_eval_tokens)
    part.left[RANDOM_TOKENS] = len(_without_fakes(group, results)) * group.settings.n_random_tokens


def known_record(results: Results, sae: TrainedSae) -> dict[str, Any]:
    """The record of an SAE, with what was measured on these weights before."""
    known = results.saes.get(sae.key)
    is_same = known is not None and known["weights_fingerprint"] == sae.weights_fingerprint
    trained_on = {"dataset": sae.source, "variant": sae.record.get("variant", "")}
    if is_same and results.arrays_path(*sae.key[:3]).exists():
        later = {name: value for name, value in {"probes": [], "stability": None}.items() if name not in known}
        return known | trained_on | {"path": sae.path} | later
    record = dict(zip(("target", "source", "layer", "seed"), sae.key, strict=True)) | trained_on
    names = "d_model", "n_latents", "k", "n_train_tokens", "n_tokens_trained_on"
    record |= {name: sae.record[name] for name in names} | {"exclude": sae.run["settings"]["exclude"]}
    record |= {"packing": sae.run["packing"]}
    record |= {"path": sae.path, "max_decoder_norm_deviation": sae.record["max_decoder_norm_deviation"]}
    about = {"weights_fingerprint": sae.weights_fingerprint, "is_diverged": None}
    return record | about | {"evaluations": [], "random_tokens": None, "probes": [], "stability": None}


def converged(saes: Sequence[TrainedSae], results: Results) -> list[TrainedSae]:
    """Those SAEs that have not diverged."""
    return [sae for sae in saes if not results.saes[sae.key]["is_diverged"]]


def wanted_evaluations(group: Group, results: Results) -> list[tuple[TrainedSae, Source]]:
    """Every SAE that has not diverged, with each source on whose held-out tokens it is measured: all of the run.

    An SAE of which there is one with more training tokens and nothing else that differs is a point of a curve, and is
    measured on the source it was trained on alone: with five budgets the others would take four fifths of the time.
    """
    largest = largest_budgets(results.saes.values())
    return [
        (sae, source)
        for sae in converged(group.saes, results)
        for source in group.sources.values()
        if sae.key[:3] in largest or source.name == sae.source
    ]


def evaluate_on(group: Group, source: Source, results: Results, outlook: Outlook) -> None:
    """Reconstruction and its effect on the model, on the held-out tokens of one source."""
    plan_measuring(group, results, outlook)
    wanted = [sae for sae, wanted_on in wanted_evaluations(group, results) if wanted_on is source]
    todo = [sae for sae in wanted if not _evaluation(results, sae, source)]
    if not todo:
        return
    target = group.load_target()
    chunks = group.held_out(source, target)
    for hooked in group.in_memory(todo, target):
        options = {"batch_size": group.settings.batch_size, "exclusion": group.exclusion}
        special_ids = target.tokenizer.all_special_ids
        with _seen(outlook, group, RECONSTRUCTION, len(hooked), source.name) as on_tokens:
            measured = measure_reconstruction(target.model, hooked, chunks, **options, on_tokens=on_tokens)
        _check_activations(measured.layers, group, source)
        for key in [key for key, counted in measured.saes.items() if not math.isfinite(counted.squared_error)]:
            _set_diverged(results, key, True)
            del hooked[key], measured.saes[key]
        means = {layer: each.all.mean for layer, each in measured.layers.items()}
        if not hooked:
            continue
        with _seen(outlook, group, SPLICING, len(hooked), source.name) as on_tokens:
            spliced = measure_splices(
                target.model, hooked, chunks, means, **options, special_ids=special_ids, on_tokens=on_tokens
            )
        outlook.part(group.key).cells.n_done += len(hooked)
        for key, counted in measured.saes.items():
            numbers = counted.record() | spliced[key]
            by_position = zip(numbers.pop("fvu_by_position"), numbers.pop("ce_by_position"), strict=True)
            numbers["by_position"] = [fvu | ce for fvu, ce in by_position]
            if not all(math.isfinite(value) for value in numbers.values() if isinstance(value, float)):
                _set_diverged(results, key, True)  # its reconstructions are finite, and the model breaks on them
                continue
            about = {
                "eval_source": source.name,
                "eval_fingerprint": source.fingerprint,
                "is_tokenized_again": source.is_tokenized_again(target.tokenizer),
            }
            _, series, layer, seed = key
            record = results.saes[key]
            others = [each for each in record["evaluations"] if each["eval_source"] != source.name]
            everywhere = [*others, about | numbers | dict.fromkeys(COUNTED)]
            record["evaluations"] = sorted(everywhere, key=lambda each: each["eval_source"])
            results.changed.add(key[:2])
            is_own, rates = source.name == record["dataset"], counted.firing_rate.astype(np.float32)
            arrays = {f"firing_rate_{seed}" if is_own else rates_name(source.name, seed): rates}
            if is_own:
                arrays[f"max_activation_{seed}"] = counted.max_activation.float().cpu().numpy()
            results.add_arrays(group.name, series, layer, **arrays)
        results.save()


def count_fakes(group: Group, results: Results, outlook: Outlook) -> None:
    """Firing on random tokens."""
    plan_measuring(group, results, outlook)
    n_tokens = group.settings.n_random_tokens
    todo = _without_fakes(group, results)
    if not todo:
        return
    target = group.load_target()
    chunks = random_sequences(
        known_ids(target.tokenizer, target.model, group.exclusion),
        bos_id=target.bos_id,
        ctx_len=todo[0].run["settings"]["ctx_len"],
        seed=RANDOM_DRAW["seed"],
        n_tokens=n_tokens,
    )
    for hooked in group.in_memory(todo, target):
        with _seen(outlook, group, RANDOM_TOKENS, len(hooked)) as on_tokens:
            firing: dict[Any, RandomFiring] = measure_random_firing(
                target.model,
                hooked,
                chunks,
                batch_size=group.settings.batch_size,
                n_tokens=n_tokens,
                exclusion=group.exclusion,
                on_tokens=on_tokens,
            )
        for key, counted in firing.items():
            about = {"n_drawn": n_tokens} | RANDOM_DRAW
            results.saes[key]["random_tokens"] = about | counted.record()
            results.changed.add(key[:2])
            _, series, layer, seed = key
            arrays = {
                f"random_rate_{seed}": counted.random_rate.astype(np.float32),
                f"is_fake_{seed}": counted.is_fake,
            }
            results.add_arrays(group.name, series, layer, **arrays)
        results.save()


def dataset_record(source: Source) -> dict[str, Any]:
    """What is known about a source."""
    is_sampled = source.is_generated and source.base is None
    quality = read_generation_record(Path(source.reference))["quality"] if is_sampled else None
    kind = "generated" if is_sampled else "text"
    return {
        "name": source.name,
        "kind": kind if source.base is None else SHUFFLED,
        "reference": source.reference,
        "n_samples": source.n_samples,
        "n_tokens": source.n_tokens,
        "quality": quality,
    }


@contextlib.contextmanager
def _seen(outlook: Outlook, group: Group, kind: str, n_saes: int, where: str = "") -> Iterator[Callable[[int], None]]:
    """While open, SAEs are measured in a pass; a function to be called with the tokens that were done just now."""
    n_tokens = group.settings.n_random_tokens if kind == RANDOM_TOKENS else group.n_eval_tokens
    what = f"{kind} on {where}" if where else kind
    with outlook.doing(group.key, kind, n_tokens * n_saes, what) as note:
        yield lambda n_tokens: note(n_tokens * n_saes)


def _without_fakes(group: Group, results: Results) -> list[TrainedSae]:
    """SAEs of which fake features were not counted on as many random tokens as are asked for."""
    n, members = group.settings.n_random_tokens, converged(group.saes, results)
    return [sae for sae in members if (results.saes[sae.key]["random_tokens"] or {}).get("n_drawn") != n]


def _set_diverged(results: Results, key: tuple, is_diverged: bool) -> None:
    """Take note of whether an SAE has diverged; one that has is not shown with numbers of before."""
    record = results.saes[key]
    record["is_diverged"] = is_diverged
    if is_diverged:
        record |= {"evaluations": [], "random_tokens": None, "probes": [], "stability": None}
        logger.warning("%s has diverged (NaN or infinity), and is left out of what follows", record["path"])


def _check_activations(layers: Mapping[str, LayerStatistics], group: Group, source: Source) -> None:
    """Refuse a model whose activations are not finite: every SAE would seem to have diverged.

    Raises:
        NonFiniteError: If they are not.
    """
    for name, statistics in layers.items():
        if not math.isfinite(statistics.all.total):
            dtype = group.saes[0].eval_shape[1]
            raise NonFiniteError(
                f"the activations of {group.name} at {name} on {source.name} are NaN or infinite in {dtype}; nothing "
                f"of it is measured: its SAEs were trained in {dtype}, so train them again with another --dtype"
            )


def _evaluation(results: Results, sae: TrainedSae, source: Source) -> dict[str, Any] | None:
    """What was measured of an SAE on a source, if it was; earlier versions did not keep how often latents fire."""
    for each in results.saes[sae.key]["evaluations"]:
        is_of_it = (each["eval_source"], each["eval_fingerprint"]) == (source.name, source.fingerprint)
        if is_of_it and COUNTED[0] in each:
            return each
    return None
