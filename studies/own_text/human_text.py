"""The Free On-line Dictionary of Computing as a corpus: English prose that people wrote.

    python studies/own_text/human_text.py foldoc.dict.dz study_output/smollm2/foldoc.jsonl

Debian's package dict-foldoc has the file (GNU Free Documentation License). An entry is a document; the marks of links
and the indentation are left out, in an order that mixes the alphabet, since of a corpus only the beginning is read.
"""

import argparse
import gzip
import hashlib
import json
import re
from pathlib import Path

LEAST_CHARACTERS = 200
"""Of an entry that is taken; shorter ones mostly point to others."""


def main() -> None:
    """Read, cut into entries, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dictionary", type=Path)
    parser.add_argument("corpus", type=Path, help="made")
    args = parser.parse_args()
    entries = entries_of(gzip.decompress(args.dictionary.read_bytes()).decode(errors="replace"))
    args.corpus.parent.mkdir(parents=True, exist_ok=True)
    args.corpus.write_text("".join(json.dumps({"text": entry}) + "\n" for entry in entries), encoding="utf-8")
    print(f"{args.corpus}: {len(entries):,} entries, {sum(map(len, entries)):,} characters")


def entries_of(text: str) -> list[str]:
    """The entries that are long enough, each its headword and its paragraphs."""
    found = []
    for entry in re.split(r"\n(?=\S)", text):
        paragraphs = [" ".join(each.split()) for each in re.sub(r"[{}]", "", entry).split("\n\n")]
        plain = "\n\n".join(each for each in paragraphs if each)
        if len(plain) >= LEAST_CHARACTERS:
            found.append(plain)
    return sorted(found, key=lambda entry: hashlib.sha256(entry.encode()).hexdigest())


if __name__ == "__main__":
    main()
