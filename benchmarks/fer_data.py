"""FER-noise as files: one Parquet of the two public originals, and the dataset of the protocol out of it."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from diffinf.data.readers.columns import ColumnFiles
from diffinf.data.splits import limited
from diffinf.errors import UserError
from diffinf.files import atomic_path

LABELS = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear")
VOTES = (*LABELS, "contempt", "unknown", "NF")
FER2013_LABELS = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")  # by its codes
SPARSE = "disgust"  # too few true test images for the primary figure
LEAST_VOTES = 5
SIDE = 48
EXPECTED_KEPT = {"Training": 22_820, "PublicTest": 2_897}
EXPECTED_DISAGREEMENT = dict(
    zip((*LABELS, "all"), (0.11, 0.07, 0.20, 0.57, 0.49, 0.67, 0.88, 0.33), strict=True)
)
_ROWS_PER_GROUP = 1000

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Prepared:
    """What became of the file: rows kept by usage, rows by split and class, shares of labels that disagree.

    Attributes:
        kept: usage -> rows with a clear truth, before the test split.
        disagreement: class as annotated, and "all" -> share of the kept Training rows labelled otherwise than
            the truth.
        counts: split -> class (as in the column label) -> rows written.
    """

    kept: dict[str, int]
    disagreement: dict[str, float]
    counts: dict[str, dict[str, int]]


def prepare(data: Path, target: Path, subset: int | None) -> Prepared:
    """Write the FER-noise dataset: columns id, image, label, split, truth_label, truth_votes.

    Rows stay whose top vote (ties: the first) is one of the seven labels with at least 5 votes. Three in ten
    Training rows, by a hash of the id, are the test split and carry the truth as their label; the others
    are the training split and PublicTest is the validation split, both labelled as annotated.

    Args:
        data: Parquet with columns id, image, label (the original one), votes (10 of FER+), usage.
        target: the Parquet file to write, atomically.
        subset: training rows to keep (shares by label, smallest sha256 of "0:id"), None for all.

    Raises:
        UserError: a column is missing or holds something else.
    """
    table, labels, votes = _read(data)
    usage = np.array(table["usage"].to_pylist(), dtype=np.str_)
    truth = votes.argmax(axis=1)
    clear = (truth < len(LABELS)) & (votes.max(axis=1) >= LEAST_VOTES) & np.isin(usage, list(EXPECTED_KEPT))
    rows = np.flatnonzero(clear)
    ids = table["id"].take(pa.array(rows)).to_pylist()
    labels, truth, votes, usage = labels[rows], truth[rows], votes[rows], usage[rows]
    kept = {name: int((usage == name).sum()) for name in EXPECTED_KEPT}
    training = usage == "Training"
    if not training.any() or training.all():
        raise UserError(
            f"{data}: expected rows of both Training and PublicTest with clear votes, found {kept}"
        )
    splits = np.array([_split(*pair) for pair in zip(ids, usage, strict=True)])
    written = _subset(ids, labels, splits, subset)
    given = np.where(splits == "test", truth, labels)
    columns = {
        "id": pa.array(ids, pa.string()),
        "image": table["image"].take(pa.array(rows)),
        "label": pa.array(given, pa.int64()),
        "split": pa.array(splits, pa.string()),
        "truth_label": pa.array(truth, pa.int64()),
        "truth_votes": _votes_array(votes),
    }
    _write(target, pa.table(columns).take(pa.array(written)))
    counts = {split: Counter[str]() for split in ("train", "validation", "test")}
    for row in written:
        counts[splits[row]][LABELS[given[row]]] += 1
    return Prepared(
        kept=kept,
        disagreement=_disagreement(labels[training], truth[training]),
        counts={split: {name: found[name] for name in LABELS} for split, found in counts.items()},
    )


def _read(data: Path) -> tuple[pa.Table, Ints, Ints]:
    """The table, its labels (N,) as indices of LABELS, its votes (N, 10)."""
    if not data.is_file():
        raise UserError(f"{data}: no such file; benchmarks/README.md says how to make it")
    files = ColumnFiles([data])
    if missing := {"id", "image", "label", "votes", "usage"} - set(files.names):
        raise UserError(f"{data}: no column {min(missing)}; benchmarks/README.md says how to make the file")
    texts = files.text("label", f"{data}: column 'label'")
    if strange := set(texts) - set(LABELS):
        raise UserError(f"{data}: label {strange.pop()!r}; expected one of {', '.join(LABELS)}")
    table = files.read(files.names)
    lists = table["votes"].to_pylist()
    if any(votes is None or len(votes) != len(VOTES) for votes in lists):
        raise UserError(f"{data}: expected {len(VOTES)} votes a row: {', '.join(VOTES)}")
    labels = np.array([LABELS.index(str(text)) for text in texts], dtype=np.int64)
    return table, labels, np.array(lists, dtype=np.int64)


def _split(id_: str, usage: str) -> str:
    if usage == "PublicTest":
        return "validation"
    return "test" if int(hashlib.sha256(f"test:{id_}".encode()).hexdigest(), 16) % 10 < 3 else "train"


def _subset(ids: list[str], labels: Ints, splits: npt.NDArray[np.str_], subset: int | None) -> Ints:
    """Rows to write: all of validation and test, `subset` of train."""
    train = np.flatnonzero(splits == "train")
    names = [ids[row] for row in train]
    classes = [LABELS[label] for label in labels[train]]
    chosen = train[limited(names, ["train"] * len(train), classes, subset or len(train), seed=0)]
    return np.sort(np.concatenate([chosen, np.flatnonzero(splits != "train")]))


def _disagreement(labels: Ints, truth: Ints) -> dict[str, float]:
    wrong = labels != truth
    shares = {name: float(wrong[labels == k].mean()) for k, name in enumerate(LABELS) if (labels == k).any()}
    return {**shares, "all": float(wrong.mean())}


def _votes_array(votes: Ints) -> pa.Array:
    flat = pa.array(votes.astype(np.int8).ravel(), pa.int8())
    return pa.FixedSizeListArray.from_arrays(flat, len(VOTES))


def _write(target: Path, table: pa.Table) -> None:
    """Write Parquet atomically, with the metadata from which `datasets` restores Image and ClassLabel."""
    text = {"dtype": "string", "_type": "Value"}
    classes = {"names": list(LABELS), "_type": "ClassLabel"}
    votes = {"feature": {"dtype": "int8", "_type": "Value"}, "length": len(VOTES), "_type": "List"}
    known = {"image": {"_type": "Image"}, "label": classes, "truth_label": classes}
    known |= {"votes": votes, "truth_votes": votes}
    features = {name: known.get(name, text) for name in table.column_names}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    with atomic_path(target) as partial:
        pq.write_table(
            table.replace_schema_metadata(metadata),
            partial,
            compression="zstd",
            row_group_size=_ROWS_PER_GROUP,
        )


def build(fer2013: Path, ferplus: Path, target: Path) -> dict[str, int]:
    """Write one Parquet file (id, image, label, votes, usage) from the two public CSV files.

    Rows of Training and PublicTest, in their order; the id is the image's name in FER+. Rows without a name (not
    a face) are left out, and of images with the same pixels all but the first.

    Returns:
        Rows by what became of them.

    Raises:
        UserError: the files do not fit together.
    """
    ids, images, labels, votes, usages = [], [], [], [], []
    seen: set[bytes] = set()
    fates: Counter[str] = Counter()
    for place, face, judged in _pairs(fer2013, ferplus):
        usage = face["Usage"]
        if usage not in EXPECTED_KEPT:
            fates["of another usage, left out"] += 1
            continue
        if not judged["Image name"]:
            fates["without an image name, left out"] += 1
            continue
        try:
            pixels = np.array(face["pixels"].split(), dtype=np.uint8).reshape(SIDE, SIDE)
            label, cast = int(face["emotion"]), [int(judged[name]) for name in VOTES]
            name = FER2013_LABELS[label]
        except (ValueError, IndexError, OverflowError) as error:
            raise UserError(f"{place}: expected {SIDE * SIDE} pixels, label 0-6, votes ({error})") from error
        if pixels.tobytes() in seen:
            fates["exact copies, left out"] += 1
            continue
        seen.add(pixels.tobytes())
        fates[usage] += 1
        ids.append(Path(judged["Image name"]).stem)
        images.append({"bytes": _png(pixels), "path": None})
        labels.append(LABELS.index(name))
        votes.append(cast)
        usages.append(usage)
    if not ids:
        raise UserError(f"{fer2013}: no row of Training or PublicTest that FER+ has an image name for")
    columns = {
        "id": pa.array(ids, pa.string()),
        "image": pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        "label": pa.array(labels, pa.int64()),
        "votes": _votes_array(np.array(votes, dtype=np.int64)),
        "usage": pa.array(usages, pa.string()),
    }
    _write(target, pa.table(columns))
    return dict(fates)


def _pairs(fer2013: Path, ferplus: Path) -> Iterator[tuple[str, dict[str, str], dict[str, str]]]:
    """The rows of both files side by side, with the place of each for messages."""
    faces = _rows(fer2013, ("emotion", "pixels", "Usage"))
    judgements = _rows(ferplus, ("Usage", "Image name", *VOTES))
    for number, face in enumerate(faces, start=2):
        judged = next(judgements, None)
        if judged is None or judged["Usage"] != face["Usage"]:
            found = "no row" if judged is None else f"Usage {judged['Usage']}"
            raise UserError(
                f"{ferplus}: row {number}: expected Usage {face['Usage']} as in {fer2013.name}, found {found}; "
                "the files need the same rows in the same order"
            )
        yield f"{fer2013.name} and {ferplus.name}, row {number}", face, judged
    if next(judgements, None) is not None:
        raise UserError(f"{ferplus}: more rows than {fer2013.name}; the files need the same rows")


def _rows(path: Path, needed: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """Rows of a CSV file; names and cells without the blanks around them, which some copies have."""
    try:
        handle = path.open(encoding="utf-8-sig", newline="")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    with handle:
        reader = csv.reader(handle)
        header = [name.strip() for name in next(reader, [])]
        if missing := [name for name in needed if name not in header]:
            raise UserError(f"{path}: no column {missing[0]!r}; expected {', '.join(needed)}")
        for cells in reader:
            if cells:
                yield dict(zip(header, (cell.strip() for cell in cells), strict=False))


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
