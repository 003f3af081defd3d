"""Copies of an image in a dataset: the same file, the same pixels, nearly the same picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Chosen on rendered faces and photographs, see docs/inspect.md.
MAX_DISTANCE = 9  # bits of 64
MIN_CORRELATION = 0.9
MAX_PAIRS = 1_000_000  # as many as 1,415 near-copies of one picture make: more would say nothing new

_BANDS = 5  # two hashes that differ in at most 9 bits differ in at most one bit of some band of five
_BLANK = 2.0  # grey levels of standard deviation: below it there is nothing to compare
_AT_ONCE = 2**21  # candidates in memory

_Pairs = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class NearPairs:
    """Pictures that are nearly the same.

    Attributes:
        pairs: (P, 2) int64 rows, the first the smaller, ascending.
        distances: (P,) int64, bits in which the hashes differ, 0 to `MAX_DISTANCE`.
        correlations: (P,) float64 of the thumbnails, as asked for to 1.
        complete: False where the search ended at `MAX_PAIRS`.
    """

    pairs: _Pairs
    distances: NDArray[np.int64]
    correlations: NDArray[np.float64]
    complete: bool


def perceptual_hash(thumbnails: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """A hash that changes little when a picture is encoded again, scaled, brightened or cropped a little.

    Bit k says whether the k-th of the 8 x 8 lowest frequencies of the discrete cosine transform lies above
    the median of them; the mean brightness does not count.

    Args:
        thumbnails: (N, 32, 32) grey.

    Returns:
        (N,) uint64.
    """
    side = thumbnails.shape[1]
    angles = np.outer(np.arange(8), 2 * np.arange(side) + 1) * np.pi / (2 * side)
    cosines = np.cos(angles) * np.where(np.arange(8) == 0, np.sqrt(0.5), 1.0)[:, None]
    hashes = np.zeros(len(thumbnails), dtype=np.uint64)
    weights = np.uint64(1) << np.arange(64, dtype=np.uint64)
    for start in range(0, len(thumbnails), 4096):  # the transform is in float
        low = (cosines @ thumbnails[start : start + 4096] @ cosines.T).reshape(-1, 64)
        above = low > np.median(low[:, 1:], axis=1, keepdims=True)
        above[:, 0] = False
        hashes[start : start + 4096] = (above * weights).sum(axis=1, dtype=np.uint64)
    return hashes


def blank_images(thumbnails: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(N,) bool: pictures of a single grey, or nearly so."""
    # One at a time: the deviation of all would need eight times their memory.
    return np.array([thumbnail.std() < _BLANK for thumbnail in thumbnails], dtype=np.bool_)


def near_pairs(
    thumbnails: NDArray[np.uint8], *, min_correlation: float = MIN_CORRELATION, max_pairs: int = MAX_PAIRS
) -> NearPairs:
    """Find pairs whose hashes differ in at most 9 of 64 bits and whose thumbnails correlate.

    Candidates come from tables of five bands of the hash, not from all pairs: time grows with N times the
    number of pictures that share a band. Blank pictures are left out: they are like anything.

    Args:
        thumbnails: (N, 32, 32) grey.
        min_correlation: Pearson's, of the grey values, -1 to 1.
        max_pairs: stop when about so many are found.
    """
    rows = np.flatnonzero(~blank_images(thumbnails))
    hashes = perceptual_hash(thumbnails[rows])
    found: set[int] = set()
    n, complete = len(rows), True
    for left, right in _candidates(hashes):
        close = np.bitwise_count(hashes[left] ^ hashes[right]) <= MAX_DISTANCE
        left, right = left[close], right[close]
        alike = correlations(thumbnails, rows[left], rows[right]) >= min_correlation
        found.update((left[alike] * n + right[alike]).tolist())  # several bands find the same pair
        if len(found) >= max_pairs:
            complete = False
            break
    codes = np.array(sorted(found), dtype=np.int64)
    first, second = codes // max(n, 1), codes % max(n, 1)
    distances = np.bitwise_count(hashes[first] ^ hashes[second]).astype(np.int64)
    pairs = np.stack([rows[first], rows[second]], axis=1)
    return NearPairs(pairs, distances, correlations(thumbnails, pairs[:, 0], pairs[:, 1]), complete)


def _candidates(hashes: NDArray[np.uint64]) -> Iterator[tuple[_Pairs, _Pairs]]:
    """Positions (left < right) of hashes that differ in at most one bit of a band, some of them repeatedly."""
    for band in range(_BANDS):
        bits = range(band, 64, _BANDS)  # interleaved: neighbouring frequencies go together, bands should not
        keys = np.zeros(len(hashes), dtype=np.int64)
        for place, bit in enumerate(bits):
            keys |= ((hashes >> np.uint64(bit)) & np.uint64(1)).astype(np.int64) << place
        order = np.argsort(keys, kind="stable")
        starts = np.searchsorted(keys[order], np.arange(2 ** len(bits) + 1))
        for flip in (0, *(1 << place for place in range(len(bits)))):
            yield from _joined(keys ^ flip, order, starts)


def _joined(keys: _Pairs, order: _Pairs, starts: _Pairs) -> Iterator[tuple[_Pairs, _Pairs]]:
    """Every position with all of those in the bucket of its key, a few million at a time."""
    counts = starts[keys + 1] - starts[keys]
    ends = np.cumsum(counts)
    start = 0
    while start < len(keys):
        before = ends[start] - counts[start]
        stop = max(int(np.searchsorted(ends, before + _AT_ONCE, side="right")), start + 1)
        part = slice(start, stop)
        left = np.repeat(np.arange(start, stop), counts[part])
        # 0, 1, 2 ... within each bucket
        within = np.arange(len(left)) - np.repeat(ends[part] - counts[part] - before, counts[part])
        right = order[np.repeat(starts[keys[part]], counts[part]) + within]
        ascending = left < right
        yield left[ascending], right[ascending]
        start = stop


def correlations(thumbnails: NDArray[np.uint8], left: _Pairs, right: _Pairs) -> NDArray[np.float64]:
    """Pearson's correlation, -1 to 1, of the thumbnails of rows `left` (P,) and `right` (P,): (P,)."""
    values = np.empty(len(left))
    for start in range(0, len(left), 8192):
        part = slice(start, start + 8192)
        a, b = (_standardised(thumbnails[side[part]]) for side in (left, right))
        values[part] = np.einsum("ij,ij->i", a, b)
    return values


def _standardised(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True).clip(1e-6)
    return flat


def same_groups(keys: Sequence[Any] | NDArray[Any]) -> list[list[int]]:
    """Rows with equal keys: groups of two and more, each ascending, by their first row."""
    rows: dict[Any, list[int]] = {}
    for row, key in enumerate(keys):
        rows.setdefault(key, []).append(row)
    return [group for group in rows.values() if len(group) > 1]


def connected_groups(pairs: _Pairs, n: int) -> list[list[int]]:
    """Rows 0 to n - 1 that pairs connect, directly or through others: groups as of `same_groups`."""
    parents = list(range(n))

    def root(row: int) -> int:
        while parents[row] != row:
            parents[row] = parents[parents[row]]
            row = parents[row]
        return row

    for left, right in pairs.tolist():
        first, second = sorted((root(left), root(right)))
        parents[second] = first
    return same_groups([root(row) for row in range(n)])
