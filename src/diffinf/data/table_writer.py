"""Rewriting one table file with some cells changed and some rows left out, nothing else."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diffinf.data.readers.columns import DELIMITERS, ColumnFiles, from_text, huggingface_features

ID_COLUMN = "id"


@dataclass(frozen=True)
class TableEdits:
    """What changes in a table, by position (row number through all files).

    Attributes:
        ids: ids of the rows that stay.
        labels: new class names.
        files: paths of images that are files, as they are to be written.
        embedded: new images (PNG) that go into the table itself.
        columns: role -> column.
        add_ids: append a column `id`.
    """

    ids: Mapping[int, str]
    labels: Mapping[int, str]
    files: Mapping[int, str]
    embedded: Mapping[int, bytes]
    columns: Mapping[str, str]
    add_ids: bool

    def schema(self, schema: pa.Schema) -> pa.Schema:
        """The schema to write: as it came, with the column `id` if one is added."""
        if not self.add_ids:
            return schema
        schema = schema.append(pa.field(ID_COLUMN, pa.string()))
        if features := huggingface_features(schema):
            metadata = dict(schema.metadata)
            described = json.loads(metadata[b"huggingface"])
            described["info"]["features"] = {**features, ID_COLUMN: {"dtype": "string", "_type": "Value"}}
            metadata[b"huggingface"] = json.dumps(described).encode()
            schema = schema.with_metadata(metadata)
        return schema

    def apply(self, table: pa.Table, start: int, class_names: tuple[str, ...] | None) -> pa.Table:
        """Edit the rows that begin at position `start`."""
        positions = range(start, start + table.num_rows)
        kept = [position in self.ids for position in positions]
        label, image = self.columns["label"], self.columns["image"]
        kind = table.schema.field(label).type
        labels = {p: from_text(self.labels[p], kind, class_names) for p in positions if p in self.labels}
        table = _with_cells(table, label, start, labels)
        table = _with_cells(table, image, start, self._image_cells(table, image, start))
        if self.add_ids:
            table = table.append_column(
                pa.field(ID_COLUMN, pa.string()), pa.array([self.ids.get(position) for position in positions])
            )
        return table if all(kept) else table.filter(pa.array(kept))

    def _image_cells(self, table: pa.Table, column: str, start: int) -> dict[int, Any]:
        kind = table.schema.field(column).type
        positions = range(start, start + table.num_rows)
        if not pa.types.is_struct(kind):
            cells: dict[int, Any] = {p: self.files[p] for p in positions if p in self.files}
            return cells | {p: self.embedded[p] for p in positions if p in self.embedded}
        values = table.column(column)
        cells = {}
        for position in positions:
            if position in self.embedded:
                cells[position] = {
                    **(values[position - start].as_py() or {}),
                    "bytes": self.embedded[position],
                }
            elif position in self.files:
                cells[position] = {**values[position - start].as_py(), "path": self.files[position]}
        return cells


def _with_cells(table: pa.Table, column: str, start: int, cells: Mapping[int, Any]) -> pa.Table:
    if not cells:
        return table
    values = table.column(column).to_pylist()
    for position, value in cells.items():
        values[position - start] = value
    field = table.schema.field(column)
    return table.set_column(table.schema.get_field_index(column), field, pa.array(values, type=field.type))


def write_table_file(file: Path, target: Path, edits: TableEdits, start: int) -> int:
    """Write `file`, whose first row has the position `start`, to `target` with `edits`.

    CSV cells keep their text, quoted where needed, with "\\n" at line ends; Parquet keeps its schema with all
    metadata, its row groups and the compression of its columns, and is streamed by row group.

    Returns:
        The position after the last row.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix.lower() in DELIMITERS:
        return _write_csv(file, target, edits, start)
    return _write_parquet(file, target, edits, start)


def _write_csv(file: Path, target: Path, edits: TableEdits, start: int) -> int:
    source = ColumnFiles([file])
    table = source.read(source.names)
    end = start + int(table.num_rows)
    table = edits.apply(table, start, None)
    with target.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, delimiter=DELIMITERS[file.suffix.lower()], lineterminator="\n")
        writer.writerow(table.column_names)
        for batch in table.to_batches():
            writer.writerows(zip(*(column.to_pylist() for column in batch.columns), strict=True))
    return end


def _write_parquet(file: Path, target: Path, edits: TableEdits, start: int) -> int:
    source = pq.ParquetFile(file)
    class_names = ColumnFiles([file]).class_names(edits.columns["label"])
    schema = edits.schema(source.schema_arrow)
    with pq.ParquetWriter(target, schema, compression=_compression(source.metadata)) as writer:
        for group in range(source.metadata.num_row_groups):
            table = source.read_row_group(group)
            end = start + table.num_rows
            table = edits.apply(table, start, class_names)
            if table.num_rows:
                writer.write_table(table.cast(schema), row_group_size=table.num_rows)
            start = end
    return start


def _compression(metadata: Any) -> dict[str, str] | str:
    """Codec by column, as the file has it."""
    if metadata.num_row_groups == 0:
        return "snappy"
    group = metadata.row_group(0)
    columns = [group.column(number) for number in range(group.num_columns)]
    codecs = {column.path_in_schema: column.compression.lower() for column in columns}
    return {path: "none" if codec == "uncompressed" else codec for path, codec in codecs.items()}
