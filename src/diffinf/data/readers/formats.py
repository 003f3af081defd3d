"""Table files by their suffix: CSV, TSV, JSON lines, Parquet, Arrow streams."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from diffinf.errors import UserError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
ARROW = ".arrow"
SUFFIXES = (*DELIMITERS, *JSON_LINES, ".parquet", ARROW)


def read_schema(file: Path) -> pa.Schema:
    """The columns of a table file; those of CSV are text, whatever they hold.

    Raises:
        UserError: it cannot be parsed, or two columns have one name.
    """
    suffix = file.suffix.lower()
    try:
        if suffix in DELIMITERS:
            with pa.csv.open_csv(file, parse_options=_parse_options(file)) as reader:
                schema = pa.schema([(name, pa.string()) for name in reader.schema.names])
        elif suffix in JSON_LINES:
            schema = _json_table(file).schema
        elif suffix == ARROW:
            with open_arrow(file) as reader:
                schema = reader.schema
        else:
            schema = pq.ParquetFile(file).schema_arrow
        names = _checked_names(schema)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise broken(file, error) from error
    double = [name for name in names if names.count(name) > 1]
    if double:
        raise UserError(f"{file}: two columns are named {double[0]!r}; rename one")
    return schema


def _checked_names(fields: Iterable[pa.Field]) -> list[str]:
    """The names of columns; Arrow lets them be any bytes, and those below them too, until one is asked for.

    Raises:
        UnicodeDecodeError: one is no UTF-8.
    """
    names = []
    for field in fields:
        names.append(field.name)
        _checked_names(field.type.field(index) for index in range(field.type.num_fields))
    return names


def read_columns(
    file: Path, columns: Sequence[str], *, infer_types: bool = False, raw: Sequence[str] = ()
) -> pa.Table:
    """Some columns of a table file.

    Args:
        file: the file.
        columns: names, all of them present.
        infer_types: let CSV cells become numbers where a whole column is numeric.
        raw: those of CSV that are handed over as bytes, whatever they hold.

    Raises:
        UserError: the file cannot be parsed.
    """
    suffix = file.suffix.lower()
    try:
        if suffix in DELIMITERS:
            kinds = {name: pa.binary() if name in raw else pa.string() for name in columns}
            options = pa.csv.ConvertOptions(
                include_columns=list(columns),
                column_types=None if infer_types else kinds,
                strings_can_be_null=False,
            )
            return pa.csv.read_csv(file, parse_options=_parse_options(file), convert_options=options)
        if suffix in JSON_LINES:
            return _json_table(file).select(list(columns))
        if suffix == ARROW:
            with open_arrow(file) as reader:
                return valid(reader.read_all().select(list(columns)))
        return valid(pq.ParquetFile(file).read(columns=list(columns)))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise broken(file, error) from error


def valid(values: Any) -> Any:
    """A table or column as it is: neither Parquet nor Arrow say that text is UTF-8, or offsets in order.

    Raises:
        pa.ArrowException: it is not.
    """
    values.validate(full=True)
    return values


def broken(file: Path, error: Exception) -> UserError:
    """The error of a table file that cannot be parsed."""
    reason = " ".join(str(error).split())[:200]
    return UserError(f"{file}: cannot be read as {file.suffix[1:].upper()} ({reason}); write the file anew")


def open_arrow(file: Path) -> Any:
    """A reader of record batches over an Arrow stream, mapped into memory rather than read."""
    return pa.ipc.open_stream(pa.memory_map(str(file)))


def json_lines(file: Path) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """The lines of a file with their ends, and the object each holds; None for blank lines.

    Raises:
        UserError: a line is no JSON object, or no UTF-8; it is named.
    """
    with file.open("rb") as handle:
        for number, raw in enumerate(handle, 1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                value = json.loads(line) if line.strip() else None
                json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"{file}: line {number} is not JSON ({error}); expected one object a line"
                ) from error
            if value is not None and not isinstance(value, dict):
                raise UserError(
                    f"{file}: line {number} holds {type(value).__name__}; expected an object a line, such as"
                    ' {"image": "1.png", "label": "happy"}'
                )
            yield line, value


def _json_table(file: Path) -> pa.Table:
    status = file.stat()
    return _parsed_json(file, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=2)
def _parsed_json(file: Path, _changed: int, _size: int) -> pa.Table:
    rows = [value for _, value in json_lines(file) if value is not None]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: _json_column([row.get(name) for row in rows]) for name in names})


def _json_column(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):  # of several types: as text
        return pa.array(
            [v if v is None or isinstance(v, str) else json.dumps(v) for v in values], pa.string()
        )


def _parse_options(file: Path) -> Any:
    return pa.csv.ParseOptions(delimiter=DELIMITERS[file.suffix.lower()], newlines_in_values=True)
