"""The skin of the head and what is on it: relief, wrinkles, mouth, nose, eyes, brows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffinf.data.rendered.canvas import Frame, bell, coverage, oval, paint, ramp
from diffinf.data.rendered.factors import FloatArray
from diffinf.data.rendered.shape import FaceShape

_BLUSH = np.asarray([0.0, 0.085, 0.075], dtype=np.float32).reshape(1, 3, 1, 1)
_MOUTH = np.asarray([0.30, 0.09, 0.09], dtype=np.float32).reshape(1, 3, 1, 1)
_TONGUE = np.asarray([0.72, 0.32, 0.33], dtype=np.float32).reshape(1, 3, 1, 1)
_INK = np.asarray([0.13, 0.08, 0.07], dtype=np.float32).reshape(1, 3, 1, 1)
_WHITE = np.asarray([0.94, 0.93, 0.91], dtype=np.float32).reshape(1, 3, 1, 1)


@dataclass(eq=False)
class Head:
    """A window onto the head: coordinates on it, its colour, and the two planes that shade it.

    `relief` is added to the cosine between normal and light, `occlusion` multiplies the light that arrives.
    """

    u: FloatArray  # (N, H, W) lateral position on the head, 0 in the middle of the face
    v: FloatArray  # (N, H, 1)
    albedo: FloatArray  # (N, 3, H, W)
    relief: FloatArray  # (N, H, W)
    occlusion: FloatArray  # (N, H, W)
    pixel: FloatArray
    light: tuple[FloatArray, FloatArray, FloatArray]
    behind: FloatArray  # (N, H, W) how far round the side of the head, > 0 behind the ear
    inside: FloatArray  # (N, H, W) coverage by the head
    distance: FloatArray  # (N, H, W) signed distance to the outline
    shade: FloatArray  # (N, H, W) cosine between the ellipsoid's normal and the light
    side: FloatArray  # (N, H, W) lateral position over the half width, in the picture

    def window(self, low: FloatArray, high: FloatArray, half: FloatArray) -> Head | None:
        """Return the part with low < v < high and |u| < half in any of the pictures, as views.

        The bounds are widened by two pixels, which is how far edges and the thinnest lines reach out.
        """
        margin = 2 * self.pixel
        rows = np.flatnonzero(((self.v > low - margin) & (self.v < high + margin)).any(axis=(0, 2)))
        if rows.size == 0:
            return None
        r = slice(int(rows[0]), int(rows[-1]) + 1)
        columns = np.flatnonzero((np.abs(self.u[:, r]) < half + margin).any(axis=(0, 1)))
        if columns.size == 0:
            return None
        c = slice(int(columns[0]), int(columns[-1]) + 1)
        planes = {
            name: getattr(self, name)[:, r, c]
            for name in ("u", "relief", "occlusion", "behind", "inside", "distance", "shade", "side")
        }
        return Head(
            v=self.v[:, r], albedo=self.albedo[:, :, r, c], pixel=self.pixel, light=self.light, **planes
        )


def outline(frame: Frame, shape: FaceShape) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Row-wise centre, half width, height term and its slope of the head's outline; each (N, H, 1)."""
    t = (frame.y - shape.centre_y) / shape.half_height
    down = np.maximum(t, 0)
    up = np.minimum(t, 0)
    term = up * up + down**shape.jaw_power
    slope = (2 * up + shape.jaw_power * down ** (shape.jaw_power - 1)) / shape.half_height
    narrow = ramp(t, 0.05, 1.0)
    width = shape.half_width * (1 - shape.taper * narrow) * (1 + 0.12 * frame.sin_yaw**2)
    centre = frame.sin_yaw * 0.17 * down * down
    return centre, width, term, slope


def make_head(frame: Frame, shape: FaceShape, rows: slice, columns: slice) -> Head:
    """Lay the coordinates of the head and its bare skin over a window of the picture."""
    centre, width, term, slope = (a[:, rows] for a in outline(frame, shape))
    x = frame.x[:, :, columns]
    distance, s = oval(x, centre, width, term, slope)
    square = s * s
    front = np.sqrt(np.maximum(1 - square, 0))
    u = width * (s * frame.cos_yaw - front * frame.sin_yaw)
    behind = -(s * frame.sin_yaw + front * frame.cos_yaw)
    depth = np.sqrt(np.maximum(1 - square - term, 0))
    t = np.clip((frame.y[:, rows] - shape.centre_y) / shape.half_height, -1, 1)
    lx, ly, lz = frame.light
    shade = np.clip(s, -1, 1) * lx
    shade += t * ly
    shade += depth * lz
    albedo = np.empty((u.shape[0], 3, *u.shape[1:]), dtype=np.float32)
    albedo[:] = shape.skin
    return Head(
        u=u, v=frame.v[:, rows], albedo=albedo, relief=np.zeros_like(u), occlusion=np.ones_like(u),
        pixel=frame.pixel, light=frame.light, behind=behind, inside=coverage(distance, frame.pixel),
        distance=distance, shade=shade, side=s,
    )  # fmt: skip


def draw_face(head: Head, frame: Frame, shape: FaceShape) -> None:
    """Draw everything on the skin, from what lies lowest to what lies on top."""
    _soft_relief(head, shape)
    _wrinkles(head, shape)
    _beard(head, shape)
    _mouth(head, shape)
    _nose(head, frame, shape)
    _eyes(head, shape)
    _brows(head, shape)


def _soft_relief(head: Head, shape: FaceShape) -> None:
    """Cheeks, blush, chin, temples: low frequencies that make the skin a surface."""
    lx, ly, _ = head.light
    cheek_u, cheek_v = shape.half_width * 0.56, shape.nose_v - 0.05 - 0.04 * shape.smile
    au = np.abs(head.u)
    across, down = (au - cheek_u) * (1 / 0.13), (head.v - cheek_v) * (1 / 0.12)
    bump = bell(across, 1.0) * bell(down, 1.0)
    rosy = (0.8 + 0.5 * shape.smile + 0.3 * shape.child)[:, None] * _BLUSH
    head.albedo *= 1 - bump[:, None] * rosy
    across *= np.sign(head.u) * lx
    across += down * ly
    across *= bump
    head.relief += across * (0.42 * shape.cheek)
    chin = bell(head.u, 0.11) * bell(head.v - (shape.centre_y + shape.half_height * 0.86), 0.075)
    head.relief += chin * (0.10 - 0.5 * (head.v - (shape.centre_y + shape.half_height * 0.86)) * -ly)
    dip = bell(head.u, 0.13) * bell(head.v - (shape.mouth_v + 0.105), 0.032)
    head.occlusion *= 1 - 0.14 * dip


def _line(head: Head, offset: FloatArray, width: float) -> FloatArray:
    """A thin dark line along offset = 0, never thinner than the pixels can carry."""
    broad = np.maximum(width, 0.55 * head.pixel)
    return np.asarray(bell(offset, broad) * (width / broad))


def _wrinkles(head: Head, shape: FaceShape) -> None:
    """Forehead lines, frown, crow's feet, bags, nasolabial folds: by age, deepened by the expression."""
    _forehead(head, shape)
    part = head.window(shape.eye_v - 0.2, shape.mouth_v + 0.32, shape.half_width)
    if part is None:
        return
    au = np.abs(part.u)
    aged = shape.wrinkles
    # Folds from the wings of the nose to beside the corners of the mouth.
    along = (part.v - shape.nose_v + 0.02) / (shape.mouth_v - shape.nose_v + 0.06)
    fold_u = shape.nose_width * 1.05 + (shape.mouth_width * 0.98 + 0.055 - shape.nose_width) * along
    fade = ramp(along, -0.15, 0.2) * (1 - ramp(along, 0.75, 1.25))
    depth = np.minimum(0.05 + 0.24 * aged + 0.22 * shape.smile + 0.05 * shape.anger, 0.45)
    part.occlusion *= 1 - _line(part, au - fold_u, 0.024) * (fade * depth)
    # Lines below the corners of the mouth, and jowls.
    below = part.v - shape.mouth_v
    sag = ramp(below, 0.0, 0.06) * (1 - ramp(below, 0.10, 0.24))
    jowl = _line(part, au - shape.mouth_width * 1.02 - 0.2 * below, 0.022)
    part.occlusion *= 1 - jowl * (sag * 0.22 * shape.old)
    # Bags and hollows under the eyes.
    q = (au - shape.eye_u) * (1 / (shape.eye_width * 1.15))
    bag = part.v - shape.eye_v - shape.eye_low - 0.050 + 0.035 * q * q
    part.occlusion *= 1 - _line(part, bag, 0.017) * bell(q, 0.5) * (0.05 + 0.26 * aged)
    _crows_feet(part, au, shape)


def _crows_feet(part: Head, au: FloatArray, shape: FaceShape) -> None:
    out = au - (shape.eye_u + shape.eye_width * 0.98)
    height = part.v - shape.eye_v
    reach = ramp(out, 0.0, 0.03) * (1 - ramp(out, 0.07, 0.14))
    strength = np.minimum(0.42 * shape.wrinkles * (0.6 + 0.7 * shape.smile), 0.5)
    for tilt in (-0.55, 0.05, 0.65):
        part.occlusion *= 1 - _line(part, height - tilt * out, 0.011) * reach * strength


def _forehead(head: Head, shape: FaceShape) -> None:
    part = head.window(shape.brow_v - 0.50, shape.brow_v + 0.16, shape.half_width * 0.85)
    if part is None:
        return
    side = 1 - ramp(np.abs(part.u), shape.half_width * 0.35, shape.half_width * 0.68)
    depth = np.minimum(0.36 * shape.wrinkles + 0.20 * shape.surprise * (0.3 + shape.wrinkles), 0.45)
    curve = part.v - shape.brow_v - 0.35 * part.u * part.u
    for height in (0.10, 0.175, 0.25):
        part.occlusion *= 1 - _line(part, curve + height, 0.013) * side * depth
    frown = np.minimum(0.5 * shape.anger + 0.18 * shape.wrinkles, 0.6)
    tall = bell(part.v - shape.brow_v - 0.01, 0.04)
    part.occlusion *= 1 - _line(part, np.abs(part.u) - 0.035, 0.013) * (tall * frown)


def _beard(head: Head, shape: FaceShape) -> None:
    if not shape.beard.any():
        return
    low, high = shape.eye_v - 0.15, shape.centre_y + shape.half_height * 1.3
    part = head.window(low, high, shape.half_width * 1.2)
    if part is None:
        return
    au = np.abs(part.u)
    mouth = np.sqrt((au / (shape.mouth_width * 1.15)) ** 2 + ((part.v - shape.mouth_v) / 0.085) ** 2)
    edge = 0.30 * au * au / (shape.half_width**2)
    jaw = ramp(part.v + 0.30 * au, shape.mouth_v - 0.02 - edge, shape.mouth_v + 0.16)
    lip = bell(part.v - (shape.mouth_v + shape.nose_v) * 0.5 - 0.03, 0.032) * (1 - ramp(au, 0.13, 0.24))
    cover = np.maximum(jaw, lip) * ramp(mouth, 0.75, 1.15)
    paint(part.albedo, cover * (shape.beard * 0.82), shape.hair * 0.85)


def _mouth(head: Head, shape: FaceShape) -> None:
    reach = shape.mouth_open + shape.lip * 2 + 0.14
    part = head.window(shape.mouth_v - reach, shape.mouth_v + reach, shape.mouth_width + 0.06)
    if part is None:
        return
    pixel = part.pixel
    q = part.u * (1 / shape.mouth_width)
    square = np.minimum(q * q, 1.5)
    arch = np.maximum(1 - square, 0)
    arch += shape.mouth_round * (np.sqrt(arch) - arch)
    centre = shape.mouth_v + shape.mouth_curve * (0.42 - square)
    height = part.v - centre
    ends = (np.abs(q) - 1) * shape.mouth_width
    open_up, open_low = shape.mouth_open * 0.42 * arch, shape.mouth_open * 0.62 * arch
    bow = 1 - 0.28 * bell(q, 0.11)
    full = np.sqrt(np.maximum(1 - square, 0))
    top = -height - open_up - shape.lip * 0.80 * bow * full
    bottom = height - open_low - shape.lip * 1.05 * full
    lips = np.maximum(np.maximum(top, bottom), ends)
    paint(part.albedo, coverage(lips, pixel), shape.lips)
    upper = ramp(-height, -0.004, 0.02)
    part.occlusion *= 1 - coverage(lips, pixel) * upper * 0.22
    shine = bell(height - open_low - shape.lip * 0.5, 0.016) * bell(q, 0.35)
    part.relief += shine * (0.16 * np.minimum(shape.lip / 0.05, 1.3))
    gap = np.maximum(np.maximum(-height - open_up, height - open_low), ends)
    hole = coverage(gap, pixel) * np.minimum(shape.mouth_open / 0.02, 1)
    paint(part.albedo, hole, _MOUTH)
    tongue = hole * ramp(height, shape.mouth_open * 0.25, shape.mouth_open * 0.6 + 0.02)
    paint(part.albedo, tongue * 0.7, _TONGUE)
    teeth = coverage(height + open_up - shape.teeth, pixel) * hole
    paint(part.albedo, teeth, _WHITE)
    line = _line(part, height, 0.013) * coverage(ends - 0.012, pixel)
    closed = np.maximum(1 - shape.mouth_open / 0.03, 0)
    paint(part.albedo, line * (0.75 * closed), _INK + 0.12)
    corner = bell(np.abs(q) - 1.02, 0.06) * bell(height, 0.02)
    part.occlusion *= 1 - 0.28 * corner


def _nose(head: Head, frame: Frame, shape: FaceShape) -> None:
    base, width = shape.nose_v, shape.nose_width
    part = head.window(shape.eye_v - 0.2, base + 0.18, width * 2.6 + 0.2)
    if part is None:
        return
    lx, ly, _ = head.light
    tip_v = base - 0.045 + 0.10 * frame.sin_pitch
    root = shape.eye_v - 0.09

    def profile(v: FloatArray) -> FloatArray:
        """Height of the ridge: rises from the root to the tip, falls steeply below it."""
        rise = np.clip((v - root) / (tip_v - root), 0, 1)
        fall = 1 - ramp(v, tip_v, tip_v + 0.075)
        return np.asarray((0.25 * ramp(rise, 0, 0.3) + 0.75 * rise**1.6) * fall)

    ridge = profile(part.v)
    steep = (profile(part.v + 0.012) - profile(part.v - 0.012)) * (1 / 0.024)
    centre = frame.sin_yaw * 0.17 * shape.nose_height * ridge
    spread = width * (0.36 + 0.26 * ridge)
    offset = part.u - centre
    bump = bell(offset, spread)
    height = 0.085 * shape.nose_height
    sideways = offset * (ridge / (spread * spread) * height * 1.5)
    part.relief += bump * (sideways * lx - steep * height * 0.8 * ly)
    part.relief += bell(offset, 0.022) * bell(part.v - tip_v + 0.01, 0.028) * 0.14
    # The wings, and the nostrils between them.
    wing = bell(np.abs(offset) - width * 0.80, width * 0.26) * bell(part.v - base + 0.035, 0.030)
    part.relief += wing * np.sign(offset) * lx * 0.35
    edge = bell(np.abs(offset) - width * 1.12, 0.018) * bell(part.v - base + 0.025, 0.030)
    part.occlusion *= 1 - 0.26 * edge
    nostril = bell(np.abs(offset) - width * 0.46, width * 0.20) * bell(part.v - base + 0.006, 0.015)
    part.occlusion *= 1 - np.clip(0.66 - 1.0 * frame.sin_pitch, 0.3, 0.9) * nostril
    under = bell(offset, width * 0.66) * bell(part.v - base - 0.012, 0.022)
    part.occlusion *= 1 - 0.26 * under
    # Shadow thrown by the nose: below when lit from above, beside it when lit from the side.
    throw = bell(offset + lx * 0.13 * ridge, 0.075) * ramp(part.v, root + 0.12, tip_v)
    throw *= 1 - ramp(part.v, base, base + 0.07)
    part.occlusion *= 1 - throw * (0.34 * np.abs(lx)) * (1 - bump)
    thrown = bell(offset + lx * 0.10, 0.085) * bell(part.v - base - 0.045, 0.035)
    part.occlusion *= 1 - thrown * (0.30 * np.maximum(-ly, 0))


def _eyes(head: Head, shape: FaceShape) -> None:
    part = head.window(shape.eye_v - 0.30, shape.eye_v + 0.24, shape.eye_u + shape.eye_width * 2.25)
    if part is None:
        return
    pixel, ew = part.pixel, shape.eye_width
    au = np.abs(part.u)
    q = (au - shape.eye_u) * (1 / ew)
    socket = bell(q - 0.05, 0.75) * bell(part.v - shape.eye_v + 0.045, 0.075)
    part.occlusion *= 1 - 0.17 * socket
    square = np.minimum(q * q, 1.6)
    dome = 1 - square
    middle = shape.eye_v - shape.eye_tilt * q
    height = part.v - middle
    lid = shape.eye_up * dome + shape.lid_slope * q * np.maximum(dome, 0)
    top, bottom = -height - lid, height - shape.eye_low * dome
    white = coverage(np.maximum(np.maximum(top, bottom), (np.abs(q) - 1) * ew), pixel)
    paint(part.albedo, white, _WHITE)
    part.occlusion *= 1 - white * 0.30 * bell(top, 0.022)
    # The iris looks straight ahead: its centre moves with the gaze, the same way in both eyes.
    side = part.u - np.sign(part.u) * shape.eye_u - shape.gaze
    up = part.v - shape.eye_v + 0.010 + 0.012 * shape.surprise
    radius = np.sqrt(side * side + up * up)
    iris = coverage(radius - shape.iris_radius, pixel) * white
    paint(part.albedo, iris, shape.iris * 0.62)
    paint(part.albedo, coverage(radius - shape.iris_radius * 0.80, pixel) * white, shape.iris * 1.10)
    paint(part.albedo, coverage(radius - shape.iris_radius * 0.44, pixel) * white, _INK * 0.4)
    # Lashes, the crease of the lid, the rim of the lower lid.
    within = coverage((np.abs(q) - 1.10) * ew, pixel)
    lash = _line(part, top - 0.004, 0.014) * within
    paint(part.albedo, lash * 0.88, _INK)
    rim = _line(part, bottom - 0.004, 0.010) * within
    part.occlusion *= 1 - 0.34 * rim
    crease = _line(part, top - 0.036 + 0.012 * shape.old, 0.012) * coverage((np.abs(q) - 1.0) * ew, pixel)
    part.occlusion *= 1 - crease * (0.26 + 0.22 * shape.old)
    glint = (side - 0.022 * np.sign(head.light[0])) ** 2 + (up + 0.024) ** 2
    spark = coverage(np.sqrt(glint) - 0.017, pixel) * white
    paint(part.albedo, spark * 0.95, np.ones((1, 3, 1, 1), dtype=np.float32) * 1.25)


def _brows(head: Head, shape: FaceShape) -> None:
    part = head.window(shape.brow_v - 0.22, shape.brow_v + 0.20, shape.eye_u + shape.eye_width * 1.9)
    if part is None:
        return
    q = (np.abs(part.u) - shape.eye_u) * (1 / shape.brow_length)
    inner = np.maximum(0.25 - q, 0)
    line = shape.brow_v - shape.brow_inner * inner - shape.brow_arch * (1 - (q - 0.25) ** 2) + 0.018
    taper = shape.brow_thickness * (1 - 0.55 * ramp(q, 0.0, 1.1)) * 0.9
    edge = np.maximum(np.abs(part.v - line) - taper, (np.abs(q) - 1) * shape.brow_length)
    cover = coverage(edge, part.pixel * 1.3) * shape.brow_weight
    paint(part.albedo, cover, shape.brow)
