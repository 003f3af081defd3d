"""Contexts as the commands name them: those a generator has learned, files, draws, the persons of a dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from diffinf.classify.model import load_classifier, to_input
from diffinf.config import DataConfig
from diffinf.data.dataset import FaceDataset, open_dataset
from diffinf.data.writers import check_output
from diffinf.errors import UserError
from diffinf.features.persons import PersonEmbedder
from diffinf.generate.contexts import identity_contexts, random_contexts, unit_contexts
from diffinf.generate.folder import Order
from diffinf.generate.model import ContextGenerator
from diffinf.stages.measuring import saved_arrays
from diffinf.stages.workspace import Ints

T = TypeVar("T", int, float)

EMBEDDER = "embedder"  # folder below the generator's
EMBEDDINGS = ("embeddings", "embedding", "features", "contexts", "context")
_EXPECTED = (
    "expected train, a file (.npy, .npz, .parquet), random:N, reference:DATASET or perturb:DEGREES:SOURCE"
)
IDS = ("id", "ids", "context_id", "identity", "identities")


def read_order(
    model: ContextGenerator,
    folder: Path,
    text: str,
    per_context: int,
    seed: int,
    device: torch.device,
    out: Path,
) -> Order:
    """Return the contexts that `text` names: train, a file, random:N, reference:DATASET, perturb:DEGREES:SOURCE.

    DEGREES is an angle, or two with a hyphen between them.

    Raises:
        UserError: the text is none of these, what it names cannot be read, or `out` lies in the dataset it names.
    """
    kind, _, rest = text.partition(":")
    if kind == "perturb":
        degrees, _, source = rest.partition(":")
        least, hyphen, largest = degrees.partition("-")
        low = _number(text, least, float)
        high = _number(text, largest, float) if hyphen else low
        if not 0 <= low <= high <= 180:
            raise UserError(
                f"--contexts {text}: expected an angle from 0 to 180 degrees, or two such as 0-60, the smaller first"
            )
        order = read_order(model, folder, source or "train", per_context, seed, device, out)
        return order._replace(perturb=(low, high) if hyphen else low)
    if kind == "random":
        vectors = random_contexts(_number(text, rest, int), model.context_size, seed)
        return Order(vectors, [f"{row:06d}" for row in range(len(vectors))], per_context)
    if kind == "reference":
        vectors, names = _reference(Path(rest), folder / EMBEDDER, device, out)
        return Order(vectors, names, per_context)
    if text == "train":
        if not model.context_names:
            raise UserError(
                "--contexts train (the default): the model has learned none; name a file, random:N or reference:DATASET"
            )
        return Order(model.denoiser.contexts().cpu(), model.context_names, per_context)
    path = Path(text)
    if path.is_dir():
        raise UserError(
            f"--contexts {text}: a folder; write reference:{text} for the persons of a dataset, or name a file"
        )
    if not path.exists():
        raise UserError(f"--contexts {text}: no such file; {_EXPECTED}")
    vectors, ids = _saved(path)
    try:
        unit_contexts(vectors)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return Order(vectors, ids or [f"{row:06d}" for row in range(len(vectors))], per_context)


def persons_of(dataset: FaceDataset, rows: Ints) -> tuple[tuple[str, ...], Tensor]:
    """Return the names of the persons in rows (N,) of a dataset, and int64 (N,), which of them each row shows.

    Raises:
        UserError: the dataset does not say who is shown.
    """
    if dataset.identities is None:
        raise UserError(
            "generator.condition: the dataset does not say who is shown; name the column (--identity), or choose label"
        )
    names, who = np.unique(dataset.identities[rows], return_inverse=True)
    return tuple(names.tolist()), torch.from_numpy(who.astype(np.int64))


def load_embedder(directory: Path, device: torch.device) -> PersonEmbedder:
    """Return the embedder that was trained with a generator; UserError where there is none."""
    if not (directory / "config.json").exists():
        raise UserError(
            f"{directory}: no embedder is with this generator, so it cannot read images; give contexts as a file"
        )
    network, _ = load_classifier(directory, device)
    return PersonEmbedder(network.eval().requires_grad_(False), to_input, device)


def read_embeddings(path: Path, ids: list[str]) -> Tensor:
    """Return the embeddings (N, D) of samples from a file that names them by id; UserError where it cannot."""
    vectors, found = _saved(path)
    names = found or []
    place = {name: row for row, name in enumerate(names)}
    if twice := len(names) - len(place):
        first = next(name for name, count in Counter(names).items() if count > 1)
        raise UserError(
            f"{path}: {twice} of its ids stand there more than once, {first!r} the first; expected each id once"
        )
    if missing := [id_ for id_ in ids if id_ not in place]:
        raise UserError(
            f"{path}: {len(missing)} of {len(ids)} training samples are not among its ids, {missing[0]!r} the first; "
            "expected columns id and embedding"
        )
    chosen = vectors[torch.tensor([place[id_] for id_ in ids])]
    length = chosen.norm(dim=1)
    usable = length.isfinite() & (length > 0)
    if not usable.all():
        first = ids[int(usable.int().argmin())]
        raise UserError(
            f"{path}: {int((~usable).sum())} of the {len(ids)} embeddings of training samples hold NaN or infinity, or "
            f"are 0 throughout, that of {first!r} the first; embed these samples anew, or leave them out of the dataset"
        )
    return chosen


def _saved(path: Path) -> tuple[Tensor, list[str] | None]:
    """Return vectors (M, D) of a file and the names beside them, if there are any."""
    arrays = saved_arrays(path, names=(*EMBEDDINGS, *IDS))
    for name in ("", *EMBEDDINGS):
        if name in arrays:
            found = arrays[name]
            break
    else:
        raise UserError(f"{path}: nothing in it is called {' or '.join(EMBEDDINGS)}")
    if found.dtype.kind not in "fiu" or found.ndim != 2:
        raise UserError(f"{path}: expected vectors (N, D) of numbers, found {found.dtype} {found.shape}")
    ids = next((arrays[name] for name in IDS if name in arrays), None)
    names = None if ids is None else [str(value) for value in ids]
    if names is not None and len(names) != len(found):
        raise UserError(f"{path}: {len(names)} names beside {len(found)} vectors")
    return torch.from_numpy(found.astype(np.float32)), names


def _reference(path: Path, embedder: Path, device: torch.device, out: Path) -> tuple[Tensor, list[str]]:
    """Return the mean context of each person of a dataset, and the persons' names."""
    network, spec = load_embedder(embedder, device), load_classifier(embedder, device)[1]
    dataset = open_dataset(path, DataConfig(), to_measure=True)
    check_output(dataset, out)
    rows = np.arange(len(dataset))
    names, who = persons_of(dataset, rows)
    images = dataset.images(rows, size=spec.image_size, channels=spec.in_channels)
    return identity_contexts(network.embed(images)[0], who), list(names)


def _number(text: str, number: str, kind: Callable[[str], T]) -> T:
    try:
        return kind(number)
    except ValueError as error:
        raise UserError(f"--contexts {text}: {_EXPECTED}") from error
