"""A data set of token ids drawn at random: what an SAE finds in text that nobody wrote and no model says.

    python studies/own_text/random_ids.py study_output/small/texts/tokenizer 5000000 study_output/small/texts/random_ids

Ids are uniform over the vocabulary without its special tokens; one document a row of 256.
"""

import argparse
from pathlib import Path

import numpy as np
from datasets import Dataset
from transformers import AutoTokenizer

ROW = 256
"""Tokens of a row, with BOS, which training puts before every row."""


def main() -> None:
    """Draw, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tokenizer", type=Path, help="folder of the tokenizer")
    parser.add_argument("n_tokens", type=int, help="at least so many, BOS counted")
    parser.add_argument("folder", type=Path, help="where the data set goes")
    args = parser.parse_args()
    if args.folder.exists():
        print(f"{args.folder} is there")
        return
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    plain = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)
    drawn = np.random.default_rng(0).choice(plain, (-(-args.n_tokens // ROW), ROW - 1))
    Dataset.from_dict({"input_ids": drawn.tolist()}).save_to_disk(args.folder)


if __name__ == "__main__":
    main()
