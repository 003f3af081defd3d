"""One pass over the images of a dataset: headers, digests of the pixels, thumbnails."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffinf.data.dataset import FaceDataset
from diffinf.data.images import Pixels, UnreadableImageError, decode_array, image_header, in_threads
from diffinf.errors import UserError
from diffinf.progress import progress_bar

THUMBNAIL = 32


@dataclass(frozen=True, eq=False)
class Scan:
    """What was seen of N images, in the order of the dataset's rows.

    Attributes:
        formats: (N,) str, "PNG", "JPEG" ...
        modes: (N,) str as Pillow names them, before conversion: "L", "RGB", "P", "CMYK", "I;16" ...
        sizes: (N, 2) int64, width and height as stored.
        bytes: (N,) int64, length of the encoded file.
        pixels: (N, 32) uint8, sha256 of the decoded, upright 8-bit pixels and their shape.
        thumbnails: (N, 32, 32) uint8, grey; the whole image, squeezed to a square.
    """

    formats: NDArray[np.str_]
    modes: NDArray[np.str_]
    sizes: NDArray[np.int64]
    bytes: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    thumbnails: NDArray[np.uint8]


def scan_images(dataset: FaceDataset) -> Scan:
    """Decode every image once, in threads.

    Raises:
        UserError: a file has changed or gone since the dataset was opened.
    """
    n = len(dataset)
    headers: list[tuple[str, str, int, int]] = [("", "", 0, 0)] * n
    lengths = np.zeros(n, dtype=np.int64)
    pixels = np.zeros((n, 32), dtype=np.uint8)
    thumbnails = np.zeros((n, THUMBNAIL, THUMBNAIL), dtype=np.uint8)

    def work(rows: list[int]) -> None:
        for row in rows:
            data = dataset.encoded(row)
            try:
                headers[row] = image_header(data)
                picture = decode_array(data, max_pixels=dataset.max_pixels, icc=dataset.icc)
            except UnreadableImageError as error:
                raise UserError(
                    f"{dataset.ids[row]}: readable when the dataset was opened, not now ({error}); restore the file"
                ) from error
            lengths[row] = len(data)
            pixels[row] = np.frombuffer(_pixel_digest(picture), dtype=np.uint8)
            thumbnails[row] = thumbnail(Image.fromarray(picture))

    with progress_bar("look at images", n) as advance:
        in_threads(work, [int(row) for row in np.argsort(dataset.positions, kind="stable")], done=advance)
    return Scan(
        formats=np.array([header[0] for header in headers], dtype=np.str_),
        modes=np.array([header[1] for header in headers], dtype=np.str_),
        sizes=np.array([header[2:] for header in headers], dtype=np.int64).reshape(n, 2),
        bytes=lengths,
        pixels=pixels,
        thumbnails=thumbnails,
    )


def _pixel_digest(picture: Pixels) -> bytes:
    return hashlib.sha256(str(picture.shape).encode() + picture.tobytes()).digest()


def thumbnail(image: Image.Image) -> NDArray[np.uint8]:
    """The whole image, squeezed to a grey square (32, 32)."""
    size = (THUMBNAIL, THUMBNAIL)
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0).convert("L"))
