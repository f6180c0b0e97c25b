"""Results folders made up for the tests of figures and page: random numbers of the right shape, the same each time."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sae_utils.comparison.across import summaries
from sae_utils.comparison.agreement import by_firing_rate, intervals_of
from sae_utils.comparison.matching import Matching
from sae_utils.comparison.results import Results, pair_key
from sae_utils.files import write_json
from sae_utils.paths import cell_name, seed_dir

TEXT = "the quick brown fox jumps over a lazy dog , and then it runs . \n Once upon time in Paris (1999) : def f ( x )"
CTX_LEN = 128

WORDS = ["", *TEXT.split(" ")]
HOSTILE = [
    "</script><script>window.broken = 1</script>",
    "<!--",
    "\"'&amp;<img src=x onerror=window.broken=1>",
    "\u2028\u2029",
    "\u202egnirts",
    "שלום",
    "🦊",
    "\x00\x1b",
    "\ufffd",
    "\t\n\n",
    "{{ 7 * 7 }}",
    "",
]
"""Tokens that break pages which put them in carelessly."""

OVERLAPS = {"overlap": 0.6, "overlap_b": 0.5, "overlap_random": 0.2, "overlap_random_b": 0.2}

CODES = {
    "firing_jaccard": 0.3,
    "firing_jaccard_interval": [0.25, 0.35],
    "firing_jaccard_shared": 0.7,
    "firing_jaccard_floor": 0.05,
    "activation_correlation": 0.4,
    "activation_correlation_interval": [0.35, 0.45],
    "activation_correlation_shared": 0.9,
    "activation_correlation_floor": 0.02,
}


def write_results(
    folder: Path,
    *,
    targets: Sequence[str] = ("tiny-model",),
    sources: Sequence[str] = ("tiny-model",),
    text_sources: Sequence[str] = (),
    layers: Sequence[int] = (7, 15),
    n_seeds: int = 2,
    n_latents: int = 256,
    n_features: int = 50,
    n_train_tokens: int = 47_616,
    n_contexts: int = 6,
    hostile: bool = False,
) -> Path:
    """Write `results` and `checkpoints` below `folder`, as a finished comparison leaves them; the results folder."""
    rng = np.random.default_rng(0)
    results, metrics = folder / "results", {"schema": 4, "saes": [], "pairs": []}
    metrics |= {"agreements": [], "contrasts": [], "datasets": []}
    (results / "details").mkdir(parents=True)
    all_sources, seeds = [*sources, *text_sources], range(n_seeds)
    for target, layer in itertools.product(targets, layers):
        of_sources = {source: detail_arrays(rng, seeds, n_latents) for source in all_sources}
        for source, seed in itertools.product(all_sources, seeds):
            path = seed_dir(folder / "checkpoints", target, source, seed) / f"layers.{layer}"
            base = {"target": target, "source": source, "layer": layer, "seed": seed, "path": str(path)}
            numbers = sae_numbers(rng, base, all_sources, n_latents, n_train_tokens)
            metrics["saes"].append(base | numbers | {"stability": stability(rng, base, all_sources, n_seeds)})
            write_curves(rng, path.parent, layers, seed, n_train_tokens)
        pairs = make_pairs(rng, {"target": target, "layer": layer}, of_sources, results)
        records = [record for record, _ in pairs]
        metrics["pairs"] += records
        found = summaries(records, {pair_key(record): arrays for record, arrays in pairs})
        about = {"target": target, "layer": layer, "n_latents": n_latents, "of": "0123"}
        for name, summary in zip(("agreements", "contrasts"), found, strict=True):
            metrics[name] += [about | each for each in summary]
        for source, arrays in of_sources.items():
            stem = results / "details" / f"{cell_name(target, source)}_layers.{layer}"
            np.savez(
                f"{stem}.npz", **arrays, **arrays_of_others([each for each in all_sources if each != source], arrays)
            )
            within = {
                (each["seed"], each["seed_b"]): of_pair
                for each, of_pair in pairs
                if each["source"] == each["source_b"] == source
            }
            shown = features(rng, arrays, within, seeds, n_features, n_contexts, hostile)
            write_json(Path(f"{stem}.features.json"), shown)
    metrics["datasets"] = [dataset_record(rng, name, "generated") for name in sources]
    metrics["datasets"] += [dataset_record(rng, name, "text") for name in text_sources]
    write_json(results / "metrics.json", metrics)
    (results / "metrics.csv").write_text("target,source,layer,seed,source_b,seed_b,kind,measure,eval_source,metric\n")
    return results


def edit_metrics(results: Path, edit: Any) -> None:
    """Change `metrics.json` in place."""
    metrics = json.loads((results / "metrics.json").read_text())
    edit(metrics)
    write_json(results / "metrics.json", metrics)


def sae_numbers(
    rng: np.random.Generator, base: dict[str, Any], eval_sources: Sequence[str], n_latents: int, n_train_tokens: int
) -> dict[str, Any]:
    """An SAE record without what identifies it."""
    return {
        "n_latents": n_latents,
        "k": 16,
        "n_train_tokens": n_train_tokens,
        "n_tokens_trained_on": n_train_tokens - n_train_tokens // CTX_LEN,
        "exclude": ["first", "bos"],
        "packing": packing(base["source"], n_train_tokens),
        "max_decoder_norm_deviation": 0.007,
        "evaluations": [
            with_intervals(
                {
                    "eval_source": source,
                    "n_tokens": 2304,
                    "fvu": (fvu := float(rng.uniform(0.18, 0.3) + 0.15 * (source != base["source"])) / base["layer"]),
                    "fvu_without_first_position": fvu * 1.4,
                    "mse": fvu * 2.1,
                    "cosine": 1 - fvu / 2,
                    "l0": 16.0,
                    "dead_share": float(rng.uniform(0.01, 0.3)),
                    "also_live_share": 1.0 if source == base["source"] else 0.75,
                    "firing_overlap": 1.0 if source == base["source"] else 0.5,
                    "firing_rate_quantiles": {"0.01": 0.0, "0.1": 0.001, "0.5": 0.02, "0.9": 0.11, "0.99": 0.35},
                    "ce_clean_nats": 3.1,
                    "ce_sae_nats": 3.1 + fvu * 4,
                    "ce_zero_nats": 9.4,
                    "ce_mean_nats": 8.2,
                    "ce_recovered": 1 - fvu * 4 / 6.3,
                    "ce_diff_nats": fvu * 4,
                    "kl_nats": fvu * 3.6,
                    "by_position": by_position(fvu, eval_sources.index(source)),
                },
                *("fvu", "fvu_without_first_position", "ce_clean_nats", "ce_sae_nats", "ce_diff_nats"),
                *("ce_recovered", "kl_nats"),
            )
            for source in eval_sources
        ],
        "random_tokens": with_intervals(
            {
                "n_drawn": 1_000_000,
                "generator": "numpy.random.PCG64",
                "seed": 0,
                "n_tokens": 1_000_000,
                "n_fake": (n_fake := int(rng.integers(0, 9))),
                "ffr": n_fake / n_latents,
                "n_fake_scale_free": n_fake + 4,
                "ffr_scale_free": (n_fake + 4) / n_latents,
            },
            *("ffr", "ffr_scale_free"),
        ),
    }


def with_intervals(numbers: dict[str, Any], *names: str) -> dict[str, Any]:
    """Numbers and an interval of each of those named, a twentieth to either side."""
    return numbers | {f"{name}_interval": [numbers[name] * 0.95, numbers[name] * 1.05] for name in names}


def packing(source: str, n_tokens: int) -> dict[str, int]:
    """What rows of so many tokens hold; another number of documents of every source."""
    n_rows, n_documents = n_tokens // CTX_LEN, n_tokens // (300 + 10 * len(source))
    counts = {"n_rows": n_rows, "n_documents": n_documents, "n_cut_documents": n_documents // 2}
    return {"rule": 2} | counts | {"n_bos": n_rows + n_documents, "n_eos": n_documents - 1}


def by_position(fvu: float, index: int) -> list[dict[str, Any]]:
    """Bins of positions, the first without anything that is kept; numbers fall along the sequence."""
    bins = [{"first": 0, "last": 0, "n_tokens": 0, "fvu": None, "n_predictions": 0}]
    bins[0] |= {"ce_clean_nats": None, "ce_sae_nats": None}
    first = 1
    while first < CTX_LEN:
        clean = 3 + (4 + 0.3 * index) / first**0.5
        numbers = {"fvu": fvu * (1 + 2 / first), "ce_clean_nats": clean, "ce_sae_nats": clean + 8 * fvu / first**0.3}
        bins.append(
            {"first": first, "last": 2 * first - 1, "n_tokens": 18 * first, "n_predictions": 17 * first} | numbers
        )
        first *= 2
    return bins


def write_curves(rng: np.random.Generator, folder: Path, layers: Sequence[int], seed: int, n_tokens: int) -> None:
    """A `metrics.jsonl` of 400 steps."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "metrics.jsonl", "w") as file:
        for step in range(1, 401):
            fall = {
                f"fvu/layers.{layer}/seed_{seed}": float(1.1 / (1 + step / 20) + rng.uniform(0.18, 0.25))
                for layer in layers
            }
            file.write(json.dumps({"tokens": step * n_tokens // 400, **fall}) + "\n")


def stability(
    rng: np.random.Generator, base: dict[str, Any], sources: Sequence[str], n_seeds: int
) -> dict[str, Any] | None:
    """How often latents come back; None with fewer than three seeds."""
    if n_seeds < 3:
        return None
    mean = float(rng.uniform(0.2, 0.4))
    elsewhere = {"mean": mean * 0.8, "mean_stable": 0.7, "mean_unstable": 0.1, "floor": 0.01}
    return {
        "n_others": n_seeds - 1,
        "mean": mean,
        "mean_live": mean,
        "shares": {"0": 0.6, "1": 0.1, "2": 0.3},
        "stable_share": mean,
        "floor": 0.01,
        "elsewhere": {source: elsewhere for source in sources if source != base["source"]},
        "of": [[seed, "a1"] for seed in range(n_seeds) if seed != base["seed"]],
        "fvu_of_stable": 0.4,
        "explained_share": 0.85,
    }


def detail_arrays(rng: np.random.Generator, seeds: Sequence[int], n_latents: int) -> dict[str, np.ndarray]:
    """The arrays of a source and layer."""
    arrays = {}
    for seed in seeds:
        rates = (10 ** rng.normal(-1.9, 0.7, n_latents)).clip(0, 1) * (rng.random(n_latents) > 0.1)
        arrays[f"firing_rate_{seed}"] = rates.astype(np.float32)
        arrays[f"max_activation_{seed}"] = (rng.gamma(3, 4, n_latents) * (rates > 0)).astype(np.float32)
        arrays[f"random_rate_{seed}"] = rng.beta(0.3, 9, n_latents).astype(np.float32)
        arrays[f"is_fake_{seed}"] = arrays[f"random_rate_{seed}"] > 0.1
    return arrays


def arrays_of_others(others: Sequence[str], arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """How latents come back in the SAEs of other sources, and fire on their tokens."""
    rng, found = np.random.default_rng(1), {}
    for other, (name, rates) in itertools.product(others, arrays.items()):
        if name.startswith("firing_rate_"):
            seed = name.removeprefix("firing_rate_")
            found[f"firing_rate_on_{other}_{seed}"] = rng.permutation(rates)
            found[f"found_in_{other}_{seed}"] = rng.choice([0, 0.5, 1], len(rates)).astype(np.float32)
    return found


def make_pairs(
    rng: np.random.Generator, about: dict[str, Any], of_sources: dict[str, dict[str, np.ndarray]], results: Path
) -> list[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """Records and arrays of all pairs of SAEs of a target and layer, which are also written."""
    seeds = [int(name.split("_")[-1]) for name in next(iter(of_sources.values())) if name.startswith("is_fake")]
    pairs = []
    for (source, seed), (source_b, seed_b) in itertools.combinations(itertools.product(of_sources, seeds), 2):
        kind = "within" if source == source_b else "same_seed" if seed == seed_b else "between"
        share = {"within": 0.35, "between": 0.25, "same_seed": 0.45}[kind]
        rates = of_sources[source][f"firing_rate_{seed}"], of_sources[source_b][f"firing_rate_{seed_b}"]
        arrays = pair_arrays(rng, len(rates[0]), share)
        record = about | {"source": source, "seed": seed, "source_b": source_b, "seed_b": seed_b, "kind": kind}
        record |= pair_numbers(arrays, *rates) | {"weights_fingerprints": ["a1", "b2"]}
        Results(results).write_pair(record, arrays)
        pairs.append((record, arrays))
    return pairs


def pair_arrays(rng: np.random.Generator, n_latents: int, share: float) -> dict[str, np.ndarray]:
    """The arrays of a pair of SAEs with a share of latents in common."""
    is_found = rng.random(n_latents) < share
    cosines = np.where(is_found, rng.beta(12, 2, n_latents), rng.beta(4, 8, n_latents)).astype(np.float32)
    return {
        "partner": rng.permutation(n_latents).astype(np.int32),
        "cosine": cosines,
        "best": cosines,
        "best_b": cosines,
        "floor_cosine": rng.normal(0.14, 0.02, n_latents).astype(np.float32),
    }


def pair_numbers(arrays: dict[str, np.ndarray], rates: np.ndarray, rates_b: np.ndarray) -> dict[str, Any]:
    """A pair record without what identifies it, true to the arrays where they say."""
    cosines, floor = arrays["cosine"], arrays["floor_cosine"]
    live, n_latents = rates > 0, len(cosines)
    matching = Matching(arrays["partner"].astype(np.int64), cosines, cosines, cosines)
    numbers = {
        "n_latents": n_latents,
        "sfr": float((cosines > 0.7).mean()),
        "sfr_top1": float((cosines > 0.7).mean()),
        "sfr_top1_b": float((cosines > 0.7).mean()),
        "sfr_top1_floor": 0.0,
        "mean_matched_cosine_live": float(cosines[live].mean(dtype=np.float64)),
        "by_firing_rate": by_firing_rate(matching, rates, rates_b),
        "unstable": {"n": 9, "n_b": 9, "rank": 5, "rank_b": 5} | OVERLAPS,
        "codes": {"tokens": [["tiny-model", "0123"]]} | CODES,
        "sfr_both": float((cosines > 0.7).mean() * 0.8),
        "mean_matched_cosine": float(cosines.mean(dtype=np.float64)),
        "sfr_at": {str(t): float((cosines > t).mean()) for t in (0.5, 0.6, 0.7, 0.8, 0.9)},
        "sfr_live": float((cosines[live] > 0.7).mean()),
        "n_live": int(live.sum()),
        "n_live_b": int((rates_b > 0).sum()),
        "sfr_floor": float((floor > 0.7).mean()),
        "mean_matched_cosine_floor": float(floor.mean(dtype=np.float64)),
    }
    return numbers | intervals_of(numbers, cosines, floor)


def features(
    rng: np.random.Generator,
    arrays: dict[str, np.ndarray],
    pairs: dict[tuple[int, int], dict[str, np.ndarray]],
    seeds: Sequence[int],
    n_features: int,
    n_contexts: int,
    hostile: bool,
) -> dict[str, Any]:
    """Content of a features file."""
    chosen = {"seeds": {}, "n_latents": len(arrays["firing_rate_0"]), "how_chosen": "Drawn at random, for the tests."}
    for seed in seeds:
        latents = sorted(rng.choice(chosen["n_latents"], n_features, replace=False).tolist())
        chosen["seeds"][str(seed)] = [
            feature(rng, arrays, pairs, seed, latent, n_contexts, hostile) for latent in latents
        ]
    return chosen


def feature(
    rng: np.random.Generator,
    arrays: dict[str, np.ndarray],
    pairs: dict[tuple[int, int], dict[str, np.ndarray]],
    seed: int,
    latent: int,
    n_contexts: int,
    hostile: bool,
) -> dict[str, Any]:
    """One entry of a features file."""
    found = best_match(pairs, seed, latent)
    return {
        "latent": latent,
        "firing_rate": float(arrays[f"firing_rate_{seed}"][latent]),
        "max_activation": float(arrays[f"max_activation_{seed}"][latent]),
        "best_cosine": found[0] if found else None,
        "partner": found[1] if found else None,
        "partner_seed": found[2] if found else None,
        "is_fake": bool(arrays[f"is_fake_{seed}"][latent]),
        "random_rate": float(arrays[f"random_rate_{seed}"][latent]),
        "contexts": [context(rng, arrays[f"max_activation_{seed}"][latent], hostile) for _ in range(n_contexts)],
    }


def best_match(
    pairs: dict[tuple[int, int], dict[str, np.ndarray]], seed: int, latent: int
) -> tuple[float, int, int] | None:
    """Highest cosine of a latent over the other seeds, its partner, and the partner's seed."""
    matches = []
    for (a, b), arrays in pairs.items():
        if seed == a:
            matches.append((float(arrays["cosine"][latent]), int(arrays["partner"][latent]), b))
        elif seed == b:
            other = int(np.flatnonzero(arrays["partner"] == latent)[0])
            matches.append((float(arrays["cosine"][other]), other, a))
    return max(matches) if matches else None


def context(rng: np.random.Generator, max_activation: float, hostile: bool) -> dict[str, Any]:
    """A context of 24 tokens with a few activations."""
    words = [(" " if i else "") + word for i, word in enumerate(rng.choice(WORDS, 24).tolist())]
    if hostile:
        words[: len(HOSTILE)] = HOSTILE
    activations = np.where(rng.random(24) < 0.2, rng.random(24) * float(max_activation), 0.0)
    peak = int(rng.integers(24))
    activations[peak] = max_activation
    return {"tokens": words, "activations": activations.tolist(), "peak": peak}


def dataset_record(rng: np.random.Generator, name: str, kind: str) -> dict[str, Any]:
    """A data set record."""
    quality = {
        "mean_length_tokens": 201.5,
        "length_quantiles_tokens": {"0.05": 12.0, "0.25": 130.0, "0.5": 256.0, "0.75": 256.0, "0.95": 256.0},
        "ended_in_eos_share": 0.31,
        "distinct_sample_share": 0.996,
        "distinct_ngram_shares": {"1": 0.081, "2": 0.42, "3": 0.71, "4": 0.84},
        "ngram_tokens": 50_000,
        "mean_nll_nats": float(rng.uniform(1.8, 3.1)),
        "first_token_kl_nats": 0.91,
        "first_token_kl_expected_nats": 0.88,
        "first_token_outside_share": 0.0,
    }
    return {
        "name": name,
        "kind": kind,
        "n_samples": 249,
        "n_tokens": 50_000,
        "quality": quality if kind == "generated" else None,
    }
