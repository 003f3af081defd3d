"""The nearest copies of training images as pictures, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffinf.config import DataConfig
from diffinf.data import FaceDataset, open_dataset
from diffinf.data.inspect.sheet import picture_sheet, tiles_of
from diffinf.errors import UserError
from diffinf.files import atomic_path
from diffinf.stages.measuring import Fidelity

_SHOWN = 40  # pairs


def draw_copies(found: Fidelity, generated: Path, train: Path, target: Path) -> bool:
    """Draw the closest near copies beside the training images that they copy into the PNG `target`.

    Args:
        found: with ids of the copies, `Fidelity.copy_ids`.
        generated: dataset of the generated images.
        train: dataset of the images trained on.
        target: the picture.

    Returns:
        False if there is no copy: then nothing is written.

    Raises:
        UserError: the files of features have no ids, or an id is none of the dataset's.
    """
    copies = found.copies
    if copies is None or not copies.n_copies:
        return False
    if not found.copy_ids:
        raise UserError(
            "the files of features do not say which image a row is of: to show copies, give those of --generated and "
            "--train an array ids (.npz) or a column id (Parquet)"
        )
    pairs = found.copy_ids[:_SHOWN]
    opened = [open_dataset(path, DataConfig(), to_measure=True) for path in (generated, train)]
    sides = [
        tiles_of(dataset, _rows(dataset, ids))
        for dataset, ids in zip(opened, zip(*pairs, strict=True), strict=True)
    ]
    captions = [
        [(made, "black"), (f"= {known}", "#b00020"), (f"ratio {ratio:.2f}", "black")]
        for (made, known), ratio in zip(pairs, copies.ratios[: len(pairs)], strict=True)
    ]
    headings = [(0, "made"), (1, "trained on")]
    sheet = picture_sheet([[a, b, None] for a, b in zip(*sides, strict=True)], captions, headings)
    with atomic_path(target) as partial:
        sheet.save(partial, format="PNG")
    return True


def _rows(dataset: FaceDataset, ids: Sequence[str]) -> list[int]:
    places = {str(id_): row for row, id_ in enumerate(dataset.ids)}
    missing = [id_ for id_ in ids if id_ not in places]
    if missing:
        raise UserError(
            f"{dataset.source.name}: no image has the id {missing[0]!r} of the features' file; ids here are such as "
            f"{dataset.ids[0]!r}"
        )
    return [places[id_] for id_ in ids]
