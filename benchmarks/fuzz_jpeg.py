"""Damaged JPEG files with and without simplejpeg: the same files are read, with the same pixels, and no other is.

    python benchmarks/fuzz_jpeg.py [--n 30000] [--seed 0]

Pictures of 1 x 1 to 300 x 200 pixels, grey, in colour, CMYK, progressive or not, of all subsamplings, with restart
markers and comments, are cut short, flipped, overwritten, spliced, given lying headers and stray markers; some are
left as they are. Each is decoded to an image and to an array, by simplejpeg and then Pillow where it complains (the
extra `jpeg`), and by Pillow alone. It ends with exit code 1 if

- the outcomes or the pixels differ,
- a file takes more than 5 seconds,
- anything is written to stderr while simplejpeg is at work.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image, ImageFile

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "data"))
from diffinf.data import images
from diffinf.data.images import UnreadableImageError, decode_array, decode_image
from fuzz_cases import Random, damaged, lying

MAX_PIXELS = 5_000_000
LIMIT_SECONDS = 5.0
MARKERS = bytes([*range(0xC0, 0xD0), 0xD0, 0xD7, 0xD8, 0xD9, 0xDA, 0xDB, 0xDC, 0xDD, 0xE0, 0xFE, 0xFF, 0])


def sound(rng: Random, simplejpeg: ModuleType) -> bytes:
    """A JPEG of some kind."""
    longest = 17 if rng.integers(4) == 0 else 300
    width, height = int(rng.integers(1, longest + 1)), int(rng.integers(1, min(longest, 200) + 1))
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(smooth) + rng.normal(0, rng.choice([0, 4, 60]), (height, width, 3))
    picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    quality, kind = int(rng.integers(1, 101)), rng.integers(10)
    if kind == 0:  # Pillow writes no others
        tall = ("440", "411")[rng.integers(2)]
        return bytes(simplejpeg.encode_jpeg(np.array(picture), quality, "RGB", tall))
    options: dict[str, Any] = {"quality": quality, "progressive": bool(rng.integers(3) == 0)}
    if rng.integers(3) == 0:
        options["restart_marker_blocks"] = int(rng.integers(1, 9))
    if rng.integers(4) == 0:
        options["comment"] = rng.bytes(int(rng.integers(1, 40)))
    if kind < 3:
        picture = picture.convert("L")
    elif kind == 3:
        picture = picture.convert("CMYK")
    elif kind == 4:
        options["keep_rgb"] = True
    else:
        options["subsampling"] = int(rng.integers(3))
    buffer = BytesIO()
    picture.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def broken(rng: Random, simplejpeg: ModuleType) -> bytes:
    """A JPEG with something wrong, or in one of ten cases nothing."""
    data, how = sound(rng, simplejpeg), rng.integers(10)
    if how == 0:
        return data
    if how < 4:
        return lying("JPEG", data, rng)
    place = int(rng.integers(len(data)))
    if how == 4:
        return data[:place] + b"\xff" + MARKERS[rng.integers(len(MARKERS)) :][:1] + data[place:]
    if how == 5:
        return data[:-2] + (b"", b"\0\0", b"\xff\xff\xd9", b"xyz\xff\xd9", data[-60:], data)[rng.integers(6)]
    if how == 6:
        other = sound(rng, simplejpeg)
        return data[:place] + other[rng.integers(len(other)) :]
    return damaged(damaged(data, rng) if how == 7 else data, rng) or b"\xff"


def outcome(decode: Callable[..., Any], data: bytes) -> tuple[str, bytes]:
    """The reason of a refusal, or mode and bytes as they lie in memory."""
    try:
        found = decode(data, max_pixels=MAX_PIXELS)
    except UnreadableImageError as error:
        return str(error), b""
    if isinstance(found, np.ndarray):
        return str(found.shape), found.tobytes()
    return f"{found.mode} {found.size}", found.tobytes("raw", "RGBX" if found.mode == "RGB" else found.mode)


@contextmanager
def stderr_to(file: Any) -> Iterator[None]:
    """What C code writes to stderr, too."""
    kept = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def main() -> None:
    """Run it and print the account."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--n", type=int, default=30_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    simplejpeg = images.fast_jpeg()
    if simplejpeg is None:
        sys.exit('simplejpeg is not installed: pip install ".[jpeg]"')
    faulthandler.enable(file=sys.__stdout__)
    ImageFile.MAXBLOCK = 2**20  # Pillow's encoder gives up where a progressive file outgrows its buffer
    warnings.simplefilter("ignore")
    account: Counter[str] = Counter()
    failures, slowest, start = [], 0.0, time.perf_counter()
    with tempfile.TemporaryFile() as said:
        for number in range(given.n):
            data = broken(np.random.default_rng([given.seed, number, 3]), simplejpeg)
            asked = mock.Mock(wraps=simplejpeg)
            for decode in (decode_image, decode_array):
                begin = time.perf_counter()
                with stderr_to(said), mock.patch.object(images, "fast_jpeg", return_value=asked):
                    found = outcome(decode, data)
                slowest = max(slowest, time.perf_counter() - begin)
                with mock.patch.object(images, "fast_jpeg", return_value=None):
                    expected = outcome(decode, data)
                if found != expected:
                    failures.append(f"file {number}, {decode.__name__}: {found[0]}, not {expected[0]}")
            by = "simplejpeg asked" if asked.decode_jpeg.called else "Pillow alone"
            account[f"{by}, {'read' if expected[1] else 'refused'}"] += 1
        if said.tell():
            failures.append(f"{said.tell()} bytes on stderr")
    if slowest > LIMIT_SECONDS:
        failures.append(f"a file took {slowest:.1f} s")
    for what, n in sorted(account.items()):
        print(f"{n:8,}  {what}")
    print(f"slowest: {slowest:.2f} s; {time.perf_counter() - start:.0f} s; {len(failures)} failures")
    for failure in failures:
        print(f"  {failure}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
