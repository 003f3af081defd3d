"""Tables: CSV, TSV, JSON lines, Parquet, Arrow; images as paths, bytes or pixel text, one row a sample."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
from diffinf.data.readers.formats import ARROW, SUFFIXES
from diffinf.data.readers.labels import LabelCoding
from diffinf.data.readers.pixels import PixelStore, is_pixel_text
from diffinf.data.readers.votes import read_ballots
from diffinf.errors import UserError

if TYPE_CHECKING:
    from diffinf.config import DataConfig

OpenFiles = Callable[[Path, Sequence[str]], ImageStore]
_LISTED = 12  # columns that a message names


@dataclass(frozen=True)
class TableLayout:
    """What a public dataset's tables have in common, so that nobody needs to name their columns.

    Attributes:
        name: of the reader.
        columns: role -> column, where the configuration names none.
        splits: of each file, if files are splits.
        prefixes: of each file, what its image cells lack of the path from the root.
        codes: what the label column holds -> class name; a value that is not there is a fault.
        ordered: the classes rise along a scale, in the order of `codes`.
        no_labels: what the label column may also hold -> why such a row has no label.
    """

    name: str = "table"
    columns: Mapping[str, str] = field(default_factory=dict)
    splits: tuple[str, ...] | None = None
    prefixes: tuple[str, ...] = ()
    codes: Mapping[str, str] = field(default_factory=dict)
    ordered: bool = False
    no_labels: Mapping[str, str] = field(default_factory=dict)


def detect(path: Path) -> bool:
    """Whether `path` is a table, or a folder with Parquet files."""
    return bool(parquet_files(path)) if path.is_dir() else path.suffix.lower() in SUFFIXES


def read(path: Path, config: DataConfig) -> Records:
    """Read the table, or the folder of Parquet files, at `path`; see `read_table`."""
    files = parquet_files(path) if path.is_dir() else [path.resolve()]
    if not files:
        raise UserError(f"{path}: no Parquet files in it; expected some, or name the table itself")
    if files[0].suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: not a known kind of table; expected {', '.join(SUFFIXES)}")
    return read_table(path, files, config)


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


def read_table(
    path: Path,
    files: Sequence[Path],
    config: DataConfig,
    layout: TableLayout | None = None,
    open_files: OpenFiles | None = None,
) -> Records:
    """Read a table, or several files of one kind as one.

    The image column holds paths relative to the root (`config.root`, else the table's folder), encoded bytes,
    Hugging Face's struct of both, or grey values as text. The id is `config.id`, else a column `id`, else the
    path, else the row's number. Without a split column, files that are all named after a split
    (train-00000-of-00002, test/0.parquet) belong to it; else a column `split` that names one in every row is taken,
    and for persons a column `identity`. A name that is "" takes none.

    Args:
        path: what was opened: the table, or the folder of its files.
        files: of one kind, in order.
        config: names of columns.
        layout: what is known about the tables beforehand.
        open_files: makes the store of images that are files, from the root and their names.

    Raises:
        UserError: a column is missing or of an unfit type, an id is missing, a path leaves the root, no rows.
    """
    path, layout = path.resolve(), layout or TableLayout()
    table = ColumnFiles(files)
    columns = _roles(path, table, config, layout)
    root = (config.root or (path if path.is_dir() else path.parent)).resolve()
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; --root must name the folder that image paths start from")
    wanted = {role: name for role, name in columns.items() if role != "image"}
    data = table.read(list(dict.fromkeys([*wanted.values(), *config.groups])))
    if data.num_rows == 0:
        raise UserError(f"{path}: the table has no rows; expected one per image")
    places = _Places(table)

    def texts(column: str, fractions: bool = False) -> list[str | None]:
        title = f"{path}: column {column!r}"
        return as_text(data.column(column), table.class_names(column), title, fractions=fractions)

    def offered(role: str) -> list[str | None] | None:
        """The values of a column called as its role, where the configuration leaves the choice."""
        if getattr(config, role) is not None or role in columns or role not in table.names:
            return None
        title = f"{path}: column {role!r}"
        try:
            values = as_text(table.read([role]).column(0), table.class_names(role), title)
        except UserError:  # not of a kind that could name anything
            return None
        return values if any(values) else None

    splits = texts(columns["split"]) if "split" in columns else _splits_of_files(path, table, layout)
    identities = texts(columns["identity"]) if "identity" in columns else offered("identity")
    notes = []
    if "identity" not in columns and identities is not None:
        columns["identity"] = "identity"
        notes.append("persons are those of the column 'identity'; --identity '' takes none")
    if splits is None and (found := offered("split")) is not None:
        if _all_splits(found):
            splits, columns["split"] = found, "split"
            notes.append("splits are those of the column 'split'; --split '' makes others")
        else:
            notes.append(
                "the column 'split' is not used: not every row names train, validation or test there"
            )
    labels, faults = _named(texts(columns["label"], bool(config.bins)), columns["label"], layout)
    images, names = _images(
        table, columns["image"], root, places, layout, open_files or _local_files(config), config.max_pixels
    )
    if "id" in columns:
        ids = _given_ids(texts(columns["id"]), columns["id"], places)
    else:
        ids = names if names is not None else [f"row{number:08d}" for number in range(data.num_rows)]
    return Records(
        source=DatasetSource(
            path=path,
            layout=layout.name,
            root=root,
            rows=data.num_rows,
            files=table.files,
            columns=columns,
            row_ids="id" not in columns and names is None,
            prefixes=layout.prefixes,
            coding=LabelCoding(codes={name: code for code, name in layout.codes.items()}),
        ),
        images=images,
        ids=ids,
        labels=labels,
        class_names=_class_order(table, columns["label"], layout, labels),
        splits=splits,
        identities=identities,
        split_keys=ids,
        places=places,
        groups={name: texts(name, fractions=True) for name in config.groups},
        ballots=read_ballots(str(path), table, config, layout.codes),
        faults=faults,
        ordered=layout.ordered,
        notes=notes,
    )


def _all_splits(values: Sequence[str | None]) -> bool:
    """Whether every row names a split, and one of them train."""
    named = {None if value is None else split_name(value) for value in values}
    return None not in named and "train" in named


def _local_files(config: DataConfig) -> OpenFiles:
    return lambda root, names: FileStore(root, names, max_pixels=config.max_pixels)


def _named(
    texts: list[str | None], column: str, layout: TableLayout
) -> tuple[list[str | None], dict[int, str]]:
    """Class names of what the label column holds, and faults by position."""
    if not layout.codes:
        return texts, {}
    labels: list[str | None] = []
    faults: dict[int, str] = {}
    for position, text in enumerate(texts):
        labels.append(None if text is None else layout.codes.get(text.strip()))
        if text is not None and labels[-1] is None:
            expected = f"{column} is {text!r}; expected one of {', '.join(layout.codes)}"
            faults[position] = layout.no_labels.get(text.strip(), expected)
    return labels, faults


def _class_order(
    table: ColumnFiles, column: str, layout: TableLayout, labels: Sequence[str | None]
) -> tuple[str, ...] | None:
    """The source's own order of classes; of known ones only those that occur."""
    if not layout.codes:
        return table.class_names(column)
    present = set(labels)
    return tuple(name for name in layout.codes.values() if name in present)


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
        number = bisect_right(self._ends, index)
        if number == len(self._ends):
            raise IndexError(index)
        start = self._ends[number - 1] if number else 0
        return f"row {index - start + 1} of {self._files[number]}"


def _roles(path: Path, table: ColumnFiles, config: DataConfig, layout: TableLayout) -> dict[str, str]:
    """Role -> column, every one of them present."""
    named = {
        "image": config.image,
        "label": config.label,
        "id": config.id,
        "split": config.split,
        "identity": config.identity,
    }
    defaults = type(config).model_fields
    for role, name in layout.columns.items():
        if named[role] == defaults[role].default:
            named[role] = name
    roles = {role: name for role, name in named.items() if name}
    if config.id is None and "id" not in roles and "id" in table.names and "id" not in roles.values():
        roles["id"] = "id"
    more = len(table.names) - _LISTED
    listed = ", ".join(repr(name) for name in table.names[:_LISTED]) + (
        f" and {more} more" if more > 0 else ""
    )
    for role, name in roles.items():
        if name not in table.names:
            raise UserError(
                f"{path}: no column {name!r} for --{role}; the table has {listed}: name one of them"
            )
    for option, names in (
        ("--truth", config.truth),
        ("data.groups", config.groups),
        ("data.votes", config.votes),
        ("data.annotators", config.annotators),
    ):
        for name in names:
            if name not in table.names:
                raise UserError(
                    f"{path}: no column {name!r} for {option}; the table has {listed}: name some of them"
                )
    return roles


def _images(
    table: ColumnFiles,
    column: str,
    root: Path,
    places: Sequence[str],
    layout: TableLayout,
    open_files: OpenFiles,
    max_pixels: int,
) -> tuple[ImageStore, list[str] | None]:
    """The image store, and the paths where images are files."""
    kind = table.schema.field(column).type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        cells = table.read([column]).column(0)
        if any(is_pixel_text(cell) for cell in cells.slice(0, 16).to_pylist()):
            return PixelStore(cells, max_pixels=max_pixels), None
        names = _paths(table, cells, column, root, places, layout)
        return open_files(root, names), names
    fields = {field.name for field in kind} if pa.types.is_struct(kind) else set()
    holds_bytes = {"bytes", "path"} <= fields or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    if not holds_bytes or table.files[0].suffix.lower() not in (".parquet", ARROW):
        raise UserError(
            f"{table.files[0]}: column {column!r} has the type {kind}; expected paths, encoded bytes, a"
            " struct of bytes and path, or pixels as text: name the right one with --image"
        )
    store = EmbeddedStore(table.files, column, root, open_files)
    store.check_paths()
    return store, None


def _paths(
    table: ColumnFiles,
    cells: pa.ChunkedArray,
    column: str,
    root: Path,
    places: Sequence[str],
    layout: TableLayout,
) -> list[str]:
    """Paths from the root, one a row."""
    prefixes = layout.prefixes or ("",) * len(table.files)
    starts = [prefix for prefix, rows in zip(prefixes, table.rows, strict=True) for _ in range(rows)]
    names = []
    for position, written in enumerate(cells.to_pylist()):
        if not written:
            raise UserError(f"{places[position]}: column {column!r} is empty; expected an image path")
        inside = relative_inside(root, starts[position] + written)
        if inside is None or (written.startswith("/") and starts[position]):
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


def _splits_of_files(path: Path, table: ColumnFiles, layout: TableLayout) -> list[str | None] | None:
    """Splits by the files' names, if all of them have one."""
    named: Sequence[str | None] | None = layout.splits
    if named is None:
        if table.files[0].suffix.lower() != ".parquet" or not path.is_dir():
            return None
        named = [_split_of_file(file.relative_to(path)) for file in table.files]
    if None in named:
        return None
    return [split for split, rows in zip(named, table.rows, strict=True) for _ in range(rows)]


def _split_of_file(relative: Path) -> str | None:
    words = [re.split(r"[-_.]", part)[0] for part in reversed(relative.parts)]
    return next((word for word in words if split_name(word)), None)
