"""How much of the labels is wrong, and which: confident joint, class noise rates, P(a label is right)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numpy.typing import ArrayLike

from diffinf.errors import UserError
from diffinf.influence.rivals import Floats, Ints, checked


def confident_joint(labels: ArrayLike, probabilities: ArrayLike) -> Floats:
    """Joint distribution of given and true label, by confident learning (arXiv 1911.00068, section 3.1).

    A sample counts as truly j when p_j reaches the mean p_j of the samples labelled j; where several
    classes do, the likeliest class counts. Rows are scaled to the shares of the given labels.

    Args:
        labels: (N,) given class indices.
        probabilities: (N, K), out-of-fold; rows sum to 1.

    Returns:
        (K, K), [given, true], sums to 1; the diagonal's sum is the estimated share of right labels.

    Raises:
        UserError: shapes that do not fit, labels outside the classes, NaN, or rows that are no distributions.
    """
    y, p = checked_probabilities(labels, probabilities)
    n, k = p.shape
    counts = np.bincount(y, minlength=k)
    sums = np.zeros((k, k))
    np.add.at(sums, y, p)
    thresholds = np.where(counts > 0, np.diagonal(sums) / np.maximum(counts, 1), np.inf)
    confident = p >= thresholds - 1e-6
    several = confident.sum(1) > 1
    guess = np.where(several, p.argmax(1), confident.argmax(1))
    sure = confident.any(1)
    joint = np.zeros((k, k))
    np.add.at(joint, (y[sure], guess[sure]), 1)
    # A class in which nothing is confident keeps its labels: no evidence is no noise.
    np.fill_diagonal(joint, np.maximum(np.diagonal(joint), 1))
    return np.asarray(joint / joint.sum(1, keepdims=True) * counts[:, None] / n)


def class_noise_rates(joint: Floats) -> Floats:
    """P(label wrong | given label = k), (K,), of a joint [given, true]; 0 for a class without labels."""
    rows = joint.sum(1)
    return np.asarray(np.where(rows > 0, 1 - np.diagonal(joint) / np.where(rows > 0, rows, 1), 0.0))


def checked_probabilities(labels: ArrayLike, probabilities: ArrayLike) -> tuple[Ints, Floats]:
    """As `rivals.checked`, and every row is a distribution."""
    y, p = checked(labels, probabilities, "probabilities")
    wrong = np.flatnonzero((np.abs(p.sum(1) - 1) > 1e-3) | (p < 0).any(1))
    if len(wrong):
        raise UserError(
            f"probabilities of row {wrong[0]} sum to {p[wrong[0]].sum():.4g}: expected a distribution over "
            "the classes (logits? apply softmax first)."
        )
    return y, p


def expected_precision(trust: ArrayLike, flagged: npt.NDArray[np.bool_]) -> float:
    """Expected share of wrong labels among the flagged samples; NaN when none is flagged."""
    chosen = np.asarray(trust, dtype=np.float64)[flagged]
    return float(np.mean(1 - chosen)) if len(chosen) else float("nan")
