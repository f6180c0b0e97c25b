"""The texts of the small model: what it is taught, what is held out from it, what others wrote, and its tokenizer.

    python studies/own_text/texts.py study_output/small/texts

All are Python sources of packages that are installed with this project, at the versions in constraints.txt, so nothing
is fetched: `taught.jsonl` and `held_out.jsonl` have every other file of some scientific packages (BSD licences,
matplotlib's is its own), `foreign.jsonl` those of transformers (Apache-2.0). One document a file, in an order that
mixes the packages, since of a corpus only the beginning is read. `tokenizer` is a
byte-level BPE learned from the first.
"""

import argparse
import hashlib
import json
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TAUGHT = ("sympy", "scipy", "networkx", "sklearn", "pandas", "matplotlib")
"""Whose files are taught and held out, if nothing else is asked for."""

FOREIGN = ("transformers",)
"""Of other people, likewise."""

SIZES = range(500, 100_000)
"""Bytes of the files that are taken; larger ones are mostly tables."""

VOCAB_SIZE = 2048
"""Tokens of the tokenizer, with its special one, which is BOS and EOS as in Pythia."""


def main() -> None:
    """Write the texts and the tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--taught", nargs="+", default=TAUGHT, help="packages whose files are taught and held out")
    parser.add_argument("--foreign", nargs="+", default=FOREIGN, help="packages of other people")
    args = parser.parse_args()
    folder = args.folder
    if (folder / "tokenizer").exists():
        print(f"{folder} is there")
        return
    folder.mkdir(parents=True, exist_ok=True)
    documents = read_sources(args.taught)
    taught, held_out = documents[::2], documents[1::2]
    for name, texts in (("taught", taught), ("held_out", held_out), ("foreign", read_sources(args.foreign))):
        lines = [json.dumps({"text": text}) + "\n" for text in texts]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{name}: {len(texts):,} files, {sum(map(len, texts)):,} characters")
    learn_tokenizer(taught).save_pretrained(folder / "tokenizer")


def read_sources(packages: Sequence[str]) -> list[str]:
    """The files of some packages, in the order of their paths' checksums; not their tests, which repeat themselves."""
    found = []
    for package in packages:
        (root,) = map(Path, find_spec(package).submodule_search_locations)
        for path in root.rglob("*.py"):
            name = path.relative_to(root.parent).as_posix()
            if path.stat().st_size in SIZES and "test" not in name:
                found.append((hashlib.sha256(name.encode()).hexdigest(), path.read_text(encoding="utf-8")))
    return [text for _, text in sorted(found)]


def learn_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `VOCAB_SIZE` tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB_SIZE, special_tokens=[end], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end)


if __name__ == "__main__":
    main()
