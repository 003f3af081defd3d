"""Write rendered faces as a Hugging Face `datasets` Parquet, with the truth beside the labels."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from diffinf.data.rendered.annotate import NOISES, Noise, annotate
from diffinf.data.rendered.factors import FACTORS_ORDER, FaceFactors, concatenate
from diffinf.data.rendered.presets import RenderPlan, preset_plan
from diffinf.data.rendered.render import render_faces
from diffinf.data.rendered.sample import sample_faces
from diffinf.data.rendered.tasks import CLASS_NAMES, Task, class_names, true_labels
from diffinf.errors import UserError
from diffinf.files import atomic_path
from diffinf.progress import progress_bar

SPLITS = ("train", "validation", "test")
FILE_NAME = "faces.parquet"
_SHARES = (0.6, 0.1, 0.3)
_ROWS_PER_GROUP = 500
_IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@dataclass(frozen=True, eq=False)
class RenderedFaces:
    """Factors and labels of a rendered dataset before it is drawn; arrays of shape (N,), rows in id order."""

    factors: FaceFactors
    ids: npt.NDArray[np.str_]
    splits: npt.NDArray[np.str_]
    identities: npt.NDArray[np.str_]
    labels: npt.NDArray[np.int64]  # train and validation: the annotator's; test: the truth
    truth: npt.NDArray[np.int64]
    class_names: tuple[str, ...]


def make_plan(
    *, n: int, size: int, task: Task, identities: int, noise: Noise, rate: float,
    similarity: float = 0.0, nuisance: float = 1.0,
) -> RenderPlan:  # fmt: skip
    """Split `n` pictures and `identities` people 60 : 10 : 30 into train, validation and test.

    Raises UserError for values that cannot be rendered.
    """
    if task not in CLASS_NAMES:
        raise UserError(f"unknown task {task!r}; choose one of: {', '.join(CLASS_NAMES)}")
    if noise not in NOISES:
        raise UserError(f"unknown noise {noise!r}; choose one of: {', '.join(NOISES)}")
    if not 0 <= rate <= 0.8:
        raise UserError(f"rate is {rate}, expected a share of wrong labels between 0 and 0.8")
    if not 24 <= size <= 512:
        raise UserError(f"size is {size}, expected 24 to 512 pixels")
    if not 0 <= similarity < 1:
        raise UserError(f"similarity is {similarity}, expected at least 0 and less than 1")
    if n < 50:
        raise UserError(f"n is {n}, expected at least 50 pictures: 5 classes in 3 splits need some of each")
    pictures = (n - round(n * 0.1) - round(n * 0.3), round(n * 0.1), round(n * 0.3))
    if not 3 <= identities <= n:
        raise UserError(f"identities is {identities}, expected 3 to {n}: each split has its own people")
    few, many = (
        max(1, min(round(identities * s), p)) for s, p in zip(_SHARES[1:], pictures[1:], strict=True)
    )
    people = (min(identities - few - many, pictures[0]), few, many)
    return RenderPlan(task, size, pictures, people, noise, rate, similarity, nuisance)


def sample_dataset(plan: RenderPlan, seed: int) -> RenderedFaces:
    """Draw people, pictures and labels of a plan; the people of the three splits are disjoint.

    Train and validation are labelled by the annotator (the share of errors is fitted over both together);
    the test split carries the true labels, as if experts had checked it.
    """
    parts, splits, people = [], [], []
    for index, (split, count, crowd) in enumerate(zip(SPLITS, plan.pictures, plan.identities, strict=True)):
        factors, who = sample_faces(
            count, seed * len(SPLITS) + index, plan.task, identities=crowd,
            similarity=plan.similarity, nuisance=plan.nuisance,
        )  # fmt: skip
        parts.append(factors)
        splits += [split] * count
        people += [f"{split}-{person:05d}" for person in who]
    factors = concatenate(parts)
    truth = true_labels(factors, plan.task)
    labels = truth.copy()
    annotated = plan.pictures[0] + plan.pictures[1]
    labels[:annotated] = annotate(
        factors.take(slice(annotated)), plan.task, plan.noise, plan.rate, seed * len(SPLITS)
    )
    ids = np.asarray([f"face{row:06d}" for row in range(len(factors))])
    return RenderedFaces(
        factors, ids, np.asarray(splits), np.asarray(people), labels, truth, class_names(plan.task)
    )


def render_dataset(
    out: Path | str, *, n: int = 6600, size: int = 64, task: Task = "expression", identities: int = 800,
    noise: Noise = "confounded", rate: float = 0.27, seed: int = 0, preset: str | None = None,
    similarity: float = 0.0, nuisance: float = 1.0, overwrite: bool = False,
) -> Path:  # fmt: skip
    """Render a dataset of labelled faces into one Parquet file and return its path.

    `out` is a file name ending in .parquet, or a directory that gets `faces.parquet`. Columns: id, image
    (PNG, RGB, `size` x `size`), label (class), split (train, validation, test; disjoint people, 60:10:30),
    identity, truth_label (name of the true class) and truth_<factor> for every factor of `FaceFactors`.

    A share `rate` of the labels in train and validation is wrong, in the manner of `noise`; THE TEST SPLIT
    CARRIES THE TRUE LABELS, as if experts had checked them. `preset` fixes everything but the seed. The file
    opens with `datasets.load_dataset("parquet", ...)` as Image and ClassLabel features. Same arguments and
    seed, same file.

    Raises UserError for arguments out of range, and if the file exists and `overwrite` is not set.
    """
    if preset is not None:
        plan = preset_plan(preset)
    else:
        plan = make_plan(
            n=n, size=size, task=task, identities=identities, noise=noise, rate=rate,
            similarity=similarity, nuisance=nuisance,
        )  # fmt: skip
    path = Path(out)
    if path.suffix != ".parquet":
        path = path / FILE_NAME
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists already; choose another name or remove it first")
    faces = sample_dataset(plan, seed)
    schema = _schema(faces.class_names)
    with (
        atomic_path(path) as partial,
        pq.ParquetWriter(partial, schema, compression="zstd", compression_level=1) as writer,
        progress_bar("rendering faces", len(faces.ids)) as advance,
    ):
        for batch in _batches(faces, plan.size, schema):
            writer.write_table(batch)
            advance(batch.num_rows)
    return path


def _batches(faces: RenderedFaces, size: int, schema: pa.Schema) -> Iterator[pa.Table]:
    for start in range(0, len(faces.ids), _ROWS_PER_GROUP):
        rows = slice(start, start + _ROWS_PER_GROUP)
        factors = faces.factors.take(rows)
        images = [{"bytes": encode_png(p), "path": None} for p in render_faces(factors, size)]
        columns: dict[str, Any] = {
            "id": faces.ids[rows],
            "image": pa.array(images, type=_IMAGE_TYPE),
            "label": faces.labels[rows],
            "split": faces.splits[rows],
            "identity": faces.identities[rows],
            "truth_label": np.asarray(faces.class_names)[faces.truth[rows]],
        }
        columns |= {f"truth_{name}": values for name, values in factors.as_columns().items()}
        yield pa.table(columns, schema=schema)


def encode_png(picture: npt.NDArray[np.uint8]) -> bytes:
    """Encode one picture (3, H, W) uint8 as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(picture.transpose(1, 2, 0)).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _schema(names: tuple[str, ...]) -> pa.Schema:
    """Columns of the file, with the metadata from which `datasets` restores Image and ClassLabel features."""

    def value(dtype: str) -> dict[str, str]:
        return {"dtype": dtype, "_type": "Value"}

    fields = [("id", pa.string()), ("image", _IMAGE_TYPE), ("label", pa.int64()), ("split", pa.string())]
    fields += [("identity", pa.string()), ("truth_label", pa.string())]
    features: dict[str, Any] = {name: value("string") for name, _ in fields}
    features["image"] = {"_type": "Image"}
    features["label"] = {"names": list(names), "_type": "ClassLabel"}
    for name in FACTORS_ORDER:
        seed = name == "noise_seed"
        fields.append((f"truth_{name}", pa.int64() if seed else pa.float32()))
        features[f"truth_{name}"] = value("int64" if seed else "float32")
    metadata = {"huggingface": json.dumps({"info": {"features": features}}), "class_names": json.dumps(names)}
    return pa.schema(fields, metadata=metadata)


def factors_from_table(table: pa.Table) -> FaceFactors:
    """Read the factors back from the truth_* columns of a table, rows as they stand.

    Raises UserError if the table is not one of rendered faces.
    """
    missing = [name for name in FACTORS_ORDER if f"truth_{name}" not in table.column_names]
    if missing:
        raise UserError(
            f"the table has no column truth_{missing[0]}; expected a dataset written by `diffinf render`"
        )
    return FaceFactors(**{name: table[f"truth_{name}"].to_numpy() for name in FACTORS_ORDER})
