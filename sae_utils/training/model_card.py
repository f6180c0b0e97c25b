"""The README.md inside every folder of finished SAEs, in the form the Hugging Face hub reads.

It says what the records in the folder say and nothing else, so it can be made again at any time, and is in no checksum.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from sae_utils.files import Record, read_record, removal, write_text
from sae_utils.paths import DatasetKey, cell_name, run_files, series_name, short_name

CARD_FILE = "README.md"
"""The card beside the records."""

TAGS = ("sparse-autoencoder", "topk", "interpretability")
"""Under which the hub lists SAEs."""

_CARD = """---
{front_matter}
---
# {name}

Sparse autoencoders (TopK, from EleutherAI's sparsify) on the outputs of decoder layers, or of modules inside, of
**{target}**, trained on
{source}. All SAEs of this folder were initialised from seed {seed}; those of other seeds saw the same batches in the
same order.

{table}

Measured on {n_eval_tokens:,} tokens held out from the end of the data. FVU: fraction of variance unexplained, 0 is
perfect and 1 is guessing the mean; dead: share of latents that fire on none of these tokens; L0: active latents per
token. Trained on: tokens that the SAE has seen.

| | |
|---|---|
| model | {model}, weights up to the last of these layers `{target_fingerprint}` (fingerprint), in {dtype} |
| data | {data}, `{dataset_fingerprint}` (fingerprint) |
| sequences | {ctx_len:,} tokens, each beginning with BOS |
| positions left out of training and of all numbers | {excluded} |
| optimizer, learning rate | {optimizer}, {lr} |
| batch | {batch_size} sequences, {grad_acc_steps} to a step |

`run.json` has the full record, with the checksums of the weights.

## Loading

With sparsify (`pip install eai-sparsify`), from a folder that is here; from a hub it is
`SparseCoder.load_many("ORG/{name}")`:

```python
import torch
from sparsify import SparseCoder
from transformers import AutoModel, AutoTokenizer

saes = SparseCoder.load_many("{name}", local=True)
tokenizer = AutoTokenizer.from_pretrained("{model}")
model = AutoModel.from_pretrained("{model}")

outputs = []
layer = model.get_submodule("{module}")
layer.register_forward_hook(lambda _, inputs, output: outputs.append(output))
with torch.no_grad():
    model(**tokenizer("The quick brown fox", return_tensors="pt"))
    activations = outputs[0][0] if isinstance(outputs[0], tuple) else outputs[0]  # (1, seq, {d_model})
    latents = saes["{folder}"].encode(activations[0])  # top_acts and top_indices, (seq, {k})
```

Where Triton is installed, sparsify's `decode` fails on a CPU: set `SPARSIFY_DISABLE_TRITON=1` before.

With SAELens, once they are written in its format, by the project that trained them and with this folder in
`checkpoints`:

```bash
python train_sae.py --eval_only --checkpoint_dir checkpoints --export saelens
```

```python
from sae_lens import SAE

sae = SAE.load_from_disk("checkpoints/saelens/{name}/{folder}")
```

## Licence

None is named here: the records of training know none. Those of {target} and of the data have to be looked at.
"""

_LAYER_ROW = (
    "| {layer} | `{module}` | {n_latents:,} | {k} | {fvu} | {fvu_without_first_position} | {dead_share} | {l0} | "
    "{n_tokens_trained_on:,} |"
)
_LAYER_HEAD = """| layer | module | latents | k | FVU | FVU without first positions | dead | L0 | trained on |
|---|---|---|---|---|---|---|---|---|"""


def write_card(folder: Path, *, added: Mapping[str, Any] | None = None) -> None:
    """Write README.md for the finished SAEs of a seed, from the records in their folder; the same ones, the same bytes.

    Args:
        folder: The folder.
        added: The record of layers that are just being added to it, which comes last of all.

    Raises:
        DamagedFileError: If a record is damaged.
    """
    runs: list[Mapping[str, Any]] = read_records(folder)
    if added is not None:
        runs = [*(each for each in runs if each["hookpoints"] != added["hookpoints"]), added]
    write_text(folder / CARD_FILE, make_card(runs))


def read_records(folder: Path) -> list[Record]:
    """Every record in a folder of finished SAEs.

    Raises:
        DamagedFileError: If one is damaged.
    """
    kinds = {"settings": dict, "hookpoints": dict, "saes": list}
    remedy = f"bring back a copy of it, or {removal(folder)} and train its seed again"
    return [read_record(path, remedy, **kinds) for path in run_files(folder)]


def make_card(runs: Sequence[Mapping[str, Any]]) -> str:
    """The card of the SAEs that these records are of."""
    saes = _by_layer(runs)
    run, sae = max(runs, key=lambda run: max(each["layer"] for each in run["saes"])), saes[0]
    settings = run["settings"]
    values = {
        **settings,
        **sae,
        "front_matter": front_matter(run).to_yaml(),
        "name": f"{cell_name(sae['target'], series_name(sae['source'], sae.get('variant', '')))}_seed_{sae['seed']}",
        "folder": f"layers.{sae['layer']}",
        "table": "\n".join([_LAYER_HEAD, *map(_layer_row, saes)]),
        "source": describe_source(run),
        "model": target_id(run) or short_name(run["target_reference"]),
        "data": f"`{settings['source']}`",
        "target_fingerprint": run["target_fingerprint"],
        "dataset_fingerprint": run["dataset_fingerprint"],
        "excluded": ", ".join(settings["exclude"]) or "none",
        "lr": "sparsify's own" if settings["lr"] is None else settings["lr"],
    }
    return _CARD.format(**values)


def front_matter(run: Mapping[str, Any]) -> ModelCardData:
    """What the hub reads; a model or a data set that is on no hub is not named, and no licence is made up."""
    data = dataset_id(run)
    return ModelCardData(
        library_name="sparsify",
        base_model=target_id(run),
        datasets=[data] if data else None,
        tags=[*TAGS, *(["shuffled-control"] if run.get("dataset_control") else [])],
    )


def target_id(run: Mapping[str, Any]) -> str | None:
    """Hub id of the target; None if it was a folder."""
    return run["target_reference"] if run.get("target_from_here", "") is None else None


def dataset_id(run: Mapping[str, Any]) -> str | None:
    """Hub id of the corpus; None for what was a file or a folder, as generated data sets are."""
    is_on_hub = run.get("dataset_column") is not None and run.get("dataset_from_here", "") is None
    return run["dataset"].partition(":")[0] if is_on_hub else None


def describe_source(run: Mapping[str, Any]) -> str:
    """What the SAEs were trained on, in words."""
    form, name = run.get("dataset_form"), run["settings"]["source"]
    if run.get("dataset_column") is None and (key := DatasetKey.from_folder(name)):
        said = f"text that {key.model} wrote when it was given nothing (`{name}`)"
    else:
        said = f"the first {form['n_samples']:,} texts of the corpus `{name}`" if form else f"the corpus `{name}`"
    return f"{said}, with the tokens of each sequence in random order" if run.get("dataset_control") else said


def _by_layer(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The record of every SAE with the name of its module, by layer."""
    saes = [sae | {"module": run["hookpoints"][f"layers.{sae['layer']}"]} for run in runs for sae in run["saes"]]
    return sorted(saes, key=lambda sae: sae["layer"])


def _layer_row(sae: Mapping[str, Any]) -> str:
    """An SAE's line in the table."""
    formats = {"fvu": ".4f", "fvu_without_first_position": ".4f", "dead_share": ".1%", "l0": ".1f"}
    shown = {name: "undefined" if sae[name] is None else format(sae[name], how) for name, how in formats.items()}
    return _LAYER_ROW.format(**{**sae, **shown})
