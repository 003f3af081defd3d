"""Confusion matrices as a PNG: generated images beside real ones, all classes and each group of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

_MOST = 9  # pairs of matrices that fit on one picture
_NUMBERED = 12  # classes whose cells have room for a number
_NAMED = 24  # classes on an axis


@dataclass(frozen=True)
class MatrixPair:
    """Counts (K, K) of generated and of real images: a row for each class asked for, a column for each read."""

    title: str
    classes: Sequence[str]
    generated: ArrayLike
    real: ArrayLike


def draw_confusions(pairs: Sequence[MatrixPair], target: Path) -> None:
    """Draw the shares of each row, a pair of matrices beneath the other, at most nine, into the PNG `target`."""
    shown = pairs[:_MOST]
    figure = Figure(figsize=(9.6, 4.4 * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), 2, squeeze=False)
    for row, pair in zip(grid, shown, strict=True):
        for axes, side, counts in zip(row, ("generated", "real"), (pair.generated, pair.real), strict=True):
            _matrix(axes, np.asarray(counts, dtype=np.float64), pair.classes)
            axes.set_title(f"{pair.title}: {side} images", fontsize=10)
    figure.savefig(target, format="png", dpi=110)


def _matrix(axes: Any, counts: np.ndarray[Any, np.dtype[np.float64]], classes: Sequence[str]) -> None:
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= _NUMBERED:
        for (asked, read), share in np.ndenumerate(shares):
            if share >= 0.005:
                ink = "white" if share > 0.6 else "black"
                axes.text(read, asked, f"{100 * share:.0f}", ha="center", va="center", color=ink, fontsize=8)
    ticks = list(range(0, len(classes), -(-len(classes) // _NAMED)))
    # A dollar sign in a name is no formula.
    names = [classes[tick][:20].replace("$", r"\$") for tick in ticks]
    axes.set_xticks(ticks, names, rotation=45, ha="right", fontsize=7)
    axes.set_yticks(ticks, names, fontsize=7)
    axes.set_xlabel("read by the oracle", fontsize=8)
    axes.set_ylabel("asked for, or true", fontsize=8)
