"""What is checked at the door of a dataset: every image, lengths of names, ids, sizes of classes."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from diffinf.data.images import UnreadableImageError, decode_image, in_threads
from diffinf.data.readers import Quarantined, Records
from diffinf.data.readers.base import printable
from diffinf.data.readers.labels import spelling_variants
from diffinf.errors import UserError
from diffinf.progress import progress_bar

if TYPE_CHECKING:
    from diffinf.config import DataConfig
    from diffinf.data.cache import DecodeCache

_LONGEST = 1000  # characters of an id, a label, a person, a group
_MANY_CLASSES = 20  # numbers as classes: probably to be cut into bins


@dataclass(frozen=True)
class CheckedImage:
    """What is known of an image that can be decoded: digest of its file, shorter side, whether it is grey."""

    sha256: str
    short_side: int
    grey: bool


def verify_images(
    records: Records, rows: list[int], config: DataConfig, cache: DecodeCache | None = None
) -> tuple[dict[int, CheckedImage], dict[int, Quarantined]]:
    """Decode every image once; what fails is quarantined. A file that `cache` knows to be sound is only read."""
    shelf = None if cache is None else cache.checks(config.max_pixels, config.icc)
    known = {} if shelf is None else shelf.known()

    def check(data: bytes) -> CheckedImage:
        digest = hashlib.sha256(data).hexdigest()
        if (seen := known.get(digest)) is not None:
            return CheckedImage(digest, int(seen[0]), bool(seen[1]))
        image = decode_image(data, max_pixels=config.max_pixels, icc=config.icc)
        return CheckedImage(digest, min(image.size), image.mode == "L")

    def work(chunk: list[int]) -> list[tuple[int, CheckedImage | Quarantined]]:
        results: list[tuple[int, CheckedImage | Quarantined]] = []
        for row in chunk:
            try:
                results.append((row, check(records.images.read(row))))
            except UnreadableImageError as error:
                results.append((row, Quarantined(records.ids[row], name_of(records, row), str(error))))
        return results

    checked: dict[int, CheckedImage] = {}
    quarantine: dict[int, Quarantined] = {}
    with progress_bar("check images", len(rows)) as advance:
        for results in in_threads(work, rows, done=advance):
            for row, result in results:
                if isinstance(result, Quarantined):
                    quarantine[row] = result
                else:
                    checked[row] = result
    if shelf is not None:
        sound = list(checked.values())
        values = np.array([(image.short_side, image.grey) for image in sound], dtype=np.uint32).reshape(-1, 2)
        shelf.add([image.sha256 for image in sound], values)
    return checked, quarantine


def check_lengths(records: Records, config: DataConfig) -> None:
    """Refuse texts that no name can be: an array of N strings takes the room of the longest one N times."""
    columns: dict[str, Sequence[str | None]] = {"id": records.ids, f"label {config.label!r}": records.labels}
    if records.identities is not None:
        columns["identity"] = records.identities
    columns |= {f"group {name!r}": values for name, values in records.groups.items()}
    for title, values in columns.items():
        for row, text in enumerate(values):
            if text is not None and len(text) > _LONGEST:
                raise UserError(
                    f"{records.places[row]}: {title} has {len(text):,} characters, {text[:40]!r} ...; expected"
                    f" at most {_LONGEST:,}: shorten it, or name another column"
                )


def check_ids(records: Records) -> None:
    """Refuse an id that occurs twice."""
    seen: dict[str, int] = {}
    for row, sample in enumerate(records.ids):
        if sample in seen:
            raise UserError(
                f"{records.places[row]}: id {sample!r} occurs twice, first in {records.places[seen[sample]]};"
                " ids must be unique: remove one row, or name another column with --id"
            )
        seen[sample] = row


def name_of(records: Records, row: int) -> str:
    """What a quarantined sample is called: its path, else where its row is."""
    return printable(records.images.name(row)) or records.places[row]


def check_classes(records: Records, rows: Sequence[int], splits: Sequence[str], hint: str) -> None:
    """Every class needs two training samples: to be learned in one fold and judged in another."""
    present = {str(records.labels[row]) for row in rows}
    counts = Counter(str(records.labels[row]) for row in rows if splits[row] == "train")
    few = sorted(label for label in present if counts[label] < 2)
    if few:
        amount = "1 sample" if counts[few[0]] else "no sample"
        also = f"; so have {', '.join(few[1:])}" if few[1:] else ""
        advice = "add samples, or merge or remove the class"
        if len(present) > _MANY_CLASSES and all(label.isdecimal() for label in present):
            advice = "cut the numbers into classes with data.bins"
        elif spelling_variants([*present]):
            advice = "take spellings of a class together with data.normalise_labels=true"
        raise UserError(
            f"{records.source.name}: class {few[0]!r} has {amount} in train{hint}, expected at least 2{also}:"
            f" {advice}"
        )
    if len(present) < 2:
        raise UserError(
            f"{records.source.name}: the only label is {present.pop()!r}; expected several classes"
        )
