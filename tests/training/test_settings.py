import pytest

from sae_utils.errors import InputError
from sae_utils.training.settings import TrainingSettings


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"k": 0}, "--k must be at least 1, got 0"),
        ({"batch_size": 0}, "--batch_size must be at least 1, got 0"),
        ({"grad_acc_steps": -1}, "--grad_acc_steps must be at least 1, got -1"),
        ({"micro_acc_steps": 0}, "--micro_acc_steps must be at least 1, got 0"),
        ({"ctx_len": 1}, "--ctx_len must be at least 2 tokens, got 1"),
        ({"layers": ()}, r"--layers must name at least one layer, each once, got \[\]"),
        ({"layers": (3, 3)}, r"--layers must name at least one layer, each once, got \[3, 3\]"),
        ({"lr": 0.0}, r"--lr must be > 0 and at most 1e\+30, got 0.0"),
        ({"lr": float("nan")}, r"--lr must be > 0 and at most 1e\+30, got nan"),
        ({"shuffle_seed": -1}, "--shuffle_seed must be >= 0, got -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changed, message):
    with pytest.raises(InputError, match=message):
        TrainingSettings(**({"layers": (0,)} | changed))


def test_amounts_by_hand():
    settings = TrainingSettings(layers=(0,), batch_size=4, grad_acc_steps=3, micro_acc_steps=2, ctx_len=100)
    assert settings.chunks_per_step == 12
    assert settings.tokens_per_micro_batch == 200
