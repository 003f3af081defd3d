"""Rewriting one table file with some cells changed and some rows left out, nothing else."""

from __future__ import annotations

import csv
import json
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diffinf.data.readers.base import ID_COLUMN, Edits
from diffinf.data.readers.columns import ColumnFiles, from_text, huggingface_features
from diffinf.data.readers.formats import (
    ARROW,
    DELIMITERS,
    JSON_LINES,
    broken,
    json_lines,
    open_arrow,
    read_columns,
    read_schema,
)
from diffinf.data.readers.pixels import pixel_text


@dataclass(frozen=True, kw_only=True)
class TableEdits(Edits):
    """What changes in tables, by position (row number through all files).

    Attributes:
        files: paths of images that are files, from the root.
        embedded: new images (PNG) that go into the table itself.
        columns: role -> column.
        prefix: what image cells lack of the path from the root.
    """

    files: Mapping[int, str]
    embedded: Mapping[int, bytes]
    columns: Mapping[str, str]
    prefix: str = ""

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
        """Edit the rows that begin at position `start`, and leave out those that do not stay."""
        table = self.edit_cells(table, start, class_names)
        kept = [position in self.ids for position in range(start, start + table.num_rows)]
        return table if all(kept) else table.filter(pa.array(kept))

    def edit_cells(self, table: pa.Table, start: int, class_names: tuple[str, ...] | None) -> pa.Table:
        """Edit the rows that begin at position `start`; all stay."""
        positions = range(start, start + table.num_rows)
        label, image = self.columns["label"], self.columns["image"]
        values, kind = table.column(label), table.schema.field(label).type
        labels = {}
        for position in positions:
            if position in self.labels:
                before = values[position - start].as_py()
                old = str(before) if class_names is None else class_names[before]
                written = self.coding.written(self.labels[position], old)
                labels[position] = from_text(written, kind, class_names)
        table = _with_cells(table, label, start, labels)
        table = _with_cells(table, image, start, self._image_cells(table, image, start))
        if self.add_ids:
            table = table.append_column(
                pa.field(ID_COLUMN, pa.string()), pa.array([self.ids.get(p) for p in positions], pa.string())
            )
        return table

    def _image_cells(self, table: pa.Table, column: str, start: int) -> dict[int, Any]:
        kind = table.schema.field(column).type
        positions = range(start, start + table.num_rows)
        values = table.column(column)
        paths = {p: self._cell(self.files[p]) for p in positions if p in self.files}
        new = {p: self.embedded[p] for p in positions if p in self.embedded}
        if pa.types.is_struct(kind):
            cells = {p: {**values[p - start].as_py(), "path": path} for p, path in paths.items()}
            return cells | {p: {**(values[p - start].as_py() or {}), "bytes": png} for p, png in new.items()}
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return {**paths, **{p: pixel_text(png, values[p - start].as_py()) for p, png in new.items()}}
        return {**paths, **new}

    def _cell(self, name: str) -> str:
        """The path as a cell holds it."""
        return posixpath.relpath(name, self.prefix) if self.prefix else name


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

    CSV cells keep their text, quoted where needed, with "\\n" at line ends; lines of JSON that nothing changes
    stay byte for byte; Parquet and Arrow keep their schema with all metadata, their row groups and, Parquet, the
    compression of its columns, and are streamed by row group.

    Returns:
        The position after the last row.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    suffix = file.suffix.lower()
    if suffix in DELIMITERS:
        return _write_csv(file, target, edits, start)
    if suffix in JSON_LINES:
        return _write_json(file, target, edits, start)
    return (_write_arrow if suffix == ARROW else _write_parquet)(file, target, edits, start)


def _write_csv(file: Path, target: Path, edits: TableEdits, start: int) -> int:
    names = read_schema(file).names
    # What is not edited need not be text that can be read.
    raw = [name for name in names if name not in (edits.columns["label"], edits.columns["image"])]
    table = read_columns(file, names, raw=raw)
    end = start + int(table.num_rows)
    table = edits.apply(table, start, None)
    with target.open("w", encoding="utf-8", errors="surrogateescape", newline="") as handle:
        writer = csv.writer(handle, delimiter=DELIMITERS[file.suffix.lower()], lineterminator="\n")
        writer.writerow(table.column_names)
        for batch in table.to_batches():
            writer.writerows(zip(*(_cells(column) for column in batch.columns), strict=True))
    return end


def _cells(column: pa.Array) -> list[str]:
    values = column.to_pylist()
    return [v.decode("utf-8", "surrogateescape") if isinstance(v, bytes) else v for v in values]


def _write_json(file: Path, target: Path, edits: TableEdits, start: int) -> int:
    source = ColumnFiles([file])
    before = source.read(source.names)
    after = edits.edit_cells(before, start, None)
    names = [edits.columns["label"], edits.columns["image"], *([ID_COLUMN] if edits.add_ids else [])]
    old = [before.column(name).to_pylist() for name in names if name in before.column_names]
    new = [after.column(name).to_pylist() for name in names]
    position = start
    with target.open("w", encoding="utf-8", newline="") as handle:
        for line, row in json_lines(file):
            if row is None:
                continue
            at = position - start
            position += 1
            if position - 1 not in edits.ids:
                continue
            if edits.add_ids or any(one[at] != other[at] for one, other in zip(old, new, strict=True)):
                row |= {name: column[at] for name, column in zip(names, new, strict=True)}
                line = json.dumps(row, ensure_ascii=False) + "\n"
            handle.write(line)
    return position


def _write_arrow(file: Path, target: Path, edits: TableEdits, start: int) -> int:
    class_names = ColumnFiles([file]).class_names(edits.columns["label"])
    with open_arrow(file) as reader:
        schema = edits.schema(reader.schema)
        with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for batch in reader:
                table = edits.apply(pa.Table.from_batches([batch]), start, class_names)
                if table.num_rows:
                    writer.write_table(table.cast(schema))
                start += batch.num_rows
    return start


def _write_parquet(file: Path, target: Path, edits: TableEdits, start: int) -> int:
    source = pq.ParquetFile(file)
    class_names = ColumnFiles([file]).class_names(edits.columns["label"])
    schema = edits.schema(source.schema_arrow)
    with pq.ParquetWriter(target, schema, compression=_compression(source.metadata)) as writer:
        for group in range(source.metadata.num_row_groups):
            try:
                table = source.read_row_group(group)
            except (pa.ArrowException, OSError) as error:  # in a column that nothing else reads
                raise broken(file, error) from error
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
