"""Sheets: where each picture lies, and that the file is a PNG of that size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffinf.training.sheets import tiled, write_sheet


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_lie_in_rows(tmp_path: Path, channels: int) -> None:
    rows = torch.arange(6, dtype=torch.uint8).view(2, 3, 1, 1, 1).expand(2, 3, channels, 5, 4) * 10
    sheet = tiled(rows)
    assert sheet.shape == (channels, 2 * 7 + 2, 3 * 6 + 2)
    assert (sheet[:, 9:14, 14:18] == 50).all() and (sheet[:, 2:7, 2:6] == 0).all()
    assert (sheet[:, 7:9] == 255).all() and (sheet[:, :, 6:8] == 255).all()
    write_sheet(tmp_path / "sheets" / "a.png", rows)
    with Image.open(tmp_path / "sheets" / "a.png") as image:
        assert (image.format, image.size, image.mode) == ("PNG", (20, 16), "L" if channels == 1 else "RGB")
        pixels = np.asarray(image).reshape(16, 20, channels)
    assert np.array_equal(pixels, sheet.permute(1, 2, 0).numpy())
    assert [path.name for path in (tmp_path / "sheets").iterdir()] == ["a.png"]
