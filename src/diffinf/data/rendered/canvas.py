"""Coordinates of a picture and the few anti-aliased primitives everything is drawn with.

A head is a squashed ellipsoid seen in parallel projection. `Frame` holds, for every pixel, the position in
the picture (x, y) and on the head (u, v): u is turned by the yaw over the ellipsoid's surface, v by the
pitch. v depends on the row only, which keeps most of a feature's arithmetic one-dimensional.
Edges are covered by the signed distance over one pixel, so nothing is supersampled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from diffinf.data.rendered.factors import FaceFactors, FloatArray
from diffinf.data.rendered.shape import FaceShape

# How much of the picture a face of scale 1 fills: crown and shoulders just fit.
_ZOOM = 1.10


def coverage(distance: FloatArray, pixel: FloatArray) -> FloatArray:
    """Share of a pixel inside a shape, from its signed distance (negative inside), ramped over `pixel`."""
    out = distance * (-1 / pixel)
    out += 0.5
    np.maximum(out, 0, out=out)
    np.minimum(out, 1, out=out)
    return out


def bell(offset: FloatArray, width: Any) -> FloatArray:
    """Bump of height 1 that looks like a Gaussian of standard deviation `width` but is 0 beyond 2.83 widths.

    The compact support makes a picture independent of the window it was drawn in, to the last bit.
    """
    out = offset * (np.float32(1 / np.sqrt(8)) / width)
    np.multiply(out, out, out=out)
    np.subtract(1, out, out=out)
    np.maximum(out, 0, out=out)
    np.multiply(out, out, out=out)
    np.multiply(out, out, out=out)
    return np.asarray(out)


def ramp(x: FloatArray, low: Any, high: Any) -> FloatArray:
    """Smooth step from 0 at `low` to 1 at `high`."""
    t = (x - low) * (1 / np.asarray(high - low, dtype=np.float32))
    np.maximum(t, 0, out=t)
    np.minimum(t, 1, out=t)
    return np.asarray(t * t * (3 - 2 * t), dtype=np.float32)


def paint(target: FloatArray, alpha: FloatArray, colour: FloatArray) -> None:
    """Blend `colour` (N, 3, 1, 1) or (N, 3, H, W) over `target` (N, 3, H, W) by `alpha` (N, H, W)."""
    layer = colour - target
    layer *= alpha[:, None]
    target += layer


def oval(
    x: FloatArray, centre: FloatArray, width: FloatArray, height_term: FloatArray, slope: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Signed distance to, and normalised lateral position in, an oval whose width changes by the row.

    The oval is (x - centre)² / width² + height_term = 1; `height_term` (N, H, 1) grows from 0 at the middle
    to 1 at the ends, `slope` is its derivative. The distance is the implicit function over the norm of its
    gradient.
    """
    s = (x - centre) * (1 / width)
    value = s * s
    gradient = value * (4 / (width * width))
    value += height_term - 1
    gradient += slope * slope + 1e-4
    np.sqrt(gradient, out=gradient)
    value /= gradient
    return value, s


@dataclass(frozen=True, eq=False)
class Frame:
    """Coordinates of N pictures of H x W pixels; (N, 1, W), (N, H, 1), (N, 1, 1) or (N, H, W) float32."""

    x: FloatArray
    y: FloatArray
    pixel: FloatArray  # pitch of the pixels, in face units
    light: tuple[FloatArray, FloatArray, FloatArray]  # unit vector to the light: right, down, to the viewer
    sin_yaw: FloatArray
    cos_yaw: FloatArray
    sin_pitch: FloatArray
    v: FloatArray  # (N, H, 1) height on the head
    depth: FloatArray  # (N, H, 1) vertical roundness: 1 at eye level, 0 at crown and chin


def make_frame(f: FaceFactors, shape: FaceShape, size: int) -> Frame:
    """Build the coordinates of `size` x `size` pictures."""

    def column(values: npt.NDArray[Any]) -> FloatArray:
        return np.asarray(values, dtype=np.float32).reshape(-1, 1, 1)

    grid = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    scale = column(f.scale) * np.float32(_ZOOM)
    x = (grid.reshape(1, 1, -1) - column(f.shift_x)) / scale
    y = (grid.reshape(1, -1, 1) - column(f.shift_y)) / scale
    azimuth, elevation = np.radians(f.light_azimuth), np.radians(f.light_elevation)
    light = (
        column(np.sin(azimuth) * np.cos(elevation)),
        column(-np.sin(elevation)),
        column(np.cos(azimuth) * np.cos(elevation)),
    )
    yaw, pitch = np.radians(f.yaw), np.radians(f.pitch)
    t = (y - shape.centre_y) / shape.half_height
    depth = np.sqrt(np.maximum(1 - t * t, 0))
    sin_pitch = column(np.sin(pitch))
    v = shape.centre_y + shape.half_height * (t * column(np.cos(pitch)) - depth * sin_pitch)
    pixel = np.asarray((2 / size) / scale, dtype=np.float32)
    return Frame(x, y, pixel, light, column(np.sin(yaw)), column(np.cos(yaw)), sin_pitch, v, depth)
