"""Which face of a picture is meant, the square around it, and the pixels in that square."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
from PIL import Image

from diffinf.data.images import UnreadableImageError

Choice = Literal["largest", "surest", "central"]
CHOICES: tuple[Choice, ...] = get_args(Choice)
Point = tuple[float, float]
# Of an aligned crop without margin: the eyes are half a side apart, a quarter of it below the upper edge.
_EYE_DISTANCE = 0.5
_EYE_HEIGHT = 0.25
_SUPPORT = 3  # pixels, of the Lanczos filter


@dataclass(frozen=True)
class Face:
    """A face found in a picture; coordinates in pixels, (0, 0) is the upper left corner of the first one.

    Attributes:
        box: left, top, right, bottom; may reach out of the picture.
        score: of the detector, higher is surer.
        eyes: centres of the eyes.
        landmarks: all points that the detector gives, in its order.
    """

    box: tuple[float, float, float, float]
    score: float
    eyes: tuple[Point, Point]
    landmarks: tuple[Point, ...]


class FaceDetector(Protocol):
    """Finds faces. Called from several threads at once."""

    @property
    def name(self) -> str:
        """What it is, with its version and settings; crops of another detector are not taken over."""

    def detect(self, image: Image.Image) -> Sequence[Face]:
        """All faces in an upright "L" or "RGB" picture of any size."""


@dataclass(frozen=True)
class Square:
    """A square in a picture: centre and side in pixels, and by how many degrees it is turned clockwise."""

    x: float
    y: float
    side: float
    angle: float = 0.0


def choose(faces: Sequence[Face], choice: Choice, size: tuple[int, int]) -> Face:
    """The largest, surest or most central of at least one face in a picture of `size` (width, height)."""

    def rank(face: Face) -> tuple[float, ...]:
        left, top, right, bottom = face.box
        value = {
            "largest": (right - left) * (bottom - top),
            "surest": face.score,
            "central": -math.hypot((left + right - size[0]) / 2, (top + bottom - size[1]) / 2),
        }[choice]
        return (value, face.score, -left, -top)  # the order in which they were found decides nothing

    return max(faces, key=rank)


def square_around(face: Face, margin: float, *, align: bool) -> Square:
    """The square that a crop shows.

    Unaligned it has the box in its middle, its longer side widened by `margin` of it on either hand. Aligned it is
    turned so that the eyes are level; they are 0.5 / (1 + 2 margin) of the side apart, around the vertical middle,
    and (0.25 + margin) / (1 + 2 margin) of it below the upper edge.

    Raises:
        UnreadableImageError: the eyes are less than a pixel apart, so nothing tells how the face is turned.
    """
    whole = 1 + 2 * margin
    if not align:
        left, top, right, bottom = face.box
        return Square((left + right) / 2, (top + bottom) / 2, max(right - left, bottom - top) * whole)
    (x0, y0), (x1, y1) = sorted(face.eyes)
    distance, angle = math.hypot(x1 - x0, y1 - y0), math.atan2(y1 - y0, x1 - x0)
    if distance < 1:
        raise UnreadableImageError("the eyes of its face cannot be told apart")
    side = distance * whole / _EYE_DISTANCE
    below = side * (0.5 - (_EYE_HEIGHT + margin) / whole)  # from the eyes to the centre
    x, y = (x0 + x1) / 2 - below * math.sin(angle), (y0 + y1) / 2 + below * math.cos(angle)
    return Square(x, y, side, math.degrees(angle))


def cut_out(image: Image.Image, square: Square, size: int) -> Image.Image:
    """The pixels of a square, (size, size), in the picture's mode; beyond its edges the outermost ones go on.

    Brought to the scale with antialiasing (LANCZOS when shrinking, else BICUBIC), then turned (BICUBIC).

    Raises:
        UnreadableImageError: the square lies outside of the picture.
    """
    x, y, side = square.x, square.y, square.side
    factor = int(side / size / 4)
    if factor > 1:  # what follows then costs the same whatever the size of the picture
        image, x, y, side = image.reduce(factor), x / factor, y / factor, side / factor
    angle = math.radians(square.angle)
    around = math.ceil(size * (abs(math.cos(angle)) + abs(math.sin(angle))) - 1e-9)
    around += (around - size) % 2  # the crop is cut out of the middle of what is turned
    half = side * around / size / 2
    reach = math.ceil(_SUPPORT * max(1.0, 2 * half / around)) + 1
    left, top = math.floor(x - half) - reach, math.floor(y - half) - reach
    right, bottom = math.ceil(x + half) + reach, math.ceil(y + half) + reach
    part = _part(image, left, top, right, bottom)
    box = (x - half - left, y - half - top, x + half - left, y + half - top)
    kind = Image.Resampling.LANCZOS if 2 * half > around else Image.Resampling.BICUBIC
    scaled = part.resize((around, around), kind, box=box)
    if square.angle == 0:
        return scaled
    edge = (around - size) // 2
    turned = scaled.rotate(square.angle, Image.Resampling.BICUBIC)
    return turned.crop((edge, edge, edge + size, edge + size))


def _part(image: Image.Image, left: int, top: int, right: int, bottom: int) -> Image.Image:
    """A rectangle of a picture that may reach out of it."""
    inside = max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height)
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        raise UnreadableImageError("its face lies outside of the picture")
    part = image.crop(inside)
    beyond = (inside[1] - top, bottom - inside[3]), (inside[0] - left, right - inside[2])
    if not any(sum(beyond, ())):
        return part
    pixels = np.asarray(part)
    widths = [*beyond, (0, 0)][: pixels.ndim]
    return Image.fromarray(np.pad(pixels, widths, mode="edge"))


def share_outside(square: Square, size: tuple[int, int]) -> float:
    """Which share of a square lies outside of a picture of `size` (width, height), to about 1 %."""
    steps = (np.arange(64) + 0.5) / 64 - 0.5
    across, down = np.meshgrid(steps * square.side, steps * square.side)
    angle = math.radians(square.angle)
    x = square.x + across * math.cos(angle) - down * math.sin(angle)
    y = square.y + across * math.sin(angle) + down * math.cos(angle)
    return float(np.mean((x < 0) | (y < 0) | (x > size[0]) | (y > size[1])))
