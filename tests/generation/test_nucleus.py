import numpy as np
import pytest
import torch
from host_reads import HostReads

import sae_utils.generation.nucleus as nucleus
from sae_utils.generation.nucleus import choose_among, choose_tokens


def reference_choice(logits, uniform, *, temperature, top_p) -> int:
    """The definition, with a full sort and a loop: slow, plain, one row."""
    probs = torch.softmax(logits.float() / temperature, dim=-1).double().numpy()
    kept = range(len(probs))
    if top_p < 1:
        order = sorted(range(len(probs)), key=lambda token: (-probs[token], token))
        mass, kept = 0.0, []
        for token in order:
            kept.append(token)
            mass += probs[token]
            if mass >= top_p:
                break
    total = 0.0
    for token in kept:
        total += probs[token]
    goal, running = min(uniform * total, np.nextafter(total, 0)), 0.0
    for token in kept:
        running += probs[token]
        if running > goal:
            return token
    raise AssertionError("the goal is below the total")


def assert_like_reference(logits, uniforms, **settings):
    chosen = choose_tokens(logits, torch.tensor(uniforms, dtype=torch.float64), **settings)[0].tolist()
    expected = [reference_choice(row, u, **settings) for row, u in zip(logits, uniforms, strict=True)]
    assert chosen == expected


def test_by_hand():
    """Probabilities 0.5, 0.3, 0.2: top_p 0.7 keeps the first two, and 5/8 of the numbers choose the first."""
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log().repeat(4, 1)
    uniforms = torch.tensor([0.0, 0.62, 0.63, 0.999])
    assert choose_tokens(logits, uniforms, temperature=1.0, top_p=0.7)[0].tolist() == [0, 0, 1, 1]
    assert choose_tokens(logits, uniforms, temperature=1.0, top_p=1.0)[0].tolist() == [0, 1, 1, 2]


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
@pytest.mark.parametrize("width", [0.05, 1.0, 6.0])
def test_same_token_as_a_full_sort(top_p, temperature, width):
    """Flat rows are wider than the fast path looks, peaked ones narrower; neither may change what a number picks."""
    generator = torch.Generator().manual_seed(int(100 * width))
    logits = width * torch.randn(40, 6000, generator=generator)
    uniforms = torch.rand(40, generator=generator, dtype=torch.float64).tolist()
    assert_like_reference(logits, uniforms, temperature=temperature, top_p=top_p)


@pytest.mark.parametrize("top_p", [0.3, 0.5, 0.75, 0.9])
def test_ties_go_to_lower_ids(top_p):
    """bfloat16 logits tie all the time, also exactly at the nucleus' edge and at the edge of what is looked at."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randint(0, 4, (40, 6000), generator=generator).to(torch.bfloat16)
    uniforms = torch.rand(40, generator=generator, dtype=torch.float64).tolist()
    assert_like_reference(logits, uniforms, temperature=1.0, top_p=top_p)
    all_equal = torch.zeros(5, 1000)
    assert_like_reference(all_equal, [0.0, 0.25, 0.5, 0.999, 1 - 2**-53], temperature=1.0, top_p=top_p)


def test_last_ids_of_the_vocabulary_can_be_chosen():
    """An off-by-one at the end of the cumulative sum would silently lose the last token."""
    logits = torch.full((3, 5000), -20.0)
    logits[:, -1] = 5.0
    uniforms = torch.tensor([0.001, 0.5, 1 - 2**-53], dtype=torch.float64)
    for top_p in (0.5, 1.0):
        assert choose_tokens(logits, uniforms, temperature=1.0, top_p=top_p)[0].tolist() == [4999] * 3


def test_impossible_tokens_are_never_chosen():
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf"), 0.0, float("-inf")]]).repeat(3, 1)
    uniforms = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    for top_p in (0.9, 1.0):
        assert choose_tokens(logits, uniforms, temperature=1.0, top_p=top_p)[0].tolist() == [1, 3, 3]


def test_rows_do_not_influence_each_other():
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(10, 6000, generator=generator) * torch.linspace(0.01, 5, 10)[:, None]
    uniforms = torch.rand(10, generator=generator, dtype=torch.float64)
    together, _ = choose_tokens(logits, uniforms, temperature=1.0, top_p=0.9)
    alone = [choose_tokens(logits[[i]], uniforms[[i]], temperature=1.0, top_p=0.9)[0] for i in range(10)]
    assert together.tolist() == torch.cat(alone).tolist()


def test_nothing_is_sorted_in_full_when_the_nucleus_is_narrow(monkeypatch):
    """The speed of generation rests on this: looking at few tokens is enough for most rows."""
    widths = []
    original = nucleus._choose_sorted
    monkeypatch.setattr(
        nucleus, "_choose_sorted", lambda values, *rest: widths.append(values.shape[1]) or original(values, *rest)
    )
    logits = torch.zeros(2, 6000)
    logits[:, 17] = 20.0
    choose_tokens(logits, torch.tensor([0.1, 0.9]), temperature=1.0, top_p=0.9)
    assert widths == [1]


# shapes that do not depend on the data


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("n_candidates", [1, 8, 500, 5999, 6000, 10**9])
def test_enough_candidates_give_the_same_token_and_too_few_are_said(top_p, temperature, n_candidates):
    """Peaked and flat rows: whatever is claimed to be found is what a full search finds."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 6000, generator=generator) * torch.linspace(0.05, 12, 40)[:, None]
    uniforms = torch.rand(40, generator=generator, dtype=torch.float64)
    expected = choose_tokens(logits, uniforms, temperature=temperature, top_p=top_p)
    n_found = 0
    for row in range(40):
        *found, is_whole = choose_among(
            logits[[row]], uniforms[[row]], temperature=temperature, top_p=top_p, n_candidates=n_candidates
        )
        if is_whole:
            assert (found[0].item(), found[1].item()) == (expected[0][row].item(), expected[1][row].item())
            n_found += 1
    if n_candidates >= 6000 or top_p == 1.0:
        assert n_found == 40
    elif n_candidates == 500:
        assert n_found > 10
    elif n_candidates <= 8 and top_p >= 0.5:
        assert n_found < 40
    is_all = choose_among(logits, uniforms, temperature=temperature, top_p=top_p, n_candidates=n_candidates)[2]
    assert int(is_all.sum()) == n_found


@pytest.mark.parametrize("n_candidates", [8, 10, 16, 60])
def test_equal_probabilities_at_the_last_candidate_are_not_left_to_chance(n_candidates):
    """bfloat16 logits tie all the time, and which of the tied ones are among the candidates is the device's whim."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randint(0, 9, (200, 60), generator=generator).to(torch.bfloat16)
    uniforms = torch.rand(200, generator=generator, dtype=torch.float64)
    expected = choose_tokens(logits, uniforms, temperature=1.0, top_p=0.5)[0]
    found = [
        choose_among(logits[[i]], uniforms[[i]], temperature=1.0, top_p=0.5, n_candidates=n_candidates)
        for i in range(200)
    ]
    assert all(tokens.item() == expected[i] for i, (tokens, _, is_whole) in enumerate(found) if is_whole)
    n_found = sum(bool(is_whole) for *_, is_whole in found)
    assert n_found == 200 if n_candidates == 60 else 0 < n_found < 200


@pytest.mark.parametrize("n_candidates", [8, 6000])
@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_choosing_among_candidates_asks_the_device_for_nothing(top_p, n_candidates):
    logits, uniforms = torch.randn(70, 6000), torch.rand(70, dtype=torch.float64)
    with HostReads() as reads:
        choose_among(logits, uniforms, temperature=1.0, top_p=top_p, n_candidates=n_candidates)
    assert not reads.counts
