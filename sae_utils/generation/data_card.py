"""The README.md inside every generated data set, in the form the Hugging Face hub reads."""

from pathlib import Path
from typing import Any

from datasets import Dataset

from sae_utils.files import write_text
from sae_utils.generated_data import CARD_FILE

_CARD = """---
task_categories: [text-generation]
tags: [sparse-autoencoder, synthetic, self-generated]
configs:
- config_name: default
  data_files:
  - split: train
    path: data-*.arrow
---
# {name}

Text sampled from **{model}** from its beginning-of-sequence token (`{bos_token}`) alone, without any prompt, to train
sparse autoencoders on what the model itself says. It is the model's own output, in whatever language it came out, and
carries the model's errors and biases.

| | |
|---|---|
| samples | {n_samples:,} |
| tokens, BOS and EOS counted | {n_tokens:,} |
| mean length | {mean_length_tokens:.1f} tokens |
| length, 5 % to 95 % of the samples | {shortest:.0f} to {longest:.0f} tokens |
| ended by the model itself (EOS) | {ended_in_eos_share:.1%} |
| distinct samples | {distinct_sample_share:.1%} |
| distinct 1- to 4-grams, in the first {ngram_tokens:,} tokens | {ngram_shares} |
| negative log-likelihood under the model | {nll} nats per token |
| KL of observed first tokens from the model's distribution | {kl} |
| seed, temperature, top_p | {seed}, {temperature}, {top_p} |
| longest sample | {max_length} tokens |
| model weights, tokenizer | `{model_fingerprint}`, `{tokenizer_fingerprint}` (fingerprints) |

Columns: `id` (number of the sample in the stream), `text`, `input_ids` (the ids that were sampled, BOS first, EOS last
where the model chose it), `num_tokens` (their number). `generation.json` has the full record.

No licence is named: nothing here knows one. That of {model} says what may be done with its output.

First sample:

````text
{first_text}
````
"""


def write_data_card(folder: Path, record: dict[str, Any], dataset: Dataset) -> None:
    """Write README.md for a data set from its generation record."""
    first_text = dataset[0]["text"][:600].replace("````", "'''")
    settings = record["settings"]
    quality = record["quality"]
    shares = [share for share in quality["distinct_ngram_shares"].values() if share is not None]
    quantiles = list(quality["length_quantiles_tokens"].values())
    kl, expected = quality["first_token_kl_nats"], quality["first_token_kl_expected_nats"]
    figures = {
        "shortest": quantiles[0],
        "longest": quantiles[-1],
        "ngram_shares": ", ".join(f"{share:.1%}" for share in shares),
        "nll": "undefined" if quality["mean_nll_nats"] is None else f"{quality['mean_nll_nats']:.3f}",
        "kl": "undefined" if kl is None else f"{kl:.4f} nats ({expected:.4f} expected of exact sampling)",
    }
    values = {
        **record,
        **settings,
        **quality,
        **figures,
        "name": f"{settings['model']}, its own text",
        "first_text": first_text,
    }
    write_text(folder / CARD_FILE, _CARD.format(**values))
