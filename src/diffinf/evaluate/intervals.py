"""Intervals: what a figure may be called after the sample it was taken on is drawn again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer[Any]]
Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Interval:
    """An estimate with the two ends of its interval, all in the units of the figure."""

    estimate: float
    low: float
    high: float

    @property
    def ci(self) -> tuple[float, float]:
        """The two ends."""
        return self.low, self.high

    def excludes(self, value: float) -> bool:
        """True if ``value`` lies outside the interval."""
        return value < self.low or value > self.high

    def to_dict(self) -> dict[str, float]:
        """The fields as JSON knows them."""
        return asdict(self)


def percentile_interval(estimate: float, draws: Floats, confidence: float = 0.95) -> Interval:
    """Bootstrap percentile interval of an estimate from its resampled values ``draws`` (B,)."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(float(estimate), float(low), float(high))


def ratio_interval(
    numerator: float, denominator: float, numerator_draws: Floats, denominator_draws: Floats
) -> Interval | None:
    """Interval of a ratio from resampled values (B,) of both; None where the denominator is or may be 0."""
    if denominator <= 0 or not (denominator_draws > 0).all():
        return None
    return percentile_interval(numerator / denominator, numerator_draws / denominator_draws)


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson score interval of a share: right at 0, at n and for small n, where the normal one is not.

    Raises:
        ValueError: if ``n`` is not positive or ``successes`` is not within 0..n.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"a share needs 0 <= successes <= n and n > 0, got {successes} of {n}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # At the ends the exact bounds are 0 and 1; rounding must not push them past the share itself.
    return Interval(share, min(max(0.0, centre - half), share), max(min(1.0, centre + half), share))


def resampled_rows(strata: Ints, resamples: int, generator: np.random.Generator) -> Iterator[Ints]:
    """Bootstrap row indices (N,), drawn within each stratum so that every resample has the same class counts.

    A class with few samples would otherwise be missing from some resamples, and a mean over classes would be
    one over different classes from one resample to the next.
    """
    members = [np.flatnonzero(strata == value) for value in np.unique(strata)]
    for _ in range(resamples):
        yield np.concatenate([rows[generator.integers(len(rows), size=len(rows))] for rows in members])
