"""Columns of CSV, TSV and Parquet files, and their values as text."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from diffinf.errors import UserError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
_MISSING = frozenset({"", "nan", "null"})


class ColumnFiles:
    """One or more table files of one kind, read as one table, only the columns that are asked for.

    CSV cells are all text here: what is written back is what was read, leading zeros and all.

    Attributes:
        files: in order; rows are numbered through.
        is_csv: CSV or TSV rather than Parquet.
        names: the columns, in order.
        rows: rows of each file.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        """Read the headers.

        Raises:
            UserError: a file cannot be parsed, or the files' columns differ.
        """
        self.files = tuple(files)
        self.is_csv = self.files[0].suffix.lower() in DELIMITERS
        schemas = [self._header(file) for file in self.files]
        for file, schema in zip(self.files, schemas, strict=True):
            if not schema.equals(schemas[0]):
                raise UserError(
                    f"{file}: columns {_named(schema)} differ from those of {self.files[0].name}:"
                    f" {_named(schemas[0])}; files of one dataset need the same columns and types"
                )
            if huggingface_features(schema) != huggingface_features(schemas[0]):
                raise UserError(
                    f"{file}: its Hugging Face features differ from those of {self.files[0].name}; codes"
                    " could mean different classes: write the files anew with the same features"
                )
        self.schema = schemas[0]
        self.names: list[str] = list(self.schema.names)
        self.rows: list[int] = []

    def read(self, columns: Sequence[str], *, infer_types: bool = False) -> pa.Table:
        """These columns of all files as one table.

        Args:
            columns: names, all of them present.
            infer_types: let CSV cells become numbers where a whole column is numeric.
        """
        parts = []
        for file in self.files:
            if self.is_csv:
                parts.append(self._read_csv(file, columns, infer_types=infer_types))
            else:
                try:
                    parts.append(pq.ParquetFile(file).read(columns=list(columns)))
                except (pa.ArrowException, OSError) as error:
                    raise _broken(file, error) from error
        self.rows = [part.num_rows for part in parts]
        return pa.concat_tables([part.replace_schema_metadata(None) for part in parts])

    def text(self, column: str, title: str) -> list[str | None]:
        """One column as text, see `as_text`."""
        return as_text(self.read([column]).column(0), self.class_names(column), title)

    def class_names(self, column: str) -> tuple[str, ...] | None:
        """The names of a Hugging Face `ClassLabel` column, from the schema's metadata; None for others."""
        feature = self.feature(column)
        if feature.get("_type") != "ClassLabel" or not isinstance(feature.get("names"), list):
            return None
        return tuple(str(name) for name in feature["names"])

    def feature(self, column: str) -> dict[str, Any]:
        """The Hugging Face feature of a column, {} where there is none."""
        feature = huggingface_features(self.schema).get(column)
        return feature if isinstance(feature, dict) else {}

    def _header(self, file: Path) -> pa.Schema:
        try:
            if not self.is_csv:
                schema = pq.ParquetFile(file).schema_arrow
            else:
                with pa.csv.open_csv(file, parse_options=self._parse_options(file)) as reader:
                    schema = pa.schema([(name, pa.string()) for name in reader.schema.names])
        except (pa.ArrowException, OSError) as error:
            raise _broken(file, error) from error
        double = [name for name in schema.names if schema.names.count(name) > 1]
        if double:
            raise UserError(f"{file}: two columns are named {double[0]!r}; rename one")
        return schema

    def _parse_options(self, file: Path) -> Any:
        delimiter = DELIMITERS[file.suffix.lower()]
        return pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)

    def _read_csv(self, file: Path, columns: Sequence[str], *, infer_types: bool) -> pa.Table:
        options = pa.csv.ConvertOptions(
            include_columns=list(columns),
            column_types=None if infer_types else dict.fromkeys(columns, pa.string()),
            strings_can_be_null=False,
        )
        try:
            return pa.csv.read_csv(file, parse_options=self._parse_options(file), convert_options=options)
        except (pa.ArrowException, OSError) as error:
            raise _broken(file, error) from error


def huggingface_features(schema: pa.Schema) -> dict[str, Any]:
    """The features that `datasets` keeps in a schema's metadata, {} where there are none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def _named(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)


def _broken(file: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200]
    return UserError(f"{file}: cannot be read as {file.suffix[1:].upper()} ({reason}); write the file anew")


def as_text(column: pa.ChunkedArray, names: tuple[str, ...] | None, title: str) -> list[str | None]:
    """Values as text, None where missing (null, NaN, an empty cell); codes of a ClassLabel as its names.

    Raises:
        UserError: a value that is neither text nor a whole number, or a code without a name; `title` says of
            what.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    values = column.to_pylist()
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return [None if v is None or v.strip().casefold() in _MISSING else v for v in values]
    if pa.types.is_floating(kind):
        values = [None if v is None or math.isnan(v) else v for v in values]
        broken = next((v for v in values if v is not None and not v.is_integer()), None)
        if broken is not None:
            raise UserError(f"{title} holds {broken}; expected names or whole numbers: bin continuous values")
        values = [None if v is None else int(v) for v in values]
    elif not (pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
        raise UserError(f"{title} has the type {kind}; expected text or whole numbers")
    if names is None:
        return [None if v is None else str(v) for v in values]
    stray = next((v for v in values if v is not None and not -1 <= v < len(names)), None)
    if stray is not None:
        raise UserError(
            f"{title} holds the code {stray}, but has only {len(names)} class names: mend the codes"
        )
    return [None if v is None or v == -1 else names[v] for v in values]  # -1 is ClassLabel's "no label"


def from_text(text: str, kind: pa.DataType, names: tuple[str, ...] | None) -> Any:
    """The inverse of `as_text` for one value: what a column of type `kind` holds for `text`."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if names is not None:
        return names.index(text)
    if pa.types.is_boolean(kind):
        return text == "True"
    if pa.types.is_floating(kind):
        return float(text)
    return int(text) if pa.types.is_integer(kind) else text


def to_numpy(column: pa.ChunkedArray) -> Any:
    """A column as an array; fixed-length lists become its second axis, text a string array."""
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return column.to_numpy()
    import numpy as np

    return np.array(cast("list[Any]", column.to_pylist()))
