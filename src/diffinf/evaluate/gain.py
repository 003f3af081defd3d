"""What retraining gained: measures, intervals over test images and seeds, paired tests, gaps closed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import f1_score, recall_score

from diffinf.evaluate.intervals import Floats, Interval, Ints, percentile_interval
from diffinf.evaluate.resampling import (
    Metric,
    checked_arms,
    confusions,
    draws,
    from_confusion,
    present_classes,
)


@dataclass(frozen=True)
class Difference:
    """Difference of two arms (a - b) in a measure, paired on seeds and test images.

    Attributes:
        estimate: mean difference over the seeds; low and high are the ends of its 95 % interval.
        p_value: two-sided bootstrap p value of "no difference"; never below 1 / (resamples + 1).
        seeds: number of paired seeds; n: number of test images.
    """

    estimate: float
    low: float
    high: float
    p_value: float
    seeds: int
    n: int

    def to_dict(self) -> dict[str, float]:
        """The fields as JSON knows them."""
        return asdict(self)


@dataclass(frozen=True)
class GapClosed:
    """(arm - baseline) / (oracle - baseline).

    Attributes:
        gap: the denominator with its interval.
        closed: the ratio with its interval; None if the gap's interval holds 0, when a ratio means nothing.
    """

    gap: Interval
    closed: Interval | None

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON knows them."""
        return asdict(self)


def balanced_accuracy(
    predictions: ArrayLike, labels: ArrayLike, classes: Sequence[int] | None = None
) -> float:
    """Mean recall in 0..1 over the classes present in ``labels`` (N,), or over those of ``classes`` that are.

    Raises:
        ValueError: if none of the classes is present.
    """
    truth = np.asarray(labels)
    return float(
        recall_score(
            truth,
            np.asarray(predictions),
            labels=present_classes(truth, classes),
            average="macro",
            zero_division=0,
        )
    )


def mean_absolute_error(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Mean distance in classes (bins) of predictions (N,) from labels (N,), where the classes are ordered."""
    distance = np.asarray(predictions, dtype=np.int64) - np.asarray(labels, dtype=np.int64)
    return float(np.abs(distance).mean())


def macro_f1(predictions: ArrayLike, labels: ArrayLike, classes: Sequence[int] | None = None) -> float:
    """Mean F1 in 0..1 over the classes present in ``labels`` (N,), or over those of ``classes`` that are.

    Raises:
        ValueError: if none of the classes is present.
    """
    truth = np.asarray(labels)
    return float(
        f1_score(
            truth,
            np.asarray(predictions),
            labels=present_classes(truth, classes),
            average="macro",
            zero_division=0,
        )
    )


def arm_interval(
    logits: ArrayLike,
    labels: ArrayLike,
    metric: Metric = "balanced_accuracy",
    *,
    classes: Sequence[int] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Mean of a measure over an arm's seeds, with a 95 % interval that resamples test images AND seeds.

    Test images are drawn within their class, seeds freely; with one seed only test images vary.

    Args:
        logits: (S, T, K) of S seeds on T test images.
        labels: (T,) true classes in 0..K-1.
        metric: the measure.
        classes: the classes whose mean is taken (accuracy knows no classes); by default all that are present.
        resamples: number of bootstrap resamples.
        seed: seed of the resampling.

    Raises:
        ValueError: if shapes do not fit or a logit is not finite.
    """
    truth, arms = checked_arms(labels, logits)
    estimate, draws = _resampled(arms, truth, metric, classes, resamples, seed)
    return percentile_interval(estimate[0], draws[:, 0])


def paired_difference(
    arm_a: ArrayLike,
    arm_b: ArrayLike,
    labels: ArrayLike,
    metric: Metric = "balanced_accuracy",
    *,
    classes: Sequence[int] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Difference:
    """Difference ``arm_a - arm_b`` in a measure: every resample draws the same seeds and images for both.

    Args:
        arm_a: logits (S, T, K); row s of both arms was trained with the same seed.
        arm_b: logits (S, T, K).
        labels: (T,) true classes.
        metric: the measure.
        classes: as in `arm_interval`.
        resamples: number of bootstrap resamples.
        seed: seed of the resampling.

    Raises:
        ValueError: if shapes do not fit or a logit is not finite.
    """
    truth, arms = checked_arms(labels, arm_a, arm_b)
    estimate, draws = _resampled(arms, truth, metric, classes, resamples, seed)
    difference = draws[:, 0] - draws[:, 1]
    interval = percentile_interval(estimate[0] - estimate[1], difference)
    beyond = min(int((difference <= 0).sum()), int((difference >= 0).sum()))
    p_value = min(1.0, 2 * (1 + beyond) / (resamples + 1))
    return Difference(interval.estimate, interval.low, interval.high, p_value, arms.shape[1], len(truth))


def editing_gap_closed(
    arm: ArrayLike,
    baseline: ArrayLike,
    oracle: ArrayLike,
    labels: ArrayLike,
    metric: Metric = "balanced_accuracy",
    *,
    classes: Sequence[int] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> GapClosed:
    """Share of the way from the baseline to an oracle edit that an arm goes; all logits (S, T, K), paired.

    Raises:
        ValueError: if shapes do not fit or a logit is not finite.
    """
    truth, arms = checked_arms(labels, arm, baseline, oracle)
    estimate, draws = _resampled(arms, truth, metric, classes, resamples, seed)
    gap = percentile_interval(estimate[2] - estimate[1], draws[:, 2] - draws[:, 1])
    if not gap.excludes(0.0):
        return GapClosed(gap, None)
    # A few resamples may still have a gap of exactly 0: their ratio is not a number and is left out.
    denominator = draws[:, 2] - draws[:, 1]
    usable = denominator != 0
    ratios = (draws[usable, 0] - draws[usable, 1]) / denominator[usable]
    return GapClosed(gap, percentile_interval((estimate[0] - estimate[1]) / gap.estimate, ratios))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p values adjusted for the number of tests by Holm's step-down method, in the order given.

    Raises:
        ValueError: if a p value is outside 0..1.
    """
    if any(not 0 <= p <= 1 for p in p_values.values()):
        raise ValueError(f"p values lie in 0..1, got {dict(p_values)}")
    adjusted: dict[str, float] = {}
    running = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = running
    return {name: adjusted[name] for name in p_values}


def _resampled(
    arms: Floats, labels: Ints, metric: Metric, classes: Sequence[int] | None, resamples: int, seed: int
) -> tuple[Floats, Floats]:
    """The measure of each arm (A,) averaged over seeds, and its bootstrap values (B, A)."""
    num_arms, num_seeds, _, num_classes = arms.shape
    chosen = present_classes(labels, classes)
    predictions = arms.argmax(axis=-1)  # (A, S, T)

    def measured(seeds: Ints, rows: Ints) -> Floats:
        drawn = predictions[:, seeds][:, :, rows].reshape(num_arms * len(seeds), len(rows))
        values = from_confusion(confusions(drawn, labels[rows], num_classes), metric, chosen)
        averaged: Floats = values.reshape(num_arms, len(seeds)).mean(axis=1)
        return averaged

    resampled = [measured(*drawn) for drawn in draws(labels, num_seeds, resamples, seed)]
    return measured(np.arange(num_seeds), np.arange(len(labels))), np.stack(resampled)
