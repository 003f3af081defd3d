"""Contact sheets: rows of faces in which one factor moves, or a grid of samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from diffinf.data.rendered.factors import FaceFactors, concatenate, plain_faces
from diffinf.data.rendered.render import render_faces
from diffinf.data.rendered.sample import sample_faces
from diffinf.files import atomic_path

_COLUMNS = 9
_MARGIN = 150  # pixels for the row's name

# What each row of the sheet of factors moves, from its first to its last value.
_ROWS: tuple[tuple[str, dict[str, tuple[float, float]], dict[str, float]], ...] = (
    ("age 4 to 85", {"age": (4, 85)}, {}),
    ("sad to happy", {"valence": (-1, 1)}, {}),
    ("anger", {"anger": (0, 1)}, {"hair_length": 0.5}),
    ("surprise", {"surprise": (0, 1)}, {"skin_tone": 0.7, "hair_tone": 0.0}),
    ("yaw -35° to 35°", {"yaw": (-35, 35)}, {"hair_length": 0.6, "hair_tone": 0.75, "valence": 0.4}),
    ("pitch -18° to 18°", {"pitch": (-18, 18)}, {"facial_hair": 0.9}),
    ("light, left to right", {"light_azimuth": (-75, 75)}, {"light_strength": 0.9}),
    (
        "older, smiling, light",
        {"light_azimuth": (-75, 75)},
        {"light_strength": 0.8, "age": 70, "valence": 0.8},
    ),
)


def tile(pictures: npt.NDArray[np.uint8], columns: int) -> npt.NDArray[np.uint8]:
    """Lay pictures (N, 3, H, W) out in rows of `columns`; returns (rows * H, columns * W, 3), rest white."""
    n, channels, height, width = pictures.shape
    rows = -(-n // columns)
    padded = np.full((rows * columns, channels, height, width), 255, dtype=np.uint8)
    padded[:n] = pictures
    grid = padded.reshape(rows, columns, channels, height, width).transpose(0, 3, 1, 4, 2)
    return np.ascontiguousarray(grid.reshape(rows * height, columns * width, channels))


def factor_faces() -> FaceFactors:
    """Return the faces of the sheet of factors, row by row: one factor moves, the others stay."""
    rows = []
    for _, moving, fixed in _ROWS:
        values: dict[str, Any] = {name: np.linspace(*ends, _COLUMNS) for name, ends in moving.items()}
        rows.append(plain_faces(_COLUMNS, **{"valence": 0.1, **fixed, **values}))
    return concatenate(rows)


def write_contact_sheet(out: Path | str, *, size: int = 96, samples: int = 4, seed: int = 0) -> Path:
    """Write the contact sheet of the factors as a PNG and return its path.

    One named row per factor, then `samples` rows of people at random from `seed`; `size` in pixels a face.
    """
    path = Path(out)
    count = samples * _COLUMNS
    people = [sample_faces(count, seed, "age", identities=count)[0]] if samples else []
    faces = concatenate([factor_faces(), *people])
    grid = tile(render_faces(faces, size), _COLUMNS)
    sheet = Image.new("RGB", (grid.shape[1] + _MARGIN, grid.shape[0]), "white")
    sheet.paste(Image.fromarray(grid), (_MARGIN, 0))
    draw = ImageDraw.Draw(sheet)
    names = [name for name, _, _ in _ROWS] + ["people at random"] * min(samples, 1)
    for row, name in enumerate(names):
        draw.text((8, row * size + size // 2 - 6), name, fill="black")
    with atomic_path(path) as partial:
        sheet.save(partial, format="PNG")
    return path
