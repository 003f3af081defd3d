"""Everything that is said of one arm: accuracies, recalls and calibration with intervals; logits freed of a prior."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from diffinf.evaluate.intervals import Floats, Interval, Ints, percentile_interval
from diffinf.evaluate.resampling import checked_arms, confusions, draws, from_confusion, present_classes

BINS = 15  # of the calibration error, of equal width


@dataclass(frozen=True)
class ArmMeasures:
    """Means over an arm's seeds with 95 % intervals that resample test images and seeds, all in 0..1.

    Attributes:
        accuracy: share of test images that are classified right.
        balanced_accuracy: mean recall over all classes that are in the test set.
        primary: mean recall over the classes that were asked for.
        macro_f1: mean F1 over all classes that are in the test set.
        ece: expected calibration error, see `expected_calibration_error`.
        recalls: (K,) recall of each class; None for a class that is not in the test set.
        seeds: number of seeds; n: number of test images.
    """

    accuracy: Interval
    balanced_accuracy: Interval
    primary: Interval
    macro_f1: Interval
    ece: Interval
    recalls: tuple[Interval | None, ...]
    seeds: int
    n: int

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON knows them."""
        return asdict(self)


def arm_measures(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    classes: Sequence[int] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> ArmMeasures:
    """Measure an arm; the resamples are those of `diffinf.evaluate.gain.arm_interval`.

    Args:
        logits: (S, T, K) of S seeds on T test images.
        labels: (T,) true classes in 0..K-1.
        classes: those of the primary figure, as the well populated ones; None: all.
        resamples: number of bootstrap resamples.
        seed: seed of the resampling.

    Raises:
        ValueError: if shapes do not fit or a logit is not finite.
    """
    truth, arms = checked_arms(labels, logits)
    num_seeds, num_rows, num_classes = arms.shape[1:]
    everything = present_classes(truth, None)
    primary = present_classes(truth, classes)
    predictions, (confidences, bins) = arms[0].argmax(axis=-1), _confidences(arms[0])
    surplus = confidences - (predictions == truth)  # (S, T)

    def measured(seeds: Ints, rows: Ints) -> Floats:
        confusion = confusions(predictions[seeds][:, rows], truth[rows], num_classes)
        right = np.diagonal(confusion, axis1=1, axis2=2)[:, everything]
        values = [
            from_confusion(confusion, "accuracy", everything),
            from_confusion(confusion, "balanced_accuracy", everything),
            from_confusion(confusion, "balanced_accuracy", primary),
            from_confusion(confusion, "macro_f1", everything),
            _calibration_error(surplus[seeds][:, rows], bins[seeds][:, rows]),
            *(right / confusion.sum(axis=2)[:, everything]).T,
        ]
        averaged: Floats = np.stack(values).mean(axis=1)
        return averaged

    estimates = measured(np.arange(num_seeds), np.arange(num_rows))
    resampled = np.stack([measured(*drawn) for drawn in draws(truth, num_seeds, resamples, seed)])
    intervals = [percentile_interval(value, resampled[:, k]) for k, value in enumerate(estimates)]
    accuracy, balanced, wanted, f1, ece, *recalls = intervals
    by_class = dict(zip(everything.tolist(), recalls, strict=True))
    return ArmMeasures(
        accuracy=accuracy,
        balanced_accuracy=balanced,
        primary=wanted,
        macro_f1=f1,
        ece=ece,
        recalls=tuple(by_class.get(k) for k in range(num_classes)),
        seeds=num_seeds,
        n=num_rows,
    )


def expected_calibration_error(logits: ArrayLike, labels: ArrayLike) -> float:
    """Mean distance in 0..1 of confidence and accuracy, over 15 bins of equal width (arXiv 1706.04599, section 2).

    Args:
        logits: (T, K); their softmax is the confidence.
        labels: (T,) true classes.

    Raises:
        ValueError: if shapes do not fit or a logit is not finite.
    """
    truth, arms = checked_arms(labels, np.asarray(logits)[None])
    confidences, bins = _confidences(arms[0])
    return float(_calibration_error(confidences - (arms[0].argmax(axis=-1) == truth), bins)[0])


def adjusted_logits(logits: ArrayLike, class_counts: ArrayLike, tau: float = 1.0) -> Floats:
    """Free logits of the classes' shares in training, after the training (arXiv 2007.07314, section 4.1).

    Args:
        logits: (..., K).
        class_counts: (K,) training samples by label; a class without any counts as if it had one.
        tau: 1 for balanced accuracy; 0 changes nothing.

    Returns:
        logits - tau · log(share of the class), (..., K).

    Raises:
        ValueError: if there is not one count a class, or a count is negative or not finite.
    """
    values, counts = np.asarray(logits, dtype=np.float64), np.asarray(class_counts, dtype=np.float64)
    if counts.shape != values.shape[-1:] or not np.isfinite(counts).all() or (counts < 0).any():
        raise ValueError(f"expected {values.shape[-1:]} counts of samples by class, got {counts.tolist()}")
    counts = np.maximum(counts, 1)
    adjusted: Floats = values - tau * np.log(counts / counts.sum())
    return adjusted


def _confidences(logits: Floats) -> tuple[Floats, Ints]:
    """Largest softmax probability of logits (S, T, K), and its bin, both (S, T)."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    confidences: Floats = 1 / shifted.sum(axis=-1)
    return confidences, np.minimum((confidences * BINS).astype(np.int64), BINS - 1)


def _calibration_error(surplus: Floats, bins: Ints) -> Floats:
    """Calibration error (S,) from confidence minus correctness (S, T) and bins (S, T)."""
    rows = np.arange(len(bins))[:, None] * BINS
    sums = np.bincount((bins + rows).ravel(), weights=surplus.ravel(), minlength=len(bins) * BINS)
    error: Floats = np.abs(sums.reshape(-1, BINS)).sum(axis=1) / bins.shape[1]
    return error
