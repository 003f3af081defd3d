"""Draw faces from factors: the public entry of the renderer."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from diffinf.data.rendered import body, face
from diffinf.data.rendered.canvas import make_frame, paint, ramp
from diffinf.data.rendered.factors import FaceFactors, FloatArray
from diffinf.data.rendered.shape import FaceShape, face_shape

# Small chunks keep all planes of a picture in the second-level cache: about twice as fast as one big batch.
_PIXELS_PER_CHUNK = 16 * 64 * 64


def render_faces(factors: FaceFactors, size: int, *, noise: bool = True) -> npt.NDArray[np.uint8]:
    """Draw N faces; returns RGB pictures (N, 3, H, W) uint8 with H = W = `size` pixels.

    A picture depends on its own factors alone, not on its neighbours in the batch. The sensor noise is the
    last step and depends on `noise_seed`, so two pictures of one sample that differ in an attribute share
    their noise; `noise=False` leaves it out. Raises ValueError for a size outside 24..512.
    """
    if not 24 <= size <= 512:
        raise ValueError(f"size must be between 24 and 512 pixels, got {size}")
    out = np.empty((len(factors), 3, size, size), dtype=np.uint8)
    step = max(1, _PIXELS_PER_CHUNK // (size * size))
    for start in range(0, len(factors), step):
        chunk = factors.take(slice(start, start + step))
        picture = _draw(chunk, size)
        if noise:
            _add_noise(picture, chunk)
        np.clip(picture, 0, 1, out=picture)
        picture *= 255
        picture += 0.5
        out[start : start + step] = picture
    return out


def _extent(mask: Any) -> slice:
    """Smallest slice that holds every True of a 1-D mask."""
    found = np.flatnonzero(mask)
    return slice(int(found[0]), int(found[-1]) + 1) if found.size else slice(0, 0)


def _draw(f: FaceFactors, size: int) -> FloatArray:
    """Draw one chunk, from the background to the front; returns (N, 3, H, W) float32, about [0, 1]."""
    shape = face_shape(f)
    frame = make_frame(f, shape, size)
    light = body.Light(f)
    phase = (f.hair_part * 5 + f.hair_volume * 17).reshape(-1, 1, 1)
    rgb = body.draw_background(f, frame, size)
    hair = body.hair_distance(frame, shape, phase)
    body.draw_back_hair(rgb, frame, shape, light, hair, phase)
    body.draw_body(rgb, f, frame, shape, light)
    centre, width, _, _ = face.outline(frame, shape)
    margin = 0.08 + 2 * frame.pixel
    rows = _extent((np.abs(frame.y - shape.centre_y) < shape.half_height + margin).any(axis=(0, 2)))
    reach = (np.abs(centre) + width).max(axis=1, keepdims=True) + margin
    columns = _extent((np.abs(frame.x) < reach).any(axis=(0, 1)))
    head = face.make_head(frame, shape, rows, columns)
    opening = body.face_opening(head, shape)
    face.draw_face(head, frame, shape)
    body.draw_glasses(head, f, shape)
    _shadow_of_hair(head, shape, opening)
    _light_head(head, light)
    paint(rgb[:, :, rows, columns], head.inside, head.albedo)
    body.draw_front_hair(rgb, frame, shape, light, head, hair, opening, rows, columns, phase)
    body.draw_ears(rgb, frame, shape, light)
    _roll_off(rgb)
    return rgb


def _roll_off(picture: FloatArray, knee: float = 0.72) -> None:
    """Compress highlights above the knee, in place, as a camera does: strong light keeps its colour."""
    excess = np.maximum(picture - knee, 0)
    picture -= excess
    excess /= 1 + excess * np.float32(0.62 / (1 - knee))
    picture += excess


def _shadow_of_hair(head: face.Head, shape: FaceShape, opening: FloatArray) -> None:
    """Darken the forehead just below the hairline."""
    head.occlusion *= 1 - 0.28 * ramp(opening, -0.13, 0.0) * np.minimum(shape.hair_volume * 12, 1)


def _light_head(head: face.Head, light: body.Light) -> None:
    """Turn the head's skin into lit colour, with a darker edge and a soft highlight."""
    head.shade += head.relief
    np.minimum(head.shade, 1.12, out=head.shade)
    gloss = np.clip(head.shade, 0, 1)
    for _ in range(3):
        gloss *= gloss
    head.occlusion *= 1 - 0.16 * ramp(head.distance, -0.16, 0.02)
    gloss *= head.occlusion
    light.apply(head.albedo, head.shade, head.occlusion)
    gloss *= 0.10
    head.albedo += gloss[:, None] * light.direct


def _add_noise(picture: FloatArray, f: FaceFactors) -> None:
    """Add Gaussian sensor noise in place, each picture from its own generator."""
    for row in np.flatnonzero(f.noise > 0):
        generator = np.random.Generator(np.random.PCG64(int(f.noise_seed[row])))
        grain = generator.standard_normal(picture.shape[1:], dtype=np.float32)
        grain *= f.noise[row] / 255
        picture[row] += grain
