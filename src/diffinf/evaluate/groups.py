"""Whom a repair concerns: flags, edits and accuracy by group, and where they fall on one group above all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom, fisher_exact

from diffinf.evaluate.gain import arm_interval, holm
from diffinf.evaluate.intervals import Interval, wilson_interval

MOST_GROUPS = 24  # values of a column that are told apart: more say nothing
SIGNIFICANT = 0.01
NOTABLE_RATIO = 1.5

Groups = Sequence[str | None]


@dataclass(frozen=True)
class GroupCounts:
    """What happened to the samples of one group.

    Attributes:
        n: samples that were scored.
        median_score: None where no score is finite.
        median_ci: its 95 % interval between two of the scores (by order statistics, whatever their distribution);
            None of fewer than six finite ones, which cannot bound it.
        flagged: share in 0..1 with its Wilson interval; ``n_flagged`` of ``n``.
        edited: the same of edited samples; None before the repair.
    """

    n: int
    median_score: float | None
    median_ci: tuple[float, float] | None
    n_flagged: int
    flagged: Interval
    n_edited: int | None
    edited: Interval | None

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON knows them: counts, shares and their intervals."""
        return {
            "n": self.n,
            "median_score": self.median_score,
            "median_ci": None if self.median_ci is None else list(self.median_ci),
            "flagged": self.n_flagged,
            "flagged_share": self.flagged.estimate,
            "flagged_ci": list(self.flagged.ci),
            "edited": self.n_edited,
            "edited_share": None if self.edited is None else self.edited.estimate,
            "edited_ci": None if self.edited is None else list(self.edited.ci),
        }


@dataclass(frozen=True)
class Uneven:
    """A group that something falls on far more often than on the others of its column.

    Attributes:
        group: which.
        share: of its ``n`` samples that are concerned, 0..1; ``share_elsewhere`` of the ``n_elsewhere`` others.
        p_value: of Fisher's exact test, adjusted for the number of groups by Holm's method.
    """

    group: str
    share: float
    n: int
    share_elsewhere: float
    n_elsewhere: int
    p_value: float


def group_names(groups: Groups, most: int = MOST_GROUPS) -> list[str]:
    """The values of ``groups`` (N,) in order, without None; of more than ``most`` the most frequent ones."""
    counts = Counter(group for group in groups if group is not None)
    return sorted(sorted(counts, key=lambda name: (-counts[name], name))[:most])


def _median_interval(values: NDArray[np.float64]) -> tuple[float, float] | None:
    """The narrowest symmetric pair of order statistics that holds the median with at least 95 %."""
    outside = int(binom.ppf(0.025, len(values), 0.5)) if len(values) else 0
    if outside == 0:
        return None
    ordered = np.sort(values)
    return float(ordered[outside - 1]), float(ordered[-outside])


def count_groups(
    groups: Groups, scores: ArrayLike, flagged: ArrayLike, edited: ArrayLike | None = None
) -> dict[str, GroupCounts]:
    """Counts of flags and edits by group, with 95 % intervals.

    Args:
        groups: (N,) the group of each scored sample, None where it is not known.
        scores: (N,) any score, higher is more suspicious.
        flagged: (N,) bool.
        edited: (N,) bool; None before the repair.

    Raises:
        ValueError: if lengths differ.
    """
    values, marks = np.asarray(scores, dtype=np.float64), _marks(groups, flagged)
    edits = None if edited is None else _marks(groups, edited)
    if len(values) != len(groups):
        raise ValueError(f"{len(groups)} groups, but {len(values)} scores")
    found = {}
    for name, rows in _rows(groups).items():
        finite = values[rows][np.isfinite(values[rows])]
        n, hits = int(rows.sum()), int(marks[rows].sum())
        changed = None if edits is None else int(edits[rows].sum())
        found[name] = GroupCounts(
            n=n,
            median_score=float(np.median(finite)) if len(finite) else None,
            median_ci=_median_interval(finite),
            n_flagged=hits,
            flagged=wilson_interval(hits, n),
            n_edited=changed,
            edited=None if changed is None else wilson_interval(changed, n),
        )
    return found


def uneven_groups(groups: Groups, marked: ArrayLike) -> list[Uneven]:
    """Groups of which a far larger share is ``marked`` (N,) than of all others of the column together.

    That is: more than 1.5 times the share, and p < 0.01 by Fisher's exact test, adjusted for the number of groups by
    Holm's method. Samples of unknown group are left out.

    Raises:
        ValueError: if lengths differ.
    """
    marks = _marks(groups, marked)
    known = np.array([group is not None for group in groups], dtype=bool)
    tables: dict[str, tuple[int, int, int, int]] = {}
    for name, rows in _rows(groups).items():
        others = known & ~rows
        if others.any():
            tables[name] = (
                int(marks[rows].sum()), int(rows.sum()), int(marks[others].sum()), int(others.sum()),
            )  # fmt: skip
    p_values = holm(
        {
            name: float(fisher_exact([[hits, n - hits], [rest, m - rest]]).pvalue)
            for name, (hits, n, rest, m) in tables.items()
        }
    )
    return [
        Uneven(name, hits / n, n, rest / m, m, p_values[name])
        for name, (hits, n, rest, m) in tables.items()
        if p_values[name] < SIGNIFICANT and hits / n > NOTABLE_RATIO * rest / m
    ]


def accuracy_by_group(
    groups: Groups, logits: ArrayLike, labels: ArrayLike
) -> dict[str, tuple[int, Interval]]:
    """Accuracy of an arm on the test images of each group: (number of images, mean over seeds with its interval).

    Args:
        groups: (T,) the group of each test image, None where it is not known.
        logits: (S, T, K) of S seeds.
        labels: (T,) true classes.

    The 95 % intervals resample images and seeds, see `arm_interval`.

    Raises:
        ValueError: if shapes do not fit or a logit is not finite.
    """
    values, truth = np.asarray(logits), np.asarray(labels)
    if values.ndim != 3 or not len(groups) == len(truth) == values.shape[1]:
        raise ValueError(f"{len(groups)} groups, {len(truth)} labels, logits {values.shape}: they do not fit")
    return {
        name: (int(rows.sum()), arm_interval(values[:, rows], truth[rows], "accuracy"))
        for name, rows in _rows(groups).items()
    }


def _marks(groups: Groups, marked: ArrayLike) -> NDArray[np.bool_]:
    marks = np.asarray(marked, dtype=bool)
    if marks.shape != (len(groups),):
        raise ValueError(f"{len(groups)} groups, but marks of shape {marks.shape}")
    return marks


def _rows(groups: Groups) -> dict[str, NDArray[np.bool_]]:
    values = np.array(groups, dtype=object)
    return {name: np.asarray(values == name, dtype=bool) for name in group_names(groups)}
