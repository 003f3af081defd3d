"""What every reader hands over, and the reading of image files that stay inside their root."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from diffinf.data.images import UnreadableImageError, max_file_bytes
from diffinf.data.readers.labels import LabelCoding
from diffinf.errors import UserError

if TYPE_CHECKING:
    from diffinf.config import DataConfig
    from diffinf.data.votes import Ballots

NewText = Callable[[str], str]  # what a source writes for a new class where it wrote the old text
ID_COLUMN = "id"
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
    """A sample that was left out, its image or label unusable: counted, never substituted."""

    id: str
    path: str
    reason: str


@dataclass(frozen=True)
class Edits:
    """What changes in a dataset's annotations, by position in the source.

    Attributes:
        ids: ids of the rows that stay, quarantined ones too.
        labels: names of new classes.
        coding: how a class is written.
        add_ids: tables get a column `id`.
    """

    ids: Mapping[int, str]
    labels: Mapping[int, str]
    coding: LabelCoding
    add_ids: bool = False


class Annotation(Protocol):
    """A file beside the images that says something about many samples, and can be written anew."""

    @property
    def path(self) -> Path:
        """Where it lies."""

    def write(self, target: Path, edits: Edits) -> None:
        """Write it to `target` without the rows that left, with new labels, otherwise byte for byte.

        The tables and images of the refined dataset have been written before.
        """


@dataclass(frozen=True)
class DatasetSource:
    """Where a dataset lies and in which layout, so that it can be written back the same way.

    Attributes:
        path: what was opened: a folder or a file; for a URL, the local copy of its tables.
        layout: name of the reader.
        root: the folder that relative image paths start from.
        rows: how many samples there are, whether usable, limited or not.
        title: what messages call it; none: the path.
        files: the table's files, in order; none for layouts without a table.
        columns: role (image, label, id, split, identity) -> name of the column, where there is one.
        row_ids: ids were made from row numbers, so a table with rows left out must carry them.
        prefixes: for each of `files`, what its image cells lack of the path from the root; none: nothing.
        annotations: other files that are written anew.
        companions: position -> files of that sample alone, relative to the root, copied with its image.
        relocate: (name of an image, old text -> text of the new class) -> its new name, where names tell the
            label.
        write_label: (companion, target, old text -> text of the new class) -> whether it is the file that
            holds the label, and was written to the target with the new one.
        coding: how classes are written.
        keep: held as long as the dataset is: the temporary folder of a URL's tables.
    """

    path: Path
    layout: str
    root: Path
    rows: int
    title: str = ""
    files: tuple[Path, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    row_ids: bool = False
    prefixes: tuple[str, ...] = ()
    annotations: tuple[Annotation, ...] = ()
    companions: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    relocate: Callable[[str, NewText], str] | None = None
    write_label: Callable[[Path, Path, NewText], bool] | None = None
    coding: LabelCoding = field(default_factory=LabelCoding)
    keep: Any = None

    @property
    def name(self) -> str:
        """What messages call the dataset."""
        return self.title or str(self.path)

    @property
    def base(self) -> Path:
        """The folder that corresponds to the output folder: the dataset's, or that of its one file."""
        return self.path if self.path.is_dir() else self.path.parent


class ImageStore(Protocol):
    """Encoded images by their position in the source. Safe to call from threads."""

    def read(self, position: int) -> bytes:
        """The bytes as they came; raises UnreadableImageError when there are none."""

    def name(self, position: int) -> str:
        """The path the source gives, for messages and new file names; "" where it gives none."""

    def is_file(self, position: int) -> bool:
        """True where the image is a file of its own under the root, named by `name`."""

    @property
    def in_table(self) -> bool:
        """True where a new image is written into the table itself."""


@dataclass
class Records:
    """Rows as they lie on disk, position by position, before anything is checked.

    Attributes:
        source: the layout.
        images: where the bytes are.
        ids: sample ids.
        labels: class names, or numbers that bins are to cut; None where the label is missing.
        class_names: their order if the source fixes one, else None.
        splits: as written, None if the source has no splits; an entry is None where it is missing.
        identities: as written, None if the source has none; an entry is None where it is missing.
        split_keys: what the hash split goes by where there is no identity.
        places: where a row is, for messages ("row 3 of faces.csv").
        groups: name -> a value a row, None where it is missing.
        ballots: votes of several annotators, where the configuration names some.
        carried: name -> array of N rows that no training reads.
        faults: position -> why the sample cannot be used; it is quarantined without a look at its image.
        ordered: `class_names` rise along a scale.
        notes: what the reader decided on its own, one sentence each.
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
    groups: dict[str, list[str | None]] = field(default_factory=dict)
    ballots: Ballots | None = None
    carried: dict[str, Any] = field(default_factory=dict)
    faults: dict[int, str] = field(default_factory=dict)
    ordered: bool = False
    notes: list[str] = field(default_factory=list)


def no_columns(
    path: Path, config: DataConfig, why: str, *, labels: Sequence[str] = (), groups: Sequence[str] = ()
) -> None:
    """Refuse names of columns where a layout has none to choose from.

    Args:
        path: the dataset.
        config: settings.
        why: where the layout has its labels, for the message.
        labels: what `config.label` may name beside its default.
        groups: what `config.groups` may name.

    Raises:
        UserError: naming the option.
    """
    for option in ("id", "split", "identity", "truth"):
        if getattr(config, option):
            raise UserError(f"{path}: --{option} names a column, {why} instead; leave it out or give a table")
    if labels and config.label not in (*labels, "label"):
        raise UserError(f"{path}: --label is {config.label!r}; expected {' or '.join(labels)}")
    stray = [name for name in config.groups if name not in groups]
    if stray:
        known = f"expected some of {', '.join(groups)}" if groups else "there are none to name: leave it out"
        raise UserError(f"{path}: data.groups names {stray[0]!r}; {known}")


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

    in_table = False


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
