"""Pieces of the repair stage: pictures as PNG."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from diffinf.stages.repairing import png_bytes


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_a_picture_survives_png(channels: int, mode: str) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (channels, 7, 9), generator=generator, dtype=torch.uint8)
    opened = Image.open(io.BytesIO(png_bytes(image)))
    assert opened.format == "PNG" and opened.mode == mode and opened.size == (9, 7)
    pixels = np.asarray(opened).reshape(7, 9, channels)
    assert np.array_equal(pixels, image.permute(1, 2, 0).numpy())
