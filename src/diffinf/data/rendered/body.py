"""What surrounds the face: background, clothes, neck, ears, hair and glasses."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from diffinf.data.rendered.canvas import Frame, bell, coverage, paint, ramp
from diffinf.data.rendered.face import Head
from diffinf.data.rendered.factors import FaceFactors, FloatArray
from diffinf.data.rendered.shape import FaceShape, hsl


class Light:
    """How the light of N pictures turns a cosine into a colour: ambient + direct * cosine, per channel."""

    def __init__(self, f: FaceFactors) -> None:
        """Derive both colours, (N, 3, 1, 1), from strength, warmth and exposure."""
        warm = np.asarray([1.0, 0.1, -1.0], dtype=np.float32) * 0.085
        tint = 1 + warm * f.light_warmth[:, None]
        hard = f.light_strength[:, None]
        shadow = np.asarray([1.03, 0.97, 0.97], dtype=np.float32)
        exposure = f.exposure[:, None]
        self.ambient = (exposure * (0.80 - 0.52 * hard) * shadow)[:, :, None, None].astype(np.float32)
        self.direct = (exposure * (0.22 + 0.80 * hard) * tint)[:, :, None, None].astype(np.float32)

    def apply(
        self, albedo: FloatArray, cosine: FloatArray, occlusion: FloatArray | None = None
    ) -> FloatArray:
        """Light `albedo` (N, 3, H, W), in place, at `cosine` (N, H, W), wrapped a little round the edge."""
        wrapped = cosine * 0.82
        wrapped += 0.18
        np.maximum(wrapped, 0, out=wrapped)
        colour = self.direct * wrapped[:, None]
        colour += self.ambient
        if occlusion is not None:
            colour *= occlusion[:, None]
        albedo *= colour
        return albedo


def _rgb(values: npt.NDArray[Any]) -> FloatArray:
    return np.asarray(values, dtype=np.float32).reshape(len(values), -1, 1, 1)


def draw_background(f: FaceFactors, frame: Frame, size: int) -> FloatArray:
    """A soft gradient between two related colours; returns the picture to draw on, (N, 3, H, W)."""
    grid = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    angle = np.radians(f.background_angle).reshape(-1, 1, 1)
    x, y = grid.reshape(1, 1, -1), grid.reshape(1, -1, 1)
    mix = 0.5 + 0.42 * (np.cos(angle) * x + np.sin(angle) * y)
    first = hsl(f.background_hue, f.background_light * 0.85 + 0.08, f.background_colour)
    second = hsl(f.background_hue + 0.06, f.background_light * 0.60 + 0.03, f.background_colour)
    exposure = (0.45 + 0.55 * f.exposure)[:, None]
    low, high = _rgb(second * exposure), _rgb(first * exposure)
    return np.asarray(low + mix[:, None] * (high - low), dtype=np.float32)


def draw_body(rgb: FloatArray, f: FaceFactors, frame: Frame, shape: FaceShape, light: Light) -> None:
    """Neck with the shadow of the chin, shoulders and clothes."""
    chin = shape.centre_y + shape.half_height
    rows = np.flatnonzero((frame.y > chin - 0.42).any(axis=(0, 2)))
    if rows.size == 0:
        return
    r = slice(int(rows[0]), frame.y.shape[1])
    x, y, picture = frame.x, frame.y[:, r], rgb[:, :, r]
    lx, _, lz = frame.light
    # Neck: a column that widens downwards; the head throws its shadow on it.
    widen = np.maximum(y - chin + 0.05, 0)
    width = shape.neck_width + 0.5 * widen * widen
    middle = 0.06 * frame.sin_yaw
    s = (x - middle) / width
    cosine = s * lx + np.sqrt(np.maximum(1 - s * s, 0)) * lz
    shadow = 1 - 0.50 * (1 - ramp(y + 0.25 * s * s, chin - 0.05, chin + 0.22)) - 0.12 * np.maximum(s * s, 0)
    skin = light.apply(np.broadcast_to(shape.skin, (len(f), 3, *s.shape[1:])).copy(), cosine, shadow)
    paint(picture, coverage((np.abs(s) - 1) * width, frame.pixel), skin)
    # Shoulders: a broad arch, with a round collar.
    grown = 1 - 0.16 * shape.child
    span, top = 0.92 * grown, chin + 0.06 - 0.01 * shape.child
    arch = np.abs(x / span) ** 2.6
    arch *= 0.34
    edge = arch + top - y
    collar = np.sqrt((x - middle * 0.5) ** 2 * (0.9 / shape.neck_width) ** 2 + ((y - top + 0.02) / 0.15) ** 2)
    cloth = hsl(f.clothes_hue, f.clothes_light * 0.66 + 0.12, np.full_like(f.clothes_hue, 0.55))
    tone = np.broadcast_to(_rgb(cloth), (len(f), 3, *edge.shape[1:])).copy()
    fold = 1 - 0.10 * bell(np.abs(x) - 0.42 - 0.2 * (y - top), 0.06) - 0.15 * ramp(-edge, 0.35, 0.0)
    rim = 1 - 0.20 * bell(collar - 1.07, 0.05)
    light.apply(tone, np.broadcast_to(0.55 * lx * x + 0.75 * lz, edge.shape), fold * rim)
    cover = coverage(edge, frame.pixel) * coverage((1 - collar) * 0.15, frame.pixel)
    paint(picture, cover, tone)


def draw_ears(rgb: FloatArray, frame: Frame, shape: FaceShape, light: Light) -> None:
    """Both ears: over the head's edge on the near side, hidden on the far side and under longer hair."""
    centre_v = shape.eye_v + 0.115
    low, high = centre_v - 0.34, centre_v + 0.34
    rows = np.flatnonzero(((frame.y > low) & (frame.y < high)).any(axis=(0, 2)))
    if rows.size == 0:
        return
    r = slice(int(rows[0]), int(rows[-1]) + 1)
    tall = 0.165 * (0.6 + 0.4 * shape.ear / 0.105)
    slim = shape.ear * 0.80
    bare = 1 - ramp(shape.hair_bottom, 0.0, 0.16)
    lx, ly, lz = frame.light
    for side in (-1.0, 1.0):
        centre = side * shape.half_width * 1.02 * frame.cos_yaw - 0.09 * frame.sin_yaw * 0.3
        near = np.clip(1 - side * frame.sin_yaw * 5.0, 0, 1) * bare
        columns = np.flatnonzero((np.abs(frame.x - centre) < slim + 0.06).any(axis=(0, 1)))
        if columns.size == 0:
            continue
        c = slice(int(columns[0]), int(columns[-1]) + 1)
        dx = (frame.x[:, :, c] - centre) / slim
        dy = (frame.y[:, r] - centre_v) / tall
        dx = dx - side * 0.22 * (-dy)
        radius = np.sqrt(dx * dx + dy * dy)
        cover = coverage((radius - 1) * slim, frame.pixel) * near
        cosine = side * 0.55 * lx + 0.2 * dx * lx + 0.15 * dy * ly + 0.75 * lz
        hollow = bell(radius - 0.35, 0.30)
        skin = np.broadcast_to(shape.skin, (dx.shape[0], 3, *cover.shape[1:])) * np.asarray(
            [1.0, 0.94, 0.93], dtype=np.float32
        ).reshape(1, 3, 1, 1)
        light.apply(skin, cosine, 1 - 0.30 * hollow - 0.12 * (radius > 0.9))
        paint(rgb[:, :, r, c], cover, skin)


def hair_distance(frame: Frame, shape: FaceShape, phase: FloatArray) -> FloatArray:
    """Signed distance (N, H, W) to the outline of all the hair: the skull, puffed up, and what hangs down."""
    volume = shape.hair_volume
    crown = shape.centre_y - 0.06
    t = (frame.y - crown) / (shape.half_height - 0.06 + volume)
    up, down = np.minimum(t, 0), np.maximum(frame.y - crown, 0)
    hang = np.maximum(shape.hair_bottom - crown, 0.46)
    fall = np.minimum(down / hang, 1.2)
    term = up * up + fall**6
    long = np.clip(shape.hair_bottom / 0.5, 0, 1)
    widest = shape.half_width * 1.01 + volume * (0.75 + 0.25 * long)
    width = widest * (1 - (0.20 - 0.26 * long) * fall * fall)
    slope = 2 * np.abs(up) / (shape.half_height + volume) + 6 * fall**5 / hang
    s = (frame.x + 0.08 * frame.sin_yaw) / width
    value = s * s
    gradient = np.sqrt(value * (4 / (width * width)) + slope * slope + 1e-3)
    value += term - 1
    value /= gradient
    curl = shape.hair_wave * (0.012 + 0.10 * volume)
    value += curl * np.sin(17 * frame.y + phase) * np.sin(17 * frame.x + 1.3 * phase)
    return np.asarray(value)


def _strands(frame: Frame, shape: FaceShape, rows: slice, phase: FloatArray) -> FloatArray:
    """Relative brightness of strands that run from the parting down the sides."""
    y = frame.y[:, rows] - shape.centre_y + shape.half_height
    part = 0.22 * shape.hair_part
    spread = (frame.x + 0.08 * frame.sin_yaw - part) / (0.45 + 0.8 * np.maximum(y, 0) ** 0.5)
    wave = shape.hair_wave * 0.8 * np.sin(9 * y + phase)
    fine = np.sin(46 * spread + wave + phase)
    fine += 0.7 * np.sin(23 * spread + 2 * wave + 2.1 * phase)
    return np.asarray(fine, dtype=np.float32)


def _hair_tone(frame: Frame, shape: FaceShape, rows: slice, light: Light, phase: FloatArray) -> FloatArray:
    """Lit colour of the hair over some rows, (N, 3, H, W)."""
    width = shape.half_width + shape.hair_volume
    s = np.clip(frame.x / width, -1, 1)
    t = np.clip((frame.y[:, rows] - shape.centre_y) / (shape.half_height + shape.hair_volume), -1, 1)
    lx, ly, lz = frame.light
    cosine = s * lx + t * ly + np.sqrt(np.maximum(1 - s * s - t * t, 0)) * lz
    strands = _strands(frame, shape, rows, phase)
    shine = bell(t + 0.62 + 0.25 * s * s - 0.2 * ly - 0.2, 0.12) * np.maximum(cosine, 0) * (1 + 0.3 * strands)
    tone = np.broadcast_to(shape.hair, (s.shape[0], 3, *cosine.shape[1:])) * (1 + 0.06 * strands)[:, None]
    tone += (0.12 * shine)[:, None] * (0.35 + 0.7 * shape.hair)
    return light.apply(tone, cosine)


def draw_back_hair(
    rgb: FloatArray, frame: Frame, shape: FaceShape, light: Light, distance: FloatArray, phase: FloatArray
) -> None:
    """The hair behind head and neck."""
    rows = slice(0, frame.y.shape[1])
    tone = _hair_tone(frame, shape, rows, light, phase)
    tone *= (1 - 0.30 * ramp(frame.y, shape.centre_y, shape.centre_y + 0.5))[:, None]
    paint(rgb, coverage(distance, frame.pixel * 1.5), tone)


def face_opening(head: Head, shape: FaceShape) -> FloatArray:
    """Signed distance to the hair-free part of the head: negative on the face, positive under the hair."""
    level = shape.eye_v - 0.02
    au = np.abs(head.u)
    au = au + np.maximum(head.behind + 0.12, 0) * shape.half_width * 1.6
    long = np.clip(shape.hair_bottom / 0.5, 0, 1)
    # Behind the ear even short hair reaches down to the nape.
    nape = ramp(head.behind, -0.40, 0.35) * np.maximum(shape.centre_y + 0.42 - shape.hair_bottom, 0)
    down = ramp(head.v - nape, shape.hair_bottom, shape.hair_bottom + 0.14)
    side = shape.hair_side - 0.05 * long + 2.0 * down
    q = head.u / shape.half_width
    square = np.minimum(q * q, 1)
    swept = head.v - shape.hair_fringe * (1 - 0.4 * square) - 0.10 * shape.hair_part * q
    swept += shape.recession * (4 * square * (1 - square) - 0.25)
    tall = np.maximum(level - shape.hairline_v, 0.1)
    t = np.minimum((swept - level) / tall, 0)
    s = au / side
    value = s * s
    gradient = np.sqrt(value * (4 / (side * side)) + (2 * t / tall) ** 2 + 1e-3)
    value += t * t - 1
    value /= gradient
    return np.asarray(value, dtype=np.float32)


def draw_front_hair(
    rgb: FloatArray, frame: Frame, shape: FaceShape, light: Light, head: Head,
    distance: FloatArray, opening: FloatArray, rows: slice, columns: slice, phase: FloatArray,
) -> None:  # fmt: skip
    """The hair over forehead and temples, soft at the hairline; beside the head it is the back hair's."""
    soft = frame.pixel * 1.6 + 0.012 + 0.03 * shape.recession
    cover = coverage(distance, frame.pixel * 1.5)[:, rows, columns] * coverage(-opening, soft)
    cover *= coverage(head.distance - 0.03, frame.pixel * 1.5)
    tone = _hair_tone(frame, shape, rows, light, phase)[:, :, :, columns]
    paint(rgb[:, :, rows, columns], cover, tone)


def draw_glasses(head: Head, f: FaceFactors, shape: FaceShape) -> None:
    """Frames around both eyes, the bridge, the temples and a faint reflection."""
    if not f.glasses.any():
        return
    part = head.window(shape.eye_v - 0.30, shape.eye_v + 0.34, shape.half_width * 1.1)
    if part is None:
        return
    weight = f.glasses.reshape(-1, 1, 1)
    boxy = f.glasses_shape.reshape(-1, 1, 1)
    au = np.abs(part.u)
    dx = np.abs(au - shape.eye_u * 1.04) / 0.185
    dy = np.abs(part.v - shape.eye_v - 0.015) / (0.165 - 0.035 * boxy)
    power = 2 + 2 * boxy
    radius = (dx**power + dy**power) ** (1 / power)
    rim = coverage((np.abs(radius - 1) * 0.16) - 0.017, part.pixel)
    level = part.v - shape.eye_v + 0.03
    bridge = coverage(np.maximum(np.abs(level + 0.5 * au * au) - 0.014, au - 0.07), part.pixel)
    temple = coverage(np.maximum(np.abs(level) - 0.014, shape.eye_u + 0.18 - au), part.pixel)
    line = np.maximum(np.maximum(rim, bridge), temple) * part.inside * weight
    dark = np.asarray([0.10, 0.09, 0.10], dtype=np.float32).reshape(1, 3, 1, 1)
    tint = coverage((radius - 1) * 0.16, part.pixel) * (0.06 * weight)
    paint(part.albedo, tint, np.asarray([0.75, 0.85, 0.95], dtype=np.float32).reshape(1, 3, 1, 1))
    paint(part.albedo, line * 0.92, dark)
