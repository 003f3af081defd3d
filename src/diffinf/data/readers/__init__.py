"""Readers: one file a layout, chosen by what is on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from diffinf.data.readers import (
    affectnet,
    celeba,
    fairface,
    fer2013,
    folders,
    imagefolder,
    lfw,
    rafdb,
    saved,
    tables,
    utkface,
)
from diffinf.data.readers.base import SPLITS, DatasetSource, ImageStore, Quarantined, Records
from diffinf.data.readers.formats import SUFFIXES
from diffinf.data.readers.remote import is_url, read_remote
from diffinf.errors import UserError

if TYPE_CHECKING:
    from diffinf.config import DataConfig

__all__ = [
    "READERS",
    "SPLITS",
    "DatasetSource",
    "ImageStore",
    "Quarantined",
    "Records",
    "attribute_names",
    "read_records",
]


class Reader(Protocol):
    """A module that knows one layout."""

    def detect(self, path: Path) -> bool:
        """Whether what lies at `path`, which exists, looks like it."""

    def read(self, path: Path, config: DataConfig) -> Records:
        """Read it."""


# By the name that `data.format` takes. The first that knows its own is taken: what is sure before what is a guess.
READERS: Mapping[str, Reader] = {
    "celeba": celeba,
    "rafdb": rafdb,
    "fairface": fairface,
    "affectnet": affectnet,
    "fer2013": fer2013,
    "saved": saved,
    "imagefolder": imagefolder,
    "table": tables,
    "utkface": utkface,
    "lfw": lfw,
    "folders": folders,
}


def read_records(path: Path | str, config: DataConfig) -> Records:
    """Read the rows of whatever dataset lies at `path`, in the layout `config.format`.

    Raises:
        UserError: there is nothing, or nothing that is known.
    """
    if is_url(path):
        return read_remote(str(path), config)
    return _reader(Path(path), config).read(Path(path), config)


def attribute_names(path: Path | str, config: DataConfig) -> tuple[str, ...]:
    """The attributes that the layout of a dataset on disk lists, each of which may be the label; none of tables.

    Raises:
        UserError: as `read_records`.
    """
    listed = getattr(_reader(Path(path), config), "attributes", None)
    return () if listed is None else tuple(listed(Path(path)))


def _reader(path: Path, config: DataConfig) -> Reader:
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; expected class folders or a table")
    if config.format != "auto":
        return READERS[config.format]
    for reader in READERS.values():
        if reader.detect(path):
            return reader
    raise UserError(f"{path}: not a known kind of file; expected {', '.join(SUFFIXES)} or a folder")
