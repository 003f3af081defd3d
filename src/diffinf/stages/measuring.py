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
from diffinf.files import read_table

Array = npt.NDArray[Any]

# Names that an array of an .npz or a column of a Parquet table may have.
FEATURES = ("features", "embeddings", "embedding")
LABELS = ("labels", "label")
IDENTITIES = ("identities", "identity")
IDS = ("ids", "id")


@dataclass(frozen=True)
class ClassFidelity:
    """The measures within one class; None where it has too few samples: not more than features for the Fréchet
    distance, fewer than two for the kernel distance, not more than the neighbours of the balls.
    """

    frechet: FrechetDistance | None
    kernel: KernelDistance | None
    prdc: PrecisionRecallDensityCoverage | None
    n_real: int
    n_generated: int


@dataclass(frozen=True)
class Fidelity:
    """The measures of `diffinf.evaluate.fidelity` and `.copies` on files; None where one was not asked for.

    Attributes:
        frechet: None too where there are not more samples than features.
        per_class: the measures within each class that both sides have.
        one_sided: classes that only one side has: they are in no figure by class.
        copy_ids: (generated, trained on) ids of the near copies, the closest first, where the files have ids.
    """

    frechet: FrechetDistance | None
    kernel: KernelDistance
    prdc: PrecisionRecallDensityCoverage
    copies: NearCopies | None
    per_class: dict[str, ClassFidelity]
    one_sided: tuple[str, ...] = ()
    copy_ids: tuple[tuple[str, str], ...] = ()

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
    if per_class and (bare := [path for path in (real, generated) if path.suffix == ".npy"]):
        raise UserError(
            f"{bare[0]}: an .npy has no labels for --by-class; give an .npz or a Parquet file with features and labels"
        )
    files = [saved_arrays(path) for path in (real, generated)]
    x, y = (_pick(path, arrays, FEATURES) for path, arrays in zip((real, generated), files, strict=True))
    labels = [
        _pick(path, arrays, LABELS)
        for path, arrays in zip((real, generated), files, strict=True)
        if per_class
    ]
    known = None if train is None else saved_arrays(train)

    def within(a: Array, b: Array) -> ClassFidelity:
        least = min(len(a), len(b))
        return ClassFidelity(
            frechet=frechet_distance(a, b, allow_singular=allow_singular)
            if least > (1 if allow_singular else a.shape[1])
            else None,
            kernel=kernel_distance(a, b, seed=seed) if least > 1 else None,
            prdc=precision_recall_density_coverage(a, b, nearest_k) if least > nearest_k else None,
            n_real=len(a),
            n_generated=len(b),
        )

    try:
        enough = allow_singular or min(len(x), len(y)) > x.shape[-1]
        copies = None if train is None or known is None else _copies(train, known, y, held_out)
        return Fidelity(
            frechet=frechet_distance(x, y, allow_singular=allow_singular) if enough else None,
            kernel=kernel_distance(x, y, seed=seed),
            prdc=precision_recall_density_coverage(x, y, nearest_k),
            copies=copies,
            per_class=by_class(within, x, y, labels[0], labels[1]) if per_class else {},
            one_sided=tuple(map(str, np.setxor1d(labels[0], labels[1]))) if per_class else (),
            copy_ids=_copy_ids(files[1], known or {}, copies),
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


def saved_arrays(
    path: Path, names: Sequence[str] = (*FEATURES, *LABELS, *IDENTITIES, *IDS)
) -> dict[str, Array]:
    """The arrays of an .npz or the columns of a Parquet table by name; the array of an .npy under the name "".

    Nothing is unpickled; of a table, only the columns in `names` are read.

    Raises:
        UserError: the file is missing, damaged, of another kind, or holds Python objects.
    """
    if path.is_dir():
        raise UserError(
            f"{path}: a folder; expected features in an .npy, an .npz or a .parquet file (docs/measures.md shows how "
            "to make them of pictures)"
        )
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


def _copies(train: Path, arrays: dict[str, Array], generated: Array, held_out: Path | None) -> NearCopies:
    known = _pick(train, arrays, FEATURES)
    others = None if held_out is None else _pick(held_out, saved_arrays(held_out), FEATURES)
    return near_copies(known, generated, held_out=others, neighbours=max(2, min(COPY_NEIGHBOURS, len(known))))


def _copy_ids(
    generated: dict[str, Array], train: dict[str, Array], copies: NearCopies | None
) -> tuple[tuple[str, str], ...]:
    sides = [next((arrays[name] for name in IDS if name in arrays), None) for arrays in (generated, train)]
    if copies is None or sides[0] is None or sides[1] is None:
        return ()
    indices = copies.generated_indices, copies.train_indices
    for ids, rows in zip(sides, indices, strict=True):
        if ids is not None and (ids.ndim != 1 or len(ids) <= max(rows, default=-1)):
            raise ValueError(f"ids of shape {ids.shape}; expected one for each row of the features")
    return tuple((str(sides[0][a]), str(sides[1][b])) for a, b in zip(*indices, strict=True))
