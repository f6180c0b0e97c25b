"""Write a model of a published shape with random weights: speed and memory do not depend on what weights are.

    python benchmarks/random_model.py pythia-1.4b full_size/models/pythia-1.4b     # 2.8 GB

For machines that reach no hub. The head's weights are scaled so that the next token has an entropy of about four nats,
as of a trained model: how long a nucleus takes to find does depend on its width. The tokenizer calls every token by its
number.
"""

import argparse
from pathlib import Path

import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, GPTNeoXConfig, PreTrainedModel, PreTrainedTokenizerFast

EOS = "<|endoftext|>"

LOGIT_STD = 3.6
"""Of 50,304 normal logits of this standard deviation, the softmax has an entropy of ln 50,304 - 3.6^2 / 2 nats."""

SHAPES = {
    "tiny": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 32,
        "vocab_size": 128,
    },
    "pythia-70m": {"hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 2048},
    "pythia-1.4b": {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 8192},
    "pythia-2.8b": {
        "hidden_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "intermediate_size": 10240,
    },
}
"""Published shapes of models whose weights need a hub; and one that is nobody's, for runs that are long otherwise."""


def main() -> None:
    """Write the model and its tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = random_model(args.name, device, torch.bfloat16)
    model.save_pretrained(args.folder)
    numbers = {EOS: 0} | {str(i): i for i in range(1, model.config.vocab_size)}
    words = Tokenizer(models.WordLevel(numbers, unk_token=EOS))
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token=EOS, eos_token=EOS).save_pretrained(args.folder)


@torch.no_grad()
def random_model(name: str, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """A causal language model of that shape, the same weights every time on one kind of device."""
    shape = {"vocab_size": 50304, "max_position_embeddings": 2048, "rotary_pct": 0.25} | SHAPES[name]
    config = GPTNeoXConfig(**shape, bos_token_id=0, eos_token_id=0)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)
    scale = LOGIT_STD / (config.initializer_range * config.hidden_size**0.5)
    model.get_output_embeddings().weight.mul_(scale)  # of a normalised state
    return model


if __name__ == "__main__":
    main()
