"""The two labelling tasks: how continuous attributes become classes, and the true edit of a face."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from diffinf.data.rendered.factors import FaceFactors, FloatArray

Task = Literal["expression", "age"]

CLASS_NAMES: dict[str, tuple[str, ...]] = {
    "expression": ("sad", "neutral", "happy", "angry", "surprised"),
    "age": ("child", "teenager", "young adult", "middle-aged", "senior"),
}
# An expression weaker than this reads as neutral.
NEUTRAL_LEVEL = 0.35
# Ages in years at which one group ends and the next begins, with the ends of the range.
AGE_EDGES = (4.0, 13.0, 20.0, 40.0, 60.0, 85.0)
_SAD, _NEUTRAL, _HAPPY, _ANGRY, _SURPRISED = range(5)


def class_names(task: Task) -> tuple[str, ...]:
    """Return the names of the classes of a task, in label order; raises ValueError for an unknown task."""
    if task not in CLASS_NAMES:
        raise ValueError(f"unknown task {task!r}, expected one of {', '.join(CLASS_NAMES)}")
    return CLASS_NAMES[task]


def evidence(factors: FaceFactors, task: Task) -> FloatArray:
    """Return what an annotator weighs: (N, 5) strengths of the expressions, or (N, 1) age in years."""
    if task == "age":
        return factors.age[:, None]
    class_names(task)
    level = np.full(len(factors), NEUTRAL_LEVEL, dtype=np.float32)
    sad, happy = np.maximum(-factors.valence, 0), np.maximum(factors.valence, 0)
    return np.stack([sad, level, happy, factors.anger, factors.surprise], axis=1)


def decide(strength: npt.NDArray[Any], task: Task) -> npt.NDArray[np.int64]:
    """Bin the evidence (N, 5) or (N, 1) into classes (N,): the strongest expression, or the age group."""
    if task == "age":
        inner = np.asarray(AGE_EDGES[1:-1])
        return np.asarray(np.searchsorted(inner, strength[:, 0], side="right"), dtype=np.int64)
    return np.asarray(strength.argmax(axis=1), dtype=np.int64)


def true_labels(factors: FaceFactors, task: Task) -> npt.NDArray[np.int64]:
    """Return the true class index of every face, (N,) int64."""
    return decide(evidence(factors, task), task)


def counterfactual(factors: FaceFactors, class_index: Any, task: Task) -> FaceFactors:
    """Return the same faces with only the attribute moved to class `class_index` (an int, or one per face).

    Expression takes the strength the face already shows, but at least a clear one; age takes the same place
    within the new group. Faces that already belong to the class are unchanged.
    """
    target = np.broadcast_to(np.asarray(class_index, dtype=np.int64), (len(factors),))
    if target.size and (target.min() < 0 or target.max() >= len(class_names(task))):
        raise ValueError(f"class_index must lie in 0..{len(class_names(task)) - 1}")
    current = true_labels(factors, task)
    moved = target != current
    if task == "age":
        edges = np.asarray(AGE_EDGES, dtype=np.float32)
        place = (factors.age - edges[current]) / (edges[current + 1] - edges[current])
        place = np.clip(place, 0.05, 0.95)
        age = edges[target] + place * (edges[target + 1] - edges[target])
        return factors.replace(age=np.where(moved, age, factors.age))
    shown = np.maximum.reduce([np.abs(factors.valence), factors.anger, factors.surprise])
    strength = np.maximum(shown, 0.7)
    sign = np.where(target == _HAPPY, 1.0, np.where(target == _SAD, -1.0, 0.0))
    return factors.replace(
        valence=np.where(moved, sign * strength, factors.valence),
        anger=np.where(moved, np.where(target == _ANGRY, strength, 0), factors.anger),
        surprise=np.where(moved, np.where(target == _SURPRISED, strength, 0), factors.surprise),
    )
