"""Arrays in, charts out: SVG as data URIs whose colours follow the reader's light or dark mode."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from diffinf.report.pictures import data_uri
from diffinf.report.words import number, signed

# Matplotlib draws in these stand-ins; in the finished SVG each becomes a CSS variable with two values.
_INK, _MUTED, _GRID, _PAPER, _ACCENT, _WARM = (f"#0{digit}0{digit}0{digit}" for digit in "123456")
_COLOURS = {
    _INK: ("ink", "#22262b", "#e6e4df"),
    _MUTED: ("muted", "#6b7178", "#9aa0a8"),
    _GRID: ("grid", "#e3e1dc", "#33383f"),
    _PAPER: ("paper", "#ffffff", "#1d2126"),
    _ACCENT: ("accent", "#2b6f8a", "#6bb3cf"),
    _WARM: ("warm", "#c4722d", "#e8a063"),
}
_SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "diffinf",
    "text.parse_math": False,
    "font.size": 9.5,
    "text.color": _INK,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _GRID,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _INK,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
}
_WIDTH = 5.0  # inches: text stays readable when the chart is shrunk to a phone's width
_LONGEST_NAME = 20
_MOST_NUMBERED = 12  # classes in a confusion matrix whose cells have room for numbers

P = ParamSpec("P")


@dataclass(frozen=True)
class Whisker:
    """One line of a dot-and-whisker chart; without an interval only the dot is drawn."""

    name: str
    value: float
    interval: tuple[float, float] | None
    points: tuple[float, ...] = ()
    emphasis: bool = False


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue().replace("'DejaVu Sans'", "system-ui, 'Segoe UI', Roboto, 'DejaVu Sans'")
    for stand_in, (name, _, _) in _COLOURS.items():
        text = text.replace(stand_in, f"var(--{name})")
    light = "".join(f"--{name}:{day};" for name, day, _ in _COLOURS.values())
    dark = "".join(f"--{name}:{night};" for name, _, night in _COLOURS.values())
    style = f"<style>:root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}</style>"
    return data_uri("image/svg+xml", text.replace("<defs>", f"<defs>{style}", 1).encode())


def _chart(draw: Callable[P, Figure]) -> Callable[P, str]:
    """Turn a function that draws a figure into one that gives an SVG data URI."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> str:
        # Matplotlib reads its settings when a text is made, so they must hold for all of the drawing.
        with matplotlib.rc_context(_SETTINGS):
            return _svg(draw(*args, **kwargs))

    return drawn


@_chart
def score_histogram(
    scores: NDArray[np.float64],
    flagged: NDArray[np.bool_],
    threshold: float | None,
    label: str = "score",
    *,
    mixture: dict[str, Any] | None = None,
) -> Figure:
    """Histogram of finite scores (N,) with the flagged part set off, the threshold, a fitted mixture's curves."""
    low, high = np.quantile(scores, [0.002, 0.998])  # far outliers must not squeeze the rest into one bar
    if threshold is not None:
        low, high = min(low, threshold), max(high, threshold)
    clipped = scores.clip(low, high)
    edges = np.histogram_bin_edges(clipped, bins=40)
    figure, axes = _figure(2.7)
    parts = [clipped[~flagged], clipped[flagged]]
    axes.hist(
        parts, bins=edges, stacked=True, color=[_ACCENT, _WARM], label=["not flagged", "flagged"], rwidth=0.92
    )
    if mixture is not None:
        x = np.linspace(edges[0], edges[-1], 300)
        for place, curve in enumerate(_components(mixture, x)):
            counts = curve * len(scores) * (edges[1] - edges[0])
            axes.plot(x, counts, color=_INK, linewidth=1.3, label="fitted" if place == 0 else None)
    if threshold is not None:
        axes.axvline(threshold, color=_INK, linewidth=1, linestyle=(0, (4, 3)), label="threshold")
    axes.set_xlabel(label)
    axes.set_ylabel("training samples")
    axes.grid(axis="y")
    _legend_above(axes, 3 if mixture is None else 4)
    return figure


@_chart
def similarity_histogram(
    edges: Sequence[float], series: dict[str, Sequence[float]], threshold: float
) -> Figure:
    """Shares (B,) of pairs by similarity in bins of `edges` (B + 1,), a series a kind of pair, and the threshold."""
    figure, axes = _figure(2.7)
    for (name, shares), colour in zip(series.items(), (_WARM, _ACCENT), strict=False):
        axes.stairs(shares, edges, fill=True, alpha=0.35, color=colour)
        axes.stairs(shares, edges, color=colour, linewidth=1.5, label=name)
    axes.axvline(threshold, color=_INK, linewidth=1, linestyle=(0, (4, 3)), label="threshold")
    axes.set_xlabel("similarity")
    axes.set_ylabel("share of the pairs")
    axes.grid(axis="y")
    _legend_above(axes, 3)
    return figure


def _components(mixture: dict[str, Any], x: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Densities at x of the two fitted normal components; of a score whose logarithm was fitted, over the score."""
    on_log = bool(mixture["log_scale"])
    place = np.log(np.maximum(x, np.finfo(np.float64).tiny)) if on_log else x
    stretch = np.maximum(x, np.finfo(np.float64).tiny) if on_log else np.ones_like(x)
    parts = zip(mixture["weights"], mixture["means"], mixture["deviations"], strict=True)
    return [
        w * np.exp(-(((place - m) / d) ** 2) / 2) / (d * np.sqrt(2 * np.pi)) / stretch for w, m, d in parts
    ]


@_chart
def class_bars(names: Sequence[str], series: dict[str, NDArray[np.float64]]) -> Figure:
    """Horizontal bars of one or two shares in 0..1 a class."""
    height = 0.8 / len(series)
    figure, axes = _figure(0.9 + (0.14 + 0.18 * len(series)) * len(names))
    rows = np.arange(len(names), dtype=np.float64)
    for place, ((label, values), colour) in enumerate(zip(series.items(), (_WARM, _ACCENT), strict=False)):
        offsets = rows + (place - (len(series) - 1) / 2) * height
        bars = axes.barh(offsets, 100 * values, height * 0.88, color=colour, label=label)
        axes.bar_label(bars, fmt="%.0f", padding=3, fontsize=8.5, color=_MUTED)
    _name_rows(axes, names)
    axes.set_xlim(0, max(5.0, 115 * max(float(values.max()) for values in series.values())))
    axes.set_xlabel("% of the class")
    _legend_above(axes, len(series))
    return figure


@_chart
def count_bars(names: Sequence[str], counts: Sequence[int], label: str) -> Figure:
    """Horizontal bars of counts."""
    figure, axes = _figure(0.75 + 0.34 * len(names))
    bars = axes.barh(np.arange(len(names)), counts, 0.66, color=_WARM)
    axes.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=9, color=_MUTED)
    _name_rows(axes, names)
    axes.set_xlim(0, 1.15 * max(1, *counts))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel(label)
    return figure


@_chart
def whiskers(rows: Sequence[Whisker], label: str, reference: float | None = None) -> Figure:
    """Dots with intervals, one row each; ``reference`` is drawn as a dashed line."""
    figure, axes = _figure(0.8 + 0.42 * len(rows))
    for y, row in enumerate(rows):
        colour = _WARM if row.emphasis else _ACCENT
        if row.interval is not None:
            axes.plot(row.interval, (y, y), color=colour, linewidth=2.4, solid_capstyle="round", alpha=0.75)
        axes.plot(row.points, [y + 0.27] * len(row.points), "|", color=_MUTED, markersize=5)
        axes.plot([row.value], [y], "o", color=colour, markersize=7)
    if reference is not None:
        axes.axvline(reference, color=_MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    _name_rows(axes, [row.name for row in rows])
    axes.grid(axis="x")
    axes.margins(x=0.08)
    axes.set_xlabel(label)
    return figure


@_chart
def confusion(matrix: NDArray[np.float64], names: Sequence[str], *, change: bool = False) -> Figure:
    """A confusion matrix (K true, K predicted) of row shares, or with ``change`` the difference of two.

    Rows of NaN (a class without test images) stay empty. The depth of a cell is its size; in a difference,
    more is drawn in the cool colour and less in the warm one.
    """
    classes = len(names)
    figure, axes = _figure(1.0 + min(0.34 * classes, 4.0), width=1.2 + min(0.38 * classes, 4.6))
    largest = max(float(np.nanmax(np.abs(matrix), initial=0.0)), 1e-9)
    scale = max(largest, 0.05) if change else 1.0
    for true, predicted in np.ndindex(*matrix.shape):
        value = float(matrix[true, predicted])
        if np.isnan(value) or (classes > _MOST_NUMBERED and abs(value) < 0.005):
            continue  # thousands of invisible cells would make a large and slow chart
        depth = min(1.0, abs(value) / scale) * 0.9
        corner = (predicted - 0.48, true - 0.48)
        axes.add_patch(
            Rectangle(corner, 0.96, 0.96, color=_WARM if value < 0 else _ACCENT, alpha=depth, linewidth=0)
        )
        if classes <= _MOST_NUMBERED and not (change and round(100 * value) == 0):
            colour = _PAPER if depth > 0.6 else _INK
            shown = signed(100 * value, 0) if change else number(100 * value, 0)
            axes.text(predicted, true, shown, ha="center", va="center", color=colour, fontsize=9)
    axes.set_xlim(-0.5, classes - 0.5)
    axes.set_ylim(classes - 0.5, -0.5)
    step = max(1, classes // 20)
    ticks = list(range(0, classes, step))
    shown_names = [_short(names[tick]) for tick in ticks]
    axes.set_xticks(ticks, shown_names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(ticks, shown_names)
    axes.tick_params(length=0, axis="x", labelcolor=_INK)
    axes.tick_params(length=0, axis="y")
    axes.spines[:].set_visible(False)
    axes.set_xlabel("read by the classifier")
    axes.set_ylabel("true class")
    return figure


@_chart
def precision_recall(
    curve: NDArray[np.float64], base_rate: float, flagged: tuple[float, float] | None
) -> Figure:
    """Precision over recall, curve (P, 2) of (recall, precision), with base rate and the flags' point."""
    figure, axes = _figure(2.9)
    axes.plot(curve[:, 0], curve[:, 1], color=_ACCENT, linewidth=2, label="score")
    axes.axhline(base_rate, color=_MUTED, linewidth=1, linestyle=(0, (4, 3)), label="random order")
    if flagged is not None:
        axes.plot(*flagged, "o", color=_WARM, markersize=8, label="what was flagged")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.04)
    axes.set_xlabel("share of the wrong labels found")
    axes.set_ylabel("share of the found that are wrong")
    axes.grid()
    _legend_above(axes, 3)
    return figure


@_chart
def calibration(bins: NDArray[np.float64]) -> Figure:
    """Observed over predicted share, bins (B, 3) of (predicted, observed, n); a dot's area grows with n."""
    figure, axes = _figure(2.9)
    axes.plot((0, 1), (0, 1), color=_MUTED, linewidth=1, linestyle=(0, (4, 3)), label="as it should be")
    axes.plot(bins[:, 0], bins[:, 1], color=_ACCENT, linewidth=1.5)
    sizes = 14 + 120 * bins[:, 2] / bins[:, 2].max()
    axes.scatter(bins[:, 0], bins[:, 1], sizes, color=_ACCENT, alpha=0.75, linewidths=0, label="surrogate")
    axes.set_xlim(-0.04, 1.04)
    axes.set_ylim(-0.04, 1.04)
    axes.set_xlabel("predicted probability of a flag")
    axes.set_ylabel("share that is flagged")
    axes.grid()
    _legend_above(axes, 2)
    return figure


def _figure(height: float, width: float = _WIDTH) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


def _name_rows(axes: Any, names: Sequence[str]) -> None:
    """Names as rows from top to bottom, without a frame."""
    axes.set_yticks(np.arange(len(names)), [_short(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _legend_above(axes: Any, columns: int) -> None:
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=columns,
        borderaxespad=0.2,
        handlelength=1.4,
        columnspacing=1.6,
    )
