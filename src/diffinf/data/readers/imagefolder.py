"""Hugging Face's ImageFolder with a table: metadata.csv, .jsonl or .parquet with a column file_name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from diffinf.data.readers.base import Records, split_name
from diffinf.data.readers.formats import read_schema
from diffinf.data.readers.lists import annotation_file
from diffinf.data.readers.tables import TableLayout, read_table
from diffinf.errors import UserError

if TYPE_CHECKING:
    from diffinf.config import DataConfig

_TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_FILE = "file_name"


def _found(path: Path) -> list[str]:
    """The tables, relative to the folder: in it, or in folders right below."""
    if not path.is_dir():
        return []
    below = sorted(
        entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith(".")
    )
    places = ["", *(f"{name}/" for name in below)]
    return [f"{place}{name}" for name in _TABLES for place in places if (path / place / name).is_file()]


def detect(path: Path) -> bool:
    """Whether a folder holds such tables, all with the column file_name."""
    try:
        found = _found(path)
        return bool(found) and all(_FILE in read_schema(path / name).names for name in found)
    except UserError:  # a table that cannot be parsed is to be told of, not to be taken for no table
        return True


def read(path: Path, config: DataConfig) -> Records:
    """Read the tables as one; images are named from the folder of their table.

    Folders named after splits (train/metadata.csv) are the splits, unless `config.split` names a column.

    Raises:
        UserError: no table, tables of several kinds; as `read_table`.
    """
    root = path.resolve()
    names = _found(root)
    if not names or len({Path(name).suffix for name in names}) > 1:
        raise UserError(
            f"{path}: expected metadata.csv, .jsonl or .parquet, of one kind; found {names or 'none'}"
        )
    files = [file for name in names if (file := annotation_file(root, name)) is not None]
    folders = [name.rpartition("/")[0] for name in names]
    splits = [split_name(folder) for folder in folders]
    layout = TableLayout(
        name="imagefolder",
        columns={"image": _FILE},
        splits=tuple(split for split in splits if split is not None) if None not in splits else None,
        prefixes=tuple(f"{folder}/" if folder else "" for folder in folders),
    )
    return read_table(root, files, config, layout)
