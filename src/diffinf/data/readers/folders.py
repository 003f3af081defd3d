"""Class folders: ROOT/class/image or ROOT/split/class/image."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from diffinf.data.images import SUFFIXES
from diffinf.data.readers.base import (
    DatasetSource,
    FileStore,
    NewText,
    Records,
    no_columns,
    printable,
    split_name,
)
from diffinf.errors import UserError

if TYPE_CHECKING:
    from diffinf.config import DataConfig

MOVED = "~from~"


def moved_name(name: str, origin: str) -> str:
    """The name of a file that came from elsewhere: sad/1.png, happy -> sad/1~from~happy.png."""
    path = Path(name)
    return path.with_name(f"{path.stem}{MOVED}{origin}{path.suffix}").as_posix()


def _moved(depth: int, name: str, new: NewText) -> str:
    """The name in the folder of another class, `depth` folders below the root."""
    parts = name.split("/")
    origin = parts[depth]
    parts[depth] = new(origin)
    return name if parts[depth] == origin else moved_name("/".join(parts), origin)


def detect(path: Path) -> bool:
    """Any folder may be one of class folders."""
    return path.is_dir()


def split_key(name: str) -> str:
    """What decides the split of class/image: its path, or the one it had before it was relabelled.

    A relabelled file moves to another class folder, and must not thereby move from train to test.
    """
    path = Path(name)
    stem, *origins = path.stem.split(MOVED)
    parts = [origins[0] if origins else path.parts[0], *path.parts[1:-1], stem + path.suffix]
    return "/".join(parts)


def read(path: Path, config: DataConfig) -> Records:
    """Read a directory of class folders; folders named train, val, test ... above them are splits.

    Files are found by suffix, at any depth below the class folder; the rest is ignored. Ids are paths
    relative to `path`.

    Raises:
        UserError: no image in any class folder, images outside class folders, folders beside the splits, or
            columns named in `config`.
    """
    why = "class folders have none: the folder is the label"
    no_columns(path, config, why)
    if config.label != "label":
        raise UserError(f"{path}: --label names a column, {why} instead; leave it out or give a table")
    root = path.resolve()
    below = _subfolders(root)
    with_splits = any(split_name(name) == "train" and _subfolders(root / name) for name in below)
    if with_splits:
        strangers = [name for name in below if split_name(name) is None]
        if strangers:
            raise UserError(
                f"{path}: folder {strangers[0]!r} is neither train, validation nor test; with split folders"
                " all others must be splits too: move it away"
            )
    relative, labels, splits, keys = [], [], [], []
    for name in image_files(root):
        parts = name.split("/")
        depth = 2 if with_splits else 1
        if len(parts) <= depth:
            expected = "SPLIT/CLASS/IMAGE" if with_splits else "CLASS/IMAGE"
            raise UserError(
                f"{path}: image {name!r} is in no class folder; expected {expected}: move it into one"
            )
        relative.append(name)
        splits.append(parts[0])
        labels.append(printable(parts[depth - 1]))
        keys.append(split_key(printable("/".join(parts[depth - 1 :]))))
    if not relative:
        raise UserError(
            f"{path}: no images found; expected class folders with images, a table, or a layout that"
            " docs/datasets.md describes"
        )
    return Records(
        source=DatasetSource(
            path=root,
            layout="folders",
            root=root,
            rows=len(relative),
            relocate=partial(_moved, 1 if with_splits else 0),
        ),
        images=FileStore(root, relative, max_pixels=config.max_pixels),
        ids=[printable(name) for name in relative],
        labels=list(labels),
        class_names=None,
        splits=list(splits) if with_splits else None,
        identities=None,
        split_keys=keys,
        places=relative,
    )


def _subfolders(folder: Path) -> list[str]:
    return sorted(
        entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )


def image_files(root: Path) -> Iterator[str]:
    """Posix paths of image files relative to `root`, sorted; hidden ones (.DS_Store, ._x.jpg) do not count.

    Links to folders are not followed: they may lead out, or round in circles.
    """
    found = []
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                found.append((Path(folder) / name).relative_to(root).as_posix())
    yield from sorted(found)
