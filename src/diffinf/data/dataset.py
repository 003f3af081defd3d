"""A dataset of labelled faces: checked at the door, rows sorted by id, images decoded on demand."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from diffinf.data.images import UnreadableImageError, decode_image, in_threads, square
from diffinf.data.readers import SPLITS, DatasetSource, ImageStore, Quarantined, Records, read_records
from diffinf.data.readers.base import printable
from diffinf.data.readers.classes import name_classes
from diffinf.data.readers.columns import ColumnFiles, to_numpy
from diffinf.data.readers.labels import spelling_variants
from diffinf.data.readers.votes import tally
from diffinf.data.splits import assign_splits, given_splits, limited
from diffinf.data.votes import Votes
from diffinf.errors import UserError
from diffinf.progress import note, progress_bar

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from diffinf.config import DataConfig

IMAGE_SIZES = (32, 48, 64, 96, 128)
_LONGEST = 1000  # characters of an id, a label, a person, a group
_MANY_CLASSES = 20  # numbers as classes: probably to be cut into bins


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

    def image(self, index: int, *, least_side: int | None = None) -> Image.Image:
        """The decoded image of one row, upright, "L" or "RGB"; `least_side` as in `decode_image`.

        Raises:
            UserError: the file has changed or gone since the dataset was opened.
        """
        data = self.encoded(index)
        try:
            return decode_image(data, max_pixels=self.max_pixels, least_side=least_side, icc=self.icc)
        except UnreadableImageError as error:
            raise self._gone(index, error) from error

    def source_sha256(self, index: int) -> str:
        """Hex sha256 of `encoded(index)`, as it was when the dataset was opened."""
        return self.sha256[index]

    def images(
        self, indices: Sequence[int] | NDArray[np.integer[Any]] | None = None, *, size: int, channels: int
    ) -> torch.Tensor:
        """Decode rows to squares: the largest centred square, resized with antialiasing.

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

        def work(slots: list[int]) -> None:
            for slot in slots:
                image = self.image(int(rows[slot]), least_side=2 * size)
                pixels[slot] = square(image, size=size, channels=channels)

        front_to_back = np.argsort(self.positions[rows], kind="stable")  # of the source: fewer seeks
        in_threads(work, [int(slot) for slot in front_to_back])
        return torch.from_numpy(pixels)

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
    path: Path | str, config: DataConfig, *, seed: int = 0, to_measure: bool = False
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

    Raises:
        UserError: nothing at `path`, a column that is not there, no label, an id that occurs twice, a path
            out of the root, a class with fewer than two training samples, no readable image.
    """
    records = read_records(path, config)
    if records.ballots is None and (config.votes or config.annotators):
        raise UserError(
            f"{path}: data.votes and data.annotators name columns of a table, and the layout "
            f"{records.source.layout} has none; leave them out"
        )
    _check_lengths(records, config)
    _check_ids(records)
    notes = name_classes(records, config)
    sound = [row for row in range(len(records.ids)) if row not in records.faults]
    splits, decided = given_splits(records) if to_measure else assign_splits(records, sound)
    if not to_measure:
        _check_classes(records, sound, splits, "")
    kept = _kept(records, sound, splits, config.limit, seed)
    checked, quarantine = _verify(records, kept, config)
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
        _check_classes(records, rows, splits, hint)
    for row, reason in records.faults.items():
        quarantine[row] = Quarantined(records.ids[row], _name(records, row), reason)
    return _assemble(records, rows, splits, checked, quarantine, [*records.notes, *decided, *notes], config)


def _kept(
    records: Records, sound: list[int], splits: Sequence[str], limit: int | None, seed: int
) -> list[int]:
    """Rows that are sound and within the limit, ascending."""
    ids = [records.ids[row] for row in sound]
    labels = [str(records.labels[row]) for row in sound]
    chosen = limited(ids, [splits[row] for row in sound], labels, limit or len(sound), seed)
    return [sound[number] for number in chosen]


@dataclass(frozen=True)
class _Checked:
    sha256: str
    short_side: int
    grey: bool


def _verify(
    records: Records, rows: list[int], config: DataConfig
) -> tuple[dict[int, _Checked], dict[int, Quarantined]]:
    """Decode every image once; what fails is quarantined."""

    def work(chunk: list[int]) -> list[tuple[int, _Checked | Quarantined]]:
        results: list[tuple[int, _Checked | Quarantined]] = []
        for row in chunk:
            try:
                data = records.images.read(row)
                image = decode_image(data, max_pixels=config.max_pixels, icc=config.icc)
            except UnreadableImageError as error:
                results.append((row, Quarantined(records.ids[row], _name(records, row), str(error))))
            else:
                digest = hashlib.sha256(data).hexdigest()
                results.append((row, _Checked(digest, min(image.size), image.mode == "L")))
        return results

    checked: dict[int, _Checked] = {}
    quarantine: dict[int, Quarantined] = {}
    with progress_bar("check images", len(rows)) as advance:
        for results in in_threads(work, rows, done=advance):
            for row, result in results:
                if isinstance(result, Quarantined):
                    quarantine[row] = result
                else:
                    checked[row] = result
    return checked, quarantine


def _check_lengths(records: Records, config: DataConfig) -> None:
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


def _check_ids(records: Records) -> None:
    seen: dict[str, int] = {}
    for row, sample in enumerate(records.ids):
        if sample in seen:
            raise UserError(
                f"{records.places[row]}: id {sample!r} occurs twice, first in {records.places[seen[sample]]};"
                " ids must be unique: remove one row, or name another column with --id"
            )
        seen[sample] = row


def _name(records: Records, row: int) -> str:
    """What a quarantined sample is called: its path, else where its row is."""
    return printable(records.images.name(row)) or records.places[row]


def _check_classes(records: Records, rows: Sequence[int], splits: Sequence[str], hint: str) -> None:
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
    checked: dict[int, _Checked],
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
