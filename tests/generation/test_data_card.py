"""The card of a data set, as the Hugging Face hub reads it."""

import yaml
from test_cli import generate


def test_the_card_claims_no_language(tiny):
    """Nobody has chosen or looked at it: a model asked for nothing writes in many, and code."""
    _, head, body = (generate("--n", "5") / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head) == {
        "task_categories": ["text-generation"],
        "tags": ["sparse-autoencoder", "synthetic", "self-generated"],
    }
    assert "in whatever language it came out" in body
