"""Small datasets in every layout."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CLASSES = ("sad", "happy", "angry")  # not in alphabetical order, as in a ClassLabel
HF_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def picture(seed: int, kind: str = "PNG", size: int = 16) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind)
    return buffer.getvalue()


def make_folders(root: Path, *, per_class: int = 12, splits: Sequence[str] = ()) -> Path:
    """Class folders; names repeat in every class, every third image is a JPEG."""
    seed = 0
    for split in splits or [""]:
        for name in CLASSES:
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(per_class):
                kind, suffix = ("JPEG", "jpg") if index % 3 == 2 else ("PNG", "png")
                (folder / f"{index:03}.{suffix}").write_bytes(picture(seed, kind))
                seed += 1
    return root


def make_rows(n: int = 36) -> list[dict[str, Any]]:
    """Rows of a table; classes take turns, three images a person."""
    return [
        {
            "image": f"img/{index:03}.png",
            "label": CLASSES[index % 3],
            "subset": "Training" if index % 12 < 9 else "PublicTest" if index % 12 < 10 else "PrivateTest",
            "person": f"p{index // 3}",
            "votes": index % 10,
            "truth_label": CLASSES[(index + (index % 5 == 0)) % 3],
            "remark": f'of "{index}", comma\nand line' if index % 4 == 0 else "",
        }
        for index in range(n)
    ]


def make_table(folder: Path, rows: Sequence[dict[str, Any]] | None = None, suffix: str = ".csv") -> Path:
    """A table of image paths with its images beside it."""
    rows = make_rows() if rows is None else rows
    (folder / "img").mkdir(parents=True, exist_ok=True)
    for row in rows:
        (folder / "img" / Path(row["image"]).name).write_bytes(picture(int(Path(row["image"]).stem)))
    path = folder / f"faces{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    else:
        with path.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, list(rows[0]), delimiter="\t" if suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def make_huggingface(
    path: Path, rows: Sequence[dict[str, Any]] | None = None, *, ids: bool = True, row_group_size: int = 10
) -> Path:
    """A Parquet file as Hugging Face `datasets` writes it: Image and ClassLabel features."""
    rows = make_rows() if rows is None else rows
    data: dict[str, Any] = {
        "image": pa.array(
            [{"bytes": picture(int(Path(row["image"]).stem)), "path": row["image"]} for row in rows], HF_IMAGE
        ),
        "label": pa.array([CLASSES.index(row["label"]) for row in rows], pa.int64()),
        "subset": [row["subset"] for row in rows],
        "votes": pa.array([[row["votes"], 1] for row in rows], pa.list_(pa.int8(), 2)),
        "truth_label": [row["truth_label"] for row in rows],
    }
    features = {
        "image": {"_type": "Image"},
        "label": {"names": list(CLASSES), "_type": "ClassLabel"},
        "subset": {"dtype": "string", "_type": "Value"},
        "votes": {"feature": {"dtype": "int8", "_type": "Value"}, "length": 2, "_type": "List"},
        "truth_label": {"dtype": "string", "_type": "Value"},
    }
    if ids:
        data = {"id": [f"face-{Path(row['image']).stem}" for row in rows], **data}
        features = {"id": {"dtype": "string", "_type": "Value"}, **features}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(data).replace_schema_metadata(metadata)
    pq.write_table(table, path, row_group_size=row_group_size, compression="zstd")
    return path
