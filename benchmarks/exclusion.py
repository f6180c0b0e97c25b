r"""What `--exclude` changes: SAEs trained with and without positions left out, and all measured on the same ones.

    python benchmarks/exclusion.py --model .cache/SmolLM2-135M-Instruct --datasets_dir demo_output/datasets \
        --work_dir /tmp/exclusion --record benchmarks/results/exclusion_cpu.json

Each choice trains the same layers and seeds on the same rows with `train_sae.py`, in a folder of its own in
`--work_dir`, where a second run finds it finished. Then every SAE is measured twice on the held-out tokens, with one
way to leave out positions for all: off the first positions and BOS, and on all positions.
Seed agreement and dead latents are those of `train_sae.py`'s own comparison. Numbers are means over seeds, with their
least and most.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from machine import cpu_name

from sae_utils.comparison.groups import ComparisonSettings, group_saes
from sae_utils.comparison.trained import find_all_trained
from sae_utils.comparison.whereabouts import Whereabouts, find_sources_of
from sae_utils.evaluation.reconstruction import measure_reconstruction
from sae_utils.evaluation.splicing import measure_splices
from sae_utils.exclusion import find_exclusion
from sae_utils.files import write_json
from sae_utils.records import versions
from sae_utils.sources.joining import find_delimiters
from sae_utils.sources.packs import Packs

ROOT = Path(__file__).resolve().parent.parent

CHOICES = ("", "first", "first bos")
"""What is left out in training; nothing first."""

NAMES = ("fvu", "ce_recovered", "ce_diff_nats", "kl_nats")
"""What is measured of all alike."""

QUIETLY = ("--wandb_mode", "disabled", "--quiet")

YARDSTICKS = {"off first and bos": ("first", "bos"), "everywhere": ()}
"""What is left out when all are measured."""


def main() -> None:
    """Train with every choice, measure, print a line per choice and layer."""
    args = parse_args()
    rows = [row for choice in args.choices for row in measure(args, choice)]
    for row in rows:
        print(describe(row))
    if args.record:
        command = shlex.join(["python", "benchmarks/exclusion.py", *sys.argv[1:]])
        about = {"command": command, "device": cpu_name(), "threads": torch.get_num_threads(), "versions": versions()}
        write_json(args.record, about | {"flags": flags_of(args), "rows": rows})


def flags_of(args: argparse.Namespace) -> list[str]:
    """What all trainings share."""
    source = args.source or Path(args.model).name
    names = ["--target_models", args.model, "--source_models", source, "--org_name", str(Path(args.model).parent)]
    sizes = ["--layers", *map(str, args.layers), "--num_seeds", str(args.n_seeds), "--num_latents", "2304"]
    amounts = ["--ctx_len", "256", "--lr", "5e-3", "--max_tokens", str(args.max_tokens), "--random_tokens", "20000"]
    return [*names, *sizes, *amounts, "--datasets_dir", str(args.datasets_dir), "--dtype", args.dtype, *QUIETLY]


def train(args: argparse.Namespace, choice: str) -> Path:
    """The folder of what a choice gives."""
    folder = args.work_dir / (choice.replace(" ", "_") or "nothing")
    places = ["--checkpoint_dir", str(folder / "checkpoints"), "--results_dir", str(folder / "results")]
    command = [sys.executable, str(ROOT / "train_sae.py"), *flags_of(args), *places, "--exclude", *choice.split()]
    subprocess.run(command, check=True)
    return folder


def measure(args: argparse.Namespace, choice: str) -> list[dict]:
    """A record per layer."""
    folder = train(args, choice)
    metrics = json.loads((folder / "results/metrics.json").read_text())
    by_yardstick = {name: measure_alike(args, folder, words) for name, words in YARDSTICKS.items()}
    rows = []
    for layer in args.layers:
        own = [sae["evaluations"][0] for sae in metrics["saes"] if sae["layer"] == layer]
        pairs = [pair for pair in metrics["pairs"] if pair["layer"] == layer]
        row = {"exclude": choice, "layer": layer, "dead_share": spread(own, "dead_share")}
        row |= {
            name: spread(pairs, name) for name in ("sfr", "sfr_live", "sfr_both", "mean_matched_cosine", "sfr_floor")
        }
        for name, measured in by_yardstick.items():
            of_layer = [each for key, each in measured.items() if key[2] == layer]
            row[name] = {what: spread(of_layer, what) for what in NAMES if what in of_layer[0]}
        rows.append(row)
    return rows


def measure_alike(args: argparse.Namespace, folder: Path, words: tuple[str, ...]) -> dict[tuple, dict]:
    """FVU, cross-entropy and KL of every SAE in a folder, all with the same positions left out."""
    saes, _ = find_all_trained(folder / "checkpoints")
    where = Whereabouts(args.datasets_dir, Packs((args.datasets_dir, folder)))
    sources = find_sources_of(saes, where)
    (group,) = group_saes(saes, sources, ComparisonSettings(where, torch.device("cpu"), quiet=True))
    target = group.load_target()
    delimiters = find_delimiters(target.tokenizer, target.model.config)
    exclusion = find_exclusion(
        words, bos_id=delimiters.bos_id, eos_id=delimiters.eos_id, vocab_size=target.model.config.vocab_size
    )
    chunks = group.held_out(next(iter(group.sources.values())), target)
    found = {}
    for hooked in group.in_memory(saes, target):
        options = {"batch_size": 2, "exclusion": exclusion}
        counted = measure_reconstruction(target.model, hooked, chunks, **options)
        found |= {key: counted.saes[key].record() for key in hooked}
        if words:  # with everything replaced, zeros in the first position cost more than all else together
            means = {layer: each.all.mean for layer, each in counted.layers.items()}
            special = target.tokenizer.all_special_ids
            spliced = measure_splices(target.model, hooked, chunks, means, **options, special_ids=special)
            found = {key: found[key] | spliced.get(key, {}) for key in found}
    return found


def spread(records: list[dict], name: str) -> dict[str, float] | None:
    """Mean, least and most over seeds, or over pairs of them; None where a number is not defined."""
    values = [each[name] for each in records]
    if None in values or not values:
        return None
    return {"mean": statistics.fmean(values), "min": min(values), "max": max(values)}


def describe(row: dict) -> str:
    """One line."""
    yardstick = row["off first and bos"]
    numbers = {
        "fvu": yardstick["fvu"],
        "ce_recovered": yardstick["ce_recovered"],
        "fvu everywhere": row["everywhere"]["fvu"],
    }
    numbers |= {name: row[name] for name in ("dead_share", "sfr", "sfr_live", "mean_matched_cosine")}
    shown = "  ".join(f"{name} {each['mean']:.4f}" if each else f"{name} -" for name, each in numbers.items())
    return f"{row['exclude'] or 'nothing':14} layer {row['layer']:2}  {shown}"


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the target, which wrote the data set, too")
    parser.add_argument("--source", help="model whose data set is trained on; the target if not given")
    parser.add_argument("--datasets_dir", type=Path, required=True, help="folder of generated data sets")
    parser.add_argument("--work_dir", type=Path, required=True, help="folder for what is trained")
    parser.add_argument("--layers", type=int, nargs="+", default=[3, 7, 15, 22])
    parser.add_argument("--n_seeds", type=int, default=3)
    parser.add_argument("--max_tokens", type=int, default=50_000)
    parser.add_argument("--dtype", default="bfloat16", help="number format of the target")
    parser.add_argument("--choices", nargs="+", default=CHOICES, help="what is left out, one string each")
    parser.add_argument("--record", type=Path, help="JSON file for the result")
    return parser.parse_args()


if __name__ == "__main__":
    main()
