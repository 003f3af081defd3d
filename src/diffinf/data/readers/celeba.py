"""CelebA: list_attr_celeba.txt with 40 attributes of -1 and 1, partitions, identities, aligned images.

Liu et al., Deep Learning Face Attributes in the Wild (arXiv 1411.7766).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from diffinf.data.readers.base import DatasetSource, FileStore, Records
from diffinf.data.readers.labels import LabelCoding
from diffinf.data.readers.lists import (
    ListFile,
    annotation_file,
    by_first_word,
    first_of,
    listed_name,
    read_lines,
    replace_word,
    values_by_name,
    words,
)
from diffinf.errors import UserError

if TYPE_CHECKING:
    from diffinf.config import DataConfig

_FOLDERS = ("", "Anno/", "Eval/")
_IMAGES = ["img_align_celeba", "img_align_celeba/img_align_celeba", "Img/img_align_celeba", "images", "."]
_PARTITIONS = {"0": "train", "1": "validation", "2": "test"}
_LISTS = (
    "list_eval_partition",
    "identity_CelebA",
    "list_bbox_celeba",
    "list_landmarks_align_celeba",
    "list_landmarks_celeba",
)


def detect(path: Path) -> bool:
    """Whether a folder holds the list of attributes."""
    return path.is_dir() and any((path / name).is_file() for name in _names("list_attr_celeba"))


def attributes(path: Path) -> list[str]:
    """The names of the attributes that are listed."""
    return _table(_attribute_file(path))[0]


def read(path: Path, config: DataConfig) -> Records:
    """Read one attribute as two classes, "not Smiling" and "Smiling".

    `config.label` names the attribute, `config.groups` others ("Male" -> "Male" or "not Male"). The text files of the
    authors and the CSV files of their copies are read alike. Ids are the listed names.

    Raises:
        UserError: an attribute that is not there, a line of the wrong length, a row without a partition.
    """
    root = path.resolve()
    listing = _attribute_file(path)
    names, rows = _table(listing)
    label, groups = _columns(listing, names, config)
    ids = [row[0] for _, row in rows]
    folder = first_of(root, _IMAGES, ids[0])
    relative = [listed_name(listing, number, root, folder, row[0]) for number, row in rows]
    partition, people, *others = (annotation_file(root, *_names(stem)) for stem in _LISTS)
    position = by_first_word({sample: number for number, sample in enumerate(ids)})
    lists = [ListFile(file, position) for file in (partition, people, *others) if file is not None]
    known = {} if people is None else values_by_name(people)
    return Records(
        source=DatasetSource(
            path=root,
            layout="celeba",
            root=root,
            rows=len(ids),
            annotations=(ListFile(listing, position, partial(replace_word, label)), *lists),
            coding=LabelCoding(codes={config.label: "1", f"not {config.label}": "-1"}),
        ),
        images=FileStore(root, relative, max_pixels=config.max_pixels),
        ids=ids,
        labels=[_class(config.label, row[label]) for _, row in rows],
        class_names=(f"not {config.label}", config.label),
        splits=None if partition is None else _splits(partition, ids),
        identities=None if people is None else [known.get(sample) for sample in ids],
        split_keys=ids,
        places=[f"line {number} of {listing}" for number, _ in rows],
        groups={name: [_class(name, row[at]) for _, row in rows] for name, at in groups.items()},
    )


def _attribute_file(path: Path) -> Path:
    found = annotation_file(path.resolve(), *_names("list_attr_celeba"))
    if found is None:
        raise UserError(f"{path}: no list_attr_celeba.txt; expected the list of CelebA's attributes")
    return found


def _table(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Names of the attributes, and (line, [name of the image, values ...]) for each row."""
    lines = read_lines(path)
    start = 2 if lines and lines[0].strip().isdigit() else 1  # the CSV copies do not count their rows
    header = words(lines[start - 1]) if len(lines) >= start else []
    names = header[1:] if header[:1] == ["image_id"] else header
    rows = [(start + 1 + at, words(line)) for at, line in enumerate(lines[start:]) if line.strip()]
    if not rows:
        raise UserError(f"{path}: no rows; expected one an image")
    for number, row in rows:
        stray = next((value for value in row[1:] if value not in ("1", "-1")), None)
        if stray is not None or len(row) != len(names) + 1:
            found = f"{len(row) - 1} values" if stray is None else repr(stray)
            raise UserError(f"{path}: line {number} has {found}; expected a name and {len(names)} of 1 or -1")
    return names, rows


def _columns(path: Path, names: list[str], config: DataConfig) -> tuple[int, dict[str, int]]:
    """Where the label and the groups stand in a row."""
    for option, wanted in (("--label", config.label), *(("data.groups", name) for name in config.groups)):
        if wanted not in names:
            raise UserError(
                f"{path}: no attribute {wanted!r} for {option}; expected one of {', '.join(names)}"
            )
    return names.index(config.label) + 1, {name: names.index(name) + 1 for name in config.groups}


def _splits(path: Path, ids: list[str]) -> list[str | None]:
    parts = values_by_name(path)
    missing = next((sample for sample in ids if sample not in parts), None)
    if missing is not None:
        raise UserError(f"{path}: no line for {missing!r}; expected a partition (0, 1 or 2) for every image")
    return [_PARTITIONS.get(parts[sample], parts[sample]) for sample in ids]


def _names(stem: str) -> list[str]:
    return [f"{folder}{stem}{suffix}" for suffix in (".txt", ".csv") for folder in _FOLDERS]


def _class(attribute: str, value: str) -> str:
    return attribute if value == "1" else f"not {attribute}"
