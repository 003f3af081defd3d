"""Every score of a scores.parquet against the truth: tables for people and machines, curves as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from diffinf.errors import UserError
from diffinf.evaluate.detection import Detection, detection
from diffinf.files import atomic_path, read_class_names, read_table, write_json
from diffinf.influence.flag import flag
from diffinf.report.curves import draw_curves
from diffinf.run import Run
from diffinf.stages.scores import RIVALS

Bools = npt.NDArray[np.bool_]

SCORES = ("score", "self_influence", *RIVALS)
_RESAMPLES = 300
_TRUTH_COLUMNS = ("wrong", "truth", "truth_label")


def detect(
    scores: Path, truth: Path | None = None, *, picture: Path | None = None, seed: int = 0
) -> dict[str, Detection]:
    """Measure how well each score of a run finds wrong labels.

    Every score flags as many samples as the run did, so that the precisions compare.

    Args:
        scores: a run's directory, or a scores.parquet.
        truth: CSV or Parquet with a column id and one of wrong (true or false), truth, truth_label (a class name);
            none: what the run knows of the truth. Samples without a row there are left out.
        picture: PNG to draw the precision-recall curves into.
        seed: of the bootstrap intervals.

    Returns:
        By score, "score" (the one that flags) first, then by falling average precision. In a run's directory the
        same is written to detection.json.

    Raises:
        UserError: a file cannot be read, no truth is known, or no label is wrong or none is right.
    """
    if scores.is_dir() and not (scores / "scores.parquet").exists():
        raise UserError(f"{scores}: nothing has been scored yet; run `diffinf score {scores}` first")
    table = read_table(scores / "scores.parquet" if scores.is_dir() else scores)
    missing = {"id", "label", "score", "flagged"} - set(table.column_names)
    if missing:
        raise UserError(f"{scores}: no column {min(missing)!r}; expected the scores.parquet of a run")
    table, wrong = _joined(table, scores, truth)
    found = {name: _measure(table, name, wrong, seed) for name in SCORES if _complete(table, name)}
    ranked = sorted(found.items(), key=lambda item: (item[0] != "score", -(item[1].average_precision or 0)))
    found = dict(ranked)
    if Run.exists(scores):
        write_json(scores / "detection.json", {name: value.to_dict() for name, value in found.items()})
    if picture is not None:
        with atomic_path(picture) as partial:
            draw_curves({name: value.curve for name, value in found.items()}, float(wrong.mean()), partial)
    return found


def _complete(table: pa.Table, name: str) -> bool:
    return name in table.column_names and not table[name].null_count


def _measure(table: pa.Table, name: str, wrong: Bools, seed: int) -> Detection:
    values = np.nan_to_num(table[name].to_numpy(), posinf=np.finfo(np.float64).max)
    flagged = table["flagged"].to_numpy()
    if name != "score":
        flagged = flag(values, table["id"].to_pylist(), method="count", count=int(flagged.sum())).flagged
    labels = np.array(table["label"].to_pylist())
    return detection(values, flagged, wrong, labels=labels, seed=seed, bootstrap=_RESAMPLES)


def _joined(table: pa.Table, scores: Path, truth: Path | None) -> tuple[pa.Table, Bools]:
    """The rows whose truth is known, and whether their labels are wrong, (N,)."""
    path = truth
    if path is None:
        path = scores / "evaluation.parquet"
        if not (scores.is_dir() and path.exists()):
            raise UserError(
                f"{scores}: nothing is known of the truth; give a file with the columns id and truth by --truth"
            )
    known = _truths(path, set(read_class_names(table)))
    ids, labels = table["id"].to_pylist(), table["label"].to_pylist()
    rows = [row for row, id_ in enumerate(ids) if id_ in known]
    if not rows:
        raise UserError(f"{path}: none of its ids is among the scored samples, such as {ids[0]}")
    values = [known[ids[row]] for row in rows]
    wrong = np.array(
        [v if isinstance(v, bool) else v != labels[row] for row, v in zip(rows, values, strict=True)]
    )
    if wrong.all() or not wrong.any():
        raise UserError(
            f"{path}: {'every' if wrong.all() else 'no'} label of the {len(rows)} samples is wrong: detection is not "
            "defined; expected both wrong and right labels"
        )
    return table.take(pa.array(rows)), wrong


def _truths(path: Path, classes: set[str]) -> dict[str, bool | str]:
    """Truth by id: whether the label is wrong, or the name of the true class; samples without one are left out."""
    rows = _rows(path)
    column = next((name for name in _TRUTH_COLUMNS if name in rows.column_names), None)
    if column is None or "id" not in rows.column_names:
        raise UserError(
            f"{path}: expected a column id and one of {', '.join(_TRUTH_COLUMNS)}; found "
            f"{', '.join(rows.column_names)}"
        )
    known: dict[str, bool | str] = {}
    for id_, value in zip(rows["id"].to_pylist(), rows[column].to_pylist(), strict=True):
        if value is None or str(value).strip() == "":
            continue
        if str(id_) in known:
            raise UserError(f"{path}: id {id_} occurs more than once; expected one row a sample")
        known[str(id_)] = _truth(str(value), column, classes, f"{path}: id {id_}")
    return known


def _truth(value: str, column: str, classes: set[str], where: str) -> bool | str:
    if column == "wrong":
        if value.lower() not in ("true", "false"):
            raise UserError(f"{where}: wrong is {value!r}; expected true or false")
        return value.lower() == "true"
    if classes and value not in classes:
        raise UserError(f"{where}: {column} is {value!r}; expected one of {', '.join(sorted(classes))}")
    return value


def _rows(path: Path) -> pa.Table:
    """A table as it is; a CSV file's cells as text: an id 0007 is not 7."""
    if path.suffix.lower() in (".parquet", ".pq"):
        return read_table(path)
    from pyarrow import csv

    try:
        with path.open(encoding="utf-8-sig") as file:
            names = file.readline().strip().replace('"', "").split(",")
        text = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
        return csv.read_csv(path, convert_options=text)
    except (OSError, UnicodeDecodeError, pa.ArrowInvalid) as error:
        raise UserError(f"{path}: cannot be read ({error}); expected CSV or Parquet with ids") from error
