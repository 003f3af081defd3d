"""A dataset of labelled faces: checked at the door, rows sorted by id, images decoded on demand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from diffinf.data.cache import FEWEST, FILE_BYTES, DecodeCache, check_place, open_cache
from diffinf.data.checks import (
    CheckedImage,
    check_classes,
    check_ids,
    check_lengths,
    name_of,
    verify_images,
)
from diffinf.data.images import UnreadableImageError, decode_image, decode_square, in_threads
from diffinf.data.readers import SPLITS, DatasetSource, ImageStore, Quarantined, Records, read_records
from diffinf.data.readers.classes import name_classes
from diffinf.data.readers.columns import ColumnFiles, to_numpy
from diffinf.data.readers.votes import tally
from diffinf.data.splits import assign_splits, given_splits, limited
from diffinf.data.votes import Votes
from diffinf.errors import UserError
from diffinf.progress import note

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from diffinf.config import DataConfig

IMAGE_SIZES = (32, 48, 64, 96, 128)


@dataclass(frozen=True, eq=False)
class FaceDataset:
    """Labelled face images, N rows sorted by id.

    Attributes:
        ids: (N,) str, unique.
        labels: (N,) int64, index into `class_names`.
        class_names: in the source's order where it has one, else sorted (numbers by value).
        splits: (N,) str, each "train", "validation" or "test".
        ordered: the classes rise along a scale: bins of a number, age groups.
        identities: (N,) str, who is shown (the id where that is unknown); None if the source does not say.
        groups: name -> (N,) str of a column named in `DataConfig.groups`; "" where it is missing.
        votes: what several annotators said, where the configuration names such columns.
        carried: name -> array of N rows that the source holds beside the labels, such as votes; no training
            reads them.
        quarantine: samples left out because their image cannot be read, or their label is missing.
        source: where the dataset lies and in which layout.
        fingerprint: sha256 over class names, ids, labels, splits and image bytes, not the order on disk.
        image_size: side in pixels for networks: as configured, else the largest of 32, 48, 64, 96 and 128
            that the median image fills.
        channels: as configured, else 1 if all images are grey, 3 otherwise.
        notes: what was decided on the way, one sentence each.
        positions: (N,) int64, the row in the source's order.
        quarantine_positions: the same for `quarantine`.
        store: the encoded images, by position.
        sha256: N hex digests, see `source_sha256`.
        max_pixels: limit of decoding.
        icc: colours are converted by the images' profiles to sRGB.
        truth_columns: see `truth`.
        link: "copy" or "hard", how untouched files come into the refined dataset.
        cache: where decoded images are kept, if anywhere.
    """

    ids: NDArray[np.str_]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    splits: NDArray[np.str_]
    identities: NDArray[np.str_] | None
    quarantine: tuple[Quarantined, ...]
    source: DatasetSource
    fingerprint: str
    image_size: int
    channels: int
    notes: tuple[str, ...]
    positions: NDArray[np.int64]
    quarantine_positions: tuple[int, ...]
    store: ImageStore
    sha256: tuple[str, ...]
    max_pixels: int
    truth_columns: tuple[str, ...]
    icc: bool = False
    ordered: bool = False
    groups: Mapping[str, NDArray[np.str_]] = field(default_factory=dict)
    votes: Votes | None = None
    carried: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    link: Literal["copy", "hard"] = "copy"
    cache: DecodeCache | None = None

    def __len__(self) -> int:
        """N."""
        return len(self.ids)

    def rows(self, split: str) -> NDArray[np.int64]:
        """The rows of "train", "validation" or "test", ascending (int64)."""
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}; expected one of {', '.join(SPLITS)}")
        return np.flatnonzero(self.splits == split)

    def encoded(self, index: int) -> bytes:
        """The image of one row as it came: the bytes of its file.

        Raises:
            UserError: the file has gone since the dataset was opened.
        """
        try:
            return self.store.read(int(self.positions[index]))
        except UnreadableImageError as error:
            raise self._gone(index, error) from error

    def image(self, index: int) -> Image.Image:
        """The decoded image of one row, upright, "L" or "RGB".

        Raises:
            UserError: the file has changed or gone since the dataset was opened.
        """
        data = self.encoded(index)
        try:
            return decode_image(data, max_pixels=self.max_pixels, icc=self.icc)
        except UnreadableImageError as error:
            raise self._gone(index, error) from error

    def source_sha256(self, index: int) -> str:
        """Hex sha256 of `encoded(index)`, as it was when the dataset was opened."""
        return self.sha256[index]

    def images(
        self, indices: Sequence[int] | NDArray[np.integer[Any]] | None = None, *, size: int, channels: int
    ) -> torch.Tensor:
        """Decode rows to squares: the largest centred square, resized with antialiasing.

        What `cache` holds is read from there: pixels of the file as it was when the dataset was opened.

        Args:
            indices: rows, in any order, repeated or not; None = all N.
            size: side in pixels.
            channels: 1 (grey) or 3 (RGB).

        Returns:
            uint8 (len(indices), channels, size, size).

        Raises:
            UserError: a file has changed or gone since the dataset was opened.
        """
        import torch

        if channels not in (1, 3):
            raise ValueError(f"channels is {channels}; expected 1 or 3")
        rows = np.arange(len(self)) if indices is None else np.asarray(indices, dtype=np.int64).reshape(-1)
        pixels = np.empty((len(rows), channels, size, size), dtype=np.uint8)
        front_to_back = np.argsort(self.positions[rows], kind="stable")  # of the source: fewer seeks
        if self.cache is None or len(rows) < FEWEST:  # a few are decoded sooner than looked up
            self._decode(rows, front_to_back, pixels)
            return torch.from_numpy(pixels)
        shelf = self.cache.pixels(size, channels, self.icc)
        found = shelf.take([self.sha256[row] for row in rows], pixels)
        missing = front_to_back[~found[front_to_back]]
        at_once = max(FEWEST, FILE_BYTES // (channels * size * size))  # a kill costs no more than these
        for start in range(0, len(missing), at_once):
            part = missing[start : start + at_once]
            part = part[self._decode(rows, part, pixels)]
            shelf.add([self.sha256[row] for row in rows[part]], pixels[part])
        return torch.from_numpy(pixels)

    def _decode(
        self, rows: NDArray[np.int64], slots: NDArray[np.int64], pixels: NDArray[np.uint8]
    ) -> NDArray[np.bool_]:
        """Decode `rows[slots]` to `pixels[slots]`; returns which files are those that were opened."""
        _, channels, size, _ = pixels.shape
        options: dict[str, Any] = {"size": size, "channels": channels}
        options |= {"max_pixels": self.max_pixels, "icc": self.icc}

        def work(chunk: list[int]) -> list[bool]:
            same = []
            for slot in chunk:
                row = int(rows[slot])
                data = self.encoded(row)
                try:
                    pixels[slot] = decode_square(data, **options)
                except UnreadableImageError as error:
                    raise self._gone(row, error) from error
                same.append(self.cache is not None and hashlib.sha256(data).hexdigest() == self.sha256[row])
            return same

        parts = in_threads(work, slots.tolist())
        return np.array([same for part in parts for same in part], dtype=bool)

    def truth(self) -> dict[str, NDArray[Any]]:
        """The columns that hold the truth, read from the source now: for `evaluate`, never for training.

        These are the columns named in the configuration and those whose names start with "truth".

        Returns:
            name -> (N,) or, for fixed-length lists, (N, L); values as in the source.
        """
        if not self.truth_columns:
            return {}
        table = ColumnFiles(self.source.files).read(self.truth_columns, infer_types=True)
        return {name: to_numpy(table.column(name))[self.positions] for name in self.truth_columns}

    def truth_labels(self) -> NDArray[np.int64] | None:
        """The true labels (N,) int64 from a column `truth_label` of class names or codes; None without one.

        Raises:
            UserError: a value that is no class.
        """
        if "truth_label" not in self.truth_columns:
            return None
        table = ColumnFiles(self.source.files)
        texts = table.text("truth_label", f"{self.source.name}: column 'truth_label'")
        # Plain codes beside a ClassLabel column mean its classes.
        codes = {name: code for code, name in enumerate(self.class_names)}
        if not any(text in codes for text in texts):
            codes = {str(code): code for code in range(len(self.class_names))}
        labels = np.empty(len(self), dtype=np.int64)
        for row, position in enumerate(self.positions):
            text = texts[position]
            if text not in codes:
                raise UserError(
                    f"{self.ids[row]}: truth_label is {text!r}; expected one of {self.class_names}"
                )
            labels[row] = codes[text]
        return labels

    def _gone(self, index: int, error: Exception) -> UserError:
        return UserError(
            f"{self.ids[index]}: readable when the dataset was opened, not now ({error}); restore the file"
        )


def open_dataset(
    path: Path | str,
    config: DataConfig,
    *,
    seed: int = 0,
    to_measure: bool = False,
    cache: DecodeCache | None = None,
) -> FaceDataset:
    """Open a dataset in any layout that `diffinf.data.readers.READERS` knows.

    Every image is decoded once; those that cannot be are put into quarantine with the reason, and so are rows
    without a label. Given splits are kept; missing ones are made by a hash of the id (70 / 10 / 20 %).

    Args:
        path: folder, file, or a table's URL, which fsspec reads ("zip://faces.csv::faces.zip").
        config: layout, names of columns, root, bins, limit, limits of decoding.
        seed: decides which samples a `limit` keeps.
        to_measure: nothing is to be repaired: a class may be small, or the only one, and where no splits are
            given all is "test".
        cache: where decoded images are kept; none: the folder `config.cache` where it names one.

    Raises:
        UserError: nothing at `path`, a column that is not there, no label, an id that occurs twice, a path
            out of the root, a class with fewer than two training samples, no readable image, a cache in the dataset.
    """
    records = read_records(path, config)
    if isinstance(config.cache, Path):
        check_place(config.cache, records.source.path)
    if records.ballots is None and (config.votes or config.annotators):
        raise UserError(
            f"{path}: data.votes and data.annotators name columns of a table, and the layout "
            f"{records.source.layout} has none; leave them out"
        )
    check_lengths(records, config)
    check_ids(records)
    notes = name_classes(records, config)
    sound = [row for row in range(len(records.ids)) if row not in records.faults]
    splits, decided = given_splits(records) if to_measure else assign_splits(records, sound)
    if not to_measure:
        check_classes(records, sound, splits, "")
    kept = _kept(records, sound, splits, config.limit, seed)
    cache = cache or open_cache(config)
    checked, quarantine = verify_images(records, kept, config, cache)
    rows = sorted(checked, key=lambda row: records.ids[row])
    if not rows:
        first = next(iter(quarantine.values()))
        raise UserError(
            f"{path}: not one of {len(quarantine)} images can be read; the first, {first.path!r}:"
            f" {first.reason}: check the path, --root and --image"
        )
    hint = f" ({len(quarantine)} unreadable images left out)" if quarantine else ""
    if config.limit is not None:
        hint += f" (--limit {config.limit}: raise it)"
    if not to_measure:
        check_classes(records, rows, splits, hint)
    for row, reason in records.faults.items():
        quarantine[row] = Quarantined(records.ids[row], name_of(records, row), reason)
    said = [*records.notes, *decided, *notes]
    return replace(_assemble(records, rows, splits, checked, quarantine, said, config), cache=cache)


def _kept(
    records: Records, sound: list[int], splits: Sequence[str], limit: int | None, seed: int
) -> list[int]:
    """Rows that are sound and within the limit, ascending."""
    ids = [records.ids[row] for row in sound]
    labels = [str(records.labels[row]) for row in sound]
    chosen = limited(ids, [splits[row] for row in sound], labels, limit or len(sound), seed)
    return [sound[number] for number in chosen]


def _sort_classes(labels: set[str]) -> tuple[str, ...]:
    """Numbers by value, anything else by text."""
    try:
        return tuple(sorted(labels, key=lambda label: (float(label), label)))
    except ValueError:
        return tuple(sorted(labels))


def _assemble(
    records: Records,
    rows: Sequence[int],
    splits: Sequence[str],
    checked: dict[int, CheckedImage],
    quarantine: dict[int, Quarantined],
    notes: Sequence[str],
    config: DataConfig,
) -> FaceDataset:
    names = records.class_names or _sort_classes({str(records.labels[row]) for row in rows})
    codes = {name: code for code, name in enumerate(names)}
    votes = tally(records, rows, names)
    if votes is not None and (silent := int((~votes.known).sum())):
        notes = [*notes, f"{silent} of {len(rows)} rows have no votes; their label stands"]
    digest = hashlib.sha256(json.dumps(names).encode())
    for row in rows:
        line = [records.ids[row], records.labels[row], splits[row], checked[row].sha256]
        digest.update(b"\n" + json.dumps(line).encode())
    people = records.identities
    median = float(np.median([checked[row].short_side for row in rows]))
    fitting = [size for size in IMAGE_SIZES if size <= median]
    columns = ColumnFiles(records.source.files).names if records.source.files else []
    left_out = sorted(quarantine, key=lambda row: quarantine[row].id)
    for sentence in notes:
        note(f"{records.source.title or records.source.path.name}: {sentence}")
    return FaceDataset(
        ids=np.array([records.ids[row] for row in rows], dtype=np.str_),
        labels=np.array([codes[str(records.labels[row])] for row in rows], dtype=np.int64),
        class_names=tuple(names),
        splits=np.array([splits[row] for row in rows], dtype=np.str_),
        identities=None
        if people is None
        else np.array([people[row] or records.ids[row] for row in rows], dtype=np.str_),
        quarantine=tuple(quarantine[row] for row in left_out),
        source=records.source,
        fingerprint=digest.hexdigest(),
        image_size=config.image_size or (fitting[-1] if fitting else IMAGE_SIZES[0]),
        channels=config.channels or (1 if all(checked[row].grey for row in rows) else 3),
        notes=tuple(notes),
        positions=np.array(rows, dtype=np.int64),
        quarantine_positions=tuple(left_out),
        store=records.images,
        sha256=tuple(checked[row].sha256 for row in rows),
        max_pixels=config.max_pixels,
        icc=config.icc,
        truth_columns=tuple(name for name in columns if name.startswith("truth") or name in config.truth),
        ordered=records.ordered,
        groups={
            name: np.array([values[row] or "" for row in rows], dtype=np.str_)
            for name, values in records.groups.items()
        },
        votes=votes,
        carried={name: values[list(rows)] for name, values in records.carried.items()},
        link=config.link,
    )
