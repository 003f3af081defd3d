"""FairFace: fairface_label_train.csv and fairface_label_val.csv, with age, gender and race of train/1.jpg ...

Kärkkäinen and Joo, FairFace: Face Attribute Dataset for Balanced Race, Gender, and Age (arXiv 1908.04913).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from diffinf.data.readers.base import Records
from diffinf.data.readers.lists import annotation_file, first_of
from diffinf.data.readers.tables import TableLayout, read_table
from diffinf.errors import UserError

if TYPE_CHECKING:
    from diffinf.config import DataConfig

_FILES = {"fairface_label_train.csv": "train", "fairface_label_val.csv": "validation"}
_LABELS = ("age", "gender", "race")
_AGES = ("0-2", "3-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "more than 70")
_IMAGES = [".", "fairface-img-margin025-trainval", "fairface-img-margin125-trainval"]


def detect(path: Path) -> bool:
    """Whether a folder holds FairFace's tables."""
    return path.is_dir() and any((path / name).is_file() for name in _FILES)


def read(path: Path, config: DataConfig) -> Records:
    """Read age, gender or race, as `config.label` says; the two tables are the splits train and validation.

    Raises:
        UserError: another label; as `read_table`.
    """
    if config.label not in _LABELS:
        raise UserError(
            f"{path}: --label is {config.label!r}; FairFace has {', '.join(_LABELS)}: name one of them"
        )
    root = path.resolve()
    files = {file: split for name, split in _FILES.items() if (file := annotation_file(root, name))}
    if not files:
        raise UserError(f"{path}: no fairface_label_train.csv; expected FairFace's tables")
    folder = first_of(root, _IMAGES, "train/1.jpg")
    layout = TableLayout(
        name="fairface",
        columns={"image": "file"},
        splits=tuple(files.values()),
        prefixes=(folder,) * len(files),
        codes={age: age for age in _AGES} if config.label == "age" else {},
        ordered=config.label == "age",
    )
    return read_table(root, list(files), config, layout)
