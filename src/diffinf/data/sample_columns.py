"""What an export says of each sample beside its image: diffinf's own columns, and all others of the source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from diffinf.data.readers.columns import ColumnFiles
from diffinf.data.readers.embedded import ColumnByGroup
from diffinf.data.readers.formats import ARROW, broken, read_columns

if TYPE_CHECKING:
    from diffinf.data.dataset import FaceDataset

TAKEN = ("id", "image", "label", "file_name")  # names that an export gives itself
_TEXT = {"dtype": "string", "_type": "Value"}


class SampleColumns:
    """Columns by sample: id, label, identity, groups, what became of it, and what else the source holds.

    The source's own columns (votes, truth, remarks ...) keep names, types and Hugging Face features; cells of CSV are
    text. One that is called as another column is, a group too, gets `source_` before its name. Columns that are here
    in another form (image, label, id, split) do not come twice, but a number that was cut into bins does. Columns of
    bytes, a second picture say, come last and are read as they are asked for.

    Attributes:
        schema: the fields, in order.
        features: name -> Hugging Face's feature, where one is known.
    """

    def __init__(self, dataset: FaceDataset, actions: Mapping[str, str] | None) -> None:
        """Read the columns of a dataset; `actions` says what was done to each id.

        Raises:
            UserError: a table cannot be read any more.
        """
        own = _text_columns(dataset, actions)
        self._own = pa.table(
            {
                "id": pa.array(dataset.ids.tolist(), pa.string()),
                "label": pa.array(dataset.labels, pa.int64()),
                **{name: pa.array(values, pa.string()) for name, values in own.items()},
            }
        )
        self.features: dict[str, Any] = {
            "id": _TEXT,
            "label": {"names": list(dataset.class_names), "_type": "ClassLabel"},
            **dict.fromkeys(own, _TEXT),
        }
        files = dataset.source.files
        self._table = files[0] if len(files) == 1 else dataset.source.path
        self._positions = dataset.positions
        others, bytes_, features = _others(dataset)
        names = _free_names([*others.column_names, *bytes_], {*TAKEN, *own})
        self._others = others.rename_columns(names[: others.num_columns])
        self._bytes = dict(zip(names[others.num_columns :], bytes_.values(), strict=True))
        self._carried = pa.table(
            {
                name: pa.array(list(values))
                for name, values in dataset.carried.items()
                if name not in (*TAKEN, *own, *names)
            }
        )
        self.features |= dict(zip(names, features, strict=True))
        self.features = {name: feature for name, feature in self.features.items() if feature}
        bytes_schema = [pa.field(name, column.kind) for name, column in self._bytes.items()]
        self.schema = pa.schema(
            [*self._own.schema, *self._carried.schema, *self._others.schema, *bytes_schema]
        )

    def rows(self, rows: Sequence[int]) -> pa.Table:
        """The columns of some rows of the dataset.

        Raises:
            UserError: a table cannot be read any more.
        """
        chosen = np.asarray(rows, dtype=np.int64)
        positions = self._positions[chosen]
        parts = [
            self._own.take(chosen),
            self._carried.take(chosen) if self._carried.num_columns else self._carried,
            self._others.take(positions) if self._others.num_columns else self._others,
        ]
        columns = [column for part in parts for column in part.columns]
        try:
            # In the order of the file, so that each row group is read once.
            order = np.argsort(positions, kind="stable")
            back = np.argsort(order, kind="stable")
            for column in self._bytes.values():
                values = [column.value(int(place)) for place in positions[order]]
                columns.append(pa.array([values[place] for place in back], column.kind))
        except (pa.ArrowException, OSError) as error:
            raise broken(self._table, error) from error
        return pa.table(columns, schema=self.schema)


def _text_columns(dataset: FaceDataset, actions: Mapping[str, str] | None) -> dict[str, list[str]]:
    columns = {} if dataset.identities is None else {"identity": dataset.identities.tolist()}
    done = {} if actions is None else {"action": [actions.get(sample, "") for sample in dataset.ids.tolist()]}
    names = _free_names(list(dataset.groups), {*TAKEN, *columns, *done})
    groups = zip(names, (values.tolist() for values in dataset.groups.values()), strict=True)
    return columns | dict(groups) | done


def _others(dataset: FaceDataset) -> tuple[pa.Table, dict[str, ColumnByGroup], list[dict[str, Any]]]:
    """The source's other columns, a row a position, those of bytes, and the feature of each ({} for none)."""
    source = dataset.source
    if not source.files:
        return pa.table({}), {}, []
    table = ColumnFiles(source.files)
    seen = {name for role, name in source.columns.items() if role != "label" or not source.coding.bins}
    names = [name for name in table.names if name not in seen | set(dataset.groups)]
    grouped = source.files[0].suffix.lower() in (".parquet", ARROW)
    large = [name for name in names if grouped and _holds_bytes(table.schema.field(name).type)]
    names = [name for name in names if name not in large]
    try:
        bytes_ = {name: ColumnByGroup(source.files, name) for name in large}
    except (pa.ArrowException, OSError) as error:
        raise broken(source.path, error) from error
    features = [table.feature(name) for name in [*names, *large]]
    if not names:
        return pa.table({}), bytes_, features
    # Nothing has read these columns so far: what they hold need not be text.
    parts = [read_columns(file, names, raw=names) for file in source.files]
    whole = pa.concat_tables([part.replace_schema_metadata(None) for part in parts])
    columns = [_plain(whole.column(name), table.schema.field(name).type) for name in names]
    return pa.table(columns, names=names), bytes_, features


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(_holds_bytes(field.type) for field in kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _holds_bytes(kind.value_type)
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    return any(test(kind) for test in tests)


def _plain(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Bytes of CSV as text, and values in the place of a dictionary's codes, which `datasets` does not take."""
    if column.type == pa.binary() and kind == pa.string():
        texts = [value.decode("utf-8", "backslashreplace") for value in column.to_pylist()]
        return pa.chunked_array([pa.array(texts, pa.string())])
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _free_names(names: Sequence[str], taken: set[str]) -> list[str]:
    free, used = [], {*taken, *names}
    for name in names:
        new = name
        while new in taken or (new != name and new in used):
            new = f"source_{new}"
        used.add(new)
        free.append(new)
    return free
