"""What retraining gained: measures, intervals over test images and seeds, paired tests, gaps closed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import f1_score, recall_score

from diffinf.evaluate.intervals import Floats, Interval, Ints, percentile_interval, resampled_rows

Metric = Literal["balanced_accuracy", "accuracy", "macro_f1"]


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
            truth, np.asarray(predictions), labels=_present(truth, classes), average="macro", zero_division=0
        )
    )


def macro_f1(predictions: ArrayLike, labels: ArrayLike, classes: Sequence[int] | None = None) -> float:
    """Mean F1 in 0..1 over the classes present in ``labels`` (N,), or over those of ``classes`` that are.

    Raises:
        ValueError: if none of the classes is present.
    """
    truth = np.asarray(labels)
    return float(
        f1_score(
            truth, np.asarray(predictions), labels=_present(truth, classes), average="macro", zero_division=0
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
    truth, arms = _checked(labels, logits)
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
    truth, arms = _checked(labels, arm_a, arm_b)
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
    truth, arms = _checked(labels, arm, baseline, oracle)
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


def _present(labels: Ints, classes: Sequence[int] | None) -> Ints:
    present = np.unique(labels)
    chosen = present if classes is None else present[np.isin(present, classes)]
    if not len(chosen):
        raise ValueError(f"none of the classes {classes} is among the labels")
    return chosen


def _checked(labels: ArrayLike, *logits: ArrayLike) -> tuple[Ints, Floats]:
    """Labels (T,) and arms (A, S, T, K)."""
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


def _resampled(
    arms: Floats, labels: Ints, metric: Metric, classes: Sequence[int] | None, resamples: int, seed: int
) -> tuple[Floats, Floats]:
    """The measure of each arm (A,) averaged over seeds, and its bootstrap values (B, A)."""
    num_arms, num_seeds, _, num_classes = arms.shape
    chosen = _present(labels, classes)
    cells = labels * num_classes + arms.argmax(axis=-1)  # (A, S, T): the cell of the confusion matrix
    generator = np.random.default_rng([seed, 0x6A12])

    def measured(seeds: Ints, rows: Ints) -> Floats:
        drawn = cells[:, seeds][:, :, rows].reshape(num_arms * len(seeds), len(rows))
        offsets = np.arange(len(drawn))[:, None] * num_classes**2
        counts = np.bincount((drawn + offsets).ravel(), minlength=len(drawn) * num_classes**2)
        values = _from_confusion(counts.reshape(-1, num_classes, num_classes), metric, chosen)
        averaged: Floats = values.reshape(num_arms, len(seeds)).mean(axis=1)
        return averaged

    def draws() -> Iterator[Floats]:
        for rows in resampled_rows(labels, resamples, generator):
            yield measured(np.asarray(generator.integers(num_seeds, size=num_seeds)), rows)

    return measured(np.arange(num_seeds), np.arange(len(labels))), np.stack(list(draws()))


def _from_confusion(confusion: Ints, metric: Metric, classes: Ints) -> Floats:
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
