"""Scores that others use to find wrong labels, in one interface: (N,) float64, higher is more suspicious."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import numpy.typing as npt
from numpy.typing import ArrayLike

from diffinf.errors import UserError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def rival_scores(
    labels: ArrayLike,
    logits: ArrayLike,
    features: ArrayLike | None = None,
    dynamics: ArrayLike | None = None,
    *,
    neighbours: int = 10,
) -> dict[str, Floats]:
    """Every rival that the arrays allow.

    Args:
        labels: (N,) class indices.
        logits: (N, K), out-of-fold where they are to be fair.
        features: (N, F) of the layer before the logits, or None: no "knn_agreement".
        dynamics: (E, N, K) logits of every epoch of a training, or None: no "aum", no "forgetting".
        neighbours: k of "knn_agreement".

    Returns:
        {name: (N,)}, higher = more suspicious: "loss", "margin", "squared_error", "entropy",
        "self_confidence", "confident_learning" (where cleanlab is installed), "knn_agreement", "aum",
        "forgetting".

    Raises:
        UserError: shapes that do not fit, labels outside the classes, or NaN logits.
    """
    y, z = checked(labels, logits)
    scores = {name: score(y, z) for name, score in _OF_LOGITS.items()}
    if find_spec("cleanlab") is not None:
        scores["confident_learning"] = confident_learning(y, z)
    if features is not None:
        scores["knn_agreement"] = knn_disagreement(y, features, neighbours)
    if dynamics is not None:
        epochs = np.asarray(dynamics)
        if epochs.ndim != 3 or epochs.shape[1:] != z.shape:
            raise UserError(
                f"dynamics have shape {epochs.shape}, expected (epochs, {z.shape[0]}, {z.shape[1]})."
            )
        scores["aum"] = area_under_margin(y, epochs)
        scores["forgetting"] = forgetting(y, epochs)
    return scores


def checked(labels: ArrayLike, scores: ArrayLike, what: str = "logits") -> tuple[Ints, Floats]:
    """Labels (N,) and logits or probabilities (N, K) as arrays; UserError where they do not fit together."""
    y, z = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if z.ndim != 2 or y.shape != z.shape[:1]:
        raise UserError(f"labels {y.shape} and {what} {z.shape}: expected shapes (N,) and (N, K).")
    if not np.issubdtype(y.dtype, np.integer):
        raise UserError(f"labels are {y.dtype}, expected whole numbers: class indices 0..{z.shape[1] - 1}.")
    outside = np.flatnonzero((y < 0) | (y >= z.shape[1]))
    if len(outside):
        raise UserError(
            f"label {y[outside[0]]} of row {outside[0]} is outside the classes 0..{z.shape[1] - 1} "
            f"({len(outside)} such labels)."
        )
    wrong = np.flatnonzero(np.isnan(z).any(1))
    if len(wrong):
        raise UserError(f"{what} of row {wrong[0]} are NaN ({len(wrong)} such rows): the model has diverged.")
    return y.astype(np.int64), z


def softmax(logits: Floats) -> Floats:
    """Probabilities of logits over the last axis."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True))


def cross_entropy(labels: Ints, logits: Floats) -> Floats:
    """-log p_y, 0 to inf."""
    top = logits.max(1)
    return np.asarray(np.log(np.exp(logits - top[:, None]).sum(1)) + top - _own(labels, logits))


def margin(labels: Ints, logits: Floats) -> Floats:
    """Largest other probability minus p_y, -1 to 1."""
    return _other_minus_own(labels, softmax(logits))


def squared_error(labels: Ints, logits: Floats) -> Floats:
    """||p - e_y||², 0 to 2: the last layer's squared gradient without the feature's norm."""
    p = softmax(logits)
    return np.asarray((p**2).sum(1) - 2 * _own(labels, p) + 1)


def entropy(labels: Ints, logits: Floats) -> Floats:
    """-Σ p log p, 0 to log K; blind to the label."""
    p = softmax(logits)
    return np.asarray(-(p * np.log(np.maximum(p, np.finfo(np.float64).tiny))).sum(1))


def self_confidence(labels: Ints, logits: Floats) -> Floats:
    """1 - p_y, 0 to 1: confident learning's ranking (arXiv 1911.00068)."""
    return np.asarray(1 - _own(labels, softmax(logits)))


def confident_learning(labels: Ints, logits: Floats) -> Floats:
    """1 for what cleanlab prunes by noise rate, plus `self_confidence` to rank: 0 to 2 (arXiv 1911.00068)."""
    return cleanlab_issues(labels, logits) + self_confidence(labels, logits)


def cleanlab_issues(labels: Ints, logits: Floats) -> npt.NDArray[np.bool_]:
    """Bool (N,): what cleanlab prunes by noise rate (arXiv 1911.00068), of out-of-fold logits (N, K)."""
    from cleanlab.filter import find_label_issues

    # The library refuses classes that no label names; to it they are not there.
    present, codes = np.unique(labels, return_inverse=True)
    if len(present) < 2:
        return np.zeros(len(labels), dtype=bool)
    probabilities = softmax(logits[:, present])
    return np.asarray(
        find_label_issues(codes, probabilities, filter_by="prune_by_noise_rate", n_jobs=1), dtype=bool
    )


def area_under_margin(labels: Ints, dynamics: npt.NDArray[np.floating]) -> Floats:
    """Mean over epochs of largest other logit - z_y, minus the AUM of arXiv 2001.10528: (E, N, K) -> (N,)."""
    total = np.zeros(len(labels))
    for logits in dynamics:  # an epoch at a time: the array may be large and of half the width
        total += _other_minus_own(labels, logits.astype(np.float64))
    return total / len(dynamics)


def forgetting(labels: Ints, dynamics: npt.NDArray[np.floating]) -> Floats:
    """Times a sample went from right to wrong between epochs (arXiv 1812.05159); never right counts as E."""
    right = np.stack([logits.argmax(1) == labels for logits in dynamics])
    events = (right[:-1] & ~right[1:]).sum(0).astype(np.float64)
    return np.where(right.any(0), events, float(len(right)))


def knn_disagreement(labels: Ints, features: ArrayLike, neighbours: int = 10) -> Floats:
    """Share (0 to 1) of the k nearest other samples by cosine of features (N, F) that carry another label."""
    from sklearn.neighbors import NearestNeighbors

    f = np.asarray(features, dtype=np.float32)
    if f.ndim != 2 or len(f) != len(labels):
        raise UserError(f"features have shape {f.shape}, expected ({len(labels)}, F).")
    k = min(neighbours, len(f) - 1)
    if k < 1:
        return np.zeros(len(f))
    search = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(f)
    nearest = search.kneighbors(return_distance=False)  # without a query a sample is not its own neighbour
    return np.asarray((labels[nearest] != labels[:, None]).mean(1))


def _own(labels: Ints, values: Floats) -> Floats:
    return np.asarray(values[np.arange(len(labels)), labels])


def _other_minus_own(labels: Ints, values: Floats) -> Floats:
    others = values.copy()
    others[np.arange(len(labels)), labels] = -np.inf
    return np.asarray(others.max(1) - _own(labels, values))


_OF_LOGITS: dict[str, Callable[[Ints, Floats], Floats]] = {
    "loss": cross_entropy,
    "margin": margin,
    "squared_error": squared_error,
    "entropy": entropy,
    "self_confidence": self_confidence,
}
