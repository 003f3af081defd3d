"""How fast images are decoded, beside the libraries that are installed.

    python benchmarks/decode.py [--rounds 25] [--json FILE]

Two hundred smooth noisy pictures, made with seed 0: JPEG of 178 x 218 pixels in colour (quality 90, 4:2:0) and PNG of
48 x 48 in grey. "Image" is a library's own decoded image, what it needs to go on; "array" is a uint8 array in NumPy.
The CPU time of the fastest of interleaved rounds, one thread; "threads" is the time on the clock of diffinf's pool.
"Dataset" is what a run does before it trains, as CPU time of all threads: to open class folders of 2,000 such files,
which checks every image, and to decode all to squares of 64 or 48 pixels; without a cache, filling one, and from a
full one.
diffinf decodes JPEG with simplejpeg where that is installed (the extra `jpeg`). Damaged PNG files end the process
inside torchvision's decoder (0.29), so it is timed here and used nowhere.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from diffinf import progress
from diffinf.config import DataConfig
from diffinf.data import open_dataset
from diffinf.data.images import decode_array, decode_image, in_threads

MAX_PIXELS = 50_000_000
Decoder = Callable[[bytes], Any]


def _pictures(width: int, height: int, mode: str, kind: str, n: int, **options: Any) -> list[bytes]:
    rng = np.random.default_rng(0)
    files = []
    for _ in range(n):
        coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        pixels = np.asarray(smooth) + rng.normal(0, 4, (height, width, 3))
        buffer = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode).save(buffer, kind, **options)
        files.append(buffer.getvalue())
    return files


def _pillow(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def _decoders(kind: str) -> tuple[dict[str, dict[str, Decoder]], list[str]]:
    """What comes out -> library -> decoder; libraries that are not there."""

    def ours(data: bytes) -> Image.Image:
        return decode_image(data, max_pixels=MAX_PIXELS)

    images: dict[str, Decoder] = {"diffinf": ours, "pillow": _pillow}
    arrays: dict[str, Decoder] = {
        "diffinf": lambda data: decode_array(data, max_pixels=MAX_PIXELS),
        "pillow": lambda data: np.asarray(_pillow(data)),
    }
    missing = []
    try:
        import torch
        from torchvision import io as vision

        decode = vision.decode_jpeg if kind == "JPEG" else vision.decode_png
        images["torchvision"] = lambda data: decode(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        arrays["torchvision"] = lambda data: images["torchvision"](data).numpy()
    except ImportError:
        missing.append("torchvision")
    for name in ("cv2", "simplejpeg"):
        try:
            module = importlib.import_module(name)
        except ImportError:
            missing.append(name)
            continue
        if name == "cv2":
            images[name] = lambda data, cv2=module: cv2.imdecode(
                np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_UNCHANGED
            )
        elif kind == "JPEG":
            images[name] = module.decode_jpeg
        if name in images:
            arrays[name] = images[name]
    return {"image": images, "array": arrays}, missing


def _rates(decoders: dict[str, Decoder], files: list[bytes], rounds: int) -> dict[str, float]:
    best = dict.fromkeys(decoders, float("inf"))
    for _ in range(rounds):
        for name, decode in decoders.items():
            start = time.process_time()
            for data in files:
                decode(data)
            best[name] = min(best[name], time.process_time() - start)
    return {name: len(files) / seconds for name, seconds in best.items()}


def _threads(files: list[bytes], rounds: int) -> float:
    many, best = files * 10, float("inf")

    def work(chunk: list[bytes]) -> None:
        for data in chunk:
            decode_image(data, max_pixels=MAX_PIXELS)

    for _ in range(rounds):
        start = time.perf_counter()
        in_threads(work, many)
        best = min(best, time.perf_counter() - start)
    return len(many) / best


def _passes(files: list[bytes], suffix: str, size: int, channels: int) -> dict[str, dict[str, float]]:
    """CPU seconds to open a dataset and to have its pixels, and bytes of the cache."""
    with TemporaryDirectory() as place:
        root = Path(place) / "faces"
        for number in range(10 * len(files)):
            folder = root / ("a", "b")[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            file = files[number % len(files)]
            # Each another file with the same picture: a comment, or what follows the end of a picture.
            (folder / f"{number:05}{suffix}").write_bytes(_with_number(file, number))
        found: dict[str, dict[str, float]] = {}
        expected: Any = None
        for name in ("no cache", "first", "second"):
            config = DataConfig(cache="none" if name == "no cache" else Path(place) / "cache")
            start = time.process_time()
            dataset = open_dataset(root, config)
            opened = time.process_time()
            pixels = dataset.images(size=size, channels=channels).numpy()
            found[name] = {"open": opened - start, "pixels": time.process_time() - opened}
            expected = pixels if expected is None else expected
            if not np.array_equal(pixels, expected):
                raise SystemExit(f"{name}: other pixels than without a cache")
        kept = sum(file.stat().st_size for file in (Path(place) / "cache").rglob("*.npz"))
        found["cache"] = {"megabytes": kept / 1e6, "of pixels": pixels.nbytes / 1e6}
    return found


def _with_number(file: bytes, number: int) -> bytes:
    """The same picture in a file of its own: a number as a comment."""
    text = f"{number:08}".encode()
    if file.startswith(b"\xff\xd8"):
        return file[:2] + b"\xff\xfe" + (2 + len(text)).to_bytes(2) + text + file[2:]
    body = b"tEXtn\0" + text
    return file[:33] + (len(body) - 4).to_bytes(4) + body + zlib.crc32(body).to_bytes(4) + file[33:]


def main() -> None:
    """Time and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--rounds", type=int, default=25, help="interleaved rounds, of which the fastest counts"
    )
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    given = parser.parse_args()
    progress.set_quiet(True)
    sets = {
        "JPEG 178 x 218": ("JPEG", _pictures(178, 218, "RGB", "JPEG", 200, quality=90)),
        "PNG 48 x 48": ("PNG", _pictures(48, 48, "L", "PNG", 200)),
    }
    report: dict[str, Any] = {}
    for title, (kind, files) in sets.items():
        decoders, missing = _decoders(kind)
        rates = {name: _rates(each, files, given.rounds) for name, each in decoders.items()}
        report[title] = {
            **rates,
            "threads": _threads(files, max(given.rounds // 5, 1)),
            "not installed": missing,
        }
        print(f"{title}  (images a second; not installed: {', '.join(missing) or 'none'})")
        for name, found in rates.items():
            ours, fastest = found["diffinf"], max(found, key=lambda key: found[key])
            listed = ", ".join(f"{library} {rate:,.0f}" for library, rate in found.items())
            print(f"  {name}: {listed}; diffinf is at {ours / found[fastest]:.0%} of the fastest, {fastest}")
        print(f"  threads: {report[title]['threads']:,.0f}")
        suffix, size, channels = (".jpg", 64, 3) if kind == "JPEG" else (".png", 48, 1)
        passes = report[title]["dataset"] = _passes(files, suffix, size, channels)
        for name in ("no cache", "first", "second"):
            whole = sum(passes[name].values())
            listed = ", ".join(f"{part} {seconds:.2f} s" for part, seconds in passes[name].items())
            share = whole / sum(passes["no cache"].values())
            print(f"  dataset, {name}: {listed}; {share:.0%} of the time without a cache")
        print(f"  cache: {passes['cache']['megabytes']:.1f} MB")
    if given.json:
        given.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
