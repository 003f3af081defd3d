"""CSV, TSV and Parquet tables: image paths or embedded images, one row a sample."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, overload

import pyarrow as pa

from diffinf.data.readers.base import (
    DatasetSource,
    FileStore,
    ImageStore,
    Records,
    relative_inside,
    split_name,
)
from diffinf.data.readers.columns import ColumnFiles, as_text
from diffinf.data.readers.embedded import EmbeddedStore
from diffinf.errors import UserError

if TYPE_CHECKING:
    from diffinf.config import DataConfig

SUFFIXES = (".csv", ".tsv", ".parquet")


def parquet_files(folder: Path) -> list[Path]:
    """The Parquet files in a folder and below, by path; hidden ones do not count.

    Raises:
        UserError: one is a link that leads out of the folder.
    """
    root = folder.resolve()
    found = []
    for path in sorted(root.rglob("*.parquet")):
        if any(part.startswith(".") for part in path.relative_to(root).parts):
            continue
        if not path.resolve().is_relative_to(root):
            raise UserError(f"{path}: leads out of the dataset's folder {root}; put a copy inside")
        found.append(path)
    return found


def read_table(path: Path, files: Sequence[Path], config: DataConfig) -> Records:
    """Read a table, or several Parquet files as one.

    The image column holds paths relative to the root (`config.root`, else the table's folder), encoded bytes,
    or Hugging Face's struct of both. The id is `config.id`, else a column `id`, else the path, else the row's
    number. Without a split column, Parquet files that are all named after a split (train-00000-of-00002,
    test/0.parquet) belong to it.

    Raises:
        UserError: a column is missing or of an unfit type, an id is missing, a path leaves the root, no rows.
    """
    path = path.resolve()
    table = ColumnFiles(files)
    columns = _roles(path, table, config)
    folder = path if path.is_dir() else path.parent
    root = (config.root or folder).resolve()
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; --root must name the folder that image paths start from")
    wanted = {role: name for role, name in columns.items() if role != "image"}
    data = table.read(list(dict.fromkeys(wanted.values())))
    if data.num_rows == 0:
        raise UserError(f"{path}: the table has no rows; expected one per image")
    places = _Places(table)
    texts = {
        role: as_text(data.column(name), table.class_names(name), f"{path}: column {name!r}")
        for role, name in wanted.items()
    }
    images, names = _images(table, columns["image"], root, places, config)
    if "id" in texts:
        ids = _given_ids(texts["id"], columns["id"], places)
    else:
        ids = names if names is not None else [f"row{number:08d}" for number in range(data.num_rows)]
    return Records(
        source=DatasetSource(
            path=path,
            layout="csv" if table.is_csv else "parquet",
            root=root,
            rows=data.num_rows,
            files=table.files,
            columns=columns,
            row_ids="id" not in texts and names is None,
        ),
        images=images,
        ids=ids,
        labels=texts["label"],
        class_names=table.class_names(columns["label"]),
        splits=texts["split"] if "split" in texts else _splits_of_files(path, table),
        identities=texts.get("identity"),
        split_keys=ids,
        places=places,
    )


class _Places(Sequence[str]):
    """ "row 3 of faces.csv" by position, made when asked for; rows are numbered from 1 without the header."""

    def __init__(self, table: ColumnFiles) -> None:
        self._files = table.files
        self._ends = list(accumulate(table.rows))

    def __len__(self) -> int:
        return self._ends[-1]

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        number = next(n for n, end in enumerate(self._ends) if index < end)
        start = self._ends[number - 1] if number else 0
        return f"row {index - start + 1} of {self._files[number]}"


def _roles(path: Path, table: ColumnFiles, config: DataConfig) -> dict[str, str]:
    """Role -> column, every one of them present."""
    named = {
        "image": config.image,
        "label": config.label,
        "id": config.id,
        "split": config.split,
        "identity": config.identity,
    }
    roles = {role: name for role, name in named.items() if name is not None}
    if "id" not in roles and "id" in table.names and "id" not in roles.values():
        roles["id"] = "id"
    listed = ", ".join(repr(name) for name in table.names)
    for role, name in roles.items():
        if name not in table.names:
            raise UserError(
                f"{path}: no column {name!r} for --{role}; the table has {listed}: name one of them"
            )
    for name in config.truth:
        if name not in table.names:
            raise UserError(
                f"{path}: no column {name!r} for --truth; the table has {listed}: name some of them"
            )
    return roles


def _images(
    table: ColumnFiles, column: str, root: Path, places: Sequence[str], config: DataConfig
) -> tuple[ImageStore, list[str] | None]:
    """The image store, and the paths where images are files."""
    kind = table.schema.field(column).type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        names = _paths(table, column, root, places)
        return FileStore(root, names, max_pixels=config.max_pixels), names
    fields = {field.name for field in kind} if pa.types.is_struct(kind) else set()
    if not ({"bytes", "path"} <= fields or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise UserError(
            f"{table.files[0]}: column {column!r} has the type {kind}; expected paths, encoded bytes, or a"
            " struct of bytes and path: name the right one with --image"
        )
    store = EmbeddedStore(table.files, column, root, max_pixels=config.max_pixels)
    store.check_paths()
    return store, None


def _paths(table: ColumnFiles, column: str, root: Path, places: Sequence[str]) -> list[str]:
    names = []
    for position, written in enumerate(table.read([column]).column(0).to_pylist()):
        if not written:
            raise UserError(f"{places[position]}: column {column!r} is empty; expected an image path")
        inside = relative_inside(root, written)
        if inside is None:
            raise UserError(
                f"{places[position]}: image path {written!r} leads out of {root}; expected a path below it:"
                " set --root, or move the file"
            )
        names.append(inside)
    return names


def _given_ids(texts: Sequence[str | None], column: str, places: Sequence[str]) -> list[str]:
    ids = []
    for position, text in enumerate(texts):
        if text is None:
            raise UserError(f"{places[position]}: column {column!r} is empty; every row needs an id")
        ids.append(text)
    return ids


def _splits_of_files(path: Path, table: ColumnFiles) -> list[str | None] | None:
    """Splits by the files' names, if all of them have one."""
    if table.is_csv or not path.is_dir():
        return None
    named = [_split_of_file(file.relative_to(path)) for file in table.files]
    if None in named:
        return None
    return [split for split, rows in zip(named, table.rows, strict=True) for _ in range(rows)]


def _split_of_file(relative: Path) -> str | None:
    words = [re.split(r"[-_.]", part)[0] for part in reversed(relative.parts)]
    return next((word for word in words if split_name(word)), None)
