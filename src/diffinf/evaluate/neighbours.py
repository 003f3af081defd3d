"""Distances between feature sets, tile by tile: memory does not grow with the product of their sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffinf.evaluate.intervals import Floats, Ints

_TILE = 2048  # a tile of 2048 x 2048 distances takes 32 MiB

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Membership:
    """Which samples lie in whose k-nearest-neighbour balls, for N reference and M candidate samples.

    Attributes:
        balls: (M,) the number of reference balls that hold each candidate.
        covered: (N,) whether a reference's ball holds a candidate.
        recalled: (N,) whether a reference lies in a candidate's ball; None where it was not asked for.
    """

    balls: Ints
    covered: Bools
    recalled: Bools | None


def checked_features(features: ArrayLike, name: str, dimensions: int | None = None) -> NDArray[Any]:
    """Features as an array (N, D), N and D at least 1, every value finite.

    Raises:
        ValueError: if they are not; the message has the first row with a value that is not finite.
    """
    array = np.asarray(features)
    if array.ndim != 2 or not array.size or array.dtype.kind not in "fiub":
        raise ValueError(
            f"{name}: features must be numbers of shape (N, D), N and D at least 1, "
            f"got {array.dtype} of shape {array.shape}"
        )
    if dimensions is not None and array.shape[1] != dimensions:
        raise ValueError(f"{name}: {array.shape[1]} features a sample, where the others have {dimensions}")
    bad = ~np.isfinite(array).all(axis=1)
    if bad.any():
        raise ValueError(
            f"{name}: {int(bad.sum())} of {len(array)} rows hold NaN or infinity, the first is row {int(bad.argmax())}"
        )
    return array


def squared_distances(a: NDArray[Any], b: NDArray[Any]) -> Iterator[tuple[slice, slice, Floats]]:
    """Squared Euclidean distances of ``a`` (N, D) and ``b`` (M, D) as tiles (rows of a, rows of b, tile).

    float64; row by row of tiles. What cannot be told from 0 in this arithmetic is exactly 0, so that copies
    are at distance 0 from each other.
    """
    # |x|^2 + |y|^2 - 2xy cancels far from the origin. Moved by a sample and not by the mean: that leaves
    # whole numbers whole, hence exact, and ties tied.
    origin = a[0].astype(np.float64)
    rounding = np.finfo(np.float64).eps * a.shape[1]
    for rows in _tiles(len(a)):
        x = a[rows] - origin
        xx = (x * x).sum(axis=1)[:, None]
        for columns in _tiles(len(b)):
            y = b[columns] - origin
            size = xx + (y * y).sum(axis=1)
            tile = size - 2 * (x @ y.T)
            tile[tile <= rounding * size] = 0.0
            yield rows, columns, tile


def nearest_squared_distances(a: NDArray[Any], b: NDArray[Any] | None, count: int) -> tuple[Floats, Ints]:
    """The ``count`` smallest squared distances of each row of ``a`` to rows of ``b``, ascending, and whose they are.

    Both (N, count). With ``b`` None the neighbours are the other rows of ``a``. ``count`` must not exceed them.
    """
    values = np.empty((len(a), count))
    indices = np.empty((len(a), count), dtype=np.int64)
    best, owner = np.empty((0, 0)), np.empty((0, 0), dtype=np.int64)
    for rows, columns, tile in squared_distances(a, a if b is None else b):
        if b is None and rows == columns:
            np.fill_diagonal(tile, np.inf)
        if columns.start == 0:
            best, owner = np.empty((len(tile), 0)), np.empty((len(tile), 0), dtype=np.int64)
        names = np.broadcast_to(np.arange(columns.start, columns.stop), tile.shape)
        best, owner = np.hstack([best, tile]), np.hstack([owner, names])
        if best.shape[1] > count:
            kept = np.argpartition(best, count - 1, axis=1)[:, :count]
            best, owner = np.take_along_axis(best, kept, 1), np.take_along_axis(owner, kept, 1)
        if columns.stop == len(a if b is None else b):
            order = np.argsort(best, axis=1, kind="stable")
            values[rows] = np.take_along_axis(best, order, 1)
            indices[rows] = np.take_along_axis(owner, order, 1)
    return values, indices


def squared_radii(features: NDArray[Any], nearest_k: int, name: str) -> Floats:
    """Squared distance of each sample to its k-th nearest other sample, (N,).

    Raises:
        ValueError: if ``nearest_k`` is below 1 or there are not more samples than that.
    """
    if nearest_k < 1:
        raise ValueError(f"nearest_k must be at least 1, got {nearest_k}")
    if len(features) <= nearest_k:
        raise ValueError(
            f"{name}: nearest_k = {nearest_k} needs at least {nearest_k + 1} samples, got {len(features)}: take more "
            "samples or a smaller nearest_k"
        )
    return nearest_squared_distances(features, None, nearest_k)[0][:, -1]


def membership(
    reference: NDArray[Any], candidates: NDArray[Any], radii: Floats, candidate_radii: Floats | None = None
) -> Membership:
    """Count memberships in balls of the given squared radii; a sample on the edge of a ball is outside."""
    balls = np.zeros(len(candidates), dtype=np.int64)
    covered = np.zeros(len(reference), dtype=bool)
    recalled = None if candidate_radii is None else np.zeros(len(reference), dtype=bool)
    for rows, columns, tile in squared_distances(reference, candidates):
        inside = tile < radii[rows, None]
        balls[columns] += inside.sum(axis=0)
        covered[rows] |= inside.any(axis=1)
        if recalled is not None and candidate_radii is not None:
            recalled[rows] |= (tile < candidate_radii[columns]).any(axis=1)
    return Membership(balls, covered, recalled)


def _tiles(n: int) -> Iterator[slice]:
    for start in range(0, n, _TILE):
        yield slice(start, min(start + _TILE, n))
