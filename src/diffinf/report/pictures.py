"""Small pictures as data URIs."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

DIFFERENCE_GAIN = 4  # an edit of a quarter of the range is shown at full strength
_LARGEST_SIDE = 96  # pixels: keeps the page small; thumbnails are shown at about this size
# From no change to a large one: dark blue, violet, orange, pale yellow, evenly rising in lightness.
_RAMP = np.array(
    [(13, 14, 28), (74, 31, 94), (168, 62, 84), (237, 138, 65), (252, 240, 190)], dtype=np.float64
)


def data_uri(kind: str, content: bytes) -> str:
    """Content as a ``data:`` address of a media type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def picture(pixels: NDArray[np.uint8]) -> str:
    """A uint8 image (C, H, W) with C = 1 or 3 as a PNG data URI, shrunk to at most 96 pixels a side."""
    image = Image.fromarray(
        pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))
    )
    if max(image.size) > _LARGEST_SIDE:
        image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE), Image.Resampling.BOX)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return data_uri("image/png", buffer.getvalue())


def difference(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> str:
    """Absolute difference of two images (C, H, W), averaged over channels, amplified and coloured."""
    change = np.abs(after.astype(np.float64) - before).mean(axis=0) / 255 * DIFFERENCE_GAIN
    position = change.clip(0, 1) * (len(_RAMP) - 1)
    stops = np.arange(len(_RAMP))
    channels = [np.interp(position, stops, _RAMP[:, channel]) for channel in range(3)]
    return picture(np.stack(channels).round().astype(np.uint8))
