"""How much of the labels is wrong, and which: confident joint, class noise rates, P(a label is right)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numpy.typing import ArrayLike

from diffinf.errors import UserError
from diffinf.influence.rivals import Floats, Ints, checked

_TINY = 1e-12
# Steps of the deconvolution where the posterior is to be calibrated: on synthetic class-conditional noise more are
# better, on crowd noise with a weak classifier fewer are (1: soft relabelling).
_STEPS = 5
# The same for ranking, and how much the mean of several models is sharpened (docs/scores.md has the comparison).
_RANKING_STEPS = 2
_SHARPNESS = 1.5
# So many labels may at least be of any other class. Networks that fit every label leave no evidence of noise; without
# this all scores would be one, with it they fall back to the order of the probabilities.
_LEAST_NOISE = 1e-3


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


def label_posterior(
    labels: ArrayLike, probabilities: ArrayLike, joint: Floats, *, steps: int = _STEPS
) -> Floats:
    """P(true = j | image, given label) of every sample, (N, K); rows sum to 1.

    With class-conditional noise T[j, g] = P(given g | true j), taken from the joint, Bayes gives

        P(true j | x, given y) = T[j, y] q_j / Σ_k T[k, y] q_k,   q_j = P(true j | x).

    The classifier has learned p_g = P(given g | x) = Σ_j T[j, g] q_j, so q is p with the noise taken out.
    It is found by expectation maximisation on KL(p || Tᵀq), started at the true classes' shares:

        q_j <- q_j Σ_g p_g T[j, g] / Σ_k T[k, g] q_k

    which stays a distribution, where the inverse of T does not. The first step is the soft relabelling
    Σ_g p_g P(true j | given g); many steps amplify the errors of a weak classifier. A few are between.
    """
    y, p = checked_probabilities(labels, probabilities)
    shares = joint.sum(0)
    transition = (joint / np.maximum(shares, _TINY)).T  # [true, given]
    q = np.tile(shares, (len(p), 1))
    for _ in range(steps):
        q *= (p / np.maximum(q @ transition, _TINY)) @ transition.T
    q *= transition[:, y].T
    total = q.sum(1, keepdims=True)
    # Where the joint rules every class out, the classifier alone is left to say.
    return np.asarray(np.where(total > _TINY, q / np.maximum(total, _TINY), p))


def refined_joint(
    labels: ArrayLike, probabilities: ArrayLike, joint: Floats, *, steps: int = _STEPS
) -> Floats:
    """The joint again, (K, K), [given, true], as the mean of the samples' posteriors under the first one.

    A weak classifier's confident joint counts its own errors as wrong labels; one such step takes most of
    that back. More steps drift: from the labels alone noise and difficulty cannot be told apart.
    """
    y, p = checked_probabilities(labels, probabilities)
    posterior = label_posterior(y, p, joint, steps=steps)
    sums = np.zeros((p.shape[1], p.shape[1]))
    np.add.at(sums, y, posterior)
    return sums / len(y)


def class_shares(labels: ArrayLike, probabilities: ArrayLike) -> Floats:
    """How much of each class the samples show, (N, K), rows summing to 1: what to learn in the place of the labels.

    The posterior of the true class given image and label, under the refined joint of the same probabilities.

    Args:
        labels: (N,) given class indices.
        probabilities: (N, K), out-of-fold; rows sum to 1.
    """
    joint = refined_joint(labels, probabilities, confident_joint(labels, probabilities))
    return label_posterior(labels, probabilities, joint)


def label_trust(labels: ArrayLike, probabilities: ArrayLike, joint: Floats) -> Floats:
    """P(the given label is right), (N,), 0 to 1: `label_posterior` at the label.

    Args:
        labels: (N,) given class indices.
        probabilities: (N, K), out-of-fold: a model's probability of a label that it was trained on says little.
        joint: (K, K) of `confident_joint`.

    Returns:
        (N,). `1 - label_trust(...).mean()` estimates the share of wrong labels.
    """
    y, p = checked_probabilities(labels, probabilities)
    posterior = label_posterior(y, p, joint)
    return np.asarray(posterior[np.arange(len(y)), y])


def error_log_odds(labels: ArrayLike, probabilities: ArrayLike) -> Floats:
    """Log-odds that the given label is wrong, (N,), any real number: higher is more suspicious.

    For the probabilities of models that were TRAINED on the sample, averaged over several. A label that the other
    samples speak against is fitted late and not by all of them, and their mean shows it better than one model that
    never saw the sample. Means are too soft, so they are sharpened (p^1.5); then the label's posterior is
    taken (`label_posterior`) under the joint that these probabilities give. Training draws probabilities towards the
    given labels, so the odds rank samples and are too small to be read as odds: see `ranked_trust`.

    Args:
        labels: (N,) given class indices.
        probabilities: (N, K), mean over models that were trained on the sample; rows sum to 1.
    """
    y, p = checked_probabilities(labels, probabilities)
    sharp = np.maximum(p, _TINY) ** _SHARPNESS
    sharp /= sharp.sum(1, keepdims=True)
    joint = _with_least_noise(confident_joint(y, sharp))
    joint = _with_least_noise(refined_joint(y, sharp, joint, steps=_RANKING_STEPS))
    posterior = label_posterior(y, sharp, joint, steps=_RANKING_STEPS)
    right = posterior[np.arange(len(y)), y]
    others = posterior.copy()
    others[np.arange(len(y)), y] = 0
    return np.asarray(np.log(np.maximum(others.sum(1), _TINY)) - np.log(np.maximum(right, _TINY)))


def _with_least_noise(joint: Floats) -> Floats:
    """The joint with a small part of every given label dealt out over all classes; rows keep their sums."""
    uniform = joint.sum(1, keepdims=True) / joint.shape[1]
    return np.asarray((1 - _LEAST_NOISE) * joint + _LEAST_NOISE * uniform)


def ranked_trust(trust: ArrayLike, suspicion: ArrayLike) -> Floats:
    """The values of `trust`, (N,), dealt out in the order of `suspicion`, (N,): least trust to most suspicion.

    So the column `label_trust` comes of `label_trust()` and the column `score`, which flags: out-of-fold trust gives
    fair shares overall and a mediocre ranking, `error_log_odds` is the reverse. Equal suspicions share the mean of
    their values.
    """
    values, order = np.sort(np.asarray(trust, dtype=np.float64)), np.asarray(suspicion, dtype=np.float64)
    _, group = np.unique(-order, return_inverse=True)
    sums = np.bincount(group, weights=values[np.argsort(np.argsort(-order, kind="stable"), kind="stable")])
    return np.asarray((sums / np.bincount(group))[group])


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
