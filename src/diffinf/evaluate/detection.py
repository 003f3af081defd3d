"""How well a suspicion score finds the labels that are truly wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from diffinf.evaluate.intervals import Floats, percentile_interval, resampled_rows

_CURVE_POINTS = 200  # enough for a smooth plot, small enough for a JSON file


@dataclass(frozen=True)
class ClassDetection:
    """Detection within one assigned label; undefined figures are None."""

    average_precision: float | None
    base_rate: float
    precision_at_flagged: float | None
    recall_at_flagged: float | None
    n: int
    n_flagged: int


@dataclass(frozen=True)
class Detection:
    """Detection of wrong labels; shares in 0..1, None where a figure is not defined.

    Attributes:
        average_precision: of the score for "the label is wrong"; a random score reaches the base rate.
        roc_auc: probability that a wrong label scores above a right one.
        base_rate: share of wrong labels.
        precision_at_flagged: share of the flagged that are wrong; None when nothing is flagged.
        recall_at_flagged: share of the wrong that are flagged.
        n: number of samples; n_flagged and n_wrong of them are flagged and wrong.
        ci: 95 % bootstrap interval of the average precision over samples.
        curve: the precision-recall curve, thinned: (recall, precision) pairs with rising recall.
        per_class: the same figures within each assigned label, if labels were given.
    """

    average_precision: float | None
    roc_auc: float | None
    base_rate: float
    precision_at_flagged: float | None
    recall_at_flagged: float | None
    n: int
    n_flagged: int
    n_wrong: int
    ci: tuple[float, float] | None
    curve: tuple[tuple[float, float], ...]
    per_class: dict[str, ClassDetection]

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON knows them."""
        return asdict(self)


def detection(
    scores: ArrayLike,
    flagged: ArrayLike,
    wrong: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Detection:
    """Compare suspicion scores and flags with the truth.

    Args:
        scores: (N,) higher = more suspicious.
        flagged: (N,) bool, the samples that were flagged.
        wrong: (N,) bool, the samples whose label differs from the truth.
        labels: (N,) assigned labels, for the figures of each class: indices into ``class_names``, or names.
        class_names: names of the classes, if labels are indices.
        bootstrap: resamples for the interval of the average precision; 0 for none.
        seed: seed of the resampling.

    Raises:
        ValueError: if the arrays are empty or differ in length, or a score is not finite.
    """
    score = np.asarray(scores, dtype=np.float64)
    flag, truth = np.asarray(flagged, dtype=bool), np.asarray(wrong, dtype=bool)
    if score.ndim != 1 or not len(score) or flag.shape != score.shape or truth.shape != score.shape:
        shapes = f"{score.shape}, {flag.shape}, {truth.shape}"
        raise ValueError(f"scores, flagged and wrong must be of one length N > 0, got shapes {shapes}")
    if not np.isfinite(score).all():
        raise ValueError(f"{int((~np.isfinite(score)).sum())} of {len(score)} scores are not finite")
    defined = 0 < truth.sum() < len(truth)
    whole = _figures(score, flag, truth)
    return Detection(
        average_precision=whole.average_precision,
        roc_auc=float(roc_auc_score(truth, score)) if defined else None,
        base_rate=whole.base_rate,
        precision_at_flagged=whole.precision_at_flagged,
        recall_at_flagged=whole.recall_at_flagged,
        n=whole.n,
        n_flagged=whole.n_flagged,
        n_wrong=int(truth.sum()),
        ci=_bootstrap(score, truth, bootstrap, seed) if defined and bootstrap else None,
        curve=_curve(score, truth) if defined else (),
        per_class={} if labels is None else _per_class(score, flag, truth, np.asarray(labels), class_names),
    )


def _figures(score: Floats, flagged: NDArray[np.bool_], wrong: NDArray[np.bool_]) -> ClassDetection:
    hits = int((flagged & wrong).sum())
    return ClassDetection(
        average_precision=float(average_precision_score(wrong, score)) if wrong.any() else None,
        base_rate=float(wrong.mean()),
        precision_at_flagged=hits / int(flagged.sum()) if flagged.any() else None,
        recall_at_flagged=hits / int(wrong.sum()) if wrong.any() else None,
        n=len(score),
        n_flagged=int(flagged.sum()),
    )


def _per_class(
    score: Floats,
    flagged: NDArray[np.bool_],
    wrong: NDArray[np.bool_],
    labels: NDArray[Any],
    class_names: Sequence[str] | None,
) -> dict[str, ClassDetection]:
    if labels.shape != score.shape:
        raise ValueError(f"labels must have shape {score.shape}, got {labels.shape}")
    result = {}
    for label in np.unique(labels):
        rows = labels == label
        name = str(label) if class_names is None else class_names[int(label)]
        result[name] = _figures(score[rows], flagged[rows], wrong[rows])
    return result


def _bootstrap(score: Floats, wrong: NDArray[np.bool_], resamples: int, seed: int) -> tuple[float, float]:
    """Interval of the average precision; wrong and right labels are drawn apart, so both are always there."""
    generator = np.random.default_rng([seed, 0xDE7EC7])
    rows = resampled_rows(wrong.astype(np.int64), resamples, generator)
    draws = np.array([average_precision_score(wrong[drawn], score[drawn]) for drawn in rows])
    return percentile_interval(float(draws.mean()), draws).ci


def _curve(score: Floats, wrong: NDArray[np.bool_]) -> tuple[tuple[float, float], ...]:
    precision, recall, _ = precision_recall_curve(wrong, score, drop_intermediate=True)
    kept = np.unique(np.linspace(0, len(recall) - 1, _CURVE_POINTS).round().astype(np.int64))[::-1]
    return tuple((float(r), float(p)) for r, p in zip(recall[kept], precision[kept], strict=True))
