"""Measures of arms out of confusion matrices, and the resampling of test images and seeds behind their intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from diffinf.evaluate.intervals import Floats, Ints, resampled_rows

Metric = Literal["balanced_accuracy", "accuracy", "macro_f1"]


def present_classes(labels: Ints, classes: Sequence[int] | None) -> Ints:
    """The classes among ``labels`` (T,), or those of ``classes`` that are; ValueError if there are none."""
    present = np.unique(labels)
    chosen = present if classes is None else present[np.isin(present, classes)]
    if not len(chosen):
        raise ValueError(f"none of the classes {classes} is among the labels")
    return chosen


def checked_arms(labels: ArrayLike, *logits: ArrayLike) -> tuple[Ints, Floats]:
    """Labels (T,) and the logits (S, T, K) of each arm as one array (A, S, T, K).

    Raises:
        ValueError: if shapes do not fit, a label is none of the classes, or a logit is not finite.
    """
    truth = np.asarray(labels)
    arms = [np.asarray(arm, dtype=np.float64) for arm in logits]
    if len({arm.shape for arm in arms}) != 1 or arms[0].ndim != 3 or arms[0].shape[1] != len(truth):
        shapes = ", ".join(str(arm.shape) for arm in arms)
        raise ValueError(f"logits must be (seeds, {len(truth)}, classes), alike for every arm, got {shapes}")
    if not len(truth) or not len(arms[0]):
        raise ValueError("a measure needs at least one seed and one test image")
    if truth.min() < 0 or truth.max() >= arms[0].shape[2]:
        raise ValueError(f"labels must lie in 0..{arms[0].shape[2] - 1}")
    if any(not np.isfinite(arm).all() for arm in arms):
        raise ValueError("logits are not finite: a diverged training has no measure, leave its seed out")
    return truth.astype(np.int64), np.stack(arms)


def draws(labels: Ints, num_seeds: int, resamples: int, seed: int) -> Iterator[tuple[Ints, Ints]]:
    """Seeds (S,) and test images (T,) of each resample: images are drawn within their class, seeds freely."""
    generator = np.random.default_rng([seed, 0x6A12])
    for rows in resampled_rows(labels, resamples, generator):
        yield np.asarray(generator.integers(num_seeds, size=num_seeds)), rows


def confusions(predictions: Ints, labels: Ints, num_classes: int) -> Ints:
    """Confusion matrices (P, true K, predicted K) of predictions (P, T)."""
    offsets = np.arange(len(predictions))[:, None] * num_classes**2
    cells = labels * num_classes + predictions + offsets
    counts = np.bincount(cells.ravel(), minlength=len(predictions) * num_classes**2)
    return counts.reshape(-1, num_classes, num_classes)


def from_confusion(confusion: Ints, metric: Metric, classes: Ints) -> Floats:
    """A measure (B,) from confusion matrices (B, true K, predicted K): a thousand resamples in one go."""
    right = np.diagonal(confusion, axis1=1, axis2=2)[:, classes].astype(np.float64)
    actual = confusion.sum(axis=2)[:, classes]
    predicted = confusion.sum(axis=1)[:, classes]
    if metric == "accuracy":
        value: Floats = np.trace(confusion, axis1=1, axis2=2) / confusion.sum(axis=(1, 2))
    elif metric == "balanced_accuracy":
        value = (right / actual).mean(axis=1)
    elif metric == "macro_f1":
        value = (2 * right / (actual + predicted)).mean(axis=1)
    else:
        raise ValueError(f"unknown metric {metric!r}: expected balanced_accuracy, accuracy or macro_f1")
    return value
