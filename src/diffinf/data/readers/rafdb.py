"""RAF-DB: list_patition_label.txt with "train_00001.jpg 5", and aligned images train_00001_aligned.jpg.

Li and Deng, Reliable Crowdsourcing and Deep Locality-Preserving Learning for Expression Recognition in the
Wild (CVPR 2017). The list's name is misspelt as published.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from diffinf.data.readers.base import DatasetSource, FileStore, Records, no_columns
from diffinf.data.readers.labels import LabelCoding
from diffinf.data.readers.lists import (
    ListFile,
    annotation_file,
    by_first_word,
    first_of,
    listed_name,
    read_lines,
    replace_word,
    words,
)
from diffinf.errors import UserError

if TYPE_CHECKING:
    from diffinf.config import DataConfig

CODES = {
    "1": "Surprise",
    "2": "Fear",
    "3": "Disgust",
    "4": "Happiness",
    "5": "Sadness",
    "6": "Anger",
    "7": "Neutral",
}
_LISTS = tuple(
    f"{folder}{name}"
    for folder in ("", "EmoLabel/", "basic/EmoLabel/")
    for name in ("list_patition_label.txt", "list_partition_label.txt")
)
_IMAGES = ["Image/aligned", "basic/Image/aligned", "aligned", "Image/original", "basic/Image/original", "."]
_MANUAL = ["Annotation/manual", "basic/Annotation/manual"]
_GROUPS = {  # line of _manu_attri.txt, counted from the end, and what its codes mean
    "gender": (-3, ("male", "female", "unsure")),
    "race": (-2, ("Caucasian", "African-American", "Asian")),
    "age": (-1, ("0-3", "4-19", "20-39", "40-69", "70+")),
}


def detect(path: Path) -> bool:
    """Whether a folder holds the list of RAF-DB's basic expressions."""
    return path.is_dir() and any((path / name).is_file() for name in _LISTS)


def read(path: Path, config: DataConfig) -> Records:
    """Read the basic expressions; ids are the listed names, splits their beginnings ("train_", "test_").

    `config.groups` may name gender, race and age, which are read from Annotation/manual.

    Raises:
        UserError: a line that is no name and code, an unknown group.
    """
    no_columns(path, config, "RAF-DB has its list", labels=("expression",), groups=tuple(_GROUPS))
    root = path.resolve()
    listing = annotation_file(root, *_LISTS)
    if listing is None:
        raise UserError(f"{path}: no list_patition_label.txt; expected RAF-DB's list of labels")
    rows = [(number, words(line)) for number, line in enumerate(read_lines(listing), 1) if line.strip()]
    if not rows:
        raise UserError(f"{listing}: no rows; expected lines such as 'train_00001.jpg 5'")
    for number, row in rows:
        if len(row) != 2:
            raise UserError(
                f"{listing}: line {number}: expected a name and a code, such as 'train_00001.jpg 5'"
            )
    ids = [row[0] for _, row in rows]
    folder = first_of(root, _IMAGES, _aligned(ids[0]))
    named = _aligned if "original" not in folder else str
    relative = [listed_name(listing, number, root, folder, named(row[0])) for number, row in rows]
    manual = first_of(root, _MANUAL, _attributes(ids[0]))
    companions: dict[int, tuple[str, ...]] = {
        position: (manual + _attributes(sample),)
        for position, sample in enumerate(ids)
        if manual and (root / manual / _attributes(sample)).is_file()
    }
    places = [f"line {number} of {listing}" for number, _ in rows]
    position = by_first_word({sample: at for at, sample in enumerate(ids)})
    return Records(
        source=DatasetSource(
            path=root,
            layout="rafdb",
            root=root,
            rows=len(ids),
            annotations=(ListFile(listing, position, partial(replace_word, 1)),),
            companions=companions,
            coding=LabelCoding(codes={name: code for code, name in CODES.items()}),
        ),
        images=FileStore(root, relative, max_pixels=config.max_pixels),
        ids=ids,
        labels=[CODES.get(row[1]) for _, row in rows],
        class_names=tuple(name for code, name in CODES.items() if any(row[1] == code for _, row in rows)),
        splits=[sample.partition("_")[0] for sample in ids],
        identities=None,
        split_keys=ids,
        places=places,
        groups={name: _group(root, companions, len(ids), *_GROUPS[name]) for name in config.groups},
        faults={
            at: f"label is {row[1]!r}; expected 1 to 7"
            for at, (_, row) in enumerate(rows)
            if row[1] not in CODES
        },
    )


def _aligned(name: str) -> str:
    return f"{Path(name).stem}_aligned{Path(name).suffix}"


def _attributes(name: str) -> str:
    return f"{Path(name).stem}_manu_attri.txt"


def _group(
    root: Path, companions: dict[int, tuple[str, ...]], rows: int, line: int, names: tuple[str, ...]
) -> list[str | None]:
    """What the annotators wrote of each face; None where they wrote nothing that is known."""
    values: list[str | None] = [None] * rows
    for position, (file,) in companions.items():
        written = [text.strip() for text in read_lines(root / file) if text.strip()]
        code = written[line] if len(written) >= -line else ""
        values[position] = names[int(code)] if code.isdecimal() and int(code) < len(names) else None
    return values
