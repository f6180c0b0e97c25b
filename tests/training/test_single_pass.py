from sae_utils.training.settings import TrainingSettings
from sae_utils.training.single_pass import sparsify_config


def test_number_of_latents_is_never_left_to_a_factor():
    """Other readers take it literally from cfg.json, where sparsify would leave 0."""
    config = sparsify_config(TrainingSettings((0,), k=4), 16, 40, hookpoints=["layers.0"], seeds=[0])
    assert (config.sae.num_latents, config.sae.expansion_factor, config.sae.k) == (40, 2, 4)
