"""Votes of several annotators: whether they agree with the label, and what they say instead of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class Ballots:
    """Votes as the source has them, by position.

    Attributes:
        counts: numbers of a row, None where there are none; empty: votes are `choices`.
        of: names of the classes that the numbers stand for; none: all, in their order.
        others: votes of a row for something that is no class; none: no such.
        choices: annotator -> class, or number that bins are to cut, of a row; None where nobody said anything.
    """

    counts: list[Any] = field(default_factory=list)
    of: tuple[str, ...] = ()
    others: Sequence[float] = ()
    choices: dict[str, list[str | None]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Votes:
    """Votes for N images and K classes.

    Attributes:
        counts: float64 (N, K), at least 0: votes, or shares of them, for each class.
        others: float64 (N,), votes for something that is no class.
    """

    counts: NDArray[np.float64]
    others: NDArray[np.float64]

    @property
    def known(self) -> NDArray[np.bool_]:
        """Whether anybody voted, (N,)."""
        return np.asarray(self.counts.sum(1) + self.others > 0)

    def agreement(self, labels: NDArray[np.int64]) -> NDArray[np.float64]:
        """Share of the votes that are for the label, (N,) in 0..1; NaN where there are none."""
        cast = self.counts.sum(1) + self.others
        own = self.counts[np.arange(len(labels)), labels]
        shares = np.full(len(labels), np.nan)
        np.divide(own, cast, out=shares, where=cast > 0)
        return shares

    def shares(self, labels: NDArray[np.int64]) -> NDArray[np.float32]:
        """Votes as shares of the classes, float32 (N, K); the label alone where no class has a vote."""
        cast = self.counts.sum(1, keepdims=True)
        result = np.eye(self.counts.shape[1])[labels]
        np.divide(self.counts, cast, out=result, where=cast > 0)
        return result.astype(np.float32)
