"""Exact thresholds on scores that are too many to hold.

A first pass counts the scores in fine bins; counts at the edges of bins are exact, so they bracket every threshold
that is asked for in one bin. A second pass holds the scores of those bins alone. A bin with too many of them is cut
again first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from diffinf.evaluate.intervals import Floats, Ints

_BINS = 1 << 16
_HELD = 1 << 24  # scores of a bin that are held at once (128 MiB) before the bin is cut again
_DEEPEST = 4  # 4 cuts by 2^16 are finer than float64: what shares a bin then is equal, or next to it

Scores = Iterable[tuple[Floats, Floats]]
# Says of (genuine scores below, impostor scores at or above) a threshold whether it is strict enough. It fails below
# every score, holds above them all, and once it holds, holds for good.
Criterion = Callable[[int, int], bool]


@dataclass(frozen=True)
class Point:
    """A threshold, the genuine scores below it, and the impostor scores at or above it."""

    threshold: float
    below: int
    above: int


class ScoreBins:
    """A range of scores cut into bins, and the counts (2, B) of genuine and impostor scores in them.

    Which bin a score is in is a rising function of the score, rounding included. That is all that exactness
    needs; where the edges are to the last digit does not matter.
    """

    def __init__(self, low: float, high: float, parent: tuple[ScoreBins, int] | None = None) -> None:
        """Cut low..high; scores beyond count in the outermost bins. A parent's bin takes its own scores only."""
        self.low, self.width = low, max(high - low, np.finfo(np.float64).tiny) / _BINS
        self.parent = parent
        self.depth: int = 1 if parent is None else parent[0].depth + 1
        self.counts = np.zeros((2, _BINS), dtype=np.int64)

    def add(self, side: int, values: Floats) -> None:
        """Count scores of side 0, genuine, or 1, impostor."""
        self.counts[side] += np.bincount(self._indices(self._own(values)), minlength=_BINS)

    def within(self, index: int, values: Floats) -> Floats:
        """Those of the scores that are in a bin."""
        own = self._own(values)
        found: Floats = own[self._indices(own) == index]
        return found

    def cut(self, index: int) -> ScoreBins:
        """A bin, cut into bins."""
        low = self.low + index * self.width
        return ScoreBins(low, low + self.width, (self, index))

    def _own(self, values: Floats) -> Floats:
        return values if self.parent is None else self.parent[0].within(self.parent[1], values)

    def _indices(self, values: Floats) -> Ints:
        indices: Ints = np.clip((values - self.low) / self.width, 0, _BINS - 1).astype(np.int64)
        return indices


@dataclass(frozen=True)
class _Bracket:
    """The bin in which a criterion comes to hold, and the counts at its lower end."""

    bins: ScoreBins
    index: int
    below: int
    above: int


def first_thresholds(
    scores: Callable[[], Scores], whole: ScoreBins, totals: tuple[int, int], criteria: list[Criterion]
) -> list[tuple[Point, Point]]:
    """For each criterion the last threshold that fails it and the least that meets it.

    Args:
        scores: called once for each pass; yields blocks of (genuine, impostor) scores, always the same.
        whole: bins that have counted all of them.
        totals: the numbers of genuine and of impostor scores.
        criteria: what the thresholds must meet.
    """
    brackets = [_bracket(whole, 0, totals[1], meets) for meets in criteria]
    while wide := [
        number
        for number, found in enumerate(brackets)
        if found.bins.counts[:, found.index].sum() > _HELD and found.bins.depth < _DEEPEST
    ]:
        cuts = {number: brackets[number].bins.cut(brackets[number].index) for number in wide}
        for sides in scores():
            for cut in cuts.values():
                for side, values in enumerate(sides):
                    cut.add(side, values)
        for number, cut in cuts.items():
            brackets[number] = _bracket(cut, brackets[number].below, brackets[number].above, criteria[number])
    return [
        _points(values, counts, bracket, meets)
        for (values, counts), bracket, meets in zip(
            _collect(scores, brackets), brackets, criteria, strict=True
        )
    ]


def _bracket(bins: ScoreBins, below: int, above: int, meets: Criterion) -> _Bracket:
    belows, aboves, failing = _cross(bins.counts, below, above, meets)
    return _Bracket(bins, failing, int(belows[failing]), int(aboves[failing]))


def _points(values: Floats, counts: Ints, bracket: _Bracket, meets: Criterion) -> tuple[Point, Point]:
    belows, aboves, failing = _cross(counts, bracket.below, bracket.above, meets)
    fails = float(values[failing])
    met = float(np.nextafter(fails, np.inf))
    return (
        Point(fails, int(belows[failing]), int(aboves[failing])),
        Point(met, int(belows[failing + 1]), int(aboves[failing + 1])),
    )


def _cross(counts: Ints, below: int, above: int, meets: Criterion) -> tuple[Ints, Ints, int]:
    """Counts at the lower ends of B cells (2, B) and at the last upper end, and the cell where a criterion turns."""
    belows = below + np.concatenate([[0], np.cumsum(counts[0])])
    aboves = above - np.concatenate([[0], np.cumsum(counts[1])])
    failing, meeting = 0, counts.shape[1]
    while meeting - failing > 1:
        middle = (failing + meeting) // 2
        if meets(int(belows[middle]), int(aboves[middle])):
            meeting = middle
        else:
            failing = middle
    return belows, aboves, failing


def _collect(scores: Callable[[], Scores], brackets: list[_Bracket]) -> list[tuple[Floats, Ints]]:
    """The distinct scores in each bracket, ascending, and how many (2, K) of either side have them."""
    held: list[list[tuple[Floats, Ints]]] = [[] for _ in brackets]
    for sides in scores():
        for bracket, parts in zip(brackets, held, strict=True):
            for side, values in enumerate(sides):
                own = bracket.bins.within(bracket.index, values)
                counts = np.zeros((2, len(own)), dtype=np.int64)
                counts[side] = 1
                parts.append((own, counts))
            if sum(len(own) for own, _ in parts) > 2 * _HELD:  # far more than distinct ones: many are equal
                parts[:] = [_merged(parts)]
    return [_merged(parts) for parts in held]


def _merged(parts: list[tuple[Floats, Ints]]) -> tuple[Floats, Ints]:
    values = np.concatenate([own for own, _ in parts])
    distinct, positions = np.unique(values, return_inverse=True)
    # bincount adds in float64: exact up to 2^53.
    sides = np.concatenate([own for _, own in parts], axis=1)
    counts = np.stack([np.bincount(positions, side, len(distinct)) for side in sides]).astype(np.int64)
    return distinct, counts
