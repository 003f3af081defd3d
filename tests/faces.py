"""Small images for tests."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor


def png(pixels: np.ndarray) -> bytes:
    """Encode a grey (H, W) or colour (H, W, 3) uint8 image as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def drawn_face(brow: int = 0, channels: int = 1, size: int = 64) -> Tensor:
    """Draw a face that a face detector finds, uint8 (channels, size, size); `brow` tells one from another."""
    image = Image.new("L", (384, 384), 70)
    draw = ImageDraw.Draw(image)
    draw.ellipse((70, 30, 314, 370), fill=200)
    for x in (140, 244):
        draw.ellipse((x - 38, 140, x + 38, 185), fill=120)
        draw.ellipse((x - 30, 148, x + 30, 180), fill=235)
        draw.ellipse((x - 13, 150, x + 13, 178), fill=30)
        draw.rectangle((x - 42, 118 - 3 * brow, x + 42, 132 - brow), fill=60)
    draw.polygon([(192, 165), (165, 250), (219, 250)], fill=175)
    draw.ellipse((160, 235, 224, 262), fill=150)
    draw.ellipse((140, 290, 244, 325), fill=110)
    draw.rectangle((150, 304, 234, 310), fill=50)
    small = image.filter(ImageFilter.GaussianBlur(5)).resize((size, size))
    return torch.from_numpy(np.asarray(small).copy()).expand(channels, size, size).contiguous()
