"""Linear probes: scores by hand, the choice of latents against a slow plain one, and what chance alone gives."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from sae_utils.evaluation.last_tokens import Encoded
from sae_utils.evaluation.probing import (
    N_BEST,
    REPRESENTATIONS,
    majority_share,
    rank_latents,
    score_dense,
    score_latents,
    score_sae,
    split_texts,
)


def sparse_latents(rng: np.random.Generator, n_texts: int, n_latents: int, k: int = 4) -> np.ndarray:
    """Activations >= 0, at most k a text; whole numbers, so that some latents are equally good."""
    dense = np.zeros((n_texts, n_latents), np.float32)
    for row in dense:
        row[rng.choice(n_latents, k, replace=False)] = rng.integers(0, 4, k)
    return dense


def classes_of(rng: np.random.Generator, n_texts: int, n_classes: int) -> np.ndarray:
    return rng.permutation(np.arange(n_texts) % n_classes)


# the split


def test_one_in_five_of_every_class_is_held_out():
    classes = np.array([0] * 50 + [1] * 14 + [2] * 5)
    split = split_texts(classes)
    assert np.bincount(classes[split.test]).tolist() == [10, 2, 1]
    assert sorted([*split.train, *split.test]) == list(range(69))
    assert (np.diff(split.train) > 0).all() and (np.diff(split.test) > 0).all()


def test_the_split_is_the_documented_one():
    """Whoever repeats it elsewhere has the same texts."""
    classes = np.random.default_rng(3).permutation([0] * 12 + [1] * 7)
    generator, held_out = np.random.Generator(np.random.PCG64(0)), []
    for number, n in ((0, 2), (1, 1)):
        held_out += generator.permutation([i for i in range(19) if classes[i] == number])[:n].tolist()
    assert split_texts(classes).test.tolist() == sorted(held_out)


def test_majority_share_by_hand():
    """Of the class that most training texts have, also where another is the most frequent of those held out."""
    classes = np.array([0, 0, 0, 1, 1, 1, 1, 0])
    split = split_texts(np.array([0] * 5 + [1] * 5))._replace(train=np.array([0, 1, 2, 3]), test=np.array([4, 5, 6, 7]))
    assert majority_share(classes, split) == 0.25


# the best latents


def rank_slowly(latents: np.ndarray, classes: np.ndarray) -> list[int]:
    """The definition, latent by latent and class by class."""
    goodness = {}
    for latent in range(latents.shape[1]):
        column = [float(value) for value in latents[:, latent]]
        if max(column) == 0:
            continue
        differences = []
        for number in set(classes.tolist()):
            inside = [value for value, each in zip(column, classes, strict=True) if each == number]
            outside = [value for value, each in zip(column, classes, strict=True) if each != number]
            differences.append(abs(sum(inside) / len(inside) - sum(outside) / len(outside)))
        goodness[latent] = max(differences)
    return sorted(goodness, key=lambda latent: (-round(goodness[latent], 12), latent))


@pytest.mark.parametrize("n_classes", [2, 5])
def test_best_latents_are_those_of_a_slow_plain_choice(n_classes):
    rng = np.random.default_rng(n_classes)
    latents, classes = sparse_latents(rng, 64, 40), classes_of(rng, 64, n_classes)
    latents[:, [3, 8]] = 0.0
    latents[:, 11] = latents[:, 10]  # equally good
    ranked = rank_latents(csr_array(latents), classes)
    assert sorted(ranked) == sorted(set(np.nonzero(latents.max(axis=0))[0]) - {3, 8})
    expected = rank_slowly(latents, classes)
    assert np.array_equal(ranked, expected)
    assert expected.index(11) == expected.index(10) + 1


def test_of_two_classes_goodness_is_the_difference_of_means():
    """As in SAEBench; a latent that tells by its absence is as good."""
    latents = np.array([[1, 5, 0], [1, 5, 0], [3, 0, 1], [3, 0, 1]], np.float32)
    assert rank_latents(csr_array(latents), np.array([0, 0, 1, 1])).tolist() == [1, 0, 2]


# scores


def planted(n_classes: int, *, n_texts: int = 200, n_latents: int = 30) -> tuple[Encoded, np.ndarray, np.ndarray]:
    """Texts of whose latents some tell the class, alone if there are two; and hidden states without information."""
    rng = np.random.default_rng(0)
    classes = classes_of(rng, n_texts, n_classes)
    latents = sparse_latents(rng, n_texts, n_latents)
    latents[:, :n_classes] = 0
    for number in range(1, n_classes):
        latents[classes == number, number] = 5.0
    hidden = rng.normal(size=(n_texts, 8)).astype(np.float32)
    return Encoded(csr_array(latents), hidden + 4 * np.eye(n_classes, 8)[classes]), hidden, classes


def test_a_latent_that_separates_two_classes_gives_one():
    encoded, hidden, classes = planted(2)
    split = split_texts(classes)
    scores = score_sae(encoded, classes, split)
    for name in ("best_1", "best_5", "best_20", "latents"):
        assert scores[name]["accuracy"] == scores[name]["macro_f1"] == 1.0
    assert {*scores, "hidden_state"} == set(REPRESENTATIONS)
    assert scores["reconstruction"]["accuracy"] > 0.9
    assert 0.3 < score_dense(hidden, classes, split)["accuracy"] < 0.7


def test_one_latent_tells_two_of_five_classes_apart_and_five_tell_all():
    encoded, _, classes = planted(5)
    scores = score_sae(encoded, classes, split_texts(classes))
    assert scores["best_1"]["accuracy"] == 0.4, "the class it fires on, and one of the four others"
    assert scores["best_5"]["accuracy"] == scores["best_20"]["accuracy"] == 1.0


@pytest.mark.parametrize("n_classes", [2, 4])
def test_shuffled_labels_give_about_the_floor(n_classes):
    """A probe that saw a held-out text would do better."""
    encoded, hidden, classes = planted(n_classes, n_texts=1000)
    shuffled = np.random.default_rng(5).permutation(classes)
    split = split_texts(shuffled)
    floor = majority_share(shuffled, split)
    scores = score_sae(encoded, shuffled, split) | {"hidden_state": score_dense(hidden, shuffled, split)}
    assert floor == 1 / n_classes
    assert {name for name, each in scores.items() if abs(each["accuracy"] - floor) > 0.1} == set()


def test_scores_by_hand():
    """Held out: 4 texts of class 0 and 2 of class 1, and of each one is told to be of the other."""
    features = np.array([-2.0, -1, 1, 2, *[-1.5] * 3, 1.5, 1.5, -1.5])[:, None]
    classes = np.array([0, 0, 1, 1, 0, 0, 0, 0, 1, 1])
    split = split_texts(np.array([0] * 5 + [1] * 5))._replace(train=np.arange(4), test=np.arange(4, 10))
    scores = score_dense(features, classes, split)
    assert scores["accuracy"] == 4 / 6
    f1_of_0, f1_of_1 = 2 * 3 / (4 + 4), 2 * 1 / (2 + 2)
    assert scores["macro_f1"] == pytest.approx((f1_of_0 + f1_of_1) / 2)
    low, high = scores["accuracy_interval"]
    assert low < 4 / 6 < high and scores["n_steps"] > 0


def test_scale_and_offset_of_features_do_not_matter():
    """The L2 penalty would weigh a layer with large activations less."""
    encoded, hidden, classes = planted(4)
    split = split_texts(classes)
    x = hidden + 0.5 * np.eye(4, 8)[classes]
    stretched = x * np.geomspace(0.01, 1000, 8) + np.arange(8) * 100
    assert score_dense(x, classes, split)["accuracy"] == score_dense(stretched, classes, split)["accuracy"]
    factors = np.geomspace(0.01, 1000, 30)
    scaled = csr_array(encoded.latents.toarray() * factors)
    assert score_latents(encoded.latents, classes, split) == score_latents(scaled, classes, split)


def test_features_that_are_the_same_on_all_training_texts_do_no_harm():
    encoded, _, classes = planted(2)
    split = split_texts(classes)
    constant = np.hstack([encoded.x_hat, np.full((200, 1), 1e5)])
    assert score_dense(constant, classes, split)["accuracy"] == score_dense(encoded.x_hat, classes, split)["accuracy"]


def test_an_sae_without_a_latent_that_fires_tells_the_most_frequent_class():
    """One that is dead on these texts, or leaves out all of them, has the floor and not an error."""
    rng = np.random.default_rng(0)
    classes = rng.permutation([0] * 30 + [1] * 20)
    split = split_texts(classes)
    scores = score_sae(Encoded(csr_array((50, 12), dtype=np.float32), rng.normal(size=(50, 3))), classes, split)
    for name in ("latents", *(f"best_{n}" for n in N_BEST)):
        assert scores[name]["accuracy"] == majority_share(classes, split) == 0.6
        assert scores[name]["macro_f1"] == pytest.approx(0.75 / 2) and scores[name]["n_steps"] == 0


def test_held_out_texts_choose_no_latent_and_no_scale():
    """Their labels must not be known to what is scored on them."""
    encoded, _, classes = planted(2)
    split, other = split_texts(classes), classes.copy()
    other[split.test] = 1 - other[split.test]
    right, wrong = (score_sae(encoded, each, split) for each in (classes, other))
    assert right["best_1"]["accuracy"] == 1.0 and wrong["best_1"]["accuracy"] == 0.0
    assert wrong["latents"]["accuracy"] == 0.0
    loud_there_alone = encoded.latents.toarray()
    loud_there_alone[split.test, 0] = 1000.0 * classes[split.test]
    assert score_sae(encoded._replace(latents=csr_array(loud_there_alone)), classes, split)["best_1"]["accuracy"] == 1.0
    louder = encoded.latents.toarray()
    louder[split.test] *= 7
    assert score_latents(csr_array(louder), classes, split)["n_steps"] == right["latents"]["n_steps"]
