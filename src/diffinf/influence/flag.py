"""From a score to a flagged set: calibration by class noise, shares, counts, a mixture, or given ids."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from numpy.typing import ArrayLike

from diffinf.errors import UserError
from diffinf.influence.rivals import Floats

logger = logging.getLogger(__name__)

Bools = npt.NDArray[np.bool_]
Method = Literal["share", "class_share", "count", "auto", "ids"]

# Below this estimated share of wrong labels there is no evidence of label noise to act on.
NEGLIGIBLE_NOISE = 0.01
# Two means closer than this many common standard deviations are one hump (Ashman, Bird & Zepf 1994).
_SEPARATION = 2.0


@dataclass(frozen=True)
class Mixture:
    """The fitted two components of method "auto", on the axis `log_scale` names.

    Attributes:
        weights, means, deviations: of the lower and the upper component.
        log_scale: whether the axis is the logarithm of the score.
        separation: distance of the means in common standard deviations (2 and more: two humps).
        preferred: whether two components explain the scores better than one (BIC) and are separated.
    """

    weights: tuple[float, float]
    means: tuple[float, float]
    deviations: tuple[float, float]
    log_scale: bool
    separation: float
    preferred: bool


@dataclass(frozen=True)
class FlagResult:
    """Which samples are flagged.

    Attributes:
        flagged: (N,) bool; all False is a legal result: no evidence of label noise.
        threshold: the lowest flagged score, None when nothing is flagged or ids were given. Samples that tie
            with it may be unflagged (ties go by id), and with shares per class others may lie above it.
        class_thresholds: the same for each class, by method "class_share".
        mixture: the fitted curve, by method "auto".
    """

    flagged: Bools
    threshold: float | None
    class_thresholds: dict[int, float] | None = None
    mixture: Mixture | None = None


def flag(
    scores: ArrayLike,
    ids: ArrayLike,
    *,
    method: Method = "share",
    share: float | None = None,
    count: int | None = None,
    labels: ArrayLike | None = None,
    given: Sequence[str] | None = None,
) -> FlagResult:
    """Flag the most suspicious samples; ties are ranked by id.

    Args:
        scores: (N,), higher = more suspicious; +inf is flagged first.
        ids: (N,) distinct strings.
        method: "share" of all; "class_share", the same share of each class; "count"; "auto", the upper
            component of a two-component mixture on the log score (on the score itself where some are not
            positive), nothing if one component does; "ids", those in `given`.
        share: 0 to 1, for "share" and "class_share". An estimated noise rate may be passed; below 1 % it
            flags nothing.
        count: samples, for "count".
        labels: (N,) class indices, for "class_share".
        given: ids, for "ids".

    Raises:
        UserError: NaN scores, repeated ids, a missing or impossible option, or ids that are not there.
    """
    s, names = np.asarray(scores, dtype=np.float64), np.asarray(ids)
    _check(s, names)
    rank = np.lexsort((names, -s))
    flagged = np.zeros(len(s), dtype=np.bool_)
    if method == "ids":
        return FlagResult(_given(names, given), None)
    if method == "share":
        flagged[rank[: _quota(_share(share), len(s))]] = True
    elif method == "class_share":
        return _by_class(s, rank, labels, _share(share))
    elif method == "count":
        if count is None or count < 0:
            raise UserError(f"count is {count}: method count needs a whole number of samples, 0 or more.")
        flagged[rank[:count]] = True
    elif method == "auto":
        return _auto(s)
    else:
        raise UserError(f'method "{method}" is unknown: expected share, class_share, count, auto or ids.')
    return FlagResult(flagged, _lowest(s, flagged))


def _check(s: Floats, names: npt.NDArray[np.str_]) -> None:
    if s.ndim != 1 or s.shape != names.shape:
        raise UserError(f"scores {s.shape} and ids {names.shape}: expected two arrays of one length.")
    wrong = np.flatnonzero(np.isnan(s))
    if len(wrong):
        raise UserError(f"score of {names[wrong[0]]} is NaN ({len(wrong)} such): scores must be ordered.")
    if len(np.unique(names)) != len(names):
        values, counts = np.unique(names, return_counts=True)
        raise UserError(f"id {values[counts > 1][0]} occurs more than once: ids must be distinct.")


def _share(share: float | None) -> float:
    if share is None or not 0 <= share <= 1:
        raise UserError(f"share is {share}: expected a number from 0 to 1.")
    return share if share >= NEGLIGIBLE_NOISE else 0.0


def _quota(share: float, n: int) -> int:
    return math.floor(share * n + 0.5)


def _lowest(s: Floats, flagged: Bools) -> float | None:
    return float(s[flagged].min()) if flagged.any() else None


def _given(names: npt.NDArray[np.str_], given: Sequence[str] | None) -> Bools:
    if given is None:
        raise UserError('method "ids" needs the ids to flag.')
    unknown = sorted(set(given) - set(names.tolist()))
    if unknown:
        raise UserError(f"{len(unknown)} ids to flag are not among the samples, such as {unknown[0]}.")
    return np.isin(names, list(given)) if len(given) else np.zeros(len(names), dtype=np.bool_)


def _by_class(s: Floats, rank: npt.NDArray[np.intp], labels: ArrayLike | None, share: float) -> FlagResult:
    if labels is None:
        raise UserError('method "class_share" needs the labels.')
    y = np.asarray(labels)
    if y.shape != s.shape:
        raise UserError(f"labels {y.shape} and scores {s.shape}: expected one length.")
    flagged = np.zeros(len(s), dtype=np.bool_)
    thresholds: dict[int, float] = {}
    for k in np.unique(y):
        chosen = rank[y[rank] == k]
        chosen = chosen[: _quota(share, len(chosen))]
        flagged[chosen] = True
        if len(chosen):
            thresholds[int(k)] = float(s[chosen].min())
    return FlagResult(flagged, _lowest(s, flagged), thresholds)


def _auto(s: Floats) -> FlagResult:
    """Upper component of two on the finite scores; infinite ones are flagged in any case."""
    from sklearn.mixture import GaussianMixture

    infinite = np.isposinf(s)
    finite = s[np.isfinite(s)]
    log_scale = bool(len(finite)) and bool((finite > 0).all())
    x = (np.log(finite) if log_scale else finite)[:, None]
    if len(np.unique(x)) < 10:
        logger.info("too few distinct scores for a mixture: nothing is flagged")
        return FlagResult(infinite, _lowest(s, infinite))
    one = GaussianMixture(1).fit(x)
    two = GaussianMixture(2, n_init=3, random_state=0).fit(x)
    order = np.argsort(two.means_[:, 0])
    means, deviations = two.means_[order, 0], np.sqrt(two.covariances_[order, 0, 0])
    separation = float(math.sqrt(2) * (means[1] - means[0]) / math.sqrt(float((deviations**2).sum())))
    mixture = Mixture(
        weights=(float(two.weights_[order[0]]), float(two.weights_[order[1]])),
        means=(float(means[0]), float(means[1])),
        deviations=(float(deviations[0]), float(deviations[1])),
        log_scale=log_scale,
        separation=separation,
        preferred=bool(two.bic(x) < one.bic(x)) and separation >= _SEPARATION,
    )
    flagged = infinite.copy()
    if mixture.preferred:
        upper = two.predict_proba(x)[:, order[1]] > 0.5
        # The wider component also wins far below the narrower one's mean; only its upper side is suspicious.
        upper &= x[:, 0] > means[0]
        flagged[np.isfinite(s)] = upper
    return FlagResult(flagged, _lowest(s, flagged), mixture=mixture)
