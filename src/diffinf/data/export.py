"""A dataset in a layout that other tools read, and the issues found in it as a table."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from diffinf.data.card import class_table, synthetic_notice
from diffinf.data.images import SUFFIXES
from diffinf.data.readers import SPLITS
from diffinf.data.readers.formats import SUFFIXES as TABLES
from diffinf.data.readers.remote import is_url
from diffinf.data.sample_columns import SampleColumns
from diffinf.errors import UserError
from diffinf.files import atomic_path, make_directory, read_table, writing
from diffinf.progress import progress_bar

if TYPE_CHECKING:
    import pyarrow as pa

    from diffinf.data.dataset import FaceDataset
    from diffinf.run import Run

_ROWS = 500  # of a row group: some tens of megabytes of photographs at most
_GREY_MAP = b"P5\n"
_OF_SCORES = (
    "id", "target", "label", "appears", "score", "flagged", "label_trust", "self_influence", "level", "distance",
)  # fmt: skip


def issues(run: Run) -> pa.Table:
    """One row a training sample, the most suspicious first: scores, and what became of the flagged.

    Columns: id, target, label, appears (what it looks like), score, flagged, label_trust (estimated P(label right)),
    self_influence, of ordered classes level and distance, then of edits.parquet status, reason and path (null where a
    sample was not flagged, or nothing has been repaired yet).

    Raises:
        UserError: the run has no scores.
    """
    import pyarrow as pa

    scores = read_table(run.scores)
    table = scores.select([name for name in _OF_SCORES if name in scores.column_names])
    edits = {}
    if run.edits.exists():
        edits = {(row["id"], row["target"]): row for row in read_table(run.edits).to_pylist()}
    keys = list(zip(table["id"].to_pylist(), table["target"].to_pylist(), strict=True))
    for name in ("status", "reason", "path"):
        values = [edits[key][name] if key in edits else None for key in keys]
        table = table.append_column(name, pa.array(values, pa.string()))
    return table.sort_by([("score", "descending"), ("id", "ascending")])


def cleanlab_issues(run: Run) -> pa.Table:
    """The issues in the columns of cleanlab's `CleanLearning.get_label_issues`, with the id before them.

    Columns: id, is_label_issue, label_quality in [0, 1] (low: suspicious), given_label and predicted_label (numbers of
    classes, as cleanlab has them). Rows are sorted by id.

    Raises:
        UserError: the run has no scores.
    """
    import pyarrow as pa

    from diffinf.files import read_class_names

    scores = read_table(run.scores).sort_by("id")
    codes = {name: code for code, name in enumerate(read_class_names(scores))}
    return pa.table(
        {
            "id": scores["id"],
            "is_label_issue": scores["flagged"],
            "label_quality": scores["label_trust"],
            "given_label": [codes[name] for name in scores["label"].to_pylist()],
            "predicted_label": [codes[name] for name in scores["appears"].to_pylist()],
        }
    )


def refined_dataset(run: Run) -> tuple[FaceDataset, dict[str, str] | None]:
    """The refined dataset of a run, and what was done to each sample (None where the run does not tell).

    Raises:
        UserError: nothing has been repaired yet.
    """
    from diffinf.data.dataset import open_dataset

    if not run.refined.is_dir():
        raise UserError(f"{run.path}: no refined dataset yet; run `diffinf repair {run.path}` first")
    config, opened = run.config, Path(run.config.dataset)
    path = run.refined
    if is_url(config.dataset):  # a table alone, or a folder of Parquet files
        path = next((file for file in path.iterdir() if file.suffix.lower() in TABLES), path)
    elif (path / opened.name).is_file() and not opened.is_dir():
        path = (
            path / opened.name
        )  # a table is written under its name; all else is found in the folder as a whole
    settings = config.data.model_copy(update={"root": None, "limit": None})
    dataset = open_dataset(path, settings, seed=config.seed)
    if not run.provenance.exists():
        return dataset, None
    story = read_table(run.provenance).to_pylist()
    actions = {row["id"]: row["action"] for row in story}
    # Where the place tells the label, a relabelled sample is called by its new place.
    moved = {row["path"]: row["action"] for row in story if row["action"] == "relabelled"}
    return dataset, {**moved, **actions}


def write_csv(table: pa.Table, out: Path) -> None:
    """Write a table as CSV with a header, whole or not at all.

    Raises:
        UserError: the disk is full or may not be written to.
    """
    import pyarrow.csv

    with atomic_path(out) as temporary:
        pyarrow.csv.write_csv(table, temporary)


def export_parquet(dataset: FaceDataset, out: Path, actions: Mapping[str, str] | None = None) -> None:
    """Write Hugging Face Parquet: out/data/train-00000-of-00001.parquet ... and a card that names the splits.

    Columns: id, image (bytes and path), label (ClassLabel), identity where it is known, the groups, `action`, what
    diffinf did to the sample, where `actions` tell, and all others of the source, see `SampleColumns`.

    Args:
        dataset: what is written, usable samples alone.
        out: a folder that does not exist, or is empty.
        actions: id -> action, see `diffinf.data.card.ACTIONS`.

    Raises:
        UserError: `out` is not empty; a table cannot be read any more.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = SampleColumns(dataset, actions)
    image = pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    fields = [columns.schema.field(0), image, *list(columns.schema)[1:]]
    schema = _described(fields, columns.features | {"image": {"_type": "Image"}})
    with _folder(out) as folder, progress_bar("export", len(dataset)) as advance:
        (folder / "data").mkdir()
        for split in SPLITS:
            rows = dataset.rows(split).tolist()
            path = folder / "data" / f"{split}-00000-of-00001.parquet"
            with pq.ParquetWriter(path, schema, compression="zstd") as writer:
                for start in range(0, len(rows), _ROWS):
                    part = rows[start : start + _ROWS]
                    cells = [dict(zip(("bytes", "path"), _image(dataset, row), strict=True)) for row in part]
                    table = columns.rows(part).append_column(image, pa.array(cells, image.type))
                    writer.write_table(table.select(schema.names).cast(schema))
                    advance(len(part))
        files = [f"  - split: {split}\n    path: data/{split}-*.parquet" for split in SPLITS]
        front = "\n".join(["configs:", "- config_name: default", "  data_files:", *files])
        _write_card(folder, dataset, actions, front)


def export_imagefolder(
    dataset: FaceDataset, out: Path, actions: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Write out/SPLIT/CLASS/IMAGE, which torchvision's and Hugging Face's ImageFolder read.

    File names are made from ids, with "_" for what a file name should not hold. out/SPLIT/metadata.parquet has, beside
    `file_name`, the columns of `export_parquet`; Hugging Face takes labels from there, torchvision from the folders.

    Args:
        dataset: what is written, usable samples alone.
        out: a folder that does not exist, or is empty.
        actions: id -> action, for the card.

    Returns:
        id -> path below `out`.

    Raises:
        UserError: `out` is not empty; a table cannot be read any more.
    """
    columns = SampleColumns(dataset, actions)
    folders = _distinct(dataset.class_names)
    paths: dict[str, str] = {}
    taken: set[str] = set()
    with _folder(out) as folder, progress_bar("export", len(dataset)) as advance:
        for row, sample in enumerate(dataset.ids.tolist()):
            data, name = _image(dataset, row)
            place = f"{dataset.splits[row]}/{folders[int(dataset.labels[row])]}"
            path = f"{place}/{name}"
            if path.casefold() in taken:
                own = hashlib.sha256(sample.encode()).hexdigest()[:12]
                path = f"{place}/{Path(name).stem}-{own}{Path(name).suffix}"
            taken.add(path.casefold())
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            paths[sample] = path
            advance(1)
        for split in SPLITS:
            _write_metadata(folder / split, columns, dataset.rows(split).tolist(), paths)
        _write_card(folder, dataset, actions, "")
    return paths


def _described(fields: list[pa.Field], features: Mapping[str, Any]) -> pa.Schema:
    """A schema that says to `datasets` what its columns are."""
    import pyarrow as pa

    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def _write_metadata(folder: Path, columns: SampleColumns, rows: list[int], paths: Mapping[str, str]) -> None:
    """What is known of the images of a split, beside their class folders; nothing for an empty split."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not rows:
        return
    field = pa.field("file_name", pa.string())
    features = {"file_name": {"dtype": "string", "_type": "Value"}, **columns.features}
    schema = _described([field, *columns.schema], features)
    with pq.ParquetWriter(folder / "metadata.parquet", schema) as writer:
        for start in range(0, len(rows), _ROWS):
            table = columns.rows(rows[start : start + _ROWS])
            names = [paths[sample].partition("/")[2] for sample in table["id"].to_pylist()]
            writer.write_table(table.add_column(0, field, pa.array(names, pa.string())).cast(schema))


def _image(dataset: FaceDataset, row: int) -> tuple[bytes, str]:
    """The encoded image, grey values as PNG, and a file name made from the id."""
    data = dataset.encoded(row)
    with Image.open(io.BytesIO(data)) as image:
        kind = image.format or "PNG"
        if data.startswith(_GREY_MAP):
            buffer = io.BytesIO()
            image.save(buffer, format="PNG")
            data, kind = buffer.getvalue(), "PNG"
    name = _safe(str(dataset.ids[row]))
    if Path(name).suffix.lower() not in SUFFIXES:
        name += ".jpg" if kind == "JPEG" else f".{kind.lower()}"
    return data, name


def _safe(text: str) -> str:
    """Text as a file name."""
    return re.sub(r"[^\w.-]+", "_", text).lstrip(".-")[-120:] or "_"


def _distinct(names: tuple[str, ...]) -> list[str]:
    """Names of folders, one for each class."""
    made = [_safe(name) for name in names]
    folded = [name.casefold() for name in made]
    return [
        name if folded.count(name.casefold()) == 1 else f"{name}-{code}" for code, name in enumerate(made)
    ]


@contextmanager
def _folder(out: Path) -> Iterator[Path]:
    """A temporary folder that becomes `out` at the end of the block, or vanishes."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists already; choose another place")
    partial = out.absolute().with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a killed process
    make_directory(partial)
    try:
        with writing(out):
            yield partial
            if out.exists():
                out.rmdir()
            partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_card(folder: Path, dataset: FaceDataset, actions: Mapping[str, str] | None, front: str) -> None:
    edited = sum(action == "edited" for action in (actions or {}).values())
    lines = [
        "---",
        "tags:",
        "- faces",
        "- diffinf",
        *(["- synthetic"] if edited else []),
        *([front] if front else []),
    ]
    lines += ["---", "", f"# {folder.name.removeprefix('.').removesuffix('.partial')}", ""]
    if actions is not None:
        lines += [synthetic_notice(edited, len(dataset)), ""]
    lines += [
        f"Exported by diffinf from a dataset in the layout `{dataset.source.layout}`.",
        "",
        *class_table(dataset),
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
