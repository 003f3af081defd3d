"""Decoding of untrusted image bytes, and the square crops that networks see."""

from __future__ import annotations

import io
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, TypeVar
from warnings import catch_warnings, simplefilter

import numpy as np
from PIL import Image, ImageCms, ImageMode, ImageOps, UnidentifiedImageError

# Raster formats with decoders that are fuzzed upstream; none starts a program (EPS) or follows references.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")
SUFFIXES = frozenset({
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".jp2",
})  # fmt: skip
MAX_SIDE = 2**16 - 1  # JPEG's; decoders work by the row, and some take minutes over millions of rows
_EXIF_ORIENTATION = 0x0112
_PNG = b"\x89PNG\r\n\x1a\n"
# Chunks beside which grey or RGB pixels mean the same: no palette, transparency, orientation, profile, frames.
_PLAIN_CHUNKS = frozenset({b"IHDR", b"IDAT", b"IEND", b"pHYs", b"tEXt", b"tIME", b"sRGB", b"gAMA"})
# Markers beside which a JPEG's pixels mean the same: JFIF, tables, frames of Huffman codes, restarts, comments;
# no EXIF, profile or further pictures.
_PLAIN_MARKERS = frozenset(b"\xe0\xdb\xc4\xc0\xc1\xc2\xdd\xfe")
_JPEG_FRAMES, _JPEG_PROGRESSIVE, _JPEG_SCAN, _JPEG_END = frozenset(b"\xc0\xc1\xc2"), 0xC2, 0xDA, 0xD9
_SCAN, _SCAN_BYTES = b"\xff\xda", 10  # the least that one takes
_JPEG_MARKER = re.compile(rb"\xff([\xc0-\xcf\xd9-\xfe])")  # the end, and those that have a length
# A file of some KB may ask for thousands of passes over its pixels, encoders ask for ten; what one costs beside its
# pixels; and markers of a file, far more than any has.
_MOST_PASSES, _PASS_COST, _MOST_MARKERS = 50, 2**16, 100_000
# Beyond these simplejpeg is not asked: it decodes beside the image, and what it refuses is decoded once more.
_FAST_PIXELS, _FAST_SCANS = 2**22, 50
_J2K_START, _J2K_END = b"\xff\x4f\xff\x51", b"\xff\xd9"
_LOSSY = {"quality": 95}
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {**_LOSSY, "subsampling": 0},
    "WEBP": _LOSSY,
    "TIFF": {"compression": "tiff_deflate"},
}

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class UnreadableImageError(Exception):
    """These bytes, or this file, do not hold an image that can be decoded; the message says why."""


def max_file_bytes(max_pixels: int) -> int:
    """The most bytes a file of `max_pixels` can need: 16 bits in 4 channels, uncompressed, and a header."""
    return 8 * max_pixels + 2**20


def decode_image(
    data: bytes, *, max_pixels: int, least_side: int | None = None, icc: bool = False
) -> Image.Image:
    """Decode to an 8-bit grey ("L") or colour ("RGB") image, upright.

    EXIF orientation is applied; of an animation the first frame counts; 16-bit grey is scaled to 8; palettes
    and CMYK become RGB; transparency is laid on white. A file that was cut short is refused, never filled up.

    Args:
        data: the encoded file.
        max_pixels: width x height allowed, judged by the header before anything is decoded; `max_file_bytes`
            of it is the most bytes allowed, `MAX_SIDE` the longest side.
        least_side: a JPEG may be decoded at a reduced scale whose sides are no smaller than this.
        icc: convert colours by the file's colour profile to sRGB. Without it profiles are ignored, as they
            are where a profile does not fit the pixels.

    Raises:
        UnreadableImageError: not an image, a format outside `FORMATS`, truncated, damaged or too large.
    """
    return _as_image(_decode(data, max_pixels, least_side, icc, "RGBX"))


def decode_array(data: bytes, *, max_pixels: int, icc: bool = False) -> Pixels:
    """Decode as `decode_image` does, to uint8 (H, W) or (H, W, 3).

    Raises:
        UnreadableImageError: as `decode_image`.
    """
    return np.asarray(_decode(data, max_pixels, None, icc, "RGB"))


def _decode(
    data: bytes, max_pixels: int, least_side: int | None, icc: bool, layout: str
) -> Image.Image | Pixels:
    """An image, or, of a plain JPEG where simplejpeg is installed, (H, W) or (H, W, C) with channels as in `layout`."""
    if not data:
        raise UnreadableImageError("the file is empty (0 bytes)")
    if len(data) > max_file_bytes(max_pixels):
        raise UnreadableImageError(f"larger than {max_file_bytes(max_pixels)} bytes, see max_pixels")
    try:
        plain = _plain_png(data, max_pixels) or _plain_jpeg(data, max_pixels, least_side, layout)
        if plain is not None:
            return plain
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_size(*image.size, max_pixels)
        if image.format in ("JPEG", "MPO"):
            _check_passes(data, *image.size, max_pixels)
        if least_side is not None:
            image.draft(None, (least_side, least_side))
        if image.format == "JPEG2000" and data.find(_J2K_END, data.find(_J2K_START)) < 0:
            raise UnreadableImageError("truncated (no end of codestream)")  # missing tiles come out black
        image.load()
        profile = image.info.get("icc_profile") if icc else None
        image = _upright(image)
        if profile and image.mode == "CMYK":
            image = _to_srgb(image, profile)
        return _to_srgb(_eight_bits(image), profile) if profile else _eight_bits(image)
    except UnreadableImageError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImageError(f"not an image in a known format ({', '.join(FORMATS)})") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(f"more than max_pixels = {max_pixels}, or than Pillow allows") from error
    except (
        Exception
    ) as error:  # decoders fed damaged bytes raise nearly anything: ValueError, struct.error ...
        raise UnreadableImageError(f"damaged or truncated ({_one_line(error)})") from error


def _as_image(decoded: Image.Image | Pixels) -> Image.Image:
    if isinstance(decoded, Image.Image):
        return decoded
    size = decoded.shape[1::-1]
    if decoded.ndim == 2:
        return Image.frombuffer("L", size, decoded, "raw", "L", 0, 1)
    image = Image.new("RGB", size, None)
    image.frombytes(decoded, "raw", "RGBX", 0, 1)  # as Pillow holds colours: copied, not unpacked
    return image


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise UnreadableImageError(f"{width} x {height} is more than max_pixels = {max_pixels}")
    if max(width, height) > MAX_SIDE:
        raise UnreadableImageError(f"{width} x {height} has a side of more than {MAX_SIDE} pixels")


def _check_passes(data: bytes, width: int, height: int, max_pixels: int) -> None:
    """Refuse a JPEG whose scans go over its pixels so often that decoding it would take minutes."""
    most = _MOST_PASSES * (max_pixels + _PASS_COST) // (width * height + _PASS_COST)
    if len(data) // _SCAN_BYTES <= most or data.count(_SCAN) <= most:  # to count costs a tenth of a decode
        return
    # Some of these may be in comments, thumbnails, or in a film behind the picture.
    scans, markers, position = 0, 0, 2
    while scans <= most and markers <= _MOST_MARKERS and (found := _JPEG_MARKER.search(data, position)):
        if found[1][0] == _JPEG_END:
            return
        scans, markers = scans + (found[0] == _SCAN), markers + 1
        position = found.end() + int.from_bytes(data[found.end() : found.end() + 2])
    if scans > most or markers > _MOST_MARKERS:
        passes = f"{_MOST_PASSES} passes over max_pixels = {max_pixels}"
        raise UnreadableImageError(f"the scans of {width} x {height} pixels are more than {passes}")


def _plain_png(data: bytes, max_pixels: int) -> Image.Image | None:
    """A sound PNG of 8-bit grey or RGB rows and nothing special; None for all else, damaged files too.

    Pillow's decoder without its plugin, whose bookkeeping costs as much as the pixels of a small face.
    """
    if not data.startswith(_PNG) or data[12:16] != b"IHDR" or len(data) < 45:
        return None
    position, kind, rows = len(_PNG), b"", []
    while kind != b"IEND":
        if position + 12 > len(data):
            return None
        length, kind = struct.unpack_from(">I4s", data, position)
        body = data[position + 4 : position + 8 + length]  # the kind as well: the checksum covers it
        position += 12 + length
        if kind not in _PLAIN_CHUNKS or data[position - 4 : position] != zlib.crc32(body).to_bytes(4):
            return None
        if kind == b"IDAT":
            rows.append(body[4:])
    width, height, *layout = struct.unpack_from(">IIBBBBB", data, 16)
    mode = {(8, 0, 0, 0, 0): "L", (8, 2, 0, 0, 0): "RGB"}.get(tuple(layout))  # bits, colour ..., interlacing
    if mode is None or width == 0 or height == 0:
        return None
    _check_size(width, height, max_pixels)
    try:
        return Image.frombytes(mode, (width, height), b"".join(rows), "zip", mode, 0)
    except ValueError:
        return None


def _plain_jpeg(
    data: bytes, max_pixels: int, least_side: int | None, layout: str
) -> Image.Image | Pixels | None:
    """A sound JPEG, grey or in three colours, of which the header says nothing special; None for all else.

    As with PNG: the same decoder with the same arguments, without the plugin; or simplejpeg's, which is the same.
    """
    if not data.startswith(b"\xff\xd8"):
        return None
    position, frame, progressive = 2, b"", False
    while True:
        if position + 4 > len(data) or data[position] != 0xFF:
            return None
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4])
        if marker == _JPEG_SCAN:
            break
        if marker not in _PLAIN_MARKERS or length < 2 or (marker in _JPEG_FRAMES and frame):
            return None
        if marker in _JPEG_FRAMES:
            frame, progressive = data[position + 4 : position + 10], marker == _JPEG_PROGRESSIVE
        position += 2 + length
    if len(frame) < 6:
        return None
    bits, height, width, components = struct.unpack(">BHHB", frame)
    mode = {(8, 1): "L", (8, 3): "RGB"}.get((bits, components))
    if mode is None or width == 0 or height == 0:
        return None
    _check_size(width, height, max_pixels)
    _check_passes(data, width, height, max_pixels)
    if least_side is not None and min(width, height) >= 2 * least_side:  # may be decoded at a reduced scale
        return None
    # After a first scan of all components a file that is not progressive can have no other.
    several = progressive or data[position + 4 : position + 5] < bytes([components])
    quick = width * height <= _FAST_PIXELS and not (several and data.count(_SCAN) > _FAST_SCANS)
    if quick and (fast := fast_jpeg()) is not None:
        with suppress(Exception):  # what it complains of is for Pillow to judge
            return _by_simplejpeg(fast, data, width, height, "Gray" if mode == "L" else layout)
    try:
        return Image.frombytes(mode, (width, height), data, "jpeg", mode, "")
    except (ValueError, OSError):
        return None


@cache
def fast_jpeg() -> ModuleType | None:
    """The module simplejpeg, where it is installed."""
    try:
        return import_module("simplejpeg")
    except Exception:  # built for another NumPy, say: then as without it
        return None


def _by_simplejpeg(module: ModuleType, data: bytes, width: int, height: int, layout: str) -> Pixels:
    """Pixels (H, W) or (H, W, C) of a JPEG without any fault; else an exception.

    libjpeg-turbo writes lines that begin at a multiple of 32 bytes past the cache, and whoever reads them next waits
    for the memory. Pillow's buffer for a line does or does not, as malloc will; this one begins at an odd address.
    """
    channels = {"Gray": 1, "RGB": 3, "RGBX": 4}[layout]
    buffer = np.empty(height * width * channels + 1, dtype=np.uint8)[1:]
    pixels: Pixels = module.decode_jpeg(data, layout, buffer=buffer, strict=True)
    return pixels[:, :, 0] if layout == "Gray" else pixels


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Colours by an embedded profile; as they are where it is broken or made for another mode."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image
    return image if converted is None else converted.convert("L" if image.mode == "L" else "RGB")


def image_header(data: bytes) -> tuple[str, str, int, int]:
    """What the header says of a file: (format, mode, width, height), such as ("PNG", "P", 178, 218).

    Raises:
        UnreadableImageError: not an image in one of `FORMATS`.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception as error:
        raise UnreadableImageError(f"no header of an image ({_one_line(error)})") from error
    return str(image.format), image.mode, *image.size


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
        return image if orientation == 1 else ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF beside sound pixels: as if there were none, which is what viewers do
        return image


def _eight_bits(image: Image.Image) -> Image.Image:
    """Any mode -> "L" or "RGB"."""
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if image.mode == "F":
        raise UnreadableImageError("floating-point pixels have no defined range; save it with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.float64)
        if values.max(initial=0) > 255 or image.mode != "I":
            values = values / 257  # 65535 -> 255
        return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    target = "L" if ImageMode.getmode(image.mode).basemode == "L" and image.mode != "P" else "RGB"
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(opaque, image.convert("RGBA")).convert(target)
    return image.convert(target)


def square(image: Image.Image, *, size: int, channels: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The largest centred square of an "L" or "RGB" image, resized with antialiasing.

    LANCZOS when shrinking, BICUBIC when enlarging; a square image of this size comes back pixel for pixel.

    Returns:
        uint8 (C, H, W) with C = channels (1 or 3) and H = W = size.
    """
    mode = "L" if channels == 1 else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    width, height = image.size
    if (width, height) != (size, size):
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        # Cropped within the resize: a 1 x 50,000,000 strip must not be enlarged as a whole first.
        image = image.resize(
            (size, size),
            Image.Resampling.LANCZOS if side > size else Image.Resampling.BICUBIC,
            box=(left, top, left + side, top + side),
            reducing_gap=3.0,
        )
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def decode_square(
    data: bytes, *, size: int, channels: int, max_pixels: int, icc: bool = False
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Decode to what networks see: `decode_image`, a large JPEG at a reduced scale, then `square`.

    Returns:
        uint8 (channels, size, size).

    Raises:
        UnreadableImageError: as `decode_image`.
    """
    image = decode_image(data, max_pixels=max_pixels, least_side=2 * size, icc=icc)
    return square(image, size=size, channels=channels)


def reencode(png: bytes, suffix: str) -> bytes:
    """PNG bytes in the format that a file name's `suffix` (".jpg") promises.

    JPEG and WebP at quality 95 without chroma subsampling where the format allows; a suffix that promises
    nothing keeps the PNG.
    """
    suffix = suffix.lower()
    kind = Image.registered_extensions().get(suffix)
    if kind not in FORMATS or kind == "PNG":
        return png
    image = Image.open(io.BytesIO(png))
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **_SAVE_OPTIONS.get(kind, {}))
    return buffer.getvalue()


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """`max_pixels` decides what is too large, and damaged files are accounted for: no warnings on stderr."""
    Image.init()  # registering plugins is not thread-safe
    with catch_warnings():
        simplefilter("ignore")
        yield


def in_threads(
    work: Callable[[list[_Item]], _Result],
    items: list[_Item],
    *,
    chunk: int = 64,
    done: Callable[[int], None] | None = None,
) -> list[_Result]:
    """Apply `work` to chunks of `items` in threads (decoders release the GIL); results in order.

    Args:
        work: takes a chunk.
        items: what to work on.
        chunk: items at a time.
        done: told the number of items in a finished chunk.
    """
    chunks = [items[start : start + chunk] for start in range(0, len(items), chunk)]
    results = []
    # max_workers follows the cores this process may use, not those the machine has.
    workers = max(1, min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4))
    with _quiet_pillow(), ThreadPoolExecutor(workers) as pool:
        for part, result in zip(chunks, pool.map(work, chunks), strict=True):
            results.append(result)
            if done is not None:
                done(len(part))
    return results
