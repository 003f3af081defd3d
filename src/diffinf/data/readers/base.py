"""What every reader hands over, and the reading of image files that stay inside their root."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from diffinf.data.images import UnreadableImageError, max_file_bytes

SPLITS = ("train", "validation", "test")
_SPLIT_ALIASES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "publictest": "validation",
    "test": "test",
    "testing": "test",
    "privatetest": "test",
}


def split_name(text: str) -> str | None:
    """The split that `text` names ("Training", "val", "PrivateTest" ...), or None."""
    return _SPLIT_ALIASES.get(text.strip().casefold())


@dataclass(frozen=True)
class Quarantined:
    """A sample that was left out because its image cannot be read: counted, never substituted."""

    id: str
    path: str
    reason: str


@dataclass(frozen=True)
class DatasetSource:
    """Where a dataset lies and in which layout, so that it can be written back the same way.

    Attributes:
        path: what was opened: a folder or a file.
        layout: "folders" of classes, a "csv" table with image paths, or "parquet" tables.
        root: the folder that relative image paths start from.
        files: the table's files, in order; none for folders.
        columns: role (image, label, id, split, identity) -> name of the column, where there is one.
        rows: how many samples there are, whether readable, limited or not.
        row_ids: ids were made from row numbers, so a table with rows left out must carry them.
        split_folders: class folders lie in split folders.
    """

    path: Path
    layout: Literal["folders", "csv", "parquet"]
    root: Path
    rows: int
    files: tuple[Path, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    row_ids: bool = False
    split_folders: bool = False


class ImageStore(Protocol):
    """Encoded images by their position in the source. Safe to call from threads."""

    def read(self, position: int) -> bytes:
        """The bytes as they came; raises UnreadableImageError when there are none."""

    def name(self, position: int) -> str:
        """The path the source gives, for messages and new file names; "" where it gives none."""

    def is_file(self, position: int) -> bool:
        """True where the image is a file of its own under the root, named by `name`."""


@dataclass
class Records:
    """Rows as they lie on disk, position by position, before anything is checked.

    Attributes:
        source: the layout.
        images: where the bytes are.
        ids: sample ids.
        labels: class names; None where the label is missing.
        class_names: their order if the source fixes one, else None.
        splits: as written, None if the source has no splits; an entry is None where it is missing.
        identities: as written, None if the source has none; an entry is None where it is missing.
        split_keys: what the hash split goes by where there is no identity.
        places: where a row is, for messages ("row 3 of faces.csv").
    """

    source: DatasetSource
    images: ImageStore
    ids: list[str]
    labels: list[str | None]
    class_names: tuple[str, ...] | None
    splits: list[str | None] | None
    identities: list[str | None] | None
    split_keys: Sequence[str]
    places: Sequence[str]


def resolve_inside(root: Path, relative: str) -> Path:
    """The regular file `relative` under `root`, links resolved.

    Raises:
        UnreadableImageError: it does not exist, is no regular file, or lies outside `root`.
    """
    try:
        path = (root / relative).resolve(strict=True)
        if not path.is_relative_to(root):
            raise UnreadableImageError(f"leads out of the dataset's root {root}; put a copy inside")
        # A pipe or a device would block or never end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise UnreadableImageError("not a regular file")
    except FileNotFoundError as error:
        raise UnreadableImageError(f"no such file under {root}") from error
    except (OSError, ValueError, RuntimeError) as error:  # loops of links, NUL in names, no permission
        raise UnreadableImageError(f"cannot be opened ({error})") from error
    return path


class FileStore:
    """Images that are files under one root."""

    def __init__(self, root: Path, relative: Sequence[str], *, max_pixels: int) -> None:
        """Take paths relative to `root`, by position."""
        self._root = root
        self._relative = relative
        self._max_bytes = max_file_bytes(max_pixels)

    def read(self, position: int) -> bytes:
        """The file's bytes."""
        if printable(self._relative[position]) != self._relative[position]:
            raise UnreadableImageError("the name is not valid UTF-8; rename the file")
        path = resolve_inside(self._root, self._relative[position])
        try:
            if path.stat().st_size > self._max_bytes:
                raise UnreadableImageError(f"larger than {self._max_bytes} bytes, see max_pixels")
            return path.read_bytes()
        except OSError as error:
            raise UnreadableImageError(f"cannot be read ({error.strerror})") from error

    def name(self, position: int) -> str:
        """The path relative to the root."""
        return self._relative[position]

    def is_file(self, position: int) -> bool:
        """Always."""
        return True


def printable(name: str) -> str:
    r"""A file name as text that can be printed and stored: bytes that are no UTF-8 become \xff."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def relative_inside(root: Path, written: str) -> str | None:
    """`written` as a normalised posix path relative to `root`, or None if it points outside.

    Only the text is judged here; links are followed when the file is opened.
    """
    if "\0" in written:
        return None
    normal = os.path.normpath(os.path.join(root, written))  # noqa: PTH118 (pathlib keeps "a/../b")
    prefix = str(root).rstrip("/") + "/"
    return Path(normal).relative_to(root).as_posix() if normal.startswith(prefix) else None
