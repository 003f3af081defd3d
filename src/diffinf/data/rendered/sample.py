"""Draw people, their attributes and the circumstances of their pictures from a seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from diffinf.data.rendered.factors import FACTORS, FaceFactors, clip_factors, factor_names, plain_faces
from diffinf.data.rendered.tasks import AGE_EDGES, NEUTRAL_LEVEL, Task, class_names

# How traits lean together along one axis, from heavy to delicate build.
_LEAN = {
    "brow_thickness": -0.5,
    "jaw_square": -0.5,
    "lip_fullness": 0.35,
    "jaw_taper": 0.3,
    "brow_arch": 0.4,
    "face_width": -0.2,
    "eye_size": 0.25,
    "nose_width": -0.2,
}
_STREAMS = ("identity", "attribute", "nuisance", "person", "annotator")


def generator(seed: int, stream: str) -> np.random.Generator:
    """Return the random generator of one purpose: streams of one seed do not disturb each other."""
    return np.random.Generator(np.random.PCG64([seed, _STREAMS.index(stream)]))


def sample_identities(count: int, seed: int, similarity: float = 0.0) -> FaceFactors:
    """Draw `count` people, as neutral adults in a plain picture.

    `similarity` in [0, 1) pulls every identity factor towards that of the average person: 0 is a varied
    crowd, .9 makes people who are hard to tell apart. Traits that go together are drawn together: hair and
    eyes with the skin, and brows, jaw, lips, beard and length of hair with one another.
    """
    if not 0 <= similarity < 1:
        raise ValueError(f"similarity must lie in [0, 1), got {similarity}")
    rng = generator(seed, "identity")
    names = factor_names("identity")
    values: dict[str, npt.NDArray[Any]] = {name: rng.normal(0, 0.5, count) for name in names}
    build = rng.choice([-1.0, 1.0], count) * rng.uniform(0.3, 1.0, count)
    for name, weight in _LEAN.items():
        values[name] = values[name] + weight * build
    skin = rng.beta(1.1, 1.5, count)
    fair = rng.uniform(0, 1, count)
    values["skin_tone"] = skin
    values["hair_tone"] = np.clip(rng.beta(1.0, 1.1, count) * (1.05 - 1.1 * skin), 0, 1)
    brown, light = rng.uniform(0, 0.3, count), rng.uniform(0.4, 1, count)
    values["eye_colour"] = np.where(fair < 0.25 + 0.75 * skin, brown, light)
    values["hair_volume"] = rng.beta(1.6, 1.8, count) * (0.75 + 0.25 * build)
    values["hair_length"] = np.where(build > 0, rng.beta(2.0, 1.3, count), 0.45 * rng.beta(1.0, 3.0, count))
    values["hair_fringe"] = np.where(rng.uniform(size=count) < 0.3, rng.beta(2, 2, count), 0.0)
    values["hair_wave"] = rng.beta(1, 1.8, count)
    values["hair_part"] = rng.uniform(-1, 1, count)
    bearded = (build < 0) & (rng.uniform(size=count) < 0.4)
    values["facial_hair"] = np.where(bearded, rng.uniform(0.4, 1, count), 0.0)
    values["balding"] = np.where(build < 0, rng.uniform(0, 1, count), 0.1)
    average = {name: FACTORS[name].neutral for name in names}
    pulled = {name: average[name] + (1 - similarity) * (values[name] - average[name]) for name in names}
    return plain_faces(count, **clip_factors(pulled))


def sample_attributes(
    n: int, seed: int, task: Task, own_age: npt.NDArray[Any]
) -> dict[str, npt.NDArray[Any]]:
    """Draw the attributes of `n` pictures with classes equally frequent and many faces near a boundary.

    `own_age` (n,) is the age in years of each picture's person; it is kept, within a year or two, where the
    task is expression, and replaced where it is age.
    """
    rng = generator(seed, "attribute")
    target = rng.permutation(np.arange(n) % len(class_names(task)))
    quiet = rng.normal(0, 0.11, (n, 3))
    if task == "age":
        edges = np.asarray(AGE_EDGES)
        age = rng.uniform(edges[target], edges[target + 1])
        mood = 2.2 * quiet + np.asarray([0.15, -0.1, -0.1])
        return clip_factors({"age": age, "valence": mood[:, 0], "anger": mood[:, 1], "surprise": mood[:, 2]})
    strength = NEUTRAL_LEVEL + 0.04 + (0.96 - NEUTRAL_LEVEL) * rng.beta(1.25, 1.35, n)
    valence = quiet[:, 0] + np.where(target == 2, strength, np.where(target == 0, -strength, 0))
    anger = np.abs(quiet[:, 1]) + np.where(target == 3, strength, 0)
    surprise = np.abs(quiet[:, 2]) + np.where(target == 4, strength, 0)
    age = own_age + rng.normal(0, 1, n)
    return clip_factors({"age": age, "valence": valence, "anger": anger, "surprise": surprise})


def sample_nuisance(n: int, seed: int, strength: float = 1.0) -> dict[str, npt.NDArray[Any]]:
    """Draw the circumstances of `n` pictures; `strength` scales pose, light, framing, noise (1 = usual)."""
    rng = generator(seed, "nuisance")

    def normal(scale: float) -> npt.NDArray[Any]:
        return rng.normal(0, scale * strength, n)

    hard = np.clip(0.9 * rng.beta(2.0, 2.0, n) * strength, 0, 1)
    values: dict[str, npt.NDArray[Any]] = {
        "mouth_open": np.where(rng.uniform(size=n) < 0.30, rng.beta(1.5, 1.5, n), 0.0) * min(strength, 1),
        "gaze": normal(0.45),
        "yaw": normal(13.0),
        "pitch": normal(6.5),
        "shift_x": normal(0.035),
        "shift_y": normal(0.035),
        "scale": 1 + normal(0.05),
        "light_azimuth": np.clip(normal(38.0), -70, 70),
        "light_elevation": 28 + normal(15.0),
        "light_strength": hard,
        "light_warmth": normal(0.5),
        "exposure": 1.02 + normal(0.15),
        "background_hue": rng.uniform(0, 1, n),
        "background_light": rng.beta(1.6, 1.6, n),
        "background_colour": rng.beta(1.2, 2.6, n),
        "background_angle": rng.uniform(-180, 180, n),
        "clothes_hue": rng.uniform(0, 1, n),
        "clothes_light": rng.uniform(0, 1, n),
        "glasses": (rng.uniform(size=n) < 0.22).astype(np.float32),
        "glasses_shape": rng.uniform(0, 1, n),
        "noise": np.clip(3.0 + normal(1.5), 0, None),
    }
    return {**clip_factors(values), "noise_seed": rng.integers(0, 2**62, n)}


def sample_faces(
    n: int, seed: int, task: Task, *, identities: int, similarity: float = 0.0, nuisance: float = 1.0
) -> tuple[FaceFactors, npt.NDArray[np.int64]]:
    """Draw `n` pictures of `identities` people; returns their factors and whose they are, (n,) int.

    Every person appears n / identities times, give or take one. Raises ValueError if there are more people
    than pictures.
    """
    if not 1 <= identities <= n:
        raise ValueError(f"identities must lie in 1..{n} (the number of pictures), got {identities}")
    people = sample_identities(identities, seed, similarity)
    rng = generator(seed, "person")
    ages = 17 + 63 * rng.beta(1.1, 1.5, identities)
    who = rng.permutation(np.arange(n) % identities)
    columns = people.take(who).as_columns()
    columns.update(sample_attributes(n, seed, task, ages[who]))
    columns.update(sample_nuisance(n, seed, nuisance))
    return FaceFactors(**columns), who
