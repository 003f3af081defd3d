"""Readers: one file a layout, chosen by what is on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from diffinf.data.readers.base import SPLITS, DatasetSource, ImageStore, Quarantined, Records
from diffinf.data.readers.folders import read_folders
from diffinf.data.readers.tables import SUFFIXES, parquet_files, read_table
from diffinf.errors import UserError

if TYPE_CHECKING:
    from diffinf.config import DataConfig

__all__ = ["SPLITS", "DatasetSource", "ImageStore", "Quarantined", "Records", "read_records"]


def read_records(path: Path, config: DataConfig) -> Records:
    """Read the rows of whatever dataset lies at `path`: a table, a folder of Parquet files, class folders.

    Raises:
        UserError: there is nothing, or nothing that is known.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; expected class folders or a table")
    if path.is_dir():
        files = parquet_files(path)
        return read_table(path, files, config) if files else read_folders(path, config)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: not a known kind of file; expected {', '.join(SUFFIXES)} or a folder")
    return read_table(path, [path.resolve()], config)
