"""Images inside Parquet files, read by row group as they are asked for."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diffinf.data.images import UnreadableImageError
from diffinf.data.readers.base import FileStore, relative_inside
from diffinf.errors import UserError

_CACHE_BYTES = 2**29


class EmbeddedStore:
    """An image column of Parquet: bytes, or Hugging Face's struct of bytes and path.

    A struct without bytes stands for the file at its path, under the root.
    """

    def __init__(self, files: Sequence[Path], column: str, root: Path, *, max_pixels: int) -> None:
        """Open the files' footers; no image is read yet."""
        self._files = [pq.ParquetFile(file) for file in files]
        self._column = column
        self._starts: list[int] = []
        self._groups: list[tuple[int, int]] = []
        rows = 0
        for number, file in enumerate(self._files):
            for group in range(file.metadata.num_row_groups):
                self._starts.append(rows)
                self._groups.append((number, group))
                rows += file.metadata.row_group(group).num_rows
        self._cache: OrderedDict[int, pa.ChunkedArray] = OrderedDict()
        self._lock = threading.Lock()
        self._names = self._read_names(rows)
        self._outside = FileStore(root, self._names, max_pixels=max_pixels)
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

    def _read_names(self, rows: int) -> list[str]:
        if not pa.types.is_struct(self._files[0].schema_arrow.field(self._column).type):
            return [""] * rows
        names: list[str] = []
        for file in self._files:
            column = file.read(columns=[f"{self._column}.path"]).column(0)
            names.extend((value or {}).get("path") or "" for value in column.to_pylist())
        return names

    def _value(self, position: int) -> Any:
        slot = bisect_right(self._starts, position) - 1
        # Row groups may be empty, and then share their start with the next; bisect_right takes the last.
        return self._group(slot)[position - self._starts[slot]].as_py()

    def _group(self, slot: int) -> pa.ChunkedArray:
        with self._lock:
            if slot not in self._cache:
                file, group = self._groups[slot]
                column = self._files[file].read_row_group(group, columns=[self._column]).column(0)
                self._cache[slot] = column
                while len(self._cache) > 1 and sum(c.nbytes for c in self._cache.values()) > _CACHE_BYTES:
                    self._cache.popitem(last=False)
            self._cache.move_to_end(slot)
            return self._cache[slot]
