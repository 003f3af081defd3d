"""A dataset again, each picture cut down to its face: resumable, with an account of every sample."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffinf import __version__
from diffinf.data.card import MADE_BY, cell, front_matter, provenance_path
from diffinf.data.crop.geometry import (
    CHOICES,
    Choice,
    Face,
    FaceDetector,
    choose,
    cut_out,
    share_outside,
    square_around,
)
from diffinf.data.dataset import FaceDataset
from diffinf.data.images import UnreadableImageError, in_threads
from diffinf.data.writers import check_output, writing_copy
from diffinf.errors import UserError
from diffinf.files import make_directory, read_json, write_json, write_table, writing
from diffinf.progress import progress_bar

if TYPE_CHECKING:
    import pyarrow as pa

NO_FACE = "no face was found"
SIZES = range(16, 1025)
_CHUNK = 32  # images whose work is lost when the process is killed, in each thread


@dataclass(frozen=True)
class CropSettings:
    """How faces are cut out.

    Attributes:
        size: side of the crops in pixels, 16 to 1024.
        margin: room around the face on each side, as a share of the face, 0 to 2.
        align: turn the picture so that the eyes are level, and scale it so that they are equally far apart.
        face: which one of several.
    """

    size: int = 128
    margin: float = 0.25
    align: bool = False
    face: Choice = "largest"

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range."""
        if self.size not in SIZES:
            raise UserError(f"--size {self.size}: expected {SIZES[0]} to {SIZES[-1]} pixels")
        if not 0 <= self.margin <= 2:
            raise UserError(f"--margin {self.margin}: expected a share of the face from 0 to 2")
        if self.face not in CHOICES:
            raise UserError(f"--face {self.face}: expected {', '.join(CHOICES)}")


def crop_dataset(
    dataset: FaceDataset,
    out: Path,
    detector: FaceDetector,
    settings: CropSettings,
    *,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the dataset to the folder `out` in its layout, every image replaced by the crop of its face.

    Samples without a face, and those that were not usable before, are left out and counted, never replaced. Ids,
    labels, splits and all columns stay; names of files too, so a JPEG is written as JPEG. Grey values in a text column
    keep the side they had. Beside `out`, in NAME.provenance.parquet, a row a sample tells what was found, see `_table`.
    A killed process goes on from the crops in .NAME.crops beside `out`, if dataset, detector and settings are the same.

    Args:
        dataset: what was opened.
        out: a folder that does not exist, or is empty.
        detector: finds the faces.
        settings: how they are cut out.
        overwrite: `out` may hold another dataset, which is replaced.

    Returns:
        What `--json` prints: counts, also by class and group, and the list of what was left out.

    Raises:
        UserError: `out` is not empty, lies in the source or holds it; a file has changed; no image has a face;
            the disk is full.
    """
    out = out.absolute()
    check_output(dataset, out)
    if not overwrite and out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: not empty; choose another folder, or --overwrite")
    work = out.with_name(f".{out.name}.crops")
    _prepare(work, {"dataset": dataset.fingerprint, "detector": detector.name, **asdict(settings)})
    found = _crop_all(dataset, work, detector, settings)
    rows = [row for row, entry in enumerate(found) if not entry["reason"]]
    if not rows:
        shutil.rmtree(work)
        raise UserError(
            f"{dataset.source.name}: not one of {len(dataset)} images has a face that {detector.name} finds;"
            " try a lower --min-score, or look at the images with diffinf inspect"
        )
    crops = _Crops({str(dataset.ids[row]): _crop_path(work, row) for row in rows})
    with writing_copy(dataset, rows, crops, out, replace=overwrite, link="copy") as (paths, folder):
        story = _table(dataset, found, paths, folder, crops, detector, settings)
        result = _result(dataset, found, out)
        (folder / "README.md").write_text(_card(dataset, result, out, detector, settings), encoding="utf-8")
    write_table(provenance_path(out), story, dataset.class_names)
    shutil.rmtree(work)
    return result


def _prepare(work: Path, key: dict[str, Any]) -> None:
    """Make the folder of the crops so far; empty, unless it was made with the same key."""
    marker = work / "key.json"
    key = {**key, "version": __version__}
    if work.exists() and not (marker.exists() and read_json(marker) == key):
        shutil.rmtree(work)
    make_directory(work)
    write_json(marker, key)


def _crop_path(work: Path, row: int) -> Path:
    return work / f"{row // 1000:05}" / f"{row:08}.png"


def _crop_all(
    dataset: FaceDataset, work: Path, detector: FaceDetector, settings: CropSettings
) -> list[dict[str, Any]]:
    """What was found in each row; the crops lie in `work`, and beside them what was found, by chunk."""

    def crop(chunk: list[int]) -> list[dict[str, Any]]:
        record = work / f"rows-{chunk[0]:08}.json"
        if record.exists():
            done: list[dict[str, Any]] = read_json(record)
            return done
        entries = []
        for row in chunk:
            image = dataset.image(row)
            faces = detector.detect(image)
            entry: dict[str, Any] = {"faces": len(faces), "width": image.width, "height": image.height}
            if faces:
                entry |= _crop(
                    image, choose(faces, settings.face, image.size), settings, _crop_path(work, row)
                )
            entries.append({"reason": "" if faces else NO_FACE, **entry})
        write_json(record, entries)  # after its crops: what is recorded is there
        return entries

    with progress_bar("crop faces", len(dataset)) as advance:
        parts = in_threads(crop, list(range(len(dataset))), chunk=_CHUNK, done=advance)
    return [entry for part in parts for entry in part]


def _crop(image: Any, face: Face, settings: CropSettings, path: Path) -> dict[str, Any]:
    """Write one crop as PNG; returns what the provenance tells of it."""
    entry: dict[str, Any] = {"box": face.box, "score": face.score, "landmarks": face.landmarks}
    try:
        square = square_around(face, settings.margin, align=settings.align)
        cropped = cut_out(image, square, settings.size)
    except UnreadableImageError as error:
        return {**entry, "reason": str(error)}
    make_directory(path.parent)
    with writing(path):  # not atomic, which waits for the disk: it counts once its chunk is recorded
        cropped.save(path, format="PNG", compress_level=1)
    return {**entry, "square": asdict(square), "outside": share_outside(square, image.size)}


class _Crops(Mapping[str, bytes]):
    """id -> PNG, read from disk when asked for."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = paths

    def __getitem__(self, sample: str) -> bytes:
        return self._paths[sample].read_bytes()

    def __contains__(self, sample: object) -> bool:
        return sample in self._paths

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


def _table(
    dataset: FaceDataset,
    found: list[dict[str, Any]],
    paths: Mapping[str, str],
    folder: Path,
    crops: Mapping[str, bytes],
    detector: FaceDetector,
    settings: CropSettings,
) -> pa.Table:
    """The provenance, sorted by id.

    Columns: id; action, "cropped" or "quarantined"; reason; split; label; path below the folder; width and height of
    the picture as it was; faces, how many were found; of the one taken score, box (left, top, right, bottom)
    and landmarks (x0, y0, x1, y1 ...) in pixels of the upright picture; x, y, side and angle of the square cut out
    (centre, pixels, degrees clockwise); outside, which share of it lies beyond the picture; source_sha256 of the
    image as it was, sha256 of the crop as written, in tables that of the PNG. Null where there is none.
    """
    import pyarrow as pa

    rows: list[dict[str, Any]] = []
    for row, entry in enumerate(found):
        sample = str(dataset.ids[row])
        crop = None
        if not entry["reason"]:
            crop = crops[sample] if dataset.store.in_table else (folder / paths[sample]).read_bytes()
        landmarks = entry.get("landmarks")
        rows.append(
            {
                **{name: entry.get(name) for name in ("width", "height", "faces", "score", "box", "outside")},
                **entry.get("square", {}),
                "id": sample,
                "action": "quarantined" if entry["reason"] else "cropped",
                "reason": entry["reason"],
                "split": str(dataset.splits[row]),
                "label": dataset.class_names[int(dataset.labels[row])],
                "path": paths.get(sample),
                "landmarks": None if landmarks is None else [value for point in landmarks for value in point],
                "source_sha256": dataset.source_sha256(row),
                "sha256": None if crop is None else hashlib.sha256(crop).hexdigest(),
            }
        )
    rows += [{"id": q.id, "action": "quarantined", "reason": q.reason} for q in dataset.quarantine]
    text, whole, real, many = pa.string(), pa.int64(), pa.float64(), pa.list_(pa.float64())
    kinds = {
        **dict.fromkeys(("id", "action", "reason", "split", "label", "path"), text),
        **dict.fromkeys(("width", "height", "faces"), whole),
        **{"score": real, "box": many, "landmarks": many},
        **dict.fromkeys(("x", "y", "side", "angle", "outside"), real),
        **dict.fromkeys(("source_sha256", "sha256", "tool"), text),
    }
    made_by = json.dumps({"detector": detector.name, **asdict(settings)})
    schema = pa.schema(list(kinds.items()), metadata={MADE_BY: made_by})
    ordered = sorted(rows, key=lambda row: str(row["id"]))
    return pa.Table.from_pylist([{**row, "tool": f"diffinf {__version__}"} for row in ordered], schema)


def _result(dataset: FaceDataset, found: list[dict[str, Any]], out: Path) -> dict[str, Any]:
    names = [dataset.class_names[code] for code in dataset.labels.tolist()]
    columns = {name: values.tolist() for name, values in dataset.groups.items()}
    left_out = [
        {"id": str(dataset.ids[row]), "reason": entry["reason"]}
        for row, entry in enumerate(found)
        if entry["reason"]
    ]
    return {
        "out": str(out),
        "provenance": str(provenance_path(out)),
        "samples": len(dataset) + len(dataset.quarantine),
        "cropped": len(found) - len(left_out),
        "no_face": sum(entry["reason"] == NO_FACE for entry in found),
        "not_cut_out": sum(entry["reason"] not in ("", NO_FACE) for entry in found),
        "not_usable": len(dataset.quarantine),
        "several_faces": sum(entry["faces"] > 1 for entry in found),
        "classes": _shares(names, found),
        "groups": {name: _shares(values, found) for name, values in columns.items()},
        "quarantine": left_out + [{"id": q.id, "reason": q.reason} for q in dataset.quarantine],
    }


def _shares(values: list[str], found: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """value -> how many images there were, and how many were cropped: detectors miss some groups more often."""
    there = Counter(values)
    cropped = Counter(value for value, entry in zip(values, found, strict=True) if not entry["reason"])
    return {value: {"n": there[value], "cropped": cropped[value]} for value in sorted(there)}


def _card(
    dataset: FaceDataset,
    result: Mapping[str, Any],
    out: Path,
    detector: FaceDetector,
    settings: CropSettings,
) -> str:
    """README.md of the crops."""
    aligned = "turned so that the eyes are level and equally far apart" if settings.align else "not turned"
    lines = [
        *front_matter([]),
        f"# {dataset.source.name.rstrip('/').rpartition('/')[2]}, cropped to faces",
        "",
        f"Each image is the {settings.face} face that {detector.name} found in it:"
        f" {settings.size} x {settings.size} pixels, margin {settings.margin:g}, {aligned}.",
        "Nothing in it is synthetic, but that the outermost pixels go on where a crop reaches beyond its picture.",
        f"Written by diffinf {__version__} in the layout `{dataset.source.layout}` of its source, whose fingerprint is",
        f"`{dataset.fingerprint}`. Positions that lists of the source give (boxes, landmarks) are those of the",
        "original pictures.",
        "",
        f"Of {result['samples']} samples {result['cropped']} were cropped; left out were {result['no_face']} in"
        f" which no face was found, {result['not_cut_out']} whose face could not be cut out and"
        f" {result['not_usable']} that were not usable before.",
        f"In {result['several_faces']} images there were several faces.",
        "",
        "| class | images | cropped |",
        "|---|---|---|",
        *(f"| {cell(name)} | {n['n']} | {n['cropped']} |" for name, n in result["classes"].items()),
        "",
        f"`{provenance_path(out).name}`, beside this folder, has a row for every sample: box, landmarks, score,"
        " number of faces, and what was cut out.",
    ]
    return "\n".join(lines) + "\n"
