"""The refined dataset: the layout it came in, with some images replaced, relabelled or left out."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from diffinf.data.dataset import FaceDataset
from diffinf.data.images import UnreadableImageError, reencode
from diffinf.data.readers.base import relative_inside, resolve_inside
from diffinf.data.readers.embedded import EmbeddedStore
from diffinf.data.readers.folders import moved_name
from diffinf.data.table_writer import TableEdits, write_table_file
from diffinf.errors import UserError
from diffinf.run import make_directory, writing


def write_refined(
    dataset: FaceDataset,
    replacements: Mapping[str, bytes],
    dropped: Collection[str],
    relabelled: Mapping[str, str],
    out: Path,
    *,
    replace: bool = False,
    link: bool = False,
) -> dict[str, str]:
    """Write the dataset to the folder `out` in the layout it came in.

    Untouched images are copied byte for byte, quarantined ones too where there is a file to copy. A replaced
    file keeps its name and is encoded in the format the name promises (JPEG and WebP at quality 95); inside
    Parquet it is PNG. A relabelled row changes its label; in class folders it moves to the other folder and
    its name tells from where (sad/1~from~happy.png), for it stays in the split that its first path decided.
    Rows outside a `limit` are left out. All columns are kept; a table whose ids are row numbers and that
    loses rows gets a column `id`, so that the others keep theirs. `out` appears whole or not at all, and the
    source is never written to.

    Args:
        dataset: what was opened.
        replacements: id -> the new image as PNG bytes.
        dropped: ids to leave out.
        relabelled: id -> name of the new class.
        out: a folder that does not exist, or is empty.
        replace: `out` may hold an earlier refined dataset, which is replaced.
        link: hard-link untouched files where the file system can. An edit of one in place then edits the
            original as well, so copies are the default.

    Returns:
        id -> path relative to `out`: of the image, or of the Parquet file that holds it; without dropped and
        quarantined rows.

    Raises:
        UserError: `out` is not empty, lies in the source or holds it; the disk is full; an edited sample is
            not in train.
        ValueError: an id or class the dataset does not have.
    """
    out = out.absolute()
    _check_edits(dataset, replacements, dropped, relabelled)
    check_output(dataset, out)
    if not replace and out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: not empty; choose another folder with --out")
    rows = zip(dataset.positions.tolist(), dataset.ids.tolist(), strict=True)
    unreadable = zip(dataset.quarantine_positions, (entry.id for entry in dataset.quarantine), strict=True)
    job = _Job(
        dataset=dataset,
        replacements=replacements,
        kept={position: sample for position, sample in rows if sample not in set(dropped)},
        quarantined=dict(unreadable),
        relabelled=relabelled,
        folder=out.with_name(f".{out.name}.partial"),
        link=link,
    )
    old = out.with_name(f".{out.name}.old")
    for leftover in (job.folder, old):  # of a killed process
        shutil.rmtree(leftover, ignore_errors=True)
    make_directory(job.folder)
    try:
        with writing(out):
            paths = job.write_folders() if dataset.source.layout == "folders" else job.write_tables()
            if out.exists():
                out.rename(old)
            job.folder.rename(out)
    finally:
        shutil.rmtree(job.folder, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return paths


def check_output(dataset: FaceDataset, out: Path) -> None:
    """Refuse an output folder that would mix with the source; call it before long work.

    Raises:
        UserError: `out` is a file, lies inside the dataset's folder, or the dataset lies inside it.
    """
    source, out = dataset.source, out.resolve()
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; expected a folder to write to: choose another with --out")
    if source.path.is_dir() and out.is_relative_to(source.path):
        raise UserError(f"{out}: lies inside the dataset {source.path}; choose a place outside with --out")
    inside = [place for place in (source.path, source.root, *source.files) if place.is_relative_to(out)]
    if not inside and out.is_relative_to(source.root):
        below = out.relative_to(source.root).as_posix() + "/"
        names = (dataset.store.name(position) for position in range(source.rows))
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
class _Job:
    """One refined dataset on its way into a temporary folder."""

    dataset: FaceDataset
    replacements: Mapping[str, bytes]
    kept: Mapping[int, str]  # position -> id
    quarantined: Mapping[int, str]
    relabelled: Mapping[str, str]
    folder: Path
    link: bool

    def write_folders(self) -> dict[str, str]:
        """Class folders with the files' old names; returns id -> path."""
        store, depth = self.dataset.store, 1 if self.dataset.source.split_folders else 0
        names = {position: store.name(position) for position in (*self.quarantined, *self.kept)}
        taken = set(names.values())
        for position, sample in self.kept.items():
            parts = names[position].split("/")
            old_class = parts[depth]
            parts[depth] = self.relabelled.get(sample, old_class)
            if parts[depth] != old_class:
                name = moved_name("/".join(parts), old_class)
                while name in taken:
                    name = moved_name(name, old_class)
                names[position] = name
                taken.add(name)
        self._place_all(names, self.replacements)
        return {sample: names[position] for position, sample in self.kept.items()}

    def write_tables(self) -> dict[str, str]:
        """Table files with edited rows, and the files that rows point to; returns id -> path."""
        source, store = self.dataset.source, self.dataset.store
        ids = {**self.quarantined, **self.kept}
        # An image that is a file stays one; inside Parquet a new image is always embedded.
        new = {p: self.replacements[s] for p, s in self.kept.items() if s in self.replacements}
        embedded = new if isinstance(store, EmbeddedStore) else {}
        files = {}
        for position in sorted(ids):
            if position not in embedded and store.is_file(position):
                files[position] = relative_inside(source.root, store.name(position)) or ""
        uses = Counter(files.values())
        for position in files:
            if position in new and uses[files[position]] > 1:  # other rows go on showing the old image
                own = hashlib.sha256(ids[position].encode()).hexdigest()[:12]
                files[position] = moved_name(files[position], own)
        self._place_all(files, {} if embedded else self.replacements)
        edits = TableEdits(
            ids=ids,
            labels={p: self.relabelled[s] for p, s in self.kept.items() if s in self.relabelled},
            files=files,
            embedded=embedded,
            columns=source.columns,
            add_ids=source.row_ids and len(ids) < source.rows,
        )
        base = source.path if source.path.is_dir() else source.path.parent
        holders: dict[int, str] = {}
        start = 0
        for file in source.files:
            name = file.relative_to(base).as_posix()
            end = write_table_file(file, self.folder / name, edits, start)
            holders |= {position: name for position in self.kept if start <= position < end}
            start = end
        return {sample: files.get(position, holders[position]) for position, sample in self.kept.items()}

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
        try:
            file = resolve_inside(self.dataset.source.root, self.dataset.store.name(position))
        except UnreadableImageError as error:
            if position in self.quarantined:  # no file, or none that may be read: nothing to copy
                return
            raise UserError(
                f"{name}: {error}; it was there when the dataset was opened: restore it"
            ) from error
        target = self._target(name)
        if self.link:
            try:
                os.link(file, target)
                return
            except OSError:  # another file system, or one without links
                pass
        try:
            shutil.copyfile(file, target)
        except PermissionError:
            if position not in self.quarantined:
                raise

    def _target(self, name: str) -> Path:
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return target
