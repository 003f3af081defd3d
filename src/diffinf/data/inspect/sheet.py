"""Contact sheets: some images of every class, and images that are nearly the same side by side."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from diffinf.data.dataset import FaceDataset
from diffinf.data.inspect.counts import class_of

_TILE, _GAP, _TEXT, _LINE = 64, 4, 14, 18  # pixels
_COLUMNS = 12  # images a row
_ROWS = 60  # classes, or groups of duplicates, on a sheet
_MARGIN = 190  # for the name of a row
_BACKGROUND, _INK, _ALARM = "white", "black", "#b00020"

Tile = NDArray[np.uint8]


def class_sheet(dataset: FaceDataset) -> Image.Image:
    """A row a class, with its name and count: the 12 images whose ids have the smallest sha256.

    Only the first 60 classes are shown.
    """
    rows, captions = [], []
    for code, name in list(enumerate(dataset.class_names))[:_ROWS]:
        members = np.flatnonzero(dataset.labels == code).tolist()
        by_hash = sorted(members, key=lambda row: hashlib.sha256(str(dataset.ids[row]).encode()).digest())
        rows.append(by_hash[:_COLUMNS])
        captions.append([(name, _INK), (f"{len(members):,}", _INK)])
    return _sheet(dataset, rows, captions)


def duplicate_sheet(dataset: FaceDataset, groups: Sequence[Sequence[int]]) -> Image.Image:
    """A row a group of images that are alike, with their classes and splits.

    Label conflicts come first, then groups across splits, both in red, then the rest; 60 groups, 12 images each.
    """

    def labels(group: Sequence[int]) -> list[str]:
        return sorted({class_of(dataset, row) for row in group})

    def splits(group: Sequence[int]) -> list[str]:
        return sorted({str(dataset.splits[row]) for row in group})

    chosen = sorted(groups, key=lambda group: (len(labels(group)) < 2, len(splits(group)) < 2, group[0]))[
        :_ROWS
    ]
    captions = [
        [(" / ".join(names), _ALARM if len(names) > 1 else _INK) for names in (labels(group), splits(group))]
        + [(str(dataset.ids[group[0]]), _INK)]
        for group in chosen
    ]
    return _sheet(dataset, [list(group[:_COLUMNS]) for group in chosen], captions)


def _sheet(
    dataset: FaceDataset, rows: Sequence[Sequence[int]], captions: Sequence[Sequence[tuple[str, str]]]
) -> Image.Image:
    tiles = iter(tiles_of(dataset, [row for members in rows for row in members]))
    return picture_sheet([[next(tiles) for _ in members] for members in rows], captions)


def tiles_of(dataset: FaceDataset, rows: Sequence[int]) -> list[Tile]:
    """Rows of a dataset as tiles for `picture_sheet`, uint8 (64, 64, 3)."""
    return list(dataset.images(rows, size=_TILE, channels=3).permute(0, 2, 3, 1).numpy())


def picture_sheet(
    rows: Sequence[Sequence[Tile | None]],
    captions: Sequence[Sequence[tuple[str, str]]],
    headings: Sequence[tuple[int, str]] = (),
) -> Image.Image:
    """Draw rows of tiles with captions to their left.

    Args:
        rows: tiles of `tiles_of`; None leaves a place empty.
        captions: for each row lines of (text, colour).
        headings: (column, text) above the rows.
    """
    pitch = _TILE + _GAP
    columns = max((len(row) for row in rows), default=0)
    above = _LINE + _GAP if headings else 0
    size = (_MARGIN + columns * pitch + _GAP, above + len(rows) * pitch + _GAP)
    canvas = Image.new("RGB", size, _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(_TEXT)
    for column, text in headings:
        draw.text((_MARGIN + column * pitch, _GAP), text, fill=_INK, font=font)
    for number, (members, lines) in enumerate(zip(rows, captions, strict=True)):
        top = above + _GAP + number * pitch
        for line, (text, colour) in enumerate(lines):
            draw.text(
                (_GAP, top + 4 + line * _LINE),
                shortened(text, font, _MARGIN - 2 * _GAP),
                fill=colour,
                font=font,
            )
        for column, tile in enumerate(members):
            if tile is not None:
                canvas.paste(Image.fromarray(tile), (_MARGIN + column * pitch, top))
    return canvas


def shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """As much of a text, on one line, as fits into a width in pixels."""
    text = " ".join(text[:200].split())
    while font.getlength(text) > width:
        text = text.rstrip("…")[:-1] + "…"
    return text
