"""Sheets of small pictures, written while a training goes on."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from diffinf.files import atomic_path

GAP = 2  # white pixels around each picture


def tiled(rows: Tensor) -> Tensor:
    """Lay out pictures, uint8 (R, B, C, H, W), in R rows of B: uint8 (C, R·(H+2)+2, B·(W+2)+2), white between."""
    count, columns, channels, height, width = rows.shape
    sheet = torch.full(
        (channels, count * (height + GAP) + GAP, columns * (width + GAP) + GAP), 255, dtype=torch.uint8
    )
    for row in range(count):
        for column in range(columns):
            top, left = GAP + row * (height + GAP), GAP + column * (width + GAP)
            sheet[:, top : top + height, left : left + width] = rows[row, column]
    return sheet


def write_sheet(path: Path, rows: Tensor) -> None:
    """Write pictures, uint8 (R, B, C, H, W) with C = 1 or 3, as a PNG of R rows, whole or not at all."""
    sheet = tiled(rows.cpu()).permute(1, 2, 0)
    pixels = sheet[:, :, 0] if sheet.shape[2] == 1 else sheet
    with atomic_path(path) as temporary:
        Image.fromarray(pixels.contiguous().numpy()).save(temporary, format="PNG")
