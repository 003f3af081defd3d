"""From factors to geometry: how age, expression and identity move the lengths and colours of a face.

Lengths are in face units: the image is [-1, 1] x [-1, 1] (y down) for a face of scale 1 at the centre.
Every number is float32 of shape (N, 1, 1), every colour of shape (N, 3, 1, 1) in [0, 1], so that they
broadcast against (N, H, W) planes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from diffinf.data.rendered.factors import FaceFactors, FloatArray

_SKIN = ((255, 226, 208), (244, 200, 168), (224, 172, 133), (184, 126, 88), (134, 86, 60), (92, 60, 46))
_HAIR = ((26, 21, 22), (56, 37, 28), (98, 63, 41), (146, 76, 42), (188, 140, 84), (226, 194, 128))
_IRIS = ((52, 32, 22), (98, 62, 34), (118, 104, 56), (78, 124, 78), (74, 122, 168), (122, 138, 150))


@dataclass(frozen=True, eq=False)
class FaceShape:
    """Lengths, weights and colours of N faces, ready to be drawn."""

    half_width: FloatArray  # of the head at eye level
    half_height: FloatArray
    centre_y: FloatArray
    taper: FloatArray  # how much the chin is narrower than the cheeks, 0..1
    jaw_power: FloatArray  # exponent of the lower outline, 2 = ellipse
    cheek: FloatArray
    ear: FloatArray
    neck_width: FloatArray

    eye_u: FloatArray  # centre of the eye from the middle of the face
    eye_v: FloatArray
    eye_width: FloatArray
    eye_up: FloatArray  # height of the upper lid over the eye's centre
    eye_low: FloatArray
    eye_tilt: FloatArray
    lid_slope: FloatArray  # > 0: the inner part of the upper lid is lowered
    iris_radius: FloatArray
    gaze: FloatArray

    brow_v: FloatArray
    brow_length: FloatArray
    brow_inner: FloatArray  # > 0: inner end raised
    brow_arch: FloatArray
    brow_thickness: FloatArray
    brow_weight: FloatArray

    nose_v: FloatArray  # height of the nose's base
    nose_width: FloatArray
    nose_height: FloatArray

    mouth_v: FloatArray
    mouth_width: FloatArray
    mouth_curve: FloatArray  # > 0: corners up
    mouth_open: FloatArray
    mouth_round: FloatArray  # 0 lens-shaped to 1 round opening
    lip: FloatArray
    teeth: FloatArray

    smile: FloatArray
    anger: FloatArray
    surprise: FloatArray
    old: FloatArray  # 0 young to 1 old
    wrinkles: FloatArray
    child: FloatArray

    hairline_v: FloatArray
    hair_volume: FloatArray
    hair_bottom: FloatArray  # how far down the hair reaches
    hair_side: FloatArray  # half width of the face between the hair at the temples
    hair_fringe: FloatArray
    hair_part: FloatArray
    hair_wave: FloatArray
    recession: FloatArray
    beard: FloatArray

    skin: FloatArray
    hair: FloatArray
    brow: FloatArray
    iris: FloatArray
    lips: FloatArray


def _ramp(x: FloatArray, low: float, high: float) -> FloatArray:
    """Smooth step from 0 at `low` to 1 at `high`."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), dtype=np.float32)


def palette(stops: tuple[tuple[int, int, int], ...], position: FloatArray) -> FloatArray:
    """Interpolate 8-bit colours `stops` at `position` (N,) in [0, 1]; returns (N, 3) in [0, 1]."""
    table = np.asarray(stops, dtype=np.float32) / 255
    knots = np.linspace(0, 1, len(table))
    return np.stack([np.interp(position, knots, table[:, c]) for c in range(3)], axis=1).astype(np.float32)


def hsl(hue: FloatArray, light: FloatArray, colour: FloatArray) -> FloatArray:
    """Colours (N, 3) in [0, 1] from hue, lightness and colourfulness (N,) in [0, 1]."""
    phase = hue[:, None] + np.asarray([0, 2 / 3, 1 / 3], dtype=np.float32)
    wheel = 0.5 + 0.5 * np.cos(2 * np.pi * phase)
    spread = np.minimum(light, 1 - light) * colour
    return np.asarray(light[:, None] + (2 * wheel - 1) * spread[:, None], dtype=np.float32)


def face_shape(f: FaceFactors) -> FaceShape:
    """Derive the geometry of N faces from their factors."""
    child, old = 1 - _ramp(f.age, 5, 19), _ramp(f.age, 38, 82)
    parts: dict[str, Any] = {"child": child, "old": old}
    for step in (_head, _eyes, _brows, _nose_and_mouth, _hair, _colours):
        step(f, parts)
    shaped = {}
    for item in fields(FaceShape):
        value = np.asarray(parts[item.name], dtype=np.float32)
        shaped[item.name] = value.reshape(len(f), -1, 1, 1) if value.ndim == 2 else value.reshape(-1, 1, 1)
    return FaceShape(**shaped)


def _head(f: FaceFactors, p: dict[str, Any]) -> None:
    child, old = p["child"], p["old"]
    p["half_width"] = 0.545 * (1 + 0.085 * f.face_width) * (1 + 0.03 * child + 0.02 * old)
    p["half_height"] = 0.735 * (1 + 0.065 * f.face_length) * (1 - 0.10 * child)
    p["centre_y"] = 0.015 * np.ones_like(child)
    p["taper"] = np.clip(0.16 + 0.13 * f.jaw_taper - 0.10 * old + 0.05 * child, 0, 0.4)
    p["jaw_power"] = np.clip(2.15 + 0.35 * f.jaw_square * (1 - child) + 0.25 * old - 0.1 * child, 1.9, 2.9)
    p["cheek"] = 0.5 + 0.35 * f.cheekbones + 0.5 * np.maximum(f.valence, 0) + 0.3 * child
    p["ear"] = 0.105 * (1 + 0.2 * f.ear_size) * (1 + 0.18 * old)
    p["neck_width"] = 0.30 * (1 + 0.10 * f.face_width + 0.08 * f.jaw_square) * (1 - 0.24 * child)
    p["smile"], p["anger"], p["surprise"] = np.maximum(f.valence, 0), f.anger, f.surprise
    p["wrinkles"] = _ramp(f.age, 34, 80)


def _eyes(f: FaceFactors, p: dict[str, Any]) -> None:
    child, old, smile, sad = p["child"], p["old"], p["smile"], np.maximum(-f.valence, 0)
    size = (1 + 0.10 * f.eye_size) * (1 + 0.24 * child - 0.06 * old)
    p["eye_u"] = p["half_width"] * 0.43 * (1 + 0.085 * f.eye_spacing)
    p["eye_v"] = p["centre_y"] + 0.105 * child
    p["eye_width"] = 0.132 * size
    lift = 1 + 0.14 * f.eye_openness - 0.20 * old + 0.10 * child
    droop = 0.18 * smile + 0.24 * sad + 0.22 * f.anger
    p["eye_up"] = 0.068 * size * np.clip(lift + 0.55 * f.surprise - droop, 0.25, 2)
    p["eye_low"] = 0.047 * size * np.clip(1 + 0.30 * f.surprise - 0.50 * smile - 0.1 * f.anger, 0.25, 2)
    p["eye_tilt"] = 0.016 * f.eye_tilt - 0.010 * old - 0.012 * sad
    p["lid_slope"] = 0.030 * f.anger - 0.026 * sad - 0.008 * old
    p["iris_radius"] = 0.066 * (1 + 0.05 * f.eye_size + 0.10 * child)
    p["gaze"] = 0.045 * f.gaze


def _brows(f: FaceFactors, p: dict[str, Any]) -> None:
    child, old, sad = p["child"], p["old"], np.maximum(-f.valence, 0)
    p["brow_v"] = p["eye_v"] - (
        0.165 + 0.022 * f.brow_height + 0.10 * f.surprise - 0.055 * f.anger + 0.012 * sad - 0.008 * old
    )
    p["brow_length"] = 0.168 * (1 + 0.05 * f.eye_size) * (1 - 0.06 * child)
    p["brow_inner"] = 0.012 * f.brow_tilt + 0.075 * sad - 0.080 * f.anger + 0.01 * f.surprise
    p["brow_arch"] = 0.030 + 0.014 * f.brow_arch + 0.030 * f.surprise
    p["brow_thickness"] = 0.027 * (1 + 0.38 * f.brow_thickness) * (1 - 0.30 * child)
    p["brow_weight"] = np.clip(0.85 + 0.2 * f.brow_thickness - 0.30 * child - 0.15 * old, 0.3, 1)


def _nose_and_mouth(f: FaceFactors, p: dict[str, Any]) -> None:
    child, old, smile, sad = p["child"], p["old"], p["smile"], np.maximum(-f.valence, 0)
    p["nose_v"] = p["eye_v"] + 0.29 * (1 + 0.09 * f.nose_length) * (1 - 0.22 * child) + 0.015 * old
    p["nose_width"] = 0.098 * (1 + 0.20 * f.nose_width) * (1 - 0.10 * child + 0.08 * old + 0.08 * smile)
    p["nose_height"] = (1 + 0.35 * f.nose_height) * (1 - 0.40 * child)
    p["mouth_v"] = p["nose_v"] + 0.172 * (1 - 0.16 * child) + 0.016 * f.mouth_height + 0.02 * f.surprise
    spread = 1 + 0.30 * smile - 0.06 * sad - 0.02 * f.anger - 0.26 * f.surprise
    p["mouth_width"] = 0.200 * (1 + 0.13 * f.mouth_width) * (1 - 0.10 * child) * spread
    p["mouth_curve"] = 0.016 * f.mouth_rest + 0.105 * smile - 0.082 * sad - 0.036 * f.anger - 0.008 * old
    grin = np.clip((smile - 0.40) / 0.6, 0, 1)
    p["mouth_open"] = 0.105 * grin + 0.175 * f.surprise + 0.055 * f.mouth_open
    p["mouth_round"] = np.clip(0.2 + 0.9 * f.surprise + 0.2 * f.mouth_open, 0, 1)
    thin = np.clip(1 - 0.22 * smile - 0.50 * f.anger - 0.30 * old, 0.25, 1)
    p["lip"] = 0.048 * (1 + 0.34 * f.lip_fullness) * thin
    p["teeth"] = np.clip(0.035 + 0.035 * grin + 0.02 * f.mouth_open, 0, 0.07)


def _hair(f: FaceFactors, p: dict[str, Any]) -> None:
    child, old = p["child"], p["old"]
    loss = np.clip(f.balding * 1.3 - 0.25, 0, 1) * _ramp(f.age, 24, 62)
    top = p["centre_y"] - p["half_height"]
    p["hairline_v"] = top + 0.245 - 0.06 * f.hairline - 0.24 * loss - 0.03 * old + 0.02 * child
    p["recession"] = 0.015 + 0.17 * loss + 0.03 * old
    p["hair_volume"] = (0.035 + 0.15 * f.hair_volume) * (1 - 0.75 * loss) * (1 - 0.2 * old)
    p["hair_bottom"] = -0.13 + 1.3 * f.hair_length**1.2 * (1 - 0.9 * loss)
    p["hair_side"] = p["half_width"] * (0.93 - 0.07 * f.hair_length)
    p["hair_fringe"] = 0.19 * f.hair_fringe * (1 - loss)
    p["hair_part"] = f.hair_part
    p["hair_wave"] = f.hair_wave
    p["beard"] = np.clip(f.facial_hair * 1.5 - 0.5, 0, 1) * _ramp(f.age, 18, 25)


def _colours(f: FaceFactors, p: dict[str, Any]) -> None:
    skin = palette(_SKIN, f.skin_tone)
    golden = np.asarray([0.0, -0.005, -0.06], dtype=np.float32)
    rosy = np.asarray([0.015, -0.03, -0.01], dtype=np.float32)
    skin = skin + np.where(f.skin_warmth[:, None] > 0, golden, -rosy) * f.skin_warmth[:, None]
    grey = _ramp(f.age - 11 * f.grey_onset, 38, 68)[:, None]
    silver = np.asarray([0.72, 0.71, 0.70], dtype=np.float32) * (0.82 + 0.22 * f.hair_tone[:, None])
    hair = palette(_HAIR, f.hair_tone)
    p["hair"] = hair + grey * (silver - hair)
    brow = hair * 0.72
    p["brow"] = brow + 0.75 * grey * (silver * 0.85 - brow)
    pale = np.asarray([0.04, 0.035, 0.03], dtype=np.float32)
    p["skin"] = np.clip(skin + pale * (p["child"] - 0.4 * p["old"])[:, None], 0.08, 1)
    p["iris"] = palette(_IRIS, f.eye_colour)
    red = np.asarray([0.80, 0.36, 0.37], dtype=np.float32)
    mix = 0.42 - 0.16 * p["old"][:, None]
    p["lips"] = p["skin"] * (1 - mix) * 0.92 + red * mix * (0.35 + 0.75 * p["skin"][:, :1])
