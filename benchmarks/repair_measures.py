"""What the figures of the repair are made of: choice of samples, errors, drift of factors, shares."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from diffinf.evaluate.intervals import wilson_interval

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
READABLE = 0.3  # R^2 from which on a factor's drift is reported


def _digest(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest(), 16)


def in_half(ids: Sequence[str], half: str) -> Bools:
    """Whether each of the ids (N,) is in `half` "0" or "1", by a hash; "all" takes every one."""
    if half == "all":
        return np.ones(len(ids), dtype=np.bool_)
    return np.array([_digest(f"dev:{id_}") % 2 == int(half) for id_ in ids], dtype=np.bool_)


def chosen(ids: Sequence[str], most: int, salt: str = "") -> Ints:
    """Positions of the `most` ids with the smallest sha256 of salt + id, ascending by it: a choice that nobody made."""
    order = sorted(range(len(ids)), key=lambda row: _digest(f"{salt}{ids[row]}"))
    return np.array(order[:most], dtype=np.int64)


def psnr(reference: npt.NDArray[np.uint8], images: npt.NDArray[np.uint8]) -> Floats:
    """Peak signal-to-noise ratio in dB of each of N uint8 images (N, C, H, W); infinite for equal ones."""
    error = np.square(reference.astype(np.float64) - images.astype(np.float64)).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255**2 / error)


def spread(values: Floats, persons: npt.NDArray[np.str_] | None = None) -> Floats:
    """Standard deviation of factors (N, F) over the data; given persons (N,), over the means of the persons."""
    if persons is None:
        return values.std(axis=0)
    _, member = np.unique(persons, return_inverse=True)
    sums = np.zeros((member.max() + 1, values.shape[1]))
    np.add.at(sums, member, values)
    return (sums / np.bincount(member)[:, None]).std(axis=0)


def r_squared(truth: Floats, read: Floats) -> Floats:
    """Share of each factor's variance (N, F) that is read; -inf where the factor does not vary."""
    residual, total = np.square(truth - read).mean(axis=0), truth.var(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(total > 0, 1 - residual / total, -np.inf)


def drift(before: Floats, after: Floats, scale: Floats) -> Floats:
    """Mean |change| of factors (N, F), each in units of its `scale` (F,); NaN for no sample or no scale."""
    if not len(before):
        return np.full(len(scale), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(scale > 0, np.abs(after - before).mean(axis=0) / scale, np.nan)


def grouped_drift(
    found: Floats, readable: Bools, names: Sequence[str], groups: Sequence[str]
) -> dict[str, Any]:
    """Mean drift (F,) of the readable factors, by group, and the five that move most."""
    kept = readable & np.isfinite(found)
    result: dict[str, Any] = {}
    for group in dict.fromkeys(groups):
        members = kept & (np.array(groups) == group)
        result[group] = float(found[members].mean()) if members.any() else None
    worst = sorted(np.flatnonzero(kept), key=lambda k: -found[k])[:5]
    return {**result, "worst": {names[k]: float(found[k]) for k in worst}}


def share(hits: npt.ArrayLike) -> dict[str, Any]:
    """Share of True among bool (N,) with its 95 % Wilson interval; None for no sample."""
    values = np.asarray(hits, dtype=np.bool_)
    if not len(values):
        return {"share": None, "ci": None, "n": 0}
    interval = wilson_interval(int(values.sum()), len(values))
    return {"share": interval.estimate, "ci": list(interval.ci), "n": len(values)}


def paired(first: Bools, second: Bools) -> dict[str, Any]:
    """Share of `first` minus share of `second` among the same N samples, with its 95 % normal interval."""
    difference = first.astype(np.float64) - second.astype(np.float64)
    if len(difference) < 2:
        return {"difference": None, "ci": None, "n": len(difference)}
    mean, half = difference.mean(), 1.96 * difference.std(ddof=1) / len(difference) ** 0.5
    return {"difference": float(mean), "ci": [float(mean - half), float(mean + half)], "n": len(difference)}


def mean_or_none(values: npt.ArrayLike) -> float | None:
    """Mean of the finite values; None where there are none."""
    array = np.asarray(values, dtype=np.float64)
    array = array[np.isfinite(array)]
    return float(array.mean()) if len(array) else None
