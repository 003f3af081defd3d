"""Realism of edited images, as a share of what an equal number of real images reaches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffinf.evaluate.intervals import Floats, Interval, Ints, percentile_interval, ratio_interval
from diffinf.evaluate.neighbours import Membership, checked_features, membership, squared_radii

MEASURES = ("precision", "density", "coverage")


@dataclass(frozen=True)
class RelativeFigure:
    """One measure of edited and of real images.

    Attributes:
        edited: its value on the edited images, real: on the equal-sized real sample, with 95 % intervals.
        ratio: edited over real with its interval; None where the real sample's value is or may be 0.
    """

    edited: Interval
    real: Interval
    ratio: Interval | None


@dataclass(frozen=True)
class ClassRealism:
    """Precision, density and coverage within one class or over all of them, and how many images they rest on."""

    precision: RelativeFigure
    density: RelativeFigure
    coverage: RelativeFigure
    n_edited: int
    n_reference: int


@dataclass(frozen=True)
class Realism:
    """Realism of edited images; every image is held against references of its own class alone.

    Attributes:
        overall: over the images of all classes that could be measured.
        per_class: by class; None for one with too few references or no edited image.
        nearest_k: a reference's ball reaches to its k-th nearest reference.
    """

    overall: ClassRealism
    per_class: dict[str, ClassRealism | None]
    nearest_k: int

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON knows them."""
        return asdict(self)


def relative_realism(
    edited: ArrayLike,
    reference: ArrayLike,
    real_sample: ArrayLike,
    *,
    edited_labels: ArrayLike | None = None,
    reference_labels: ArrayLike | None = None,
    real_sample_labels: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
    nearest_k: int = 5,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Realism:
    """Precision, density and coverage (arXiv 1904.06991, 2002.09797) of edited images relative to real ones.

    Originals cover themselves: neither the originals of the edits nor images of the real sample may be among the
    references. `matched_rows` draws sets that fit.

    Args:
        edited: (M, D) features of the edited images alone.
        reference: (N, D) features of held-out real images that truly are of their class.
        real_sample: (M, D) features of other held-out real images, as many as edited ones, in each class too.
        edited_labels: (M,) the class each edited image should show; labels are given for all three or for none.
        reference_labels: (N,) true classes.
        real_sample_labels: (M,) true classes.
        class_names: names of the classes, if labels are indices.
        nearest_k: see `Realism`.
        bootstrap: resamples for the intervals, drawn within classes. They are over the images that a figure is a
            mean of: the edited ones and the sample's for precision and density, the references for coverage.
        seed: seed of the resampling.

    Raises:
        ValueError: if shapes or sizes do not fit, a value is not finite, or no class has images on all sides and
            more than ``nearest_k`` references.
    """
    references = checked_features(reference, "reference")
    edits = checked_features(edited, "edited", references.shape[1])
    sample = checked_features(real_sample, "real_sample", references.shape[1])
    if nearest_k < 1 or bootstrap < 1:
        raise ValueError(f"nearest_k and bootstrap must be at least 1, got {nearest_k} and {bootstrap}")
    labels = _labels(
        (edits, edited_labels, "edited"),
        (references, reference_labels, "reference"),
        (sample, real_sample_labels, "real_sample"),
    )
    found: dict[str, tuple[Membership, Membership] | None] = {}
    for label in np.unique(np.concatenate(labels)):
        rows = [part == label for part in labels]
        n_edited, n_reference, n_sample = (int(part.sum()) for part in rows)
        name = str(label) if class_names is None or edited_labels is None else class_names[int(label)]
        if n_edited != n_sample:
            raise ValueError(f"class {name!r}: {n_edited} edited images, but {n_sample} in the real sample")
        found[name] = None
        if n_edited and n_reference > nearest_k:
            near = references[rows[1]]
            radii = squared_radii(near, nearest_k, "reference")
            found[name] = membership(near, edits[rows[0]], radii), membership(near, sample[rows[2]], radii)
    measured = [pair for pair in found.values() if pair is not None]
    if not measured:
        raise ValueError(f"no class has edited images and more than {nearest_k} reference images")
    return Realism(
        overall=_figures(measured, nearest_k, bootstrap, seed),
        per_class={}
        if edited_labels is None
        else {
            name: None if pair is None else _figures([pair], nearest_k, bootstrap, seed)
            for name, pair in found.items()
        },
        nearest_k=nearest_k,
    )


def matched_rows(
    edited_labels: ArrayLike, held_out_labels: ArrayLike, seed: int = 0
) -> tuple[Ints, Ints, Ints]:
    """Rows for `relative_realism`: of the edited images, of the references, and of the equal-sized real sample.

    Of each class at most half of the held-out images become the sample and the rest the references; where that
    is less than there are edited images, as many of these are drawn.

    Args:
        edited_labels: (M,) the class each edited image should show.
        held_out_labels: (H,) true classes of the held-out images, in the same coding.
        seed: seed of the drawing.
    """
    edited, held_out = np.asarray(edited_labels), np.asarray(held_out_labels)
    generator = np.random.default_rng([seed, 0x3A7C4])
    parts: tuple[list[Ints], list[Ints], list[Ints]] = ([], [], [])
    for label in np.unique(edited):
        own = generator.permutation(np.flatnonzero(edited == label))
        others = generator.permutation(np.flatnonzero(held_out == label))
        size = min(len(own), len(others) // 2)
        for part, rows in zip(parts, (own[:size], others[size:], others[:size]), strict=True):
            part.append(np.sort(rows))
    first, second, third = (np.concatenate(part) if part else np.zeros(0, np.int64) for part in parts)
    return first, second, third


def _labels(*sides: tuple[NDArray[Any], ArrayLike | None, str]) -> list[NDArray[Any]]:
    given = [labels is not None for _, labels, _ in sides]
    if any(given) != all(given):
        raise ValueError("labels are given for edited, reference and real_sample together or not at all")
    result = [
        np.zeros(len(rows), np.int64) if labels is None else np.asarray(labels) for rows, labels, _ in sides
    ]
    for (rows, _, name), labels in zip(sides, result, strict=True):
        if labels.shape != (len(rows),):
            raise ValueError(f"{name}: {len(rows)} images, labels of shape {labels.shape}")
    return result


def _figures(pairs: list[tuple[Membership, Membership]], k: int, resamples: int, seed: int) -> ClassRealism:
    generator = np.random.default_rng([seed, 0x3EA1])
    n_edited = sum(len(edited.balls) for edited, _ in pairs)
    n_reference = sum(len(edited.covered) for edited, _ in pairs)
    values = np.zeros((2, 3))  # edited, real sample; in the order of MEASURES
    draws = np.zeros((resamples, 2, 3))
    for pair in pairs:
        for side, found in enumerate(pair):
            balls = np.stack([found.balls > 0, found.balls / k])
            values[side, :2] += balls.sum(axis=1) / n_edited
            for draw in draws:
                rows = generator.integers(balls.shape[1], size=balls.shape[1])
                draw[side, :2] += balls[:, rows].sum(axis=1) / n_edited
        # One drawing of references for both sides: what they share cancels in the ratio.
        covered = np.stack([found.covered for found in pair])
        values[:, 2] += covered.sum(axis=1) / n_reference
        for draw in draws:
            rows = generator.integers(covered.shape[1], size=covered.shape[1])
            draw[:, 2] += covered[:, rows].sum(axis=1) / n_reference
    figures = {name: _relative(values[:, i], draws[:, :, i]) for i, name in enumerate(MEASURES)}
    return ClassRealism(**figures, n_edited=n_edited, n_reference=n_reference)


def _relative(values: Floats, draws: Floats) -> RelativeFigure:
    return RelativeFigure(
        edited=percentile_interval(values[0], draws[:, 0]),
        real=percentile_interval(values[1], draws[:, 1]),
        ratio=ratio_interval(values[0], values[1], draws[:, 0], draws[:, 1]),
    )
