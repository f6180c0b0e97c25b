"""The card of a data set, as the Hugging Face hub reads it."""

from huggingface_hub import DatasetCard
from test_cli import generate


def test_the_card_claims_no_language_and_no_licence(tiny):
    """Nobody has chosen or looked at it: a model asked for nothing writes in many, and code."""
    card = DatasetCard.load(generate("--n", "5") / "README.md")
    assert card.data.to_dict() == {
        "task_categories": ["text-generation"],
        "tags": ["sparse-autoencoder", "synthetic", "self-generated"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data-*.arrow"}]}],
    }
    assert "in whatever language it came out" in card.text and "No licence is named" in card.text
