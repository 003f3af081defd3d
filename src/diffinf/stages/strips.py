"""Strips: original, round trip and edits of rising strength side by side, and each as a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from diffinf.data.inspect.sheet import shortened
from diffinf.errors import UserError
from diffinf.files import atomic_path
from diffinf.stages.editing import PictureEdit
from diffinf.stages.refining import picture

_TILE, _GAP, _TEXT, _LINE = 128, 6, 13, 18  # pixels; small pictures are enlarged to at least a tile


def draw_strip(edits: Sequence[PictureEdit]) -> Image.Image:
    """Draw a row for each picture, pixels enlarged by a whole number, with what is read in each beneath it."""
    factor = -(-_TILE // edits[0].size)
    tile = factor * edits[0].size
    pitch, height = tile + _GAP, tile + 3 * _LINE + _GAP
    columns = 2 + len(edits[0].edited)
    canvas = Image.new("RGB", (columns * pitch + _GAP, len(edits) * height + _GAP), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(_TEXT)
    for row, edit in enumerate(edits):
        top = _GAP + row * height
        title = f"{edit.path.name}: {edit.shown} to {edit.label}"
        draw.text((_GAP, top), shortened(title, font, columns * pitch), fill="black", font=font)
        for column, (name, image, read) in enumerate(_cells(edit)):
            left = _GAP + column * pitch
            enlarged = picture(image).resize((tile, tile), Image.Resampling.NEAREST)
            canvas.paste(enlarged.convert("RGB"), (left, top + _LINE))
            for line, text in enumerate((name, f"{edit.label} {read[edit.label]:.2f}")):
                place = (left, top + tile + (1 + line) * _LINE)
                draw.text(place, shortened(text, font, tile), fill="black", font=font)
    return canvas


def _cells(edit: PictureEdit) -> list[tuple[str, Tensor, dict[str, float]]]:
    """Name, image and reading of each picture in a row."""
    rising = [(f"strength {value:g}", edit.edited[value], edit.after[value]) for value in edit.edited]
    return [
        ("original", edit.original, edit.before),
        ("round trip", edit.roundtrip, edit.unedited),
        *rising,
    ]


def write_strip(
    edits: Sequence[PictureEdit], out: Path, *, save_all: bool = False, overwrite: bool = False
) -> dict[str, Any]:
    """Write the strip as PNG and, if asked, every edit beside it as OUT-PICTURE-STRENGTH.png.

    Returns:
        {"strip": path, "pictures": a dict for each picture: what was done to it, and the probabilities read before,
        after the round trip and after each strength}.

    Raises:
        UserError: a file is there already and `overwrite` is not set, or it is one of the pictures.
    """
    names = [edit.path.stem for edit in edits]
    if len(set(names)) < len(names):
        names = [f"{number}-{name}" for number, name in enumerate(names, 1)]
    files = {
        (number, strength): out.with_name(f"{out.stem}-{name}-{strength:g}.png")
        for number, (name, edit) in enumerate(zip(names, edits, strict=True))
        for strength in (edit.edited if save_all else ())
    }
    pictures = {edit.path.resolve() for edit in edits}
    for target in (out, *files.values()):
        if target.resolve() in pictures:
            raise UserError(f"{target}: is a picture that is edited; choose another file with --out")
        check_free(target, overwrite)
    for (number, strength), target in files.items():
        _save(picture(edits[number].edited[strength]), target)
    _save(draw_strip(edits), out)
    return {
        "strip": str(out),
        "pictures": [_account(edit, number, files) for number, edit in enumerate(edits)],
    }


def check_free(target: Path, overwrite: bool) -> None:
    """UserError when a file is at `target` that may not be overwritten, or a folder."""
    if target.is_dir() or (target.exists() and not overwrite):
        raise UserError(f"{target}: exists already; choose another file with --out, or --overwrite")


def _account(edit: PictureEdit, number: int, files: dict[tuple[int, float], Path]) -> dict[str, Any]:
    after = []
    for strength, read in edit.after.items():
        saved = files.get((number, strength))
        after.append(
            {"strength": strength, "probabilities": read, "image": None if saved is None else str(saved)}
        )
    return {
        "image": str(edit.path),
        "source_size": list(edit.source_size),
        "size": edit.size,
        "resized": edit.resized,
        "from": edit.shown,
        "to": edit.label,
        "read_by": edit.read_by,
        "roundtrip_error": edit.roundtrip_error,
        "before": edit.before,
        "roundtrip": edit.unedited,
        "after": after,
        "warning": edit.warning,
    }


def _save(image: Image.Image, path: Path) -> None:
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")
