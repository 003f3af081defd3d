"""Images written as text: FER2013's "70 80 82 ...", one grey value after the other, row by row."""

from __future__ import annotations

import io
import math
import re

import numpy as np
import pyarrow as pa
from PIL import Image

from diffinf.data.images import UnreadableImageError, square

_LOOKS = re.compile(r"\s*\d{1,3}(\s+\d{1,3}){15,}\s*")


def is_pixel_text(value: str | None) -> bool:
    """Whether a cell holds grey values rather than a path."""
    return value is not None and _LOOKS.fullmatch(value[:2000].rsplit(" ", 1)[0]) is not None


class PixelStore:
    """A text column of grey values; images are handed over as binary PGM, which loses nothing."""

    in_table = True

    def __init__(self, column: pa.ChunkedArray, *, max_pixels: int) -> None:
        """Take the column, by position."""
        self._column = column
        self._max_pixels = max_pixels

    def read(self, position: int) -> bytes:
        """The image as PGM.

        Raises:
            UnreadableImageError: other than whole numbers from 0 to 255, or no square number of them.
        """
        text = self._column[position].as_py() or ""
        if len(text) > 4 * self._max_pixels + 64:
            raise UnreadableImageError(f"more values than max_pixels = {self._max_pixels}")
        try:
            values = np.array(text.split(), dtype=np.int64)
        except (ValueError, OverflowError) as error:
            raise UnreadableImageError(f"pixels are no whole numbers ({str(error)[:80]})") from error
        side = math.isqrt(len(values))
        if not len(values) or side * side != len(values):
            raise UnreadableImageError(f"{len(values)} pixels; expected a square number, as 48 x 48 = 2304")
        if values.min() < 0 or values.max() > 255:
            raise UnreadableImageError("a pixel is outside 0 to 255")
        return b"P5\n%d %d\n255\n" % (side, side) + values.astype(np.uint8).tobytes()

    def name(self, position: int) -> str:
        """None: there is no file."""
        return ""

    def is_file(self, position: int) -> bool:
        """Never."""
        return False


def pixel_text(png: bytes, before: str) -> str:
    """An image as grey values separated by blanks, at the side that `before` had."""
    side = math.isqrt(len(before.split()))
    pixels = square(Image.open(io.BytesIO(png)).convert("L"), size=side, channels=1)
    return " ".join(map(str, pixels.ravel().tolist()))
