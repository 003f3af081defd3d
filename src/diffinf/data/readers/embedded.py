"""Images inside Parquet and Arrow files, read by row group as they are asked for."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diffinf.data.images import UnreadableImageError
from diffinf.data.readers.base import ImageStore, relative_inside
from diffinf.data.readers.formats import ARROW, broken, open_arrow, valid
from diffinf.errors import UserError

_CACHE_BYTES = 2**29


class _ParquetColumn:
    """One column of a Parquet file by row group."""

    def __init__(self, file: Path, column: str) -> None:
        self._column, self._path = column, file
        with pq.ParquetFile(
            file
        ) as opened:  # not kept open: a dataset may have more files than a process may
            self._metadata = opened.metadata
            self.kind = opened.schema_arrow.field(column).type
        groups = range(self._metadata.num_row_groups)
        self.rows = [self._metadata.row_group(group).num_rows for group in groups]

    def group(self, number: int) -> pa.ChunkedArray:
        with pq.ParquetFile(self._path, metadata=self._metadata) as opened:
            return opened.read_row_group(number, columns=[self._column]).column(0)

    def paths(self) -> pa.ChunkedArray:
        try:
            with pq.ParquetFile(self._path, metadata=self._metadata) as opened:
                return valid(opened.read(columns=[f"{self._column}.path"]).column(0))
        except (pa.ArrowException, OSError) as error:
            raise broken(self._path, error) from error


class _ArrowColumn:
    """One column of an Arrow stream by record batch; it is mapped into memory."""

    def __init__(self, file: Path, column: str) -> None:
        with open_arrow(file) as reader:
            self._values = reader.read_all().column(column)
        self._path = file
        self.rows = [len(chunk) for chunk in self._values.chunks]
        self.kind = self._values.type

    def group(self, number: int) -> pa.ChunkedArray:
        return self._values.chunk(number)

    def paths(self) -> pa.ChunkedArray:
        try:
            return valid(self._values)
        except pa.ArrowException as error:
            raise broken(self._path, error) from error


class ColumnByGroup:
    """One column of Parquet or Arrow files, of which no more than `_CACHE_BYTES` of row groups are in memory.

    Attributes:
        rows: of all files.
        kind: the type.
    """

    def __init__(self, files: Sequence[Path], column: str) -> None:
        """Open the files' footers; no value is read yet."""
        self._files = [
            (_ArrowColumn if file.suffix.lower() == ARROW else _ParquetColumn)(file, column) for file in files
        ]
        self.kind: pa.DataType = self._files[0].kind
        self.rows = 0
        self._starts: list[int] = []
        self._groups: list[tuple[int, int]] = []
        for number, file in enumerate(self._files):
            for group, length in enumerate(file.rows):
                self._starts.append(self.rows)
                self._groups.append((number, group))
                self.rows += length
        self._cache: OrderedDict[int, pa.ChunkedArray] = OrderedDict()
        self._lock = threading.Lock()

    def value(self, position: int) -> Any:
        """A cell.

        Raises:
            pa.ArrowException: its row group is damaged.
            OSError: it cannot be read.
        """
        slot = bisect_right(self._starts, position) - 1
        # Row groups may be empty, and then share their start with the next; bisect_right takes the last.
        return self._group(slot)[position - self._starts[slot]].as_py()

    def _group(self, slot: int) -> pa.ChunkedArray:
        with self._lock:
            if slot not in self._cache:
                file, group = self._groups[slot]
                self._cache[slot] = self._files[file].group(group)
                while len(self._cache) > 1 and sum(c.nbytes for c in self._cache.values()) > _CACHE_BYTES:
                    self._cache.popitem(last=False)
            self._cache.move_to_end(slot)
            return self._cache[slot]

    def paths(self) -> Iterator[pa.Array]:
        """The column by chunks, of Parquet files the field `path` alone, a row a value."""
        for file in self._files:
            yield from file.paths().chunks


class EmbeddedStore:
    """An image column of Parquet or Arrow: bytes, or Hugging Face's struct of bytes and path.

    A struct without bytes stands for the file at its path, under the root.
    """

    in_table = True

    def __init__(
        self,
        files: Sequence[Path],
        column: str,
        root: Path,
        open_files: Callable[[Path, Sequence[str]], ImageStore],
    ) -> None:
        """Open the files' footers; no image is read yet. `open_files` makes the store of images outside."""
        self._column = ColumnByGroup(files, column)
        self._names = self._read_names()
        self._outside = open_files(root, self._names)
        self._root = root

    def read(self, position: int) -> bytes:
        """The bytes in the table, or else of the file it points to."""
        value = self._value(position)
        data = value["bytes"] if isinstance(value, dict) else value
        if data is not None:
            return bytes(data)
        if not self._names[position]:
            raise UnreadableImageError("neither bytes nor a path in the image column")
        return self._outside.read(position)

    def name(self, position: int) -> str:
        """The struct's path, "" where there is none."""
        return self._names[position]

    def is_file(self, position: int) -> bool:
        """True for a struct with a path and no bytes."""
        if not self._names[position]:
            return False
        value = self._value(position)
        return isinstance(value, dict) and value["bytes"] is None

    def check_paths(self) -> None:
        """Refuse paths that leave the root where they stand for the image.

        Raises:
            UserError: naming the row and the path.
        """
        for position, written in enumerate(self._names):
            if written and relative_inside(self._root, written) is None and self.is_file(position):
                raise UserError(
                    f"row {position + 1}: image path {written!r} leads out of {self._root}; expected a path"
                    " below it: set --root, or move the file"
                )

    def _read_names(self) -> list[str]:
        if not pa.types.is_struct(self._column.kind):
            return [""] * self._column.rows
        names: list[str] = []
        for chunk in self._column.paths():
            paths = chunk.field("path").to_pylist()
            present = chunk.is_valid().to_pylist()
            names += [(path or "") if there else "" for path, there in zip(paths, present, strict=True)]
        return names

    def _value(self, position: int) -> Any:
        try:
            return self._column.value(position)
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())[:120]
            raise UnreadableImageError(f"its row group cannot be read ({reason})") from error
