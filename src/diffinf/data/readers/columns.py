"""Columns of table files, and their values as text."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from diffinf.data.readers.formats import read_columns, read_schema
from diffinf.data.readers.labels import MISSING
from diffinf.errors import UserError


class ColumnFiles:
    """One or more table files of one kind, read as one table, only the columns that are asked for.

    CSV cells are all text here: what is written back is what was read, leading zeros and all.

    Attributes:
        files: in order; rows are numbered through.
        names: the columns, in order.
        rows: rows of each file.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        """Read the headers.

        Raises:
            UserError: a file cannot be parsed, or the files' columns differ.
        """
        self.files = tuple(files)
        schemas = [read_schema(file) for file in self.files]
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
        parts = [read_columns(file, columns, infer_types=infer_types) for file in self.files]
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


def huggingface_features(schema: pa.Schema) -> dict[str, Any]:
    """The features that `datasets` keeps in a schema's metadata, {} where there are none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def _named(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)


def as_text(
    column: pa.ChunkedArray, names: tuple[str, ...] | None, title: str, *, fractions: bool = False
) -> list[str | None]:
    """Values as text, None where missing (null, NaN, an empty cell); codes of a ClassLabel as its names.

    Args:
        column: the values.
        names: of a ClassLabel.
        title: of what, for messages.
        fractions: numbers that are not whole are fine.

    Raises:
        UserError: a value that is neither text nor a whole number, or a code without a name.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    values = column.to_pylist()
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return [None if v is None or v.strip().casefold() in MISSING else v for v in values]
    if pa.types.is_floating(kind):
        values = [None if v is None or math.isnan(v) else v for v in values]
        broken = next((v for v in values if v is not None and not v.is_integer()), None)
        if broken is not None and not fractions:
            raise UserError(
                f"{title} holds {broken}; expected names or whole numbers: bin continuous values with data.bins"
            )
        values = [v if v is None or not v.is_integer() else int(v) for v in values]
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
