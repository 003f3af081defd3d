"""FER2013: fer2013.csv or icml_face_data.csv with images as grey values; FER+ votes beside it.

Goodfellow et al., Challenges in Representation Learning (arXiv 1307.0414); votes: Barsoum et al., Training Deep
Networks for Facial Expression Recognition with Crowd-Sourced Label Distribution (arXiv 1608.01041).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from diffinf.data.readers.base import Records
from diffinf.data.readers.formats import read_columns, read_schema
from diffinf.data.readers.lists import ListFile, annotation_file
from diffinf.data.readers.tables import TableLayout, read_table
from diffinf.data.votes import Ballots
from diffinf.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from diffinf.config import DataConfig

_FILES = ("fer2013.csv", "icml_face_data.csv", "fer2013/fer2013.csv")
_VOTES = "fer2013new.csv"
VOTES = (
    "neutral",
    "happiness",
    "surprise",
    "sadness",
    "anger",
    "disgust",
    "fear",
    "contempt",
    "unknown",
    "NF",
)
_CARRIED = "ferplus_votes"
CODES = {
    "0": "Angry",
    "1": "Disgust",
    "2": "Fear",
    "3": "Happy",
    "4": "Sad",
    "5": "Surprise",
    "6": "Neutral",
}


_FERPLUS = {"Angry": 4, "Disgust": 5, "Fear": 6, "Happy": 1, "Sad": 3, "Surprise": 2, "Neutral": 0}


def detect(path: Path) -> bool:
    """Whether this is the table, or a folder that holds it."""
    if path.is_dir():
        return any((path / name).is_file() for name in _FILES)
    return path.name in _FILES


def read(path: Path, config: DataConfig) -> Records:
    """Read the expressions; ids are row numbers, splits come from Usage.

    Votes of FER+ in a file fer2013new.csv in the same folder, row by row, are carried as "ferplus_votes": (N, 10) in
    the order of `VOTES`. No training reads them unless `config.votes` is ferplus_votes: then those for contempt, for
    an expression that does not occur, or for none count as votes for no class.

    Raises:
        UserError: columns that are not there, votes for other rows.
    """
    root = path.resolve() if path.is_dir() else path.resolve().parent
    file = annotation_file(root, *(_FILES if path.is_dir() else (path.name,)))
    if file is None:
        raise UserError(f"{path}: no fer2013.csv or icml_face_data.csv; expected one of them")
    names = {
        name.strip().casefold(): name for name in read_schema(file).names
    }  # " Usage", " pixels" in one of them
    roles = {"image": "pixels", "label": "emotion", "split": "usage"}
    columns = {role: names[name] for role, name in roles.items() if name in names}
    missing = [name for role, name in roles.items() if role not in columns and role != "split"]
    if missing:
        raise UserError(f"{file}: no column {missing[0]!r}; expected emotion, pixels and Usage")
    layout = TableLayout(name="fer2013", columns=columns, codes=CODES)
    by_ferplus = config.votes == [_CARRIED]
    records = read_table(
        file, [file], config.model_copy(update={"votes": []}) if by_ferplus else config, layout
    )
    votes = annotation_file(file.parent, _VOTES)
    if by_ferplus and votes is None:
        raise UserError(f"{file.parent}: no {_VOTES}; expected it for data.votes={_CARRIED}")
    if votes is not None:
        records.carried[_CARRIED] = _votes(votes, records)
        if by_ferplus:
            records.ballots = _ballots(records.carried[_CARRIED], records.class_names or ())
        records.source = replace(records.source, annotations=(ListFile(votes, _row),))
    return records


def _ballots(votes: NDArray[np.int64], class_names: Sequence[str]) -> Ballots:
    columns = [_FERPLUS[name] for name in class_names]
    counts = votes[:, columns]
    return Ballots(counts=counts.tolist(), others=(votes.sum(1) - counts.sum(1)).tolist())


def _row(number: int, _line: str) -> int | None:
    return number - 1 if number else None


def _votes(file: Path, records: Records) -> NDArray[np.int64]:
    import numpy as np

    names = {name.strip(): name for name in read_schema(file).names}
    missing = [name for name in ("Usage", *VOTES) if name not in names]
    if missing:
        raise UserError(f"{file}: no column {missing[0]!r}; expected FER+'s {', '.join(('Usage', *VOTES))}")
    table = read_columns(file, [names["Usage"], *(names[name] for name in VOTES)])
    if table.num_rows != records.source.rows:
        raise UserError(
            f"{file}: {table.num_rows} rows, the dataset has {records.source.rows}; expected votes row by row"
        )
    usages = table.column(0).to_pylist()
    for row, (one, other) in enumerate(zip(usages, records.splits or usages, strict=True), 1):
        if one.strip() != (other or "").strip():
            raise UserError(
                f"{file}: row {row} is of {one!r}, that of the dataset of {other!r}; expected the same"
            )
    try:
        columns = [np.array(table.column(names[name]).to_pylist(), dtype=np.int64) for name in VOTES]
    except ValueError as error:
        raise UserError(f"{file}: votes are no whole numbers ({str(error)[:80]})") from error
    return np.stack(columns, axis=1)
