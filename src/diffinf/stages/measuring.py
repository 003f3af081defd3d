"""Measures of saved features and embeddings: .npy, .npz or Parquet in, figures out."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diffinf.errors import UserError
from diffinf.evaluate.copies import COPY_NEIGHBOURS, NearCopies, near_copies
from diffinf.evaluate.fidelity import (
    FrechetDistance,
    KernelDistance,
    PrecisionRecallDensityCoverage,
    by_class,
    frechet_distance,
    kernel_distance,
    precision_recall_density_coverage,
)
from diffinf.evaluate.separability import IdentitySeparability, identity_separability
from diffinf.run import read_table

Array = npt.NDArray[Any]

# Names that an array of an .npz or a column of a Parquet table may have.
FEATURES = ("features", "embeddings", "embedding")
LABELS = ("labels", "label")
IDENTITIES = ("identities", "identity")


@dataclass(frozen=True)
class Fidelity:
    """The measures of `diffinf.evaluate.fidelity` and `.copies` on files; None where one was not asked for.

    Attributes:
        frechet: None too where there are not more samples than features.
        per_class: precision, recall, density and coverage within each class.
    """

    frechet: FrechetDistance | None
    kernel: KernelDistance
    prdc: PrecisionRecallDensityCoverage
    copies: NearCopies | None
    per_class: dict[str, PrecisionRecallDensityCoverage]

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON knows them."""
        return asdict(self)


def measure_fidelity(
    real: Path,
    generated: Path,
    *,
    train: Path | None = None,
    held_out: Path | None = None,
    nearest_k: int = 5,
    per_class: bool = False,
    allow_singular: bool = False,
    seed: int = 0,
) -> Fidelity:
    """Compare saved features of generated images with those of real ones.

    Args:
        real: file with features (N, D), and for ``per_class`` labels (N,).
        generated: the same of generated images.
        train: features of the generator's training images, to count copies of them.
        held_out: features of other real images: the copies to expect by chance.
        nearest_k: neighbours of the balls of precision, recall, density, coverage.
        per_class: measure those within classes too.
        allow_singular: take the Fréchet distance even of few samples.
        seed: of the blocks of the kernel distance.

    Raises:
        UserError: a file cannot be read, or holds what cannot be measured.
    """
    if held_out is not None and train is None:
        raise UserError("--held-out says how many copies of training images to expect: give --train too")
    files = [saved_arrays(path) for path in (real, generated)]
    x, y = (_pick(path, arrays, FEATURES) for path, arrays in zip((real, generated), files, strict=True))
    try:
        enough = allow_singular or min(len(x), len(y)) > x.shape[-1]
        return Fidelity(
            frechet=frechet_distance(x, y, allow_singular=allow_singular) if enough else None,
            kernel=kernel_distance(x, y, seed=seed),
            prdc=precision_recall_density_coverage(x, y, nearest_k),
            copies=_copies(train, y, held_out) if train is not None else None,
            per_class=by_class(
                lambda a, b: precision_recall_density_coverage(a, b, nearest_k),
                x,
                y,
                _pick(real, files[0], LABELS),
                _pick(generated, files[1], LABELS),
            )
            if per_class
            else {},
        )
    except ValueError as error:
        raise UserError(f"{real}, {generated}: {error}") from error


def measure_separability(embeddings: Path, identities: Path | None = None) -> IdentitySeparability:
    """Separability of saved embeddings (N, D) by identities (N,), in the same file or in one of their own.

    Raises:
        UserError: a file cannot be read, or holds what cannot be measured.
    """
    arrays = saved_arrays(embeddings)
    vectors = _pick(embeddings, arrays, FEATURES)
    if identities is None and embeddings.suffix == ".npy":
        raise UserError(f"{embeddings}: an .npy has no identities; name their file with --identities")
    source = embeddings if identities is None else identities
    people = _pick(source, arrays if identities is None else saved_arrays(source), IDENTITIES)
    try:
        return identity_separability(vectors, people)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from error


def saved_arrays(path: Path, names: Sequence[str] = (*FEATURES, *LABELS, *IDENTITIES)) -> dict[str, Array]:
    """The arrays of an .npz or the columns of a Parquet table by name; the array of an .npy under the name "".

    Nothing is unpickled; of a table, only the columns in `names` are read.

    Raises:
        UserError: the file is missing, damaged, of another kind, or holds Python objects.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix == ".parquet":
        return {name: _column(column) for name, column in _columns(path, names).items()}
    if path.suffix not in (".npy", ".npz"):
        raise UserError(f"{path}: expected an .npy, an .npz or a .parquet file")
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return {"": found}
        with found:
            return {name: found[name] for name in found.files}
    except (ValueError, EOFError, OSError, MemoryError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not an array file that can be read without unpickling ({error})") from error


def _columns(path: Path, names: Sequence[str]) -> dict[str, Any]:
    table = read_table(path)
    wanted = set(names) & set(table.column_names)
    return {name: table[name] for name in wanted}


def _column(column: Any) -> Array:
    if str(column.type).startswith(("list", "large_list", "fixed_size_list")):
        rows = column.to_pylist()
        widths = {len(row) if row is not None else 0 for row in rows}
        return np.array(rows, dtype=np.float64) if len(widths) == 1 else np.zeros((len(rows), 0))
    return np.array(column.to_pylist())


def _pick(path: Path, arrays: dict[str, Array], names: tuple[str, ...]) -> Array:
    for name in ("", *names):
        if name in arrays:
            return arrays[name]
    raise UserError(
        f"{path}: nothing in it is called {' or '.join(names)}; it has {', '.join(sorted(arrays)) or 'no such columns'}"
    )


def _copies(train: Path, generated: Array, held_out: Path | None) -> NearCopies:
    known = _pick(train, saved_arrays(train), FEATURES)
    others = None if held_out is None else _pick(held_out, saved_arrays(held_out), FEATURES)
    return near_copies(known, generated, held_out=others, neighbours=min(COPY_NEIGHBOURS, len(known)))
