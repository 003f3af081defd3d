"""What `fuzz_data.py` feeds: sound images and tables, and what may be wrong with them. All functions of a generator."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from miniatures import make_rows, picture
from PIL import Image

NUMBERS = (0, 1, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1)
NASTY = (
    "../../../evil.png", "/etc/passwd", "..\\..\\evil.png", "img/../../evil.png", "a\nb.png", "a\0b", "", " ", "NaN",
    "-1", "1e999", "9" * 30, "\u202egnp.x", "💥", "x" * 5000, "=1+1", ".", "..", "img", "~", "//", '"', "'", ",",
    "\ufeff",
    "file:///etc/passwd", "0x10", "1,2", "null", "True", "[]", "{}", "-0", "00",
)  # fmt: skip
Random = np.random.Generator


def damaged(data: bytes, rng: Random) -> bytes:
    """Bytes cut short, flipped, overwritten, doubled or left out in some place."""
    how, place = rng.integers(6), int(rng.integers(max(len(data), 1)))
    length = int(rng.integers(1, 32))
    if how == 0:
        return data[:place]
    if how == 1:
        return data[:place] + data[place + length :]
    if how == 2:
        return data[:place] + data[place : place + length] * 2 + data[place + length :]
    out = bytearray(data or b"\0")
    if how == 3:
        place %= len(out)
        value = NUMBERS[rng.integers(len(NUMBERS))]
        out[place : place + 4] = struct.pack((">I", "<I")[rng.integers(2)], value)
    elif how == 4:
        out[place : place + length] = rng.bytes(length)
    else:
        for _ in range(rng.integers(1, 9)):
            out[rng.integers(len(out))] ^= 1 << int(rng.integers(8))
    return bytes(out)


def sound_images() -> list[tuple[str, bytes]]:
    """Small images of every format and mode: (format, file)."""
    y, x = np.mgrid[:20, :20] / 19 * 200
    noise = np.random.default_rng(0).integers(0, 50, (20, 20, 3))
    rgb = Image.fromarray((np.stack([x, y, 200 - x], axis=-1) + noise).astype(np.uint8))
    grey = rgb.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    frames = {"save_all": True, "append_images": [rgb, rgb]}
    exif = Image.Exif()
    exif[0x0112] = 6
    made: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (rgb, "PNG", {}), (grey, "PNG", {}), (deep, "PNG", {}), (rgb.convert("P"), "PNG", {"transparency": 3}),
        (rgb.convert("RGBA"), "PNG", {}), (grey.convert("LA"), "PNG", {"exif": exif}), (rgb, "PNG", frames),
        (rgb, "JPEG", {}), (rgb, "JPEG", {"progressive": True, "exif": exif}), (grey, "JPEG", {"optimize": True}),
        (rgb.convert("CMYK"), "JPEG", {}), (rgb, "WEBP", {}), (rgb.convert("RGBA"), "WEBP", {"lossless": True}),
        (rgb, "WEBP", frames), (grey, "GIF", {}), (rgb, "GIF", frames), (rgb, "BMP", {}), (grey, "BMP", {}),
        (rgb, "TIFF", {}), (deep, "TIFF", {"compression": "tiff_deflate"}), (rgb, "TIFF", {"compression": "jpeg"}),
        (grey.convert("1"), "TIFF", {"compression": "group4"}), (rgb, "TIFF", {"compression": "tiff_lzw"}),
        (rgb, "PPM", {}), (grey, "PPM", {}), (rgb, "JPEG2000", {}), (rgb, "JPEG2000", {"tile_size": (8, 8)}),
    ]  # fmt: skip
    files = []
    for image, kind, options in made:
        buffer = BytesIO()
        image.save(buffer, kind, **options)
        files.append((kind, buffer.getvalue()))
    return files


def lying(kind: str, data: bytes, rng: Random) -> bytes:
    """A file whose header tells of other sides, offsets or counts than there are; its checksums hold."""
    value = NUMBERS[rng.integers(len(NUMBERS))] if rng.integers(2) else int(rng.integers(1, 8000))
    if kind == "PNG":
        field_ = (16, 20, 24, 25, 28)[rng.integers(5)]
        packed = struct.pack(">I", value) if field_ < 24 else bytes([value % 256])
        body = bytearray(data[12:29])
        body[field_ - 12 : field_ - 12 + len(packed)] = packed
        return data[:12] + bytes(body) + struct.pack(">I", zlib.crc32(body)) + data[33:]
    starts = {
        "JPEG": (b"\xff\xc0", b"\xff\xc2"),
        "JPEG2000": (b"\xff\x51",),
        "WEBP": (b"VP8",),
        "GIF": (b"GIF8", b","),
    }
    out = bytearray(data)
    if kind in starts:
        place = max(data.find(start) for start in starts[kind])
        place += int(rng.integers(4, 40 if kind == "JPEG2000" else 14))
    else:
        # offsets and lengths of TIFF lie at the end or the beginning, those of the others at the beginning
        place = int(rng.integers(2, 60)) if rng.integers(2) else len(data) - int(rng.integers(1, 200))
    place = place % max(len(out) - 4, 1)
    width = (1, 2, 4)[rng.integers(3)]
    order = "big" if kind.startswith("JPEG") or rng.integers(2) else "little"
    out[place : place + width] = (value % 256**width).to_bytes(width, order)  # type: ignore[arg-type]
    return bytes(out)


def _png(width: int, height: int, rows: bytes, extra: bytes = b"") -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def bombs() -> list[bytes]:
    """Small files that would need much memory or time."""

    def zeros(n: int) -> bytes:
        """n zero bytes, deflated, without ever holding them."""
        packer = zlib.compressobj(1)
        blocks, rest = divmod(n, 2**24)
        return b"".join(packer.compress(bytes(size)) for size in (*[2**24] * blocks, rest)) + packer.flush()

    def text(kind: bytes) -> bytes:
        body = kind + b"x\0\0" + zeros(2**26)
        return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))

    row = zlib.compress(bytes(17) * 16)
    strip, animation, tiff = BytesIO(), BytesIO(), BytesIO()
    Image.new("1", (1, 500_000)).save(strip, "TIFF", compression="group4")
    still = Image.new("L", (3000, 3000))
    still.save(
        animation, "GIF", save_all=True, append_images=[Image.new("L", (3000, 3000), k) for k in (1, 2)]
    )
    Image.new("1", (8000, 8000)).save(tiff, "TIFF", compression="group4")
    return [
        _png(30_000, 30_000, zeros(2**26)),  # more pixels than allowed
        _png(7000, 7000, zeros(7001 * 7000)),  # nearly as many as allowed
        _png(16, 16, zeros(2**26)),  # more rows than the header says
        _png(7000, 7000, row),  # fewer
        *(_png(16, 16, row, text(kind)) for kind in (b"zTXt", b"iCCP")),
        strip.getvalue(),
        animation.getvalue(),
        tiff.getvalue(),
        b"P6 7000 7000 255\n" + bytes(100),
        b"P5 16 16 65535\n" + b"#" * 2**20,
        b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(20),
    ]


def broken_images(n: int, seed: int, *, with_bombs: bool = True) -> Iterator[tuple[str, bytes]]:
    """N files with what was done to them; every one a function of (seed, number)."""
    sound, large = sound_images(), bombs() if with_bombs else []
    for number in range(n):
        rng = np.random.default_rng([seed, number])
        kind, data = sound[number % len(sound)]
        if number < len(large):
            yield "bomb", large[number]
        elif number % 4 == 0:
            yield "lying header", lying(kind, data, rng)
        elif number % 29 == 0:
            other = sound[rng.integers(len(sound))][1]
            yield "spliced", data[: rng.integers(len(data))] + other[rng.integers(len(other)) :]
        elif number % 31 == 0:
            yield "twice damaged", damaged(damaged(data, rng), rng)
        else:
            yield "damaged", damaged(data, rng)


def broken_text(data: bytes, rng: Random) -> tuple[str, bytes]:
    """A table or annotation file of text with something wrong, and what."""
    lines = data.splitlines(keepends=True)
    line = int(rng.integers(len(lines)))
    nasty = NASTY[rng.integers(len(NASTY))].encode("utf-8", "replace")
    place = int(rng.integers(len(data)))

    def cell() -> bytes:
        separators = [index for index, byte in enumerate(lines[line]) if byte in b',\t "']
        start = separators[rng.integers(len(separators))] + 1 if separators else 0
        end = next((index for index in separators if index >= start), len(lines[line].rstrip(b"\r\n")))
        return b"".join([*lines[:line], lines[line][:start] + nasty + lines[line][end:], *lines[line + 1 :]])

    changes: dict[str, Callable[[], bytes]] = {
        "nasty cell": cell,
        "byte order mark": lambda: b"\xef\xbb\xbf" + data,
        "CRLF": lambda: data.replace(b"\n", b"\r\n"),
        "lone CR": lambda: data.replace(b"\n", b"\r"),
        "stray quote": lambda: data[:place] + b'"' + data[place:],
        "stray line end": lambda: data[:place] + (b"\n", b"\r\n", b"\r")[rng.integers(3)] + data[place:],
        "no rows": lambda: lines[0],
        "nothing": lambda: b"",
        "NUL": lambda: data[:place] + b"\0" + data[place:],
        "no UTF-8": lambda: data[:place] + b"\xff\xe9" + data[place:],
        "UTF-16": lambda: data.decode("utf-8", "replace").encode("utf-16"),
        "line left out": lambda: b"".join(lines[:line] + lines[line + 1 :]),
        "line twice": lambda: b"".join([*lines[:line], lines[line], *lines[line:]]),
        "blank lines": lambda: b"".join([*lines[:line], b"\n \n\n", *lines[line:], b"\n\n"]),
        "long cell": lambda: data[:place] + b"9" * 2**20 + data[place:],
        "deep nesting": lambda: data[:place] + b"[" * 100_000 + data[place:],
        "damaged": lambda: damaged(data, rng),
    }
    name = list(changes)[rng.integers(len(changes))]
    return name, changes[name]()


def odd_parquet(rng: Random) -> bytes:
    """A sound Parquet file with odd values: nulls, hostile paths, damaged images, unfit types, no rows."""
    rows = make_rows(40)
    images: list[Any] = [{"bytes": picture(index), "path": row["image"]} for index, row in enumerate(rows)]
    labels: list[Any] = [row["label"] for row in rows]
    for _ in range(rng.integers(1, 6)):
        row, nasty = int(rng.integers(40)), NASTY[rng.integers(len(NASTY))]
        image = (
            None, {"bytes": None, "path": nasty}, {"bytes": picture(row), "path": nasty}, {"bytes": b"", "path": None},
            {"bytes": None, "path": None}, {"bytes": damaged(picture(row), rng), "path": None},
        )  # fmt: skip
        images[row] = image[rng.integers(len(image))]
        if rng.integers(2):
            labels[row] = (None, nasty)[rng.integers(2)]
    as_labels: tuple[Callable[[], Any], ...] = (
        lambda: labels,
        lambda: pa.array([index % 3 for index in range(40)], pa.uint8()),
        lambda: pa.array([float(index % 3) if index else float("inf") for index in range(40)]),
        lambda: pa.array([[1]] * 40),
        lambda: pa.array(labels).dictionary_encode(),
        lambda: pa.array([index * 10**9 for index in range(40)], pa.timestamp("ns")),
        lambda: pa.nulls(40),
        lambda: pa.array([str(label).encode() for label in labels]),
    )
    table = pa.table({"image": images, "label": as_labels[max(int(rng.integers(-12, len(as_labels))), 0)]()})
    out = BytesIO()
    pq.write_table(
        table.slice(0, 0) if rng.integers(20) == 0 else table, out, row_group_size=int(rng.integers(1, 50))
    )
    return out.getvalue()
