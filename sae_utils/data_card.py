"""The README.md inside every generated data set, in the form the Hugging Face hub reads."""

from pathlib import Path
from typing import Any

from datasets import Dataset

from sae_utils.records import write_text

_CARD = """---
language: en
task_categories: [text-generation]
tags: [sparse-autoencoder, synthetic, self-generated]
---
# {name}

Text sampled from **{model}** from its beginning-of-sequence token (`{bos_token}`) alone, without any prompt, to train
sparse autoencoders on what the model itself says. It is the model's own output and carries its errors and biases.

| | |
|---|---|
| samples | {n_samples:,} |
| tokens, BOS and EOS counted | {n_tokens:,} |
| mean length | {mean_length_tokens:.1f} tokens |
| ended by the model itself (EOS) | {ended_in_eos_share:.1%} |
| seed, temperature, top_p | {seed}, {temperature}, {top_p} |
| longest sample | {max_length} tokens |
| model weights, tokenizer | `{model_fingerprint}`, `{tokenizer_fingerprint}` (fingerprints) |

Columns: `id` (number of the sample in the stream), `text`, `input_ids` (the ids that were sampled, BOS first, EOS last
where the model chose it), `num_tokens` (their number). `generation.json` has the full record.

First sample:

````text
{first_text}
````
"""


def write_data_card(folder: Path, record: dict[str, Any], dataset: Dataset) -> None:
    """Write README.md for a data set from its generation record."""
    first_text = dataset[0]["text"][:600].replace("````", "'''")
    settings = record["settings"]
    values = {**record, **settings, "name": f"{settings['model']}, its own text", "first_text": first_text}
    write_text(folder / "README.md", _CARD.format(**values))
