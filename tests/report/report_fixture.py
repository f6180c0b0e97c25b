"""Results folders made up for the tests of figures and page: random numbers of the right shape, the same each time."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sae_utils.comparison.stability import intervals_of
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
    results, metrics = folder / "results", {"schema": 3, "saes": [], "pairs": [], "datasets": []}
    (results / "details").mkdir(parents=True)
    all_sources = [*sources, *text_sources]
    for target in targets:
        for source in all_sources:
            for layer in layers:
                seeds = range(n_seeds)
                for seed in seeds:
                    path = seed_dir(folder / "checkpoints", target, source, seed) / f"layers.{layer}"
                    base = {"target": target, "source": source, "layer": layer, "seed": seed, "path": str(path)}
                    metrics["saes"].append(base | sae_numbers(rng, base, all_sources, n_latents, n_train_tokens))
                    write_curves(rng, path.parent, layers, seed, n_train_tokens)
                pairs = [(a, b) for a in seeds for b in seeds if a < b]
                arrays = detail_arrays(rng, seeds, pairs, n_latents)
                metrics["pairs"] += [
                    {"target": target, "source": source, "layer": layer} | pair_numbers(arrays, a, b) for a, b in pairs
                ]
                stem = results / "details" / f"{cell_name(target, source)}_layers.{layer}"
                np.savez(f"{stem}.npz", **arrays)
                write_json(Path(f"{stem}.features.json"), features(rng, arrays, seeds, n_features, n_contexts, hostile))
    metrics["datasets"] = [dataset_record(rng, name, "generated") for name in sources]
    metrics["datasets"] += [dataset_record(rng, name, "text") for name in text_sources]
    write_json(results / "metrics.json", metrics)
    (results / "metrics.csv").write_text("target,source,layer,seed,seed_b,eval_source,metric,value\n")
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


def detail_arrays(
    rng: np.random.Generator, seeds: Sequence[int], pairs: Sequence[tuple[int, int]], n_latents: int
) -> dict[str, np.ndarray]:
    """The arrays of an npz file."""
    arrays = {}
    for seed in seeds:
        rates = (10 ** rng.normal(-1.9, 0.7, n_latents)).clip(0, 1) * (rng.random(n_latents) > 0.1)
        arrays[f"firing_rate_{seed}"] = rates.astype(np.float32)
        arrays[f"max_activation_{seed}"] = (rng.gamma(3, 4, n_latents) * (rates > 0)).astype(np.float32)
        arrays[f"random_rate_{seed}"] = rng.beta(0.3, 9, n_latents).astype(np.float32)
        arrays[f"is_fake_{seed}"] = arrays[f"random_rate_{seed}"] > 0.1
    for a, b in pairs:
        arrays[f"partner_{a}_{b}"] = rng.permutation(n_latents).astype(np.int32)
        is_found = rng.random(n_latents) < 0.35
        cosines = np.where(is_found, rng.beta(12, 2, n_latents), rng.beta(4, 8, n_latents))
        arrays[f"cosine_{a}_{b}"] = cosines.astype(np.float32)
        arrays[f"floor_cosine_{a}_{b}"] = rng.normal(0.14, 0.02, n_latents).astype(np.float32)
    return arrays


def pair_numbers(arrays: dict[str, np.ndarray], a: int, b: int) -> dict[str, Any]:
    """A pair record without what identifies it, true to the arrays where they say."""
    cosines, floor = arrays[f"cosine_{a}_{b}"], arrays[f"floor_cosine_{a}_{b}"]
    live = arrays[f"firing_rate_{a}"] > 0
    numbers = {
        "seed": a,
        "seed_b": b,
        "n_latents": len(cosines),
        "sfr": float((cosines > 0.7).mean()),
        "sfr_both": float((cosines > 0.7).mean() * 0.8),
        "mean_matched_cosine": float(cosines.mean(dtype=np.float64)),
        "sfr_at": {str(t): float((cosines > t).mean()) for t in (0.5, 0.6, 0.7, 0.8, 0.9)},
        "sfr_live": float((cosines[live] > 0.7).mean()),
        "n_live": int(live.sum()),
        "n_live_b": int((arrays[f"firing_rate_{b}"] > 0).sum()),
        "sfr_floor": float((floor > 0.7).mean()),
        "mean_matched_cosine_floor": float(floor.mean(dtype=np.float64)),
    }
    return numbers | intervals_of(numbers, cosines, floor)


def features(
    rng: np.random.Generator,
    arrays: dict[str, np.ndarray],
    seeds: Sequence[int],
    n_features: int,
    n_contexts: int,
    hostile: bool,
) -> dict[str, Any]:
    """Content of a features file."""
    chosen = {"seeds": {}, "n_latents": len(arrays["firing_rate_0"]), "how_chosen": "Drawn at random, for the tests."}
    for seed in seeds:
        latents = sorted(rng.choice(chosen["n_latents"], n_features, replace=False).tolist())
        chosen["seeds"][str(seed)] = [feature(rng, arrays, seed, latent, n_contexts, hostile) for latent in latents]
    return chosen


def feature(
    rng: np.random.Generator, arrays: dict[str, np.ndarray], seed: int, latent: int, n_contexts: int, hostile: bool
) -> dict[str, Any]:
    """One entry of a features file."""
    found = best_match(arrays, seed, latent)
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


def best_match(arrays: dict[str, np.ndarray], seed: int, latent: int) -> tuple[float, int, int] | None:
    """Highest cosine of a latent over the other seeds, its partner, and the partner's seed."""
    matches = []
    for name in arrays:
        if not name.startswith("partner_"):
            continue
        a, b = map(int, name.split("_")[1:])
        if seed == a:
            matches.append((float(arrays[f"cosine_{a}_{b}"][latent]), int(arrays[name][latent]), b))
        elif seed == b:
            other = int(np.flatnonzero(arrays[name] == latent)[0])
            matches.append((float(arrays[f"cosine_{a}_{b}"][other]), other, a))
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
