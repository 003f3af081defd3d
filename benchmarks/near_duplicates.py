"""What `diffinf inspect` takes for the same picture: changed copies found, different faces taken for one.

    python benchmarks/near_duplicates.py [--data faces.parquet] [--n 1500] [--json FILE]

Without `--data`, 1,500 faces of 180 people are rendered (seed 3). Every change is made to up to 400 of the images; a
copy counts as found if the hashes differ in at most 9 bits and the thumbnails correlate by the threshold. Pairs of
untouched images that pass are counted beside: in rendered faces all of them are mistakes, in photographs they are
mostly copies, and have to be looked at.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageEnhance

from diffinf.data.inspect.duplicates import MAX_DISTANCE, correlations, near_pairs, perceptual_hash
from diffinf.data.inspect.scan import thumbnail
from diffinf.data.rendered.write import render_dataset

THRESHOLDS = (0.9, 0.95)
Change = Callable[[Image.Image], Image.Image]


def _jpeg(quality: int) -> Change:
    def change(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer).convert(image.mode)

    return change


def _crop(left: float, top: float, right: float, bottom: float) -> Change:
    """Cut off shares of the sides and scale back."""

    def change(image: Image.Image) -> Image.Image:
        width, height = image.size
        box = (left * width, top * height, (1 - right) * width, (1 - bottom) * height)
        return image.resize(image.size, Image.Resampling.BICUBIC, box=box)

    return change


CHANGES: dict[str, Change] = {
    "JPEG, quality 50": _jpeg(50),
    "JPEG, quality 20": _jpeg(20),
    "half the size and back": lambda image: image.resize(
        (image.width // 2, image.height // 2), Image.Resampling.BICUBIC
    ).resize(image.size, Image.Resampling.BICUBIC),
    "30 % brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
    "30 % darker": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
    "40 % less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.6),
    "2 % cut off all sides": _crop(0.02, 0.02, 0.02, 0.02),
    "4 % cut off all sides": _crop(0.04, 0.04, 0.04, 0.04),
    "4 % cut off two sides": _crop(0.04, 0.04, 0.0, 0.0),
    "turned by 3 degrees": lambda image: image.rotate(3, Image.Resampling.BICUBIC),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
}


def _images(path: Path, n: int) -> list[Image.Image]:
    """Up to n images of a Parquet file, drawn with seed 0."""
    values = pq.read_table(path, columns=["image"]).column(0)
    rows = np.sort(np.random.default_rng(0).permutation(len(values))[:n])
    return [Image.open(io.BytesIO(values[int(row)].as_py()["bytes"])) for row in rows]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="Parquet file with a column image")
    parser.add_argument("--n", type=int, default=1500, help="images")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = given.data or render_dataset(Path(folder) / "faces.parquet", n=given.n, identities=180, seed=3)
        images = _images(path, given.n)
    thumbnails = np.stack([thumbnail(image) for image in images])
    hashes = perceptual_hash(thumbnails)
    some = np.arange(min(400, len(images)))
    results: dict[str, dict[str, float]] = {}
    for name, change in CHANGES.items():
        changed = np.stack([thumbnail(change(images[row])) for row in some])
        bits = np.bitwise_count(hashes[some] ^ perceptual_hash(changed))
        alike = correlations(np.concatenate([thumbnails[some], changed]), some, some + len(some))
        found = {
            str(least): float(((bits <= MAX_DISTANCE) & (alike >= least)).mean()) for least in THRESHOLDS
        }
        results[name] = {"bits": float(np.median(bits)), "correlation": float(np.median(alike)), **found}
    every = near_pairs(thumbnails, min_correlation=min(THRESHOLDS)).correlations
    passed = {str(least): int((every >= least).sum()) for least in THRESHOLDS}
    print(f"{'change':24}  bits  correlation  " + "  ".join(f"found at {least}" for least in THRESHOLDS))
    for name, row in results.items():
        shares = "  ".join(f"{row[str(least)]:13.1%}" for least in THRESHOLDS)
        print(f"{name:24}  {row['bits']:4.0f}  {row['correlation']:11.3f}  {shares}")
    pairs = len(images) * (len(images) - 1) // 2
    print(f"untouched pairs that pass, of {pairs:,}: {passed}")
    if given.json:
        given.json.write_text(json.dumps({"changes": results, "passed": passed, "pairs": pairs}, indent=2))


if __name__ == "__main__":
    main()
