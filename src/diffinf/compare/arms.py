"""Arms: what each way of treating the flagged samples trains on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from diffinf.errors import UserError

T = TypeVar("T")
Ints = NDArray[np.int64]
Replacements = Mapping[int, int]


@dataclass(frozen=True)
class Material:
    """What arms choose from. Sample i of N is image i of a pool that also holds images to put in its place.

    Attributes:
        ids: (N,) the samples' ids.
        labels: int64 (N,), as annotated.
        flagged: bool (N,).
        appears: int64 (N,), the label each image appears to have.
        edited: sample -> row of its accepted edit in the pool.
        relabelled: sample -> label that the repair gave it.
        dropped: samples that the repair dropped.
        roundtrips: sample -> row of its unedited reconstruction; None if there are none.
        oracle_edits: sample -> row of an image that truly fits its label; None if there are none.
        truth: int64 (N,), the true labels; None where they are not known.
    """

    ids: NDArray[Any]
    labels: Ints
    flagged: NDArray[np.bool_]
    appears: Ints
    edited: Replacements = field(default_factory=dict)
    relabelled: Mapping[int, int] = field(default_factory=dict)
    dropped: Collection[int] = ()
    roundtrips: Replacements | None = None
    oracle_edits: Replacements | None = None
    truth: Ints | None = None


@dataclass(frozen=True)
class TrainingSet:
    """What one arm trains on.

    Attributes:
        rows: int64 (M,), rows of the pool of images.
        labels: int64 (M,).
        weights: (M,) weights of the losses, or None.
    """

    rows: Ints
    labels: Ints
    weights: NDArray[np.float32] | None = None


Arm = Callable[[Material, int], TrainingSet]


def training_set(name: str, material: Material, seed: int) -> TrainingSet:
    """Return what the arm `name` trains on with `seed`.

    Raises:
        UserError: there is no such arm, or what it needs is not there, or it leaves fewer than two classes.
    """
    if name not in ARMS:
        raise UserError(f"compare.arms: there is no arm {name!r}; expected some of {', '.join(ARMS)}")
    chosen = ARMS[name](material, seed)
    if len(np.unique(chosen.labels)) < 2:
        raise UserError(
            f"compare.arms: the arm {name} leaves {len(chosen.labels)} samples of fewer than two classes; "
            "flag fewer samples, or leave the arm out"
        )
    return chosen


def _baseline(material: Material, seed: int) -> TrainingSet:
    return TrainingSet(_all(material), material.labels)


def _filter(material: Material, seed: int) -> TrainingSet:
    rows = np.flatnonzero(~material.flagged)
    return TrainingSet(rows, material.labels[rows])


def _relabel(material: Material, seed: int) -> TrainingSet:
    return TrainingSet(_all(material), np.where(material.flagged, material.appears, material.labels))


def _resample(material: Material, seed: int) -> TrainingSet:
    """Each flagged image gives way to a random unflagged one of its label, if there is one."""
    rows = _all(material)
    for label in np.unique(material.labels):
        of_label = material.labels == label
        # By id, so that the draw does not depend on the order of the samples.
        pool = sorted(np.flatnonzero(of_label & ~material.flagged), key=lambda row: str(material.ids[row]))
        for row in np.flatnonzero(of_label & material.flagged) if pool else ():
            digest = hashlib.sha256(f"{seed}:resample:{material.ids[row]}".encode()).digest()
            rows[row] = pool[int.from_bytes(digest[:8], "little") % len(pool)]
    return TrainingSet(rows, material.labels)


def _roundtrip(material: Material, seed: int) -> TrainingSet:
    given = _given("roundtrip", "unedited reconstructions", material.roundtrips)
    return TrainingSet(_replaced(material, given), material.labels)


def _diffinf(material: Material, seed: int) -> TrainingSet:
    labels = material.labels.copy()
    for row, label in material.relabelled.items():
        labels[row] = label
    kept = np.setdiff1d(_all(material), np.asarray(sorted(material.dropped), dtype=np.int64))
    return TrainingSet(_replaced(material, material.edited)[kept], labels[kept])


def _clean(material: Material, seed: int) -> TrainingSet:
    return TrainingSet(_all(material), _given("clean", "true labels", material.truth))


def _oracle_edit(material: Material, seed: int) -> TrainingSet:
    given = _given("oracle-edit", "truly fitting images", material.oracle_edits)
    return TrainingSet(_replaced(material, given), material.labels)


ARMS: dict[str, Arm] = {
    "baseline": _baseline,
    "filter": _filter,
    "relabel": _relabel,
    "resample": _resample,
    "roundtrip": _roundtrip,
    "diffinf": _diffinf,
    "clean": _clean,
    "oracle-edit": _oracle_edit,
}


def _all(material: Material) -> Ints:
    return np.arange(len(material.labels), dtype=np.int64)


def _replaced(material: Material, replacements: Replacements) -> Ints:
    rows = _all(material)
    for row, replacement in replacements.items():
        rows[row] = replacement
    return rows


def _given(arm: str, what: str, value: T | None) -> T:
    if value is None:
        raise UserError(f"compare.arms: the arm {arm} needs {what}, and there are none; leave the arm out")
    return value
