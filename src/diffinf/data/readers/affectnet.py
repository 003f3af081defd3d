"""AffectNet: tables with subDirectory_filePath and expression, or train_set/annotations/0_exp.npy beside images.

Mollahosseini, Hasani and Mahoor, AffectNet (arXiv 1708.03985).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffinf.data.images import SUFFIXES, UnreadableImageError
from diffinf.data.readers.base import (
    DatasetSource,
    FileStore,
    NewText,
    Records,
    no_columns,
    printable,
    resolve_inside,
)
from diffinf.data.readers.formats import read_columns, read_schema
from diffinf.data.readers.labels import LabelCoding
from diffinf.data.readers.lists import annotation_file, first_of
from diffinf.data.readers.tables import TableLayout, read_table
from diffinf.errors import UserError
from diffinf.progress import progress_bar

if TYPE_CHECKING:
    from diffinf.config import DataConfig

CODES = {
    "0": "Neutral",
    "1": "Happy",
    "2": "Sad",
    "3": "Surprise",
    "4": "Fear",
    "5": "Disgust",
    "6": "Anger",
    "7": "Contempt",
}
NO_EXPRESSION = {
    "8": "expression is 8, None: not one of the eight",
    "9": "expression is 9, Uncertain",
    "10": "expression is 10, Non-Face",
}
_PATH = "subDirectory_filePath"
_TABLES = {  # manual annotation; the automatic one is read where it is the only one
    "training.csv": "train",
    "validation.csv": "validation",
    "automatically_annotated.csv": "train",
}
_LISTS = ("", "Manually_Annotated_file_lists/", "Automatically_annotated_file_list/")
_IMAGES = [
    "Manually_Annotated_Images",
    "Manually_Annotated/Manually_Annotated_Images",
    "Automatically_Annotated_Images",
    "Automatically_Annotated/Automatically_Annotated_Images",
    "images",
    ".",
]
_SETS = {"train_set": "train", "val_set": "validation", "test_set": "test"}
_MOST_BYTES = 65_536  # of an annotation; real ones have some hundred


def _tables(path: Path) -> dict[str, str]:
    """Names of the tables and their splits."""
    found = {
        folder + name: split
        for name, split in _TABLES.items()
        for folder in _LISTS
        if (path / folder / name).is_file()
    }
    manual = {name: split for name, split in found.items() if "automatically" not in Path(name).name}
    return manual or found


def detect(path: Path) -> bool:
    """Whether a folder holds AffectNet's tables, or its sets of images and annotations."""
    if not path.is_dir():
        return False
    if any((path / name / "annotations").is_dir() and (path / name / "images").is_dir() for name in _SETS):
        return True
    try:
        names = list(_tables(path))
        return bool(names) and all(_PATH in read_schema(path / name).names for name in names)
    except UserError:
        return False


def read(path: Path, config: DataConfig) -> Records:
    """Read the eight expressions; None, Uncertain and Non-Face count as missing labels.

    Raises:
        UserError: no such layout; as `read_table`.
    """
    root = path.resolve()
    sets = [name for name in _SETS if (root / name / "annotations").is_dir()]
    if sets:
        return _read_sets(root, sets, config)
    tables = _tables(root)
    files = {file: split for name, split in tables.items() if (file := annotation_file(root, name))}
    if not files:
        raise UserError(f"{path}: neither training.csv nor train_set/annotations; expected one of them")
    first = next(iter(files))
    if _PATH not in read_schema(first).names:
        raise UserError(f"{first}: no column {_PATH!r}; expected AffectNet's columns")
    names = read_columns(first, [_PATH]).column(0)
    folder = first_of(root, _IMAGES, names[0].as_py() if len(names) else "")
    layout = TableLayout(
        name="affectnet",
        columns={"image": _PATH, "label": "expression"},
        splits=tuple(files.values()),
        prefixes=(folder,) * len(files),
        codes=CODES,
        no_labels=NO_EXPRESSION,
    )
    return read_table(root, list(files), config, layout)


def _read_sets(root: Path, sets: Sequence[str], config: DataConfig) -> Records:
    """Read NAME_set/images/0.jpg with NAME_set/annotations/0_exp.npy; ids are paths."""
    no_columns(root, config, "AffectNet has annotations", labels=("expression",))
    relative: list[str] = []
    companions: dict[int, tuple[str, ...]] = {}
    for name in sets:
        if not (root / name / "images").is_dir():
            raise UserError(f"{root / name}: annotations, but no folder images; expected both")
        images = sorted(p.name for p in (root / name / "images").iterdir() if p.suffix.lower() in SUFFIXES)
        beside = {p.name for p in (root / name / "annotations").iterdir()}
        for image in images:
            ends = ("exp", "val", "aro", "lnd")
            files = [f"{Path(image).stem}_{end}.npy" for end in ends]
            companions[len(relative)] = tuple(
                f"{name}/annotations/{file}" for file in files if file in beside
            )
            relative.append(f"{name}/images/{image}")
    if not relative:
        raise UserError(f"{root}: no images in {', '.join(f'{name}/images' for name in sets)}; expected some")
    ids = [printable(name) for name in relative]
    labels: list[str | None] = []
    faults: dict[int, str] = {}
    with progress_bar("read annotations", len(ids)) as advance:
        for position, beside_it in companions.items():
            try:
                labels.append(_expression(root, beside_it))
            except UnreadableImageError as error:
                labels.append(None)
                faults[position] = str(error)
            advance(1)
    present = set(labels)
    return Records(
        source=DatasetSource(
            path=root,
            layout="affectnet",
            root=root,
            rows=len(ids),
            companions=companions,
            write_label=_write_expression,
            coding=LabelCoding(codes={name: code for code, name in CODES.items()}),
        ),
        images=FileStore(root, relative, max_pixels=config.max_pixels),
        ids=ids,
        labels=labels,
        class_names=tuple(name for name in CODES.values() if name in present),
        splits=[_SETS[name.split("/")[0]] for name in relative],
        identities=None,
        split_keys=ids,
        places=ids,
        faults=faults,
    )


def _expression(root: Path, files: Sequence[str]) -> str:
    """The class that a sample's annotation tells; raises UnreadableImageError with the reason where none."""
    name = next((file for file in files if file.endswith("_exp.npy")), None)
    if name is None:
        raise UnreadableImageError("no annotation _exp.npy beside the image")
    code = str(_load(resolve_inside(root, name))).strip()
    if code not in CODES:
        raise UnreadableImageError(NO_EXPRESSION.get(code, f"{name} holds {code[:40]!r}; expected 0 to 7"))
    return CODES[code]


def _load(file: Path) -> object:
    """The one value of a .npy file; nothing is unpickled."""
    import numpy as np

    try:
        if file.stat().st_size > _MOST_BYTES:
            raise ValueError(f"{file.stat().st_size} bytes")
        return np.load(file, allow_pickle=False).item()
    except Exception as error:  # damaged headers raise nearly anything: ValueError, EOFError, SyntaxError ...
        raise UnreadableImageError(f"{file.name} is no array of one value ({str(error)[:120]})") from error


def _write_expression(file: Path, target: Path, new: NewText) -> bool:
    """Write an expression with its new code, of the type that the old one had; False for other annotations."""
    import numpy as np

    if not file.name.endswith("_exp.npy"):
        return False
    before = np.load(file, allow_pickle=False)
    np.save(target, np.array(new(str(before.item()))).astype(before.dtype))
    return True
