import pytest

from sae_utils.errors import InputError
from sae_utils.expansion import DEFAULT_N_LATENTS, DictionarySize


def test_a_number_comes_before_a_factor_and_both_before_the_table():
    assert DictionarySize(num_latents=100).n_latents("pythia-1.4b", 2048) == 100
    assert DictionarySize(expansion_factor=3).n_latents("pythia-1.4b", 2048) == 6144
    assert DictionarySize().n_latents("pythia-1.4b", 2048) == 40_960


def test_every_other_model_gets_the_dictionary_of_the_pythias():
    """Or dictionaries of two models would not compare."""
    assert DictionarySize().n_latents("anything", 768) == DEFAULT_N_LATENTS == 40_960


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"expansion_factor": 0}, "--expansion_factor must be at least 1, got 0"),
        ({"num_latents": -8}, "--num_latents must be at least 1, got -8"),
        ({"expansion_factor": 2, "num_latents": 64}, "both set the dictionary size, got 2 and 64; give one of them"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(size, message):
    with pytest.raises(InputError, match=message):
        DictionarySize(**size)
