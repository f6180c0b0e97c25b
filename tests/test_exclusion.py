import pytest
import torch

from sae_utils.errors import InputError
from sae_utils.exclusion import NOTHING, Exclusion, exclusion_of, find_exclusion, parse_exclusion

IDS = torch.tensor([[1, 5, 6, 1, 7], [1, 5, 2, 2, 9]])


def test_words_stand_for_the_targets_own_tokens():
    own = find_exclusion(["first", "bos", "eos", "7"], bos_id=1, eos_id=2, vocab_size=10)
    assert own == Exclusion(has_first=True, ids=(1, 2, 7))
    assert find_exclusion(["eos"], bos_id=0, eos_id=None, vocab_size=10).ids == (0,), "Pythia's EOS is its BOS"
    assert find_exclusion([], bos_id=1, eos_id=2, vocab_size=10) == NOTHING and NOTHING.is_empty
    assert exclusion_of(["first", "norm:2.5"], [3]) == Exclusion(has_first=True, ids=(3,), max_norm=2.5)


def test_one_way_to_write_it():
    """It is compared as text when a run goes on."""
    assert parse_exclusion(["bos", "07", "first", "7", "bos"]) == ("first", "bos", "7")
    assert parse_exclusion(parse_exclusion(["norm:3", "eos"])) == ("eos", "norm:3")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["last"], r"--exclude takes first, bos, eos, token ids, and norm:MULTIPLE, got 'last'"),
        (["-3"], "got '-3'"),
        (["norm:"], "must be followed by a number, such as norm:10"),
        (["norm:1"], "must be > 1 and finite"),
        (["norm:nan"], "must be > 1 and finite"),
        (["norm:2", "norm:3"], "takes one norm:MULTIPLE, got norm:2 norm:3"),
    ],
)
def test_what_cannot_be_left_out_is_refused(words, message):
    with pytest.raises(InputError, match=message):
        parse_exclusion(words)


def test_a_token_that_the_target_does_not_know_is_refused():
    with pytest.raises(InputError, match=r"names the token 10, and the target knows 0 \.\. 9"):
        find_exclusion(["10"], bos_id=1, eos_id=2, vocab_size=10)


def test_first_and_ids_by_hand():
    assert NOTHING.keeps_ids(IDS).all()
    assert Exclusion(has_first=True).keeps_ids(IDS).tolist() == 2 * [[False, True, True, True, True]]
    assert Exclusion(ids=(1, 2)).keeps_ids(IDS).tolist() == [[0, 1, 1, 0, 1], [0, 1, 0, 0, 1]]


def test_norms_are_compared_with_the_median_of_what_else_is_kept():
    """By hand: of the first row 2, 3 and 7 are left, whose median is 3; of the second 4 and 8, and the lower counts."""
    norms = torch.tensor([[90.0, 2, 3, 80, 7], [90, 4, 70, 70, 8]])
    activations = norms[..., None] * torch.tensor([0.6, 0.8])
    kept = Exclusion(has_first=True, ids=(1, 2), max_norm=2).keeps(IDS, activations)
    assert kept.tolist() == [[0, 1, 1, 0, 0], [0, 1, 0, 0, 1]]
    assert Exclusion(max_norm=2).keeps(IDS, activations).tolist() == [[0, 1, 1, 0, 1], [1, 1, 1, 1, 1]]


def test_a_sequence_is_judged_by_itself():
    """Whatever it is in a batch with: batches differ between training, evaluation, and numbers of processes."""
    torch.manual_seed(0)
    activations = torch.randn(2, 5, 4).exp()
    exclusion = Exclusion(has_first=True, max_norm=1.2)
    together = exclusion.keeps(IDS, activations)
    for row in range(2):
        assert torch.equal(exclusion.keeps(IDS[row : row + 1], activations[row : row + 1])[0], together[row])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_to_be_noticed(value):
    """Left out as too large, a broken model's activations would be gone without a word."""
    activations = torch.ones(1, 4, 8)
    activations[0, 2, 3] = value
    assert Exclusion(has_first=True, max_norm=2).keeps(IDS[:1, :4], activations).tolist() == [[0, 1, 1, 1]]


def test_number_formats_do_not_overflow():
    """A norm of 42,000, as BOS has in some models, has a square that float16 does not know."""
    activations = torch.ones(1, 4, 16, dtype=torch.float16)
    activations[0, 0] = 10_000
    assert Exclusion(max_norm=10).keeps(torch.zeros(1, 4, dtype=torch.int64), activations).tolist() == [[0, 1, 1, 1]]
