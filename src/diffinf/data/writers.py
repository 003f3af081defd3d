"""The refined dataset: the layout it came in, with some images replaced, relabelled or left out."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from diffinf.data.card import MADE_BY, dataset_card, provenance, provenance_path
from diffinf.data.dataset import FaceDataset
from diffinf.data.images import UnreadableImageError, reencode
from diffinf.data.readers.base import Edits, Records, relative_inside, resolve_inside
from diffinf.data.readers.folders import moved_name
from diffinf.data.table_writer import TableEdits, write_table_file
from diffinf.errors import UserError
from diffinf.files import make_directory, write_table, writing


def write_refined(
    dataset: FaceDataset,
    replacements: Mapping[str, bytes],
    dropped: Collection[str],
    relabelled: Mapping[str, str],
    out: Path,
    *,
    replace: bool = False,
    link: Literal["copy", "hard"] | None = None,
    reasons: Mapping[str, str] | None = None,
    made_by: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Write the dataset to the folder `out` in the layout it came in, with a dataset card README.md.

    Untouched images are copied byte for byte, quarantined ones too where there is a file to copy. A replaced
    file keeps its name and is encoded in the format the name promises (JPEG and WebP at quality 95); inside
    Parquet and Arrow it is PNG, as grey values it has the side it had. A relabelled row changes its label where
    the layout has it: in class folders it moves to the other folder and its name tells from where
    (sad/1~from~happy.png), for it stays in the split that its first path decided; of a binned number the nearest one
    in the new bin is written. Rows outside a `limit` are left out. All columns are kept; a table whose ids are row
    numbers and that loses rows gets a column `id`, so that the others keep theirs. `out` appears whole or not at all,
    and the source is never written to.

    Beside `out`, in NAME.provenance.parquet, a row a sample says what became of it, see `diffinf.data.card`.

    Args:
        dataset: what was opened.
        replacements: id -> the new image as PNG bytes.
        dropped: ids to leave out.
        relabelled: id -> name of the new class.
        out: a folder that does not exist, or is empty.
        replace: `out` may hold an earlier refined dataset, which is replaced.
        link: "hard" links untouched files where the file system can. An edit of one in place then edits the
            original as well, so "copy" is the default of the settings, which count where this is None.
        reasons: id -> why it was changed, or left although it was flagged; for card and provenance.
        made_by: settings and hashes of models that made the edits; for card and provenance.

    Returns:
        id -> path relative to `out`: of the image, or of the table that holds it; without dropped and
        quarantined rows.

    Raises:
        UserError: `out` is not empty, lies in the source or holds it; the disk is full; an edited sample is
            not in train.
        ValueError: an id or class the dataset does not have.
    """
    out = out.absolute()
    _check_edits(dataset, replacements, dropped, relabelled)
    without = set(dropped)
    kept = [row for row, sample in enumerate(dataset.ids.tolist()) if sample not in without]
    with writing_copy(
        dataset, kept, replacements, out, relabelled=relabelled, quarantined=True, replace=replace, link=link
    ) as (paths, folder):
        story = provenance(dataset, replacements, dropped, relabelled, reasons or {}, paths, folder)
        if made_by is not None:
            story = story.replace_schema_metadata({MADE_BY: json.dumps(made_by)})
        (folder / "README.md").write_text(dataset_card(dataset, story, out), encoding="utf-8")
    write_table(provenance_path(out), story, dataset.class_names)
    return paths


@contextmanager
def writing_copy(
    dataset: FaceDataset,
    rows: Sequence[int],
    replacements: Mapping[str, bytes],
    out: Path,
    *,
    relabelled: Mapping[str, str] | None = None,
    quarantined: bool = False,
    replace: bool = False,
    link: Literal["copy", "hard"] | None = None,
) -> Iterator[tuple[dict[str, str], Path]]:
    """Write rows of a dataset to a temporary folder in its layout; at the end of the block it becomes `out`.

    Yields id -> path of the image, or of the table that holds it, and the folder that the paths start from.
    Replacements are read one at a time. With `quarantined`, samples that were left out come along.

    Raises:
        UserError: `out` is not empty, and `replace` is not set; it lies in the source or holds it; the disk is full.
    """
    out = out.absolute()
    check_output(dataset, out)
    if not replace and out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: not empty; choose another folder with --out")
    left_out = zip(dataset.quarantine_positions, dataset.quarantine, strict=True)
    job = _Job(
        dataset=dataset,
        replacements=replacements,
        kept={int(dataset.positions[row]): str(dataset.ids[row]) for row in rows},
        quarantined={position: entry.id for position, entry in left_out} if quarantined else {},
        relabelled=relabelled or {},
        folder=out.with_name(f".{out.name}.partial"),
        link=(link or dataset.link) == "hard",
    )
    old = out.with_name(f".{out.name}.old")
    for leftover in (job.folder, old):  # of a killed process
        shutil.rmtree(leftover, ignore_errors=True)
    make_directory(job.folder)
    try:
        with writing(out):
            yield job.write(), job.folder
            if out.exists():
                out.rename(old)
            job.folder.rename(out)
    finally:
        shutil.rmtree(job.folder, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def check_output(dataset: FaceDataset | Records, out: Path) -> None:
    """Refuse an output folder that would mix with the source; call it before long work.

    A dataset that is not opened yet will do, as its rows lie on disk.

    Raises:
        UserError: `out` is a file, lies inside the dataset's folder, or the dataset lies inside it.
    """
    source, out = dataset.source, out.resolve()
    store = dataset.images if isinstance(dataset, Records) else dataset.store
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; expected a folder to write to: choose another with --out")
    if source.path.is_dir() and out.is_relative_to(source.path):
        raise UserError(f"{out}: lies inside the dataset {source.path}; choose a place outside with --out")
    inside = [place for place in (source.path, source.root, *source.files) if place.is_relative_to(out)]
    if not inside and out.is_relative_to(source.root):
        below = out.relative_to(source.root).as_posix() + "/"
        names = (store.name(position) for position in range(source.rows))
        inside = [source.root / name for name in names if name.startswith(below)]
    if inside:
        raise UserError(f"{out}: holds {inside[0]}, which belongs to the dataset; choose another with --out")


def _check_edits(
    dataset: FaceDataset,
    replacements: Mapping[str, bytes],
    dropped: Collection[str],
    relabelled: Mapping[str, str],
) -> None:
    splits = dict(zip(dataset.ids.tolist(), dataset.splits.tolist(), strict=True))
    for sample in sorted({*replacements, *dropped, *relabelled}):
        if sample not in splits:
            raise ValueError(f"{sample}: no such id in {dataset.source.path}")
        if splits[sample] != "train":
            raise UserError(
                f"{sample}: is in the {splits[sample]} split; only train may be changed: unflag it"
            )
    unknown = sorted(set(relabelled.values()) - set(dataset.class_names))
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no class; expected one of {', '.join(dataset.class_names)}")


@dataclass(frozen=True)
class _ByPosition(Mapping[int, bytes]):
    """New images by position, each looked up when it is written."""

    ids: Mapping[int, str]
    images: Mapping[str, bytes]

    def __getitem__(self, position: int) -> bytes:
        return self.images[self.ids[position]]

    def __contains__(self, position: object) -> bool:
        return position in self.ids

    def __iter__(self) -> Iterator[int]:
        return iter(self.ids)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class _Job:
    """One refined dataset on its way into a temporary folder."""

    dataset: FaceDataset
    replacements: Mapping[str, bytes]
    kept: Mapping[int, str]  # position -> id
    quarantined: Mapping[int, str]
    relabelled: Mapping[str, str]
    folder: Path
    link: bool

    def write(self) -> dict[str, str]:
        """Write everything; returns id -> path."""
        source = self.dataset.source
        ids = {**self.quarantined, **self.kept}
        edits = Edits(
            ids=ids,
            labels={p: self.relabelled[s] for p, s in self.kept.items() if s in self.relabelled},
            coding=source.coding,
            add_ids=source.row_ids and len(ids) < source.rows,
        )
        paths = self._write_tables(edits) if source.files else self._write_files(edits)
        for position in edits.ids:
            for name in source.companions.get(position, ()):
                self._write_companion(position, name, edits)
        for annotation in source.annotations:
            annotation.write(self._target(annotation.path.relative_to(source.base).as_posix()), edits)
        return paths

    def _write_files(self, edits: Edits) -> dict[str, str]:
        """Images with their old names, or those that tell their new labels."""
        source, store = self.dataset.source, self.dataset.store
        names = {position: store.name(position) for position in edits.ids}
        taken = set(names.values())
        for position, label in edits.labels.items():
            if source.relocate is not None:
                name = source.relocate(names[position], partial(edits.coding.written, label))
                while name in taken and name != names[position]:
                    name = moved_name(name, "other")
                names[position] = name
                taken.add(name)
        self._place_all(names, self.replacements)
        return {sample: names[position] for position, sample in self.kept.items()}

    def _write_tables(self, edits: Edits) -> dict[str, str]:
        """Table files with edited rows, and the files that rows point to."""
        source, store = self.dataset.source, self.dataset.store
        # An image that is a file stays one; inside Parquet a new image is always embedded.
        new = _ByPosition({p: s for p, s in self.kept.items() if s in self.replacements}, self.replacements)
        embedded: Mapping[int, bytes] = new if store.in_table else {}
        files = {}
        for position in sorted(edits.ids):
            if position not in embedded and store.is_file(position):
                files[position] = relative_inside(source.root, store.name(position)) or ""
        uses = Counter(files.values())
        for position in files:
            if position in new and uses[files[position]] > 1:  # other rows go on showing the old image
                own = hashlib.sha256(edits.ids[position].encode()).hexdigest()[:12]
                files[position] = moved_name(files[position], own)
        self._place_all(files, {} if embedded else self.replacements)
        holders: dict[int, str] = {}
        start = 0
        for file, prefix in zip(source.files, source.prefixes or ("",) * len(source.files), strict=True):
            table = TableEdits(
                **vars(edits), files=files, embedded=embedded, columns=source.columns, prefix=prefix
            )
            name = file.relative_to(source.base).as_posix()
            end = write_table_file(file, self.folder / name, table, start)
            holders |= {position: name for position in self.kept if start <= position < end}
            start = end
        return {sample: files.get(position, holders[position]) for position, sample in self.kept.items()}

    def _write_companion(self, position: int, name: str, edits: Edits) -> None:
        """Copy a file that belongs to one image, or write it with the new label."""
        try:
            file = resolve_inside(self.dataset.source.root, name)
        except UnreadableImageError as error:
            if position in self.quarantined:
                return
            raise UserError(
                f"{name}: {error}; it was there when the dataset was opened: restore it"
            ) from error
        target, write_label = self._target(name), self.dataset.source.write_label
        if position in edits.labels and write_label is not None:
            written = write_label(file, target, partial(edits.coding.written, edits.labels[position]))
        else:
            written = False
        if not written:
            self._put(file, target)

    def _place_all(self, names: Mapping[int, str], replacements: Mapping[str, bytes]) -> None:
        """Put every image that is a file at its name below the output folder."""
        placed: set[str] = set()
        for position, name in names.items():
            if name in placed:
                continue
            placed.add(name)
            png = replacements.get(self.kept.get(position, ""))
            if png is None:
                self._copy(position, name)
            else:
                target = self._target(name)
                target.write_bytes(reencode(png, target.suffix))

    def _copy(self, position: int, name: str) -> None:
        """The image of a position, as it came, under `name`."""
        source, store = self.dataset.source, self.dataset.store
        try:
            data = store.read(position) if source.title else None  # behind a URL
            file = resolve_inside(source.root, store.name(position)) if data is None else None
        except UnreadableImageError as error:
            if position in self.quarantined:  # no file, or none that may be read: nothing to copy
                return
            raise UserError(
                f"{name}: {error}; it was there when the dataset was opened: restore it"
            ) from error
        if file is None:
            self._target(name).write_bytes(data or b"")
            return
        try:
            self._put(file, self._target(name))
        except PermissionError:
            if position not in self.quarantined:
                raise

    def _put(self, file: Path, target: Path) -> None:
        """Link or copy."""
        if self.link:
            try:
                os.link(file, target)
                return
            except OSError:  # another file system, or one without links
                pass
        shutil.copyfile(file, target)

    def _target(self, name: str) -> Path:
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return target
