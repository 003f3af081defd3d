"""Tables and their images behind URLs: memory://faces.csv, zip://faces.csv::faces.zip, s3://bucket/faces/ ..."""

from __future__ import annotations

import posixpath
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from diffinf.data.images import UnreadableImageError, max_file_bytes
from diffinf.data.readers.base import ImageStore, Records, relative_inside
from diffinf.data.readers.formats import SUFFIXES
from diffinf.data.readers.tables import read_table
from diffinf.errors import UserError

if TYPE_CHECKING:
    from diffinf.config import DataConfig


def is_url(path: Path | str) -> bool:
    """Whether this is an address for fsspec rather than a path."""
    return isinstance(path, str) and ("://" in path or "::" in path)


def located(dataset: Path | str) -> str:
    """A dataset's path or address, the same from whatever folder it is opened later."""
    if not is_url(dataset):
        return str(Path(dataset).resolve())
    chain, colons, last = str(dataset).rpartition("::")
    return chain + colons + (last if is_url(last) or not colons else str(Path(last).resolve()))


class RemoteStore:
    """Images behind a URL, read one at a time: not every file system may be asked from several threads."""

    in_table = False

    def __init__(self, files: Any, folder: str, relative: Sequence[str], *, max_pixels: int) -> None:
        """Take an fsspec file system, a folder in it, and paths from there, by position."""
        self._files, self._folder, self._relative = files, folder, relative
        self._max_bytes = max_file_bytes(max_pixels)
        self._lock = threading.Lock()

    def read(self, position: int) -> bytes:
        """The file's bytes."""
        path = posixpath.join(self._folder, self._relative[position])
        try:
            with self._lock, self._files.open(path, "rb") as handle:
                data: bytes = handle.read(self._max_bytes + 1)  # whatever size the archive claims
        except Exception as error:  # every file system has its own: KeyError, BadZipFile, HTTP errors ...
            raise UnreadableImageError(
                f"cannot be read ({type(error).__name__}: {str(error)[:120]})"
            ) from error
        if len(data) > self._max_bytes:
            raise UnreadableImageError(f"larger than {self._max_bytes} bytes, see max_pixels")
        return data

    def name(self, position: int) -> str:
        """The path from the folder."""
        return self._relative[position]

    def is_file(self, position: int) -> bool:
        """Always."""
        return True


def read_remote(url: str, config: DataConfig) -> Records:
    """Read a table, or a folder of Parquet files, through fsspec.

    Tables are copied to a temporary folder that lives as long as the records' source; images stay where they are and
    are read when asked for. With `config.root` they are local files below it.

    Raises:
        UserError: an unknown protocol, nothing there, no table; as `read_table`, naming the URL.
    """
    import fsspec

    try:
        files, path = fsspec.core.url_to_fs(url)
        folder, tables = _tables(files, path)
    except UserError as error:
        raise UserError(f"{url}: {error}") from error
    except Exception as error:  # unknown protocols, missing packages, broken archives, no network
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{url}: cannot be opened ({reason}); check the address") from error
    keep = TemporaryDirectory(prefix="diffinf-")
    mirror = Path(keep.name).resolve()
    for name in tables:
        if relative_inside(mirror, name) is None:
            raise UserError(f"{url}: the name {name!r} leads out of it; expected names below")
        (mirror / name).parent.mkdir(parents=True, exist_ok=True)
        files.get_file(posixpath.join(folder, name), str(mirror / name))

    def open_files(_root: Path, names: Sequence[str]) -> ImageStore:
        return RemoteStore(files, folder, names, max_pixels=config.max_pixels)

    opened = mirror if files.isdir(path) else mirror / tables[0]
    try:
        local = [mirror / name for name in tables]
        records = read_table(opened, local, config, open_files=open_files if config.root is None else None)
    except UserError as error:
        told = str(error).replace(str(opened), url).replace(f"{mirror}/", "").replace(str(mirror), url)
        raise UserError(told) from error
    records.source = replace(records.source, title=url, keep=keep)
    records.places = [place.replace(f"{mirror}/", "") for place in records.places]
    return records


def _tables(files: Any, path: str) -> tuple[str, list[str]]:
    """The folder that paths start from, and the tables below it."""
    if files.isdir(path):
        below = sorted(name for name in files.find(path) if name.endswith(".parquet"))
        if not below:
            raise UserError("a folder without Parquet files; expected some, or the address of a table")
        return path, [posixpath.relpath(name, path or ".") for name in below]
    if not files.exists(path):
        raise UserError("no such file")
    if Path(path).suffix.lower() not in SUFFIXES:
        raise UserError(f"not a known kind of table; expected {', '.join(SUFFIXES)}")
    return posixpath.dirname(path), [posixpath.basename(path)]
