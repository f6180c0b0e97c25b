"""What stands in the folder of the fixture `grid`, and its comparison, run again."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from conftest import edit_record
from safetensors.torch import load_file, save_file

from sae_utils.comparison.across import sum_up
from sae_utils.comparison.coactivation import compare_codes
from sae_utils.comparison.features import describe_features
from sae_utils.comparison.groups import ComparisonSettings, group_saes
from sae_utils.comparison.measuring import measure, read_known
from sae_utils.comparison.pairs import match_pairs
from sae_utils.comparison.results import Results, read_arrays
from sae_utils.comparison.stability import measure_stability
from sae_utils.comparison.trained import TrainedSae, find_all_trained
from sae_utils.comparison.whereabouts import Whereabouts, find_sources_of
from sae_utils.exclusion import Exclusion
from sae_utils.files import checksum_file
from sae_utils.sources.packing import Chunks, open_chunks
from sae_utils.sources.packs import Packs
from sae_utils.sparse_coders import SparseCoder

COMPARE = ["--random_tokens", "2000", "--quiet", "--wandb_mode", "disabled"]
EVAL_ONLY = ["--eval_only", *COMPARE]
LEFT_OUT = Exclusion(has_first=True, ids=(0,))
"""What `--exclude` leaves out when it is not given: the first positions, and BOS."""

SOURCES, LAYERS, SEEDS = ("other", "tiny"), (0, 1), (0, 1, 2)
METRICS, DETAILS = Path("results/metrics.json"), Path("results/details")


def metrics() -> dict:
    """Contents of metrics.json."""
    return json.loads(METRICS.read_text())


def features(source: str, layer: int) -> dict:
    """Contents of a features file."""
    return json.loads((DETAILS / f"tiny_from_{source}_layers.{layer}.features.json").read_text())


def arrays(source: str, layer: int) -> dict[str, np.ndarray]:
    """Arrays of a source and layer."""
    return read_arrays(DETAILS / f"tiny_from_{source}_layers.{layer}.npz")


def everything() -> dict:
    """All that the comparison wrote: files as bytes, arrays by their bytes, as an archive has the time in it."""
    files = {path.name: path.read_bytes() for path in sorted(DETAILS.glob("*.json"))}
    paths = sorted(DETAILS.rglob("*.npz"))
    numbers = {str(path): {name: (a.dtype, a.tobytes()) for name, a in read_arrays(path).items()} for path in paths}
    return files | numbers | {name: Path("results", name).read_bytes() for name in ("metrics.json", "metrics.csv")}


def pair_arrays(source: str, layer: int, seed: int, source_b: str, seed_b: int) -> dict[str, np.ndarray]:
    """Arrays of a pair of SAEs, without its record."""
    name = f"{source}_seed_{seed}_with_{source_b}_seed_{seed_b}.npz"
    stored = read_arrays(DETAILS / f"tiny_layers.{layer}.pairs" / name)
    return {name: array for name, array in stored.items() if name != "record"}


def sae_record(source: str, layer: int, seed: int) -> dict:
    """The record of an SAE."""
    (record,) = [
        each for each in metrics()["saes"] if (each["source"], each["layer"], each["seed"]) == (source, layer, seed)
    ]
    return record


def held_out_tokens(source: str) -> Chunks:
    """The last sequences of a source, as many as the runs say, found without the code that is tested."""
    run = json.loads(Path("checkpoints/tiny_from_tiny_seed_0/run.json").read_text())
    (packed,) = Path("datasets/.packed").glob(f"{source}_*_32.npy")
    return Chunks(open_chunks(packed).tokens[-run["n_eval_tokens"] // 32 :])


def sae_of(source: str, layer: int, seed: int) -> SparseCoder:
    """An SAE, loaded by sparsify."""
    return SparseCoder.load_from_disk(f"checkpoints/tiny_from_{source}_seed_{seed}/layers.{layer}")


def change_weights(source: str, layer: int, seed: int) -> None:
    """As if the SAE had been trained again."""
    change_tensors(source, layer, seed, lambda tensor: tensor + 0.01 * torch.sin(tensor * 9))


def change_tensors(source: str, layer: int, seed: int, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Other weights in an SAE's file, and in its record."""
    folder = Path(f"checkpoints/tiny_from_{source}_seed_{seed}")
    path = folder / f"layers.{layer}/sae.safetensors"
    save_file({name: change(tensor) for name, tensor in load_file(path).items()}, path)
    saes = json.loads((folder / "run.json").read_text())["saes"]
    (record,) = [each for each in saes if each["layer"] == layer]
    record["checksums"]["sae.safetensors"] = checksum_file(path)
    edit_record(folder / "run.json", saes=saes)


def settings(n_random_tokens: int = 2000) -> ComparisonSettings:
    """How SAEs are compared here."""
    packs = Packs((Path("datasets"),))
    return ComparisonSettings(
        Whereabouts(Path("datasets"), packs), torch.device("cpu"), n_random_tokens=n_random_tokens, quiet=True
    )


def compare_all(*, seeds: Sequence[int] = SEEDS, sources: Sequence[str] = SOURCES, n_random_tokens: int = 2000) -> None:
    """The comparison alone, without figures and page, of what a run of these sources and seeds has trained."""
    saes = [sae for sae in find_all_trained(Path("checkpoints"))[0] if sae.seed in seeds and sae.key[1] in sources]
    compare(saes, Path("results"), settings(n_random_tokens))


def compare(saes: Sequence[TrainedSae], results_dir: Path, how: ComparisonSettings) -> Results:
    """The steps between training and report, as `train_sae.py` takes them."""
    sources = find_sources_of(saes, how.where)
    results = read_known(results_dir, saes, sources)
    for group in group_saes(saes, sources, how):
        measure(group, results)
        match_pairs(group.saes, results, how.device)
        compare_codes(group, results)
        measure_stability(group, results)
        describe_features(group, results)
    results.save()
    sum_up(results)
    results.save()
    return results
