from pathlib import Path

import pytest
import torch
from conftest import load
from test_cli import generate

from sae_utils.files import DamagedFileError
from sae_utils.generated_data import fingerprint_samples, open_samples, read_generation_record
from sae_utils.generation.rows import make_rows


def test_fingerprint_sees_ids_and_where_samples_end(neox):
    source = load(neox)
    rows = [[0, 5, 6], [0, 7]], [[0, 5], [6, 0, 7]], [[0, 5, 6], [0, 8]]
    prints = {fingerprint_samples(make_rows(range(2), [*map(torch.tensor, r)], source.tokenizer, 0)) for r in rows}
    assert len(prints) == 3


def test_the_data_card_may_be_edited_and_the_samples_may_not(tiny):
    """Who adds a line to the card must not be told to sample anew; what is trained on is held to its checksum."""
    folder = Path(generate("--n", "5"))
    for name, is_ours in (("README.md", False), ("data-00000-of-00001.arrow", True)):
        with (folder / name).open("a") as file:
            file.write("More.")
        if is_ours:
            with pytest.raises(DamagedFileError, match=f"{name} is damaged"):
                open_samples(folder, read_generation_record(folder))
        else:
            assert len(open_samples(folder, read_generation_record(folder))) == 5
