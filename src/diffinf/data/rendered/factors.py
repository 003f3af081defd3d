"""The continuous factors of a rendered face, and how people and pictures are drawn from a seed.

Three groups: *identity* (who it is), *attribute* (what an annotator is asked about) and *nuisance* (how the
picture was taken). Every factor is one float per face; the table of names, groups and ranges is the
dataclass itself, so that a table of truth columns and a set of faces are the same thing.
"""

# ruff: noqa: RUF009 - the calls in the class body make immutable field metadata

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from dataclasses import replace as dataclass_replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

# float32 throughout; the type says no more, since the checker takes half of all arithmetic for float64.
FloatArray = npt.NDArray[np.floating[Any]]
Group = Literal["identity", "attribute", "nuisance"]


@dataclass(frozen=True)
class Factor:
    """One factor: its group, its valid range, its value in a plain face, and what it moves."""

    group: Group
    low: float
    high: float
    neutral: float
    meaning: str


def _factor(group: Group, low: float, high: float, neutral: float, meaning: str) -> Any:
    return field(metadata={"factor": Factor(group, low, high, neutral, meaning)})


def _trait(meaning: str) -> Any:
    """Declare an identity factor in standard units: 0 is the average person, -1 and 1 are the extremes."""
    return _factor("identity", -1.0, 1.0, 0.0, meaning)


@dataclass(frozen=True, eq=False)
class FaceFactors:
    """Factors of N faces; every field is an array of shape (N,): float32, `noise_seed` int64.

    Angles are in degrees, `age` in years, expression intensities in [0, 1] (`valence` in [-1, 1]), `noise` is
    a standard deviation in units of 1/255; positions are in half image widths. Positive `yaw` turns the face
    to the viewer's right, positive `pitch` downwards; positive `light_azimuth` lights it from the viewer's
    right, positive `light_elevation` from above. `FACTORS` lists group, range and meaning of each.
    """

    face_width: FloatArray = _trait("narrow to wide face")
    face_length: FloatArray = _trait("short to long face")
    jaw_taper: FloatArray = _trait("broad to pointed chin")
    jaw_square: FloatArray = _trait("round to square jaw")
    cheekbones: FloatArray = _trait("flat to prominent cheekbones")
    eye_spacing: FloatArray = _trait("close to wide-set eyes")
    eye_size: FloatArray = _trait("small to large eyes")
    eye_tilt: FloatArray = _trait("outer eye corners down to up")
    eye_openness: FloatArray = _trait("heavy to open lids at rest")
    eye_colour: FloatArray = _factor("identity", 0, 1, 0.1, "dark brown, brown, hazel, green, blue, grey")
    brow_thickness: FloatArray = _trait("thin to bushy brows")
    brow_height: FloatArray = _trait("low to high brows")
    brow_arch: FloatArray = _trait("flat to arched brows")
    brow_tilt: FloatArray = _trait("inner brow ends up to down, at rest")
    nose_width: FloatArray = _trait("narrow to broad nose")
    nose_length: FloatArray = _trait("short to long nose")
    nose_height: FloatArray = _trait("flat to prominent nose")
    mouth_width: FloatArray = _trait("narrow to wide mouth")
    mouth_height: FloatArray = _trait("mouth near the nose to near the chin")
    mouth_rest: FloatArray = _trait("mouth corners down to up, at rest")
    lip_fullness: FloatArray = _trait("thin to full lips")
    ear_size: FloatArray = _trait("small to large ears")
    skin_tone: FloatArray = _factor("identity", 0, 1, 0.3, "light to dark skin")
    skin_warmth: FloatArray = _trait("rosy to golden skin")
    hair_tone: FloatArray = _factor("identity", 0, 1, 0.3, "black, brown, auburn, blond hair")
    hairline: FloatArray = _trait("low to high hairline")
    hair_volume: FloatArray = _factor("identity", 0, 1, 0.4, "close-cropped to voluminous hair")
    hair_length: FloatArray = _factor("identity", 0, 1, 0.1, "short to shoulder-long hair")
    hair_fringe: FloatArray = _factor("identity", 0, 1, 0.0, "no fringe to a full fringe")
    hair_part: FloatArray = _trait("hair swept to the left or the right")
    hair_wave: FloatArray = _factor("identity", 0, 1, 0.2, "straight to curly hair")
    facial_hair: FloatArray = _factor("identity", 0, 1, 0.0, "clean-shaven to full beard")
    grey_onset: FloatArray = _trait("greys early to late")
    balding: FloatArray = _factor("identity", 0, 1, 0.2, "keeps to loses the hair with age")

    age: FloatArray = _factor("attribute", 4, 85, 30, "age in years")
    valence: FloatArray = _factor("attribute", -1, 1, 0, "sad over neutral to happy")
    anger: FloatArray = _factor("attribute", 0, 1, 0, "intensity of anger")
    surprise: FloatArray = _factor("attribute", 0, 1, 0, "intensity of surprise")

    mouth_open: FloatArray = _factor("nuisance", 0, 1, 0, "mouth opened by speech, without expression")
    gaze: FloatArray = _factor("nuisance", -1, 1, 0, "looks to the left or the right")
    yaw: FloatArray = _factor("nuisance", -40, 40, 0, "head turned to the viewer's right, degrees")
    pitch: FloatArray = _factor("nuisance", -20, 20, 0, "head bowed down, degrees")
    shift_x: FloatArray = _factor("nuisance", -0.15, 0.15, 0, "face moved right, half image widths")
    shift_y: FloatArray = _factor("nuisance", -0.15, 0.15, 0, "face moved down, half image widths")
    scale: FloatArray = _factor("nuisance", 0.8, 1.2, 1, "size of the face in the picture")
    light_azimuth: FloatArray = _factor("nuisance", -80, 80, -20, "light from the viewer's right, degrees")
    light_elevation: FloatArray = _factor("nuisance", -40, 75, 35, "light from above, degrees")
    light_strength: FloatArray = _factor("nuisance", 0, 1, 0.6, "flat, ambient light to hard, directed light")
    light_warmth: FloatArray = _factor("nuisance", -1, 1, 0, "cold to warm light")
    exposure: FloatArray = _factor("nuisance", 0.4, 1.4, 1, "dark to bright picture")
    background_hue: FloatArray = _factor("nuisance", 0, 1, 0.58, "hue of the background")
    background_light: FloatArray = _factor("nuisance", 0, 1, 0.6, "dark to light background")
    background_colour: FloatArray = _factor("nuisance", 0, 1, 0.3, "grey to colourful background")
    background_angle: FloatArray = _factor("nuisance", -180, 180, 40, "direction of its gradient, degrees")
    clothes_hue: FloatArray = _factor("nuisance", 0, 1, 0.6, "hue of the clothes")
    clothes_light: FloatArray = _factor("nuisance", 0, 1, 0.4, "dark to light clothes")
    glasses: FloatArray = _factor("nuisance", 0, 1, 0, "no glasses (0) to glasses (1)")
    glasses_shape: FloatArray = _factor("nuisance", 0, 1, 0.5, "round to rectangular glasses")
    noise: FloatArray = _factor("nuisance", 0, 40, 0, "sensor noise, standard deviation in 1/255")
    noise_seed: npt.NDArray[np.int64] = _factor("nuisance", 0, 2**62, 0, "seed of the sensor noise")

    def __post_init__(self) -> None:
        """Bring every factor to its dtype and check that they describe the same N faces."""
        shapes = set()
        for name in FACTORS_ORDER:
            dtype = np.int64 if name == "noise_seed" else np.float32
            value = np.ascontiguousarray(getattr(self, name), dtype=dtype)
            object.__setattr__(self, name, value)
            shapes.add(value.shape)
        if len(shapes) != 1 or len(next(iter(shapes))) != 1:
            raise ValueError(f"every factor must have the same shape (N,), got {sorted(shapes)}")

    def __len__(self) -> int:
        """Return the number of faces."""
        return int(self.age.shape[0])

    def take(self, indices: Any) -> FaceFactors:
        """Return the faces at `indices` (anything that indexes an array along its first axis)."""
        return FaceFactors(**{name: getattr(self, name)[indices] for name in FACTORS_ORDER})

    def replace(self, **values: Any) -> FaceFactors:
        """Return a copy with some factors set; a scalar is spread over all faces."""
        unknown = set(values) - set(FACTORS_ORDER)
        if unknown:
            raise ValueError(f"unknown factors {sorted(unknown)}; known: {', '.join(FACTORS_ORDER)}")
        filled = {name: np.broadcast_to(np.asarray(value), (len(self),)) for name, value in values.items()}
        return dataclass_replace(self, **filled)

    def as_columns(self) -> dict[str, npt.NDArray[Any]]:
        """Return name -> (N,) array, in declaration order."""
        return {name: getattr(self, name) for name in FACTORS_ORDER}


FACTORS: dict[str, Factor] = {item.name: item.metadata["factor"] for item in fields(FaceFactors)}
FACTORS_ORDER: tuple[str, ...] = tuple(FACTORS)


def factor_names(group: Group) -> tuple[str, ...]:
    """Return the names of the factors of one group, in declaration order."""
    return tuple(name for name, factor in FACTORS.items() if factor.group == group)


def plain_faces(n: int, **values: Any) -> FaceFactors:
    """Return `n` average, neutral, frontal faces, with `values` set (scalars or arrays of shape (n,))."""
    columns = {name: np.full(n, factor.neutral) for name, factor in FACTORS.items()}
    return FaceFactors(**columns).replace(**values)


def clip_factors(columns: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Return the columns clipped to the ranges of their factors."""
    return {name: np.clip(v, FACTORS[name].low, FACTORS[name].high) for name, v in columns.items()}


def concatenate(parts: Iterable[FaceFactors]) -> FaceFactors:
    """Return the faces of all parts, one after the other."""
    items = list(parts)
    return FaceFactors(**{n: np.concatenate([getattr(p, n) for p in items]) for n in FACTORS_ORDER})
