"""Relative classification accuracy: does a conditional generator make the class it was asked for?

A classifier that took no part in the generation, the oracle, reads the class of generated images. Its accuracy there,
over its accuracy on held-out real images, is 1 where generated images show their class as well as real ones do
(arXiv 2601.15560).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffinf.evaluate.intervals import Floats, Interval, Ints, ratio_interval, wilson_interval

ORACLE_RANGE = (
    0.80,
    0.97,
)  # an oracle below errs too often to judge; above, the classes are too easy to tell
REACHED, HALF = 0.85, 0.5
_PAIRS, _EXAMPLES = 10, 4

Matrix = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ClassAccuracy:
    """One class; accuracies with 95 % Wilson intervals, None where there are no images of it.

    The interval of ``rca`` is taken from Jeffreys posteriors of the two accuracies: a resample of few images that are
    all right is always all right, and would claim certainty.
    """

    rca: Interval | None
    generated_accuracy: Interval | None
    real_accuracy: Interval | None
    n_generated: int
    n_real: int


@dataclass(frozen=True)
class ConfusedPair:
    """Images asked for as one class and read as another.

    Attributes:
        asked: the class asked for; read: what the oracle read.
        n: such generated images; share: of all asked for as that class.
        real_share: the oracle's own share of this mistake on real images; None without real images of the class.
        examples: rows of some of the generated images; empty if only counts were given.
    """

    asked: str
    read: str
    n: int
    share: float
    real_share: float | None
    examples: tuple[int, ...]


@dataclass(frozen=True)
class GroupConfusion:
    """Confusion within a group of classes that look alike.

    Attributes:
        classes: its classes; generated, real: counts, a row for each class asked for, a column for each read.
        inside: share of the wrong reads of generated images that stay in the group; None if none is wrong.
        inside_by_chance: the same if wrong reads fell on all other classes alike.
    """

    classes: tuple[str, ...]
    generated: Matrix
    real: Matrix
    inside: float | None
    inside_by_chance: float


@dataclass(frozen=True)
class RelativeClassificationAccuracy:
    """What an oracle reads in generated images, relative to what it reads in real ones.

    Attributes:
        rca: accuracy on generated over accuracy on real images, with its 95 % bootstrap interval over images within
            classes; where a side's every class is read all right or all wrong, a resample would be too, and draws
            from the Jeffreys posterior of its accuracy take its place. May exceed 1; None where the real accuracy
            is or may be 0.
        balanced: the same with every class weighing the same, for sides of different class shares.
        generated_accuracy, real_accuracy: top-1 with 95 % Wilson intervals, on n_generated and n_real images of the
            classes that both sides have.
        per_class: by class.
        classes: the order of the confusion matrices.
        generated_confusion, real_confusion: counts, a row for each class asked for, a column for each read.
        groups: confusion within each group, if groups were given.
        confused: the pairs most often confused in generated images, the worst first.
        verdict: what the figures say, in words; warnings: what speaks against believing them.
    """

    rca: Interval | None
    balanced: Interval | None
    generated_accuracy: Interval
    real_accuracy: Interval
    n_generated: int
    n_real: int
    per_class: dict[str, ClassAccuracy]
    classes: tuple[str, ...]
    generated_confusion: Matrix
    real_confusion: Matrix
    groups: dict[str, GroupConfusion]
    confused: tuple[ConfusedPair, ...]
    verdict: str
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON knows them."""
        return asdict(self)


def relative_classification_accuracy(
    generated_predictions: ArrayLike,
    generated_labels: ArrayLike,
    real_predictions: ArrayLike,
    real_labels: ArrayLike,
    *,
    class_names: Sequence[str] | None = None,
    groups: Mapping[str, str] | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> RelativeClassificationAccuracy:
    """Relative classification accuracy (arXiv 2601.15560) from an oracle's readings.

    The real images must be held out from the oracle's training AND from the generator's.

    Args:
        generated_predictions: (M,) classes read in generated images.
        generated_labels: (M,) classes asked for.
        real_predictions: (N,) classes read in held-out real images.
        real_labels: (N,) their true classes.
        class_names: names of the classes, if the arrays hold indices 0..K-1; else they hold the names.
        groups: class name to group, for classes that look alike; classes it does not name are in none.
        bootstrap: resamples for the intervals.
        seed: seed of the resampling.

    Raises:
        ValueError: if arrays are empty or differ in length, a class is not in ``class_names``, a group names an
            unknown class, or no class has both generated and real images.
    """
    read, asked = _side(generated_predictions, generated_labels, "generated")
    real_read, truth = _side(real_predictions, real_labels, "real")
    sides = [read, asked, real_read, truth]
    if class_names is None:
        found, codes = np.unique(np.concatenate(sides), return_inverse=True)
        names: Sequence[str] = [str(name) for name in found]
        coded: list[Ints] = np.split(codes, np.cumsum([len(side) for side in sides])[:-1])
    else:
        names, coded = class_names, [_indices(side, len(class_names)) for side in sides]
    examples: dict[tuple[int, int], list[int]] = {}
    for row, pair in enumerate(zip(coded[1].tolist(), coded[0].tolist(), strict=True)):
        if pair[0] != pair[1] and len(rows := examples.setdefault(pair, [])) < _EXAMPLES:
            rows.append(row)
    return rca_from_confusions(
        confusion(coded[1], coded[0], len(names)),
        confusion(coded[3], coded[2], len(names)),
        names,
        groups=groups,
        bootstrap=bootstrap,
        seed=seed,
        examples=examples,
    )


def rca_from_confusions(
    generated: ArrayLike,
    real: ArrayLike,
    class_names: Sequence[str],
    *,
    groups: Mapping[str, str] | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    examples: Mapping[tuple[int, int], Sequence[int]] | None = None,
) -> RelativeClassificationAccuracy:
    """The same from counts (K, K): a row for each class asked for (or true), a column for each class read.

    ``examples`` are rows of generated images by (asked, read). See `relative_classification_accuracy` for the rest.
    """
    tables: list[Ints] = [np.asarray(table, dtype=np.int64) for table in (generated, real)]
    k = len(class_names)
    for table in tables:
        if table.shape != (k, k) or (table < 0).any():
            raise ValueError(
                f"confusions must be counts of shape ({k}, {k}), one row a class, got {table.shape}"
            )
    if bootstrap < 1:
        raise ValueError(f"bootstrap must be at least 1, got {bootstrap}")
    totals, hits = (np.stack([part(table) for table in tables]) for part in (_row_sums, np.diagonal))
    shared = (totals > 0).all(axis=0)
    if not shared.any():
        raise ValueError("no class has both generated and real images")
    plain, balanced = _ratios(hits[:, shared], totals[:, shared], bootstrap, seed)
    sizes, right = totals[:, shared].sum(axis=1), hits[:, shared].sum(axis=1)
    accuracies = [wilson_interval(int(part), int(n)) for part, n in zip(right, sizes, strict=True)]
    read = tables[0][shared].sum(axis=0)[shared]
    chance = float((totals[0, shared] / sizes[0]) @ (read / sizes[0]))
    return RelativeClassificationAccuracy(
        rca=plain,
        balanced=balanced,
        generated_accuracy=accuracies[0],
        real_accuracy=accuracies[1],
        n_generated=int(sizes[0]),
        n_real=int(sizes[1]),
        per_class=_per_class(hits, totals, class_names, bootstrap, seed),
        classes=tuple(class_names),
        generated_confusion=_matrix(tables[0]),
        real_confusion=_matrix(tables[1]),
        groups=_groups(tables, class_names, groups or {}),
        confused=_confused(tables, class_names, examples or {}),
        verdict=_verdict(plain, accuracies[0], chance),
        warnings=_warnings(accuracies[1], totals, class_names),
    )


def confusion(truth: Ints, read: Ints, k: int) -> Ints:
    """Counts (K, K) of class indices: a row for each true class, a column for each class read."""
    return np.bincount(truth * k + read, minlength=k * k).reshape(k, k)


def _side(predictions: ArrayLike, labels: ArrayLike, name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    read, truth = (_plain(values) for values in (predictions, labels))
    if read.ndim != 1 or read.shape != truth.shape or not len(read):
        raise ValueError(
            f"{name} predictions and labels must be of one length > 0, got shapes {read.shape} and {truth.shape}"
        )
    for values in (read, truth):
        if values.dtype.kind not in "iuU":
            raise ValueError(f"{name} classes must be whole numbers or names, got {values.dtype}")
    return read, truth


def _plain(values: ArrayLike) -> NDArray[Any]:
    """Names as a pandas or Parquet column hands them over, in an array of objects, as an array of names."""
    array = np.asarray(values)
    return np.array(array.tolist()) if array.dtype == object else array


def _indices(values: NDArray[Any], k: int) -> Ints:
    if values.dtype.kind not in "iu":
        raise ValueError(f"with class_names, classes are indices, got {values.dtype}")
    outside = (values < 0) | (values >= k)
    if outside.any():
        raise ValueError(
            f"row {int(outside.argmax())}: class {values[outside.argmax()]} is not in 0..{k - 1}"
        )
    return values.astype(np.int64)


def _row_sums(table: Ints) -> Ints:
    sums: Ints = table.sum(axis=1)
    return sums


def _matrix(table: Ints) -> Matrix:
    return tuple(tuple(row) for row in table.tolist())


def _ratios(hits: Ints, totals: Ints, resamples: int, seed: int) -> tuple[Interval | None, Interval | None]:
    """Plain and balanced ratio of (2, K) hits and totals, generated over real."""
    generator = np.random.default_rng([seed, 0x2CA])
    # How many of n images drawn again are hits is binomial: the same as to draw them one by one.
    draws = generator.binomial(totals, hits / totals, size=(resamples, *hits.shape))
    sizes = totals.sum(axis=1)
    plain: Floats = draws.sum(axis=2) / sizes
    balanced: Floats = (draws / totals).mean(axis=2)
    values = hits.sum(axis=1) / sizes, (hits / totals).mean(axis=1)
    for side in np.flatnonzero(((hits == 0) | (hits == totals)).all(axis=1)):
        n = int(sizes[side])
        for value, drawn in zip(values, (plain, balanced), strict=True):
            right = float(value[side]) * n
            drawn[:, side] = generator.beta(right + 0.5, n - right + 0.5, resamples)
    first, second = (
        ratio_interval(value[0], value[1], drawn[:, 0], drawn[:, 1])
        for value, drawn in zip(values, (plain, balanced), strict=True)
    )
    return first, second


def _per_class(
    hits: Ints, totals: Ints, names: Sequence[str], resamples: int, seed: int
) -> dict[str, ClassAccuracy]:
    result = {}
    for k, name in enumerate(names):
        (right, real_right), (n, n_real) = hits[:, k].tolist(), totals[:, k].tolist()
        ratio = None
        if n and real_right:
            generator = np.random.default_rng([seed, 0xC1A55, k])
            draws = [
                generator.beta(part + 0.5, whole - part + 0.5, resamples)
                for part, whole in ((right, n), (real_right, n_real))
            ]
            ratio = ratio_interval(right / n, real_right / n_real, *draws)
        result[name] = ClassAccuracy(
            rca=ratio,
            generated_accuracy=wilson_interval(right, n) if n else None,
            real_accuracy=wilson_interval(real_right, n_real) if n_real else None,
            n_generated=n,
            n_real=n_real,
        )
    return result


def _groups(tables: list[Ints], names: Sequence[str], groups: Mapping[str, str]) -> dict[str, GroupConfusion]:
    if unknown := sorted(set(groups) - set(names)):
        raise ValueError(f"groups name classes that are not there: {', '.join(unknown[:5])}")
    result = {}
    for group in sorted(set(groups.values())):
        own = np.array([k for k, name in enumerate(names) if groups.get(name) == group])
        inside = [table[np.ix_(own, own)] for table in tables]
        wrong = int(tables[0][own].sum() - np.trace(inside[0]))
        result[group] = GroupConfusion(
            classes=tuple(names[k] for k in own),
            generated=_matrix(inside[0]),
            real=_matrix(inside[1]),
            inside=int(inside[0].sum() - np.trace(inside[0])) / wrong if wrong else None,
            inside_by_chance=(len(own) - 1) / max(len(names) - 1, 1),
        )
    return result


def _confused(
    tables: Sequence[Ints], names: Sequence[str], examples: Mapping[tuple[int, int], Sequence[int]]
) -> tuple[ConfusedPair, ...]:
    wrong = tables[0] - np.diag(np.diagonal(tables[0]))
    worst = np.argsort(-wrong, axis=None, kind="stable")[:_PAIRS]
    pairs = [(int(place) // len(names), int(place) % len(names)) for place in worst]
    asked, real = (table.sum(axis=1) for table in tables)
    return tuple(
        ConfusedPair(
            asked=names[i],
            read=names[j],
            n=int(wrong[i, j]),
            share=float(wrong[i, j] / asked[i]),
            real_share=float(tables[1][i, j] / real[i]) if real[i] else None,
            examples=tuple(examples.get((i, j), ())),
        )
        for i, j in pairs
        if wrong[i, j]
    )


def _verdict(rca: Interval | None, generated: Interval, chance: float) -> str:
    if rca is None:
        return "The oracle does not recognise real images: nothing can be said."
    if generated.low <= chance:
        return "Generated images show the class asked for no more often than chance."
    if rca.low > 1:
        return (
            "Generated images are easier to read than real ones: look for caricatures, for copies of training images, "
            "and for what the oracle shares with the generator."
        )
    if rca.low >= REACHED:
        return "Generated images show the class asked for about as often as real ones."
    if rca.high < HALF:
        return "Most generated images show another class than the one asked for, however good they look."
    if rca.high < REACHED:
        return "Generated images show the class asked for less often than real ones."
    return f"Too few images to say whether an RCA of {REACHED} is reached."


def _warnings(real: Interval, totals: Ints, names: Sequence[str]) -> tuple[str, ...]:
    found = []
    low, high = ORACLE_RANGE
    if real.estimate < low:
        found.append(
            f"The oracle reads only {real.estimate:.1%} of real images right: it errs too often to judge."
        )
    if real.estimate > high:
        found.append(
            f"The oracle reads {real.estimate:.1%} of real images right: the classes are too easy to tell for a high "
            "RCA to mean much, or it has seen these images."
        )
    for side, other, text in ((0, 1, "real"), (1, 0, "generated")):
        missing = [name for k, name in enumerate(names) if totals[side, k] and not totals[other, k]]
        if missing:
            more = ", ..." if len(missing) > 5 else ""
            found.append(
                f"Left out for want of {text} images: {', '.join(missing[:5])}{more} ({len(missing)})."
            )
    return tuple(found)
