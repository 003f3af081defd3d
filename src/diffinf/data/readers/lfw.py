"""LFW: Name/Name_0001.jpg says who is shown; the label is an attribute of lfw_attributes.txt, or a class folder.

Huang et al., Labeled Faces in the Wild (UMass Amherst 07-49, 2007); attributes: Kumar et al., Attribute and
Simile Classifiers for Face Verification (ICCV 2009).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from diffinf.data.readers import folders
from diffinf.data.readers.base import DatasetSource, FileStore, Records
from diffinf.data.readers.labels import LabelCoding
from diffinf.data.readers.lists import ListFile, annotation_file, first_of, listed_name, read_lines
from diffinf.errors import UserError

if TYPE_CHECKING:
    from diffinf.config import DataConfig

_ATTRIBUTES = "lfw_attributes.txt"
_IMAGES = [
    "lfw",
    "lfw-deepfunneled",
    "lfw-deepfunneled/lfw-deepfunneled",
    "lfw-funneled",
    "lfw_funneled",
    ".",
]
_NAME = re.compile(r"(\D+)_(\d{4})")
_FULL_NAME = re.compile(r"[A-Z]\D*_\D+_\d{4}")


def detect(path: Path) -> bool:
    """Whether a folder holds LFW's attributes, or class folders of more people than classes, all named in full."""
    if not path.is_dir() or (path / _ATTRIBUTES).is_file():
        return path.is_dir()
    names = [Path(name) for name in folders.image_files(path) if "/" in name]
    if not names or not all(_FULL_NAME.fullmatch(_stem(name)) for name in names):
        return False
    return len({_person(name.name) for name in names}) > len({name.parent for name in names})


def read(path: Path, config: DataConfig) -> Records:
    """Read an attribute ("Male" -> "Male" where its score is positive, else "not Male"), or class folders.

    Raises:
        UserError: an attribute that is not there, a line of the wrong length.
    """
    if (path / _ATTRIBUTES).is_file():
        return _read_attributes(path.resolve(), config)
    records = folders.read(path, config)
    records.identities = [_person(Path(name).name) for name in records.ids]
    return records


def _stem(path: Path) -> str:
    return path.stem.split(folders.MOVED)[0]


def _person(name: str) -> str | None:
    found = _NAME.fullmatch(_stem(Path(name)))
    return found[1] if found else None


def attributes(path: Path) -> list[str]:
    """The names of the attributes that are listed; none in class folders."""
    file = annotation_file(path.resolve(), _ATTRIBUTES)
    return [] if file is None else _attribute_rows(file)[0]


def _attribute_rows(file: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Names of the attributes, and (line, [person, number, scores ...]) of each row."""
    names: list[str] = []
    rows: list[tuple[int, list[str]]] = []
    for number, line in enumerate(read_lines(file), 1):
        cells = line.rstrip().split("\t")
        if line.startswith("#"):
            names = [cell.strip() for cell in cells[3:]] if "person" in cells else names
        elif line.strip():
            if len(cells) != len(names) + 2 or not cells[1].isdecimal() or len(cells[1]) > 4:
                raise UserError(
                    f"{file}: line {number} has {len(cells)} fields; expected a person, a number and {len(names)}"
                    " scores, separated by tabs"
                )
            rows.append((number, cells))
    if not rows:
        raise UserError(f"{file}: no rows; expected one an image")
    return names, rows


def _read_attributes(root: Path, config: DataConfig) -> Records:
    file = annotation_file(root, _ATTRIBUTES)
    assert file is not None
    names, rows = _attribute_rows(file)
    for option, wanted in (("--label", config.label), *(("data.groups", name) for name in config.groups)):
        if wanted not in names:
            raise UserError(
                f"{file}: no attribute {wanted!r} for {option}; expected one of {', '.join(names)}"
            )
    files = [_image(cells) for _, cells in rows]
    folder = first_of(root, _IMAGES, files[0])
    label = names.index(config.label) + 2
    positions = {tuple(cells[:2]): position for position, (_, cells) in enumerate(rows)}
    listing = ListFile(file, lambda _, line: positions.get(tuple(line.split("\t")[:2])), _flip(label))
    return Records(
        source=DatasetSource(
            path=root,
            layout="lfw",
            root=root,
            rows=len(rows),
            annotations=(listing,),
            coding=LabelCoding(codes={config.label: "1", f"not {config.label}": "-1"}),
        ),
        images=FileStore(
            root,
            [
                listed_name(file, number, root, folder, name)
                for (number, _), name in zip(rows, files, strict=True)
            ],
            max_pixels=config.max_pixels,
        ),
        ids=[Path(name).stem for name in files],
        labels=[_class(file, number, config.label, cells[label]) for number, cells in rows],
        class_names=(f"not {config.label}", config.label),
        splits=None,
        identities=[cells[0] for _, cells in rows],
        split_keys=[cells[0] for _, cells in rows],
        places=[f"line {number} of {file}" for number, _ in rows],
        groups={
            name: [_class(file, number, name, cells[names.index(name) + 2]) for number, cells in rows]
            for name in config.groups
        },
    )


def _image(cells: list[str]) -> str:
    name = cells[0].replace(" ", "_")
    return f"{name}/{name}_{int(cells[1]):04}.jpg"


def _class(file: Path, line: int, attribute: str, score: str) -> str:
    try:
        return attribute if float(score) > 0 else f"not {attribute}"
    except ValueError as error:
        raise UserError(f"{file}: line {line}: {attribute} is {score!r}; expected a number") from error


def _flip(column: int) -> Callable[[str, Callable[[str], str]], str]:
    """Relabel a line: the score changes its sign."""

    def edit(line: str, new: Callable[[str], str]) -> str:
        cells = line.split("\t")
        score = cells[column]
        if (float(score) > 0) != (new(score) == "1"):
            end = score[len(score.rstrip()) :]
            bare = score.strip()
            # A score of 0 has no sign to change.
            cells[column] = (bare[1:] if bare[0] == "-" else f"-{bare}" if float(bare) else "1") + end
        return "\t".join(cells)

    return edit
