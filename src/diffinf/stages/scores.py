"""The score stage's files: the table of scores and flags, and flags that were found elsewhere."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from diffinf.errors import UserError
from diffinf.files import read_table

RIVALS = (
    "loss",
    "margin",
    "squared_error",
    "entropy",
    "aum",
    "forgetting",
    "self_confidence",
    "confident_learning",
    "knn_agreement",
)

Strings = npt.NDArray[np.str_]


def score_table(
    *,
    ids: Strings,
    labels: npt.NDArray[np.int64],
    appears: npt.NDArray[np.int64],
    class_names: Sequence[str],
    score: npt.NDArray[np.floating],
    self_influence: npt.NDArray[np.floating],
    flagged: npt.NDArray[np.bool_],
    threshold: float | None,
    label_trust: npt.NDArray[np.floating],
    rivals: Mapping[str, npt.NDArray[np.floating]],
    fold: npt.NDArray[np.int64],
    agreement: npt.NDArray[np.float64] | None = None,
    level: npt.NDArray[np.float64] | None = None,
) -> pa.Table:
    """Build scores.parquet from arrays of one row a training sample, (N,), sorted by id.

    `score` flags, the highest first; `label_trust`, an estimated P(label right), is what out-of-fold models say, dealt
    out in the order of `score` (`ranked_trust`): the two rank alike, and neither is a function of the other's value.
    `agreement` is the share of the annotators' votes that are for the label, NaN (null in the table) where there are
    none; without it there is no such column. `level`, of ordered classes, is where on the scale 0..K-1 of their
    numbers the reading lies in the mean; with it comes `distance`, the classes between label and `appears`. A rival
    that could not be computed (no dynamics: no AUM) is a column of nulls; `threshold` is null when the flags were not
    drawn by one.
    """
    names = np.array(class_names)
    nothing = pa.nulls(len(ids), pa.float64())
    columns: dict[str, pa.Array] = {
        "id": pa.array(ids, pa.string()),
        "target": pa.array([""] * len(ids), pa.string()),
        "label": pa.array(names[labels], pa.string()),
        "score": pa.array(score, pa.float64()),
        "self_influence": pa.array(self_influence, pa.float64()),
        "flagged": pa.array(flagged, pa.bool_()),
        "threshold": nothing if threshold is None else pa.array([threshold] * len(ids), pa.float64()),
        "appears": pa.array(names[appears], pa.string()),
        "label_trust": pa.array(label_trust, pa.float64()),
    }
    for name in dict.fromkeys((*RIVALS, *rivals)):
        columns[name] = pa.array(rivals[name], pa.float64()) if name in rivals else nothing
    columns["fold"] = pa.array(fold, pa.int32())
    if agreement is not None:
        columns["agreement"] = pa.array(agreement, pa.float64(), from_pandas=True)
    if level is not None:
        columns["level"] = pa.array(level, pa.float64())
        columns["distance"] = pa.array(np.abs(appears - labels), pa.int32())
    return pa.table(columns)


def read_flags(path: Path, known: Strings, elsewhere: Strings) -> npt.NDArray[np.bool_]:
    """Read ids to repair from text (one a line), CSV or Parquet (column "id", or the only one).

    Args:
        path: the file.
        known: ids of the training samples, (N,).
        elsewhere: ids of the other splits' samples, which must not be edited.

    Returns:
        bool (N,), True where the sample is named.

    Raises:
        UserError: the file cannot be read, or names an id that is unknown or of another split.
    """
    ids = _ids_in(path)
    others, training = set(elsewhere.tolist()), set(known.tolist())
    foreign = sorted(ids & others)
    if foreign:
        raise UserError(
            f"{path}: {name_some(foreign)} are not in the split train; validation and test are never edited, "
            "take them out of the file"
        )
    unknown = sorted(ids - training)
    if unknown:
        raise UserError(
            f"{path}: {name_some(unknown)} are not in the dataset; expected ids such as {known[0]}"
        )
    return np.isin(known, sorted(ids))


def _ids_in(path: Path) -> set[str]:
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            table = read_table(path)
            return {str(value) for value in table[_id_column(path, table.column_names)].to_pylist()}
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); expected text, CSV or Parquet with ids"
        ) from error
    if path.suffix.lower() in (".csv", ".tsv"):
        rows = list(csv.reader(text.splitlines(), delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
        column = rows[0].index(_id_column(path, rows[0])) if rows else 0
        short = next((number for number, row in enumerate(rows, 1) if row and len(row) <= column), None)
        if short is not None:
            raise UserError(f"{path}: line {short} has no column 'id'; expected a value in every row")
        return {row[column] for row in rows[1:] if row}
    return {line.strip() for line in text.splitlines() if line.strip()}


def _id_column(path: Path, names: Sequence[str]) -> str:
    if "id" in names:
        return "id"
    if len(names) == 1:
        return names[0]
    raise UserError(f"{path}: no column 'id'; found {', '.join(names)}")


def name_some(ids: Sequence[str]) -> str:
    """Return the first five of `ids`, and how many more there are."""
    more = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
    return ", ".join(ids[:5]) + more
