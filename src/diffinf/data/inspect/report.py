"""Everything `diffinf inspect` says, as one JSON-ready value, and the files it writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from diffinf.data.dataset import FaceDataset
from diffinf.data.inspect.counts import class_of, count_images, count_people, count_rows, count_votes
from diffinf.data.inspect.duplicates import (
    MIN_CORRELATION,
    NearPairs,
    blank_images,
    connected_groups,
    near_pairs,
    same_groups,
)
from diffinf.data.inspect.scan import Scan, scan_images
from diffinf.data.inspect.sheet import class_sheet, duplicate_sheet
from diffinf.data.writers import check_output
from diffinf.files import atomic_path, make_directory, write_json

LEVELS = ("files", "pixels", "near")


def inspect_dataset(
    dataset: FaceDataset, out: Path | None = None, *, similarity: float = MIN_CORRELATION
) -> dict[str, Any]:
    """Look at every image of a dataset; nothing is changed.

    Three levels of likeness are told apart, each holding the one before: the same bytes ("files"), the same
    pixels ("pixels"), nearly the same picture ("near", see `near_pairs`). A group is a set of rows that are
    alike. It crosses splits if its rows lie in several, and conflicts if they have several classes.

    Args:
        dataset: as opened; unreadable images are in its quarantine.
        out: a folder for inspect.json, classes.png and, where there are duplicates, duplicates.png.
        similarity: least correlation of thumbnails of which a picture counts as nearly the same, 0 to 1.

    Returns:
        What the dataset is, counts, images, duplicates, people, unreadable files with reasons, notes.

    Raises:
        UserError: a file has changed since the dataset was opened, or `out` cannot be written, or lies in the
            dataset.
    """
    if out is not None:
        check_output(dataset, out)
    scan = scan_images(dataset)
    near = near_pairs(scan.thumbnails, min_correlation=similarity)
    groups = _groups(dataset, scan, near)
    result = {
        "dataset": dataset.source.name,
        "layout": dataset.source.layout,
        "rows": dataset.source.rows,
        "read": len(dataset),
        "unreadable": len(dataset.quarantine),
        "left_out_by_limit": dataset.source.rows - len(dataset) - len(dataset.quarantine),
        "class_names": list(dataset.class_names),
        "network_input": {"size": dataset.image_size, "channels": dataset.channels},
        "fingerprint": dataset.fingerprint,
        "counts": count_rows(dataset),
        "images": count_images(scan)
        | {"blank": dataset.ids[np.flatnonzero(blank_images(scan.thumbnails))].tolist()},
        "duplicates": {level: _described(dataset, groups[level]) for level in LEVELS}
        | {"near_pairs": _pairs(dataset, near), "near_complete": near.complete},
        "people": count_people(dataset),
        "votes": count_votes(dataset),
        "quarantine": [asdict(entry) for entry in dataset.quarantine],
        "notes": list(dataset.notes),
    }
    if out is not None:
        _write(dataset, groups["near"], result, make_directory(out))
    return result


def _groups(dataset: FaceDataset, scan: Scan, near: NearPairs) -> dict[str, list[list[int]]]:
    pixels = same_groups([digest.tobytes() for digest in scan.pixels])
    # Blank pictures have no near pairs, but may be the same pixel for pixel.
    chained = [(group[0], row) for group in pixels for row in group[1:]]
    pairs = np.concatenate([near.pairs, np.array(chained, dtype=np.int64).reshape(-1, 2)])
    return {
        "files": same_groups(dataset.sha256),
        "pixels": pixels,
        "near": connected_groups(pairs, len(dataset)),
    }


def _described(dataset: FaceDataset, groups: Sequence[Sequence[int]]) -> dict[str, Any]:
    entries = [
        {
            "ids": dataset.ids[list(group)].tolist(),
            "splits": dataset.splits[list(group)].tolist(),
            "labels": [class_of(dataset, row) for row in group],
            **(
                {} if dataset.identities is None else {"identities": dataset.identities[list(group)].tolist()}
            ),
        }
        for group in groups
    ]
    return {
        "groups": len(groups),
        "images": sum(map(len, groups)),
        "superfluous": sum(len(group) - 1 for group in groups),
        "across_splits": sum(len(set(entry["splits"])) > 1 for entry in entries),
        "label_conflicts": sum(len(set(entry["labels"])) > 1 for entry in entries),
        **(
            {}
            if dataset.identities is None
            else {"identity_conflicts": sum(len(set(entry["identities"])) > 1 for entry in entries)}
        ),
        "list": entries,
    }


def _pairs(dataset: FaceDataset, near: NearPairs) -> list[dict[str, Any]]:
    rows = zip(near.pairs.tolist(), near.distances.tolist(), near.correlations.tolist(), strict=True)
    return [
        {
            "ids": dataset.ids[list(pair)].tolist(),
            "distance": distance,
            "correlation": round(correlation, 4),
        }
        for pair, distance, correlation in rows
    ]


def _write(dataset: FaceDataset, near: list[list[int]], result: dict[str, Any], out: Path) -> None:
    write_json(out / "inspect.json", result)
    sheets = {"classes.png": class_sheet(dataset)}
    if near:
        sheets["duplicates.png"] = duplicate_sheet(dataset, near)
    for name, sheet in sheets.items():
        with atomic_path(out / name) as temporary:
            sheet.save(temporary, format="PNG")
