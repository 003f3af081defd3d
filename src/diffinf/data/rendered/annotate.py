"""An annotator who errs: perceived attribute = true attribute + bias from circumstances + scatter, binned.

`confounded` errors come from what the picture looks like (pose, light, glasses, wrinkles, the person's
resting face), so that a classifier can learn them; they gather near the boundaries of the classes.
`symmetric` and `asymmetric` are the classical, image-independent flips, for comparison.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from diffinf.data.rendered.factors import FaceFactors, FloatArray
from diffinf.data.rendered.sample import generator
from diffinf.data.rendered.tasks import Task, class_names, decide, evidence

Noise = Literal["none", "symmetric", "asymmetric", "confounded"]
NOISES: tuple[Noise, ...] = ("none", "symmetric", "asymmetric", "confounded")

# The class each class is mistaken for under asymmetric noise.
_CONFUSED_WITH = {"expression": (1, 0, 1, 0, 3), "age": (1, 0, 3, 2, 3)}


def annotate(factors: FaceFactors, task: Task, noise: Noise, rate: float, seed: int) -> npt.NDArray[np.int64]:
    """Return the annotated class index of every face, (N,) int64.

    The share of labels that differ from the truth is `rate` to within one sample for `symmetric` and
    `asymmetric`; for `confounded` the size of bias and scatter is fitted so that it comes as near to `rate`
    as it can (it cannot exceed what a blind annotator would reach). Raises ValueError for a rate outside
    [0, 1).
    """
    if noise not in NOISES:
        raise ValueError(f"unknown noise {noise!r}, expected one of {', '.join(NOISES)}")
    if not 0 <= rate < 1:
        raise ValueError(f"rate must lie in [0, 1), got {rate}")
    clean = evidence(factors, task)
    truth = decide(clean, task)
    rng = generator(seed, "annotator")
    if noise == "none" or rate == 0 or len(factors) == 0:
        return truth
    if noise == "confounded":
        disturbance = bias(factors, task) + _scatter(rng, clean.shape, task)
        return decide(clean + _fit_size(clean, disturbance, truth, task, rate) * disturbance, task)
    flipped = rng.permutation(len(truth))[: round(rate * len(truth))]
    labels = truth.copy()
    if noise == "asymmetric":
        labels[flipped] = np.asarray(_CONFUSED_WITH[task])[truth[flipped]]
    else:
        classes = len(class_names(task))
        labels[flipped] = (truth[flipped] + rng.integers(1, classes, flipped.size)) % classes
    return labels


def _scatter(rng: np.random.Generator, shape: tuple[int, ...], task: Task) -> npt.NDArray[Any]:
    """What one annotator sees differently from another, in the unit of the task."""
    return rng.normal(0, 5.0 if task == "age" else 0.12, shape)


def _fit_size(
    clean: FloatArray, disturbance: npt.NDArray[Any], truth: npt.NDArray[Any], task: Task, rate: float
) -> float:
    """Find, by bisection, the multiple of the disturbance that makes a share `rate` of the labels wrong."""
    low, high = 0.0, 16.0
    for _ in range(40):
        middle = (low + high) / 2
        wrong = float((decide(clean + middle * disturbance, task) != truth).mean())
        low, high = (middle, high) if wrong < rate else (low, middle)
    return (low + high) / 2


def bias(factors: FaceFactors, task: Task) -> npt.NDArray[Any]:
    """Return how the circumstances pull the annotator: (N, 5) expression strengths, or (N, 1) years."""
    f = factors
    side = np.abs(f.light_azimuth) / 60 * f.light_strength
    low_light = (30 - f.light_elevation) / 30 * f.light_strength
    dark = (1 - f.exposure) / 0.2
    wrinkled = np.clip((f.age - 50) / 20, -1, 1)
    if task == "age":
        years = 3.5 * f.glasses + 4.0 * (side - 0.4) + 3.0 * low_light + 2.0 * dark
        years += 6.0 * f.valence + 2.5 * f.pitch / 8 - 3.0 * f.hair_fringe
        return np.asarray(years)[:, None]
    bowed = f.pitch / 8
    turned = np.abs(f.yaw) / 15
    sad = 0.10 * dark + 0.10 * wrinkled - 0.14 * f.mouth_rest + 0.07 * (side - 0.4)
    neutral = 0.09 * (turned - 0.8) + 0.10 * (f.glasses - 0.2)
    happy = 0.14 * f.mouth_rest - 0.07 * bowed - 0.10 * dark + 0.12 * (f.mouth_open - 0.15)
    angry = 0.11 * bowed - 0.15 * f.brow_height - 0.12 * f.brow_tilt + 0.09 * low_light + 0.08 * wrinkled
    surprised = -0.10 * bowed + 0.15 * f.brow_height + 0.24 * (f.mouth_open - 0.15) + 0.12 * f.eye_openness
    return np.stack([sad, neutral, happy, angry, surprised], axis=1)
