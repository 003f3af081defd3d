"""Small pictures, and their files."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageCms

LIMIT = 10_000


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def colour(size: int = 24) -> Image.Image:
    """A smooth RGB image, kept well by lossy formats."""
    y, x = np.mgrid[:size, :size] / (size - 1) * 255
    return Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))


def profile(name: str = "LAB") -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes()


RGB = Image.fromarray((np.asarray(colour(20)) * 0.8 + noise((20, 20, 3)) * 0.2).astype(np.uint8))
GREY = RGB.convert("L")
