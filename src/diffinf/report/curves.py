"""Precision-recall curves as a PNG, for a terminal user who wants to look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

_MOST = 7  # curves that an eye can tell apart


def draw_curves(curves: Mapping[str, Sequence[tuple[float, float]]], base_rate: float, target: Path) -> None:
    """Draw (recall, precision) curves in 0..1 by name, the first one set off, into the PNG `target`."""
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.subplots()
    for place, (name, curve) in enumerate(list(curves.items())[:_MOST]):
        recall, precision = [point[0] for point in curve], [point[1] for point in curve]
        style = {"color": "#c4722d", "linewidth": 2.4, "zorder": 3} if place == 0 else {"linewidth": 1.1}
        axes.plot(recall, precision, label=name.replace("_", " "), **style)
    axes.axhline(base_rate, color="#6b7178", linestyle=(0, (4, 3)), linewidth=1, label="any order")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("recall: share of the wrong labels found")
    axes.set_ylabel("precision: share of those found that are wrong")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8.5)
    figure.savefig(target, format="png", dpi=130)
