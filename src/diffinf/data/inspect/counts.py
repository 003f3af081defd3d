"""What there is how often: splits, classes, groups, people, sizes, modes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from diffinf.data.dataset import FaceDataset
from diffinf.data.inspect.scan import Scan
from diffinf.data.readers import SPLITS

_SIZES = 20  # sizes listed by themselves


def class_of(dataset: FaceDataset, row: int) -> str:
    """The name of the class of a row."""
    return dataset.class_names[int(dataset.labels[row])]


def count_rows(dataset: FaceDataset) -> dict[str, Any]:
    """Counts by split; by class and split; by the values of each group column and split."""
    labels = [class_of(dataset, row) for row in range(len(dataset))]
    return {
        "splits": {split: int((dataset.splits == split).sum()) for split in SPLITS},
        "classes": _by_split(labels, dataset.splits.tolist(), dataset.class_names),
        "groups": {
            name: _by_split(values.tolist(), dataset.splits.tolist(), sorted(set(values.tolist())))
            for name, values in dataset.groups.items()
        },
    }


def count_votes(dataset: FaceDataset) -> dict[str, Any] | None:
    """How far annotators agree with the labels, over all and by class; None where there are no votes."""
    if dataset.votes is None:
        return None
    agreement, known = dataset.votes.agreement(dataset.labels), dataset.votes.known
    own = dataset.votes.counts[np.arange(len(dataset)), dataset.labels]
    outvoted = known & (own < np.maximum(dataset.votes.counts.max(axis=1), dataset.votes.others))
    by_class = {
        name: float(agreement[rows].mean())
        for code, name in enumerate(dataset.class_names)
        if (rows := known & (dataset.labels == code)).any()
    }
    return {
        "n": int(known.sum()),
        "without": int((~known).sum()),
        "agreement": float(agreement[known].mean()) if known.any() else None,
        "outvoted": int(outvoted.sum()),
        "by_class": by_class,
    }


def _by_split(
    values: Sequence[str], splits: Sequence[str], names: Sequence[str]
) -> dict[str, dict[str, int]]:
    counts = Counter(zip(values, splits, strict=True))
    return {name: {split: counts[name, split] for split in SPLITS} for name in names}


def count_images(scan: Scan) -> dict[str, Any]:
    """Formats, modes, sizes (the most frequent ones) and bytes of the files."""
    sizes = Counter(map(tuple, scan.sizes.tolist()))
    frequent = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))[:_SIZES]
    low, median, high = np.quantile(scan.bytes, [0, 0.5, 1]).tolist()
    return {
        "formats": _frequencies(scan.formats.tolist()),
        "modes": _frequencies(scan.modes.tolist()),
        "sizes": [{"width": width, "height": height, "n": n} for (width, height), n in frequent],
        "distinct_sizes": len(sizes),
        "short_side": {
            "min": int(scan.sizes.min(axis=1).min()),
            "median": float(np.median(scan.sizes.min(axis=1))),
            "max": int(scan.sizes.min(axis=1).max()),
        },
        "bytes": {"min": int(low), "median": median, "max": int(high), "total": int(scan.bytes.sum())},
    }


def _frequencies(values: Sequence[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items(), key=lambda item: (-item[1], item[0])))


def count_people(dataset: FaceDataset) -> dict[str, Any] | None:
    """How many people there are, and who is in more than one split; None where nobody says.

    A person in several splits counts there with all images.
    """
    if dataset.identities is None:
        return None
    rows: dict[str, Counter[str]] = defaultdict(Counter)
    for person, split in zip(dataset.identities.tolist(), dataset.splits.tolist(), strict=True):
        rows[person][split] += 1
    images = [counts.total() for counts in rows.values()]
    leaking = {person: counts for person, counts in sorted(rows.items()) if len(counts) > 1}
    return {
        "n": len(rows),
        "images_each": {"min": min(images), "median": float(np.median(images)), "max": max(images)},
        "across_splits": len(leaking),
        "images_across_splits": sum(counts.total() for counts in leaking.values()),
        "leaks": [
            {"identity": person, "splits": {split: counts[split] for split in SPLITS if counts[split]}}
            for person, counts in leaking.items()
        ],
    }
