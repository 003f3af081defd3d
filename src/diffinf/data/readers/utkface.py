"""UTKFace: everything is in the file's name, [age]_[gender]_[race]_[date].jpg.

Zhang, Song and Qi, Age Progression/Regression by Conditional Adversarial Autoencoder (arXiv 1702.08423).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from diffinf.data.images import SUFFIXES
from diffinf.data.readers.base import DatasetSource, FileStore, Records, no_columns, printable
from diffinf.data.readers.folders import image_files
from diffinf.data.readers.labels import LabelCoding
from diffinf.errors import UserError

if TYPE_CHECKING:
    from diffinf.config import DataConfig

_NAME = re.compile(r"(\d{1,3})_([01])_([0-4])_(\d{8,})(.*)")
_CODES: dict[str, tuple[str, ...]] = {
    "age": (),
    "gender": ("male", "female"),
    "race": ("White", "Black", "Asian", "Indian", "Others"),
}
_FIELDS = tuple(_CODES)
_PART = re.compile(r"(crop_)?part\d|utkface")


def detect(path: Path) -> bool:
    """Whether most images that lie in a folder, or in its part1 ... part3, are named as UTKFace names them."""
    if not path.is_dir():
        return False
    parts = (entry for entry in path.iterdir() if _PART.fullmatch(entry.name.casefold()) and entry.is_dir())
    files = (file for place in (path, *parts) for file in place.iterdir())
    images = [file.name for file in files if file.suffix.lower() in SUFFIXES]
    return sum(_NAME.fullmatch(name) is not None for name in images) > len(images) / 2


def read(path: Path, config: DataConfig) -> Records:
    """Read age, gender or race, as `config.label` says; `config.groups` may name the others.

    Ids are paths below the folder. Ages are numbers: cut them with `config.bins`. Some published names lack a
    field; such images are quarantined.

    Raises:
        UserError: another label or group, no image.
    """
    no_columns(path, config, "UTKFace has names", labels=_FIELDS, groups=_FIELDS)
    if config.label not in _FIELDS:
        raise UserError(
            f"{path}: --label is {config.label!r}; UTKFace has {', '.join(_FIELDS)}: name one of them"
        )
    root = path.resolve()
    relative = list(image_files(root))
    if not relative:
        raise UserError(f"{path}: no images found; expected [age]_[gender]_[race]_[date].jpg")
    fields = [_parse(name) for name in relative]
    ids = [printable(name) for name in relative]
    codes = _CODES[config.label]
    labels = [None if row is None else row[config.label] for row in fields]
    return Records(
        source=DatasetSource(
            path=root,
            layout="utkface",
            root=root,
            rows=len(ids),
            relocate=partial(_renamed, _FIELDS.index(config.label)),
            coding=LabelCoding(codes={name: str(code) for code, name in enumerate(codes)}),
        ),
        images=FileStore(root, relative, max_pixels=config.max_pixels),
        ids=ids,
        labels=labels,
        class_names=tuple(name for name in codes if name in labels) or None,
        splits=None,
        identities=None,
        # Renamed with another label, an image keeps its date, and thereby its split.
        split_keys=[sample if row is None else row["date"] for sample, row in zip(ids, fields, strict=True)],
        places=ids,
        groups={name: [None if row is None else row[name] for row in fields] for name in config.groups},
        faults={
            position: "the name is not [age]_[gender]_[race]_[date]: no label can be read from it"
            for position, row in enumerate(fields)
            if row is None
        },
        ordered=config.label == "age",
    )


def _parse(name: str) -> dict[str, str] | None:
    found = _NAME.fullmatch(Path(name).name)
    if found is None:
        return None
    age, gender, race, date = found.groups()[:4]
    return {
        "age": str(int(age)),
        "gender": _CODES["gender"][int(gender)],
        "race": _CODES["race"][int(race)],
        "date": date,
    }


def _renamed(field: int, name: str, new: Callable[[str], str]) -> str:
    path = Path(name)
    parts = path.name.split("_")
    parts[field] = new(parts[field])
    return path.with_name("_".join(parts)).as_posix()
