"""Linear probes: how well a logistic regression tells the classes of texts by a representation of them.

All probes of a data set learn from the same texts and are scored on the same others. They are scikit-learn's
`LogisticRegression` with its defaults (L2 penalty, C = 1, L-BFGS; several classes at once by softmax) and up to
`MAX_STEPS` steps. Dense features are brought to mean 0 and deviation 1 on the training texts, latents to a maximum of
1 there: they are >= 0 and most are 0, which they stay, and one that fires on a single text does not outweigh the
others, as it would with a deviation of 1.

Sources: hidden state, latents and reconstruction as in Cho et al. 2025 (FaithfulSAE); the best latents as in SAEBench
(Karvonen et al. 2025), `get_top_k_mean_diff_mask`, the same for two classes.
"""

import warnings
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.preprocessing import MaxAbsScaler, StandardScaler

from sae_utils.evaluation.intervals import share_interval
from sae_utils.evaluation.last_tokens import Encoded
from sae_utils.sources.labelled import HELD_OUT_ONE_IN

REPRESENTATIONS = ("hidden_state", "best_1", "best_5", "best_20", "latents", "reconstruction")
"""What is probed, the SAE's own in the middle."""

N_BEST = (1, 5, 20)
"""How many latents are probed alone; SAEBench's sparse probing has 1, 2 and 5."""

SPLIT_SEED = 0

MAX_STEPS = 1000
"""Of a fit."""


class Split(NamedTuple):
    """Which texts probes learn from, and which they are scored on; numbers of texts, ascending."""

    train: np.ndarray
    test: np.ndarray


def split_texts(classes: np.ndarray) -> Split:
    """Hold out one in five texts of every class, rounded down, drawn with a fixed seed over the texts in their order.

    Args:
        classes: Class of each text, int64 `(texts,)`, counted from 0; each has at least `HELD_OUT_ONE_IN` texts.
    """
    generator = np.random.Generator(np.random.PCG64(SPLIT_SEED))
    held_out = []
    for number in range(classes.max() + 1):
        (members,) = np.nonzero(classes == number)
        held_out.append(generator.permutation(members)[: len(members) // HELD_OUT_ONE_IN])
    test = np.sort(np.concatenate(held_out))
    return Split(np.setdiff1d(np.arange(len(classes)), test), test)


def majority_share(classes: np.ndarray, split: Split) -> float:
    """Share of the held-out texts that are of the training texts' most frequent class: the floor of every accuracy."""
    return float((classes[split.test] == np.bincount(classes[split.train]).argmax()).mean())


def rank_latents(latents: csr_array, classes: np.ndarray) -> np.ndarray:
    """Latents that fire on any text, the best first.

    A latent is as good as the largest difference, over the classes, between its mean activation on the texts of the
    class and on all others, whatever its sign; of two classes that is the difference of their means. Of latents that
    are as good, the one with the lower number comes first.

    Args:
        latents: `(texts, n_latents)`, >= 0.
        classes: Class of each text, int64 `(texts,)`, counted from 0; each has a text.

    Returns:
        int64 `(firing latents,)`.
    """
    counts = np.bincount(classes)  # (classes,)
    members = csr_array((np.ones(len(classes)), (classes, np.arange(len(classes)))))  # (classes, texts)
    (firing,) = np.nonzero(latents.max(axis=0).toarray())
    sums = (members @ latents[:, firing].astype(np.float64)).toarray()  # (classes, firing latents)
    means, others = sums / counts[:, None], (sums.sum(axis=0) - sums) / (len(classes) - counts)[:, None]
    return firing[np.argsort(-np.abs(means - others).max(axis=0), kind="stable")]


def score_dense(features: np.ndarray, classes: np.ndarray, split: Split) -> dict[str, Any]:
    """Scores of a probe on dense features, `(texts, any)`."""
    train, test = (features[rows].astype(np.float64) for rows in split)
    return _score(train, test, StandardScaler(), classes, split)


def score_latents(latents: csr_array, classes: np.ndarray, split: Split) -> dict[str, Any]:
    """Scores of a probe on latents, `(texts, any)`, of which those are left out that fire on no training text."""
    train, test = (latents[rows].astype(np.float64) for rows in split)
    (firing,) = np.nonzero(train.max(axis=0).toarray())
    return _score(train[:, firing], test[:, firing], MaxAbsScaler(), classes, split)


def score_sae(encoded: Encoded, classes: np.ndarray, split: Split) -> dict[str, dict[str, Any]]:
    """Scores of the probes on an SAE's latents, on the best of them, and on its reconstructions."""
    best = rank_latents(encoded.latents[split.train], classes[split.train])
    few = {f"best_{n}": score_latents(encoded.latents[:, np.sort(best[:n])], classes, split) for n in N_BEST}
    return few | {
        "latents": score_latents(encoded.latents, classes, split),
        "reconstruction": score_dense(encoded.x_hat, classes, split),
    }


def _score(
    train: np.ndarray | csr_array,
    test: np.ndarray | csr_array,
    scaler: StandardScaler | MaxAbsScaler,
    classes: np.ndarray,
    split: Split,
) -> dict[str, Any]:
    """Fit on the training texts, score on the others; without any feature, the most frequent class is told."""
    if train.shape[1] == 0:
        told, n_steps = np.full(len(split.test), np.bincount(classes[split.train]).argmax()), 0
    else:
        probe = LogisticRegression(max_iter=MAX_STEPS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the number of steps tells
            probe.fit(scaler.fit_transform(train), classes[split.train])
        told, n_steps = probe.predict(scaler.transform(test)), int(probe.n_iter_.max())
    true = classes[split.test]
    return {
        "accuracy": float(accuracy_score(true, told)),
        "accuracy_interval": share_interval(int((true == told).sum()), len(true)),
        "macro_f1": float(f1_score(true, told, average="macro", zero_division=0)),
        "n_steps": n_steps,
    }
