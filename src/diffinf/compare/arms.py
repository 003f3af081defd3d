"""Arms: what each way of treating the flagged samples trains on, and how it is trained."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from diffinf.classify.methods import LABELS_ONLY, MethodSpec
from diffinf.config import KNOBS, CompareConfig, split_arm
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
        cleanlab_issues: bool (N,), what cleanlab would prune; None where nobody asked it.
        paper_edits: sample -> row of its edit under flags by self-influence; None if there are none.
        true_flag_edits: sample -> row of its edit under perfect flags; None if there are none.
        relabelled_instead: sample -> label under the policy edit-or-relabel; None: what each flagged sample
            without an edit appears to show.
        dropped_instead: samples that the policy edit-or-drop drops; None: every flagged one without an edit.
        targets: shares of the classes (N, K) to learn in the place of the labels as annotated; None: the labels.
        flagged_weight: weight of a flagged sample's loss in the arm down-weight, 0 to 1.
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
    cleanlab_issues: NDArray[np.bool_] | None = None
    paper_edits: Replacements | None = None
    true_flag_edits: Replacements | None = None
    relabelled_instead: Mapping[int, int] | None = None
    dropped_instead: Collection[int] | None = None
    targets: NDArray[np.float32] | None = None
    flagged_weight: float = KNOBS["down-weight"].default


@dataclass(frozen=True)
class TrainingSet:
    """What one arm trains on.

    Attributes:
        rows: int64 (M,), rows of the pool of images.
        labels: int64 (M,).
        weights: (M,) weights of the losses, or None.
        targets: shares of the classes (M, K) to learn in the place of the labels, or None.
    """

    rows: Ints
    labels: Ints
    weights: NDArray[np.float32] | None = None
    targets: NDArray[np.float32] | None = None


Arm = Callable[[Material, int], TrainingSet]


def training_set(name: str, material: Material, seed: int) -> TrainingSet:
    """Return what the arm `name` trains on with `seed`.

    Targets hold for images and labels as they came: what was edited, replaced or relabelled has its label alone, and so
    has everything under a method that takes no shares.

    Raises:
        UserError: there is no such arm, or what it needs is not there, or it leaves fewer than two classes.
    """
    data, method = _parts(name)
    chosen = ARMS[data](material, seed)
    if len(np.unique(chosen.labels)) < 2:
        raise UserError(
            f"compare.arms: the arm {name} leaves {len(chosen.labels)} samples of fewer than two classes; "
            "flag fewer samples, or leave the arm out"
        )
    if material.targets is None or method in LABELS_ONLY:
        return chosen
    targets = np.eye(material.targets.shape[1], dtype=np.float32)[chosen.labels]
    places = np.flatnonzero(chosen.rows < len(material.labels))
    places = places[material.labels[chosen.rows[places]] == chosen.labels[places]]
    targets[places] = material.targets[chosen.rows[places]]
    return replace(chosen, targets=targets)


def training_method(name: str, compare: CompareConfig, noise_rate: float | None) -> MethodSpec | None:
    """Return how the arm `name` is trained: None is cross-entropy.

    Args:
        name: of the arm.
        compare: its knobs.
        noise_rate: estimated share of wrong labels, which co-teaching forgets where its knob is not set.

    Raises:
        UserError: there is no such arm.
    """
    method = _parts(name)[1]
    if method is None:
        return None
    knob = compare.knobs.get(method, KNOBS[method].default)
    if method == "co-teaching" and method not in compare.knobs and noise_rate is not None:
        knob = min(max(noise_rate, 0.0), KNOBS[method].high)
    return MethodSpec(method, knob)


def _parts(name: str) -> tuple[str, str | None]:
    try:
        return split_arm(name)
    except ValueError as error:
        raise UserError(f"compare.arms: {error}") from error


def _baseline(material: Material, seed: int) -> TrainingSet:
    return TrainingSet(_all(material), material.labels)


def _filter(material: Material, seed: int) -> TrainingSet:
    return _without(material, material.flagged)


def _cleanlab(material: Material, seed: int) -> TrainingSet:
    return _without(material, _given("cleanlab", "what cleanlab would prune", material.cleanlab_issues))


def _down_weight(material: Material, seed: int) -> TrainingSet:
    weights = np.where(material.flagged, material.flagged_weight, 1.0).astype(np.float32)
    return TrainingSet(_all(material), material.labels, weights)


def _relabel(material: Material, seed: int) -> TrainingSet:
    return TrainingSet(_all(material), np.where(material.flagged, material.appears, material.labels))


def _resample(material: Material, seed: int) -> TrainingSet:
    """Each flagged image gives way to a random unflagged one of its label, if there is one."""
    flagged = np.flatnonzero(material.flagged).tolist()
    return TrainingSet(_replaced(material, _substitutes(material, flagged, seed)), material.labels)


def _diffinf(material: Material, seed: int) -> TrainingSet:
    return _repaired(material, material.relabelled, material.dropped)


def _edit_or_relabel(material: Material, seed: int) -> TrainingSet:
    instead = material.relabelled_instead
    if instead is None:
        instead = {row: int(material.appears[row]) for row in _refused(material)}
    return _repaired(material, instead, ())


def _edit_or_drop(material: Material, seed: int) -> TrainingSet:
    instead = material.dropped_instead
    return _repaired(material, {}, _refused(material) if instead is None else instead)


def _edit_or_resample(material: Material, seed: int) -> TrainingSet:
    """What edit-or-drop would drop gives way to another image of its label, so that no class shrinks."""
    dropped = material.dropped_instead
    substitutes = _substitutes(material, _refused(material) if dropped is None else sorted(dropped), seed)
    return TrainingSet(_replaced(material, {**material.edited, **substitutes}), material.labels)


def _repaired(material: Material, relabelled: Mapping[int, int], dropped: Collection[int]) -> TrainingSet:
    labels = material.labels.copy()
    for row, label in relabelled.items():
        labels[row] = label
    kept = np.setdiff1d(_all(material), np.asarray(sorted(dropped), dtype=np.int64))
    return TrainingSet(_replaced(material, material.edited)[kept], labels[kept])


def _substitutes(material: Material, samples: Sequence[int], seed: int) -> dict[int, int]:
    """Sample -> row of a random unflagged image of its label; a label that has none has no substitutes."""
    found = {}
    for label in np.unique(material.labels[samples]) if len(samples) else ():
        unflagged = np.flatnonzero((material.labels == label) & ~material.flagged)
        # By id, so that the draw does not depend on the order of the samples.
        pool = sorted(unflagged.tolist(), key=lambda row: str(material.ids[row]))
        for row in (row for row in samples if material.labels[row] == label and pool):
            digest = hashlib.sha256(f"{seed}:resample:{material.ids[row]}".encode()).digest()
            found[row] = pool[int.from_bytes(digest[:8], "little") % len(pool)]
    return found


def _refused(material: Material) -> list[int]:
    """The flagged samples without an edit."""
    return [row for row in np.flatnonzero(material.flagged).tolist() if row not in material.edited]


def _clean(material: Material, seed: int) -> TrainingSet:
    return TrainingSet(_all(material), _given("clean", "true labels", material.truth))


def _replacing(name: str, what: str, choose: Callable[[Material], Replacements | None]) -> Arm:
    """The arm that puts some images in the place of others, all labels as annotated."""

    def arm(material: Material, seed: int) -> TrainingSet:
        return TrainingSet(_replaced(material, _given(name, what, choose(material))), material.labels)

    return arm


ARMS: dict[str, Arm] = {
    "baseline": _baseline,
    "filter": _filter,
    "down-weight": _down_weight,
    "relabel": _relabel,
    "resample": _resample,
    "roundtrip": _replacing("roundtrip", "unedited reconstructions", lambda m: m.roundtrips),
    "cleanlab": _cleanlab,
    "diffinf": _diffinf,
    "diffinf-paper": _replacing(
        "diffinf-paper", "edits under flags by self-influence", lambda m: m.paper_edits
    ),
    "diffinf-edit-or-relabel": _edit_or_relabel,
    "diffinf-edit-or-drop": _edit_or_drop,
    "diffinf-edit-or-resample": _edit_or_resample,
    "clean": _clean,
    "true-flags": _replacing("true-flags", "edits under perfect flags", lambda m: m.true_flag_edits),
    "oracle-edit": _replacing("oracle-edit", "truly fitting images", lambda m: m.oracle_edits),
}


def _all(material: Material) -> Ints:
    return np.arange(len(material.labels), dtype=np.int64)


def _without(material: Material, left_out: NDArray[np.bool_]) -> TrainingSet:
    rows = np.flatnonzero(~left_out)
    return TrainingSet(rows, material.labels[rows])


def _replaced(material: Material, replacements: Replacements) -> Ints:
    rows = _all(material)
    for row, replacement in replacements.items():
        rows[row] = replacement
    return rows


def _given(arm: str, what: str, value: T | None) -> T:
    if value is None:
        raise UserError(f"compare.arms: the arm {arm} needs {what}, and there are none; leave the arm out")
    return value
