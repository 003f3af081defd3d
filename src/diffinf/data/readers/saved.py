"""Hugging Face datasets as save_to_disk leaves them: Arrow files with state.json, a folder for each split."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffinf.data.readers.base import ID_COLUMN, Edits, Records, split_name
from diffinf.data.readers.lists import annotation_file
from diffinf.data.readers.tables import TableLayout, read_table
from diffinf.errors import UserError

if TYPE_CHECKING:
    from diffinf.config import DataConfig

_STATE, _INFO, _DICT = "state.json", "dataset_info.json", "dataset_dict.json"


def detect(path: Path) -> bool:
    """Whether a folder was written by save_to_disk."""
    return path.is_dir() and (
        (path / _DICT).is_file() or ((path / _STATE).is_file() and (path / _INFO).is_file())
    )


def read(path: Path, config: DataConfig) -> Records:
    """Read a saved Dataset, or a DatasetDict whose names are splits.

    Raises:
        UserError: a file that is missing or no JSON, an Arrow file outside the folder; as `read_table`.
    """
    root = path.resolve()
    names: list[str] = [""]
    splits: list[str] = []
    if (root / _DICT).is_file():
        names = _strings(root, _DICT, "splits")
        splits = [split for name in names if (split := split_name(name)) is not None]
        if len(splits) < len(names):
            raise UserError(
                f"{root / _DICT}: splits are {', '.join(names)}; expected train, validation, test"
            )
    files, file_splits = [], []
    for number, name in enumerate(names):
        for entry in _strings(root, f"{name}/{_STATE}" if name else _STATE, "_data_files"):
            file = annotation_file(root / name, entry)
            if file is None or file.suffix != ".arrow":
                raise UserError(
                    f"{root / name / entry}: no such Arrow file, but {_STATE} names it; save it anew"
                )
            files.append(file)
            file_splits += splits[number : number + 1]
    if not files:
        raise UserError(f"{root}: {_STATE} names no data files; save the dataset anew")
    layout = TableLayout(name="saved", splits=tuple(file_splits) or None)
    records = read_table(root, files, config, layout)
    for file in (file for name in names if (file := annotation_file(root / name, _INFO)) is not None):
        _parsed(file)
    about = [root / _DICT, *(root / name / file for name in names for file in (_STATE, _INFO))]
    records.source = replace(
        records.source, annotations=tuple(_About(file) for file in about if file.is_file())
    )
    return records


@dataclass(frozen=True)
class _About:
    """What `datasets` writes beside the data."""

    path: Path

    def write(self, target: Path, edits: Edits) -> None:
        """Copy it, with the column `id` if one was added, and a fingerprint that follows the new data."""
        found = _parsed(self.path)
        if self.path.name == _INFO and edits.add_ids and isinstance(found.get("features"), dict):
            found["features"][ID_COLUMN] = {"dtype": "string", "_type": "Value"}
        if self.path.name == _STATE:  # results that `datasets` has cached for the old data must not be found
            digest = hashlib.sha256()
            for file in found["_data_files"]:
                digest.update((target.parent / file["filename"]).read_bytes())
            found["_fingerprint"] = digest.hexdigest()[:16]
        target.write_text(json.dumps(found, indent=2, ensure_ascii=False), encoding="utf-8")


def _strings(root: Path, name: str, key: str) -> list[str]:
    """A list of names in a JSON file; of files, {"filename": name}."""
    found = _parsed(annotation_file(root, name) or root / name)
    try:
        values = [value["filename"] if isinstance(value, dict) else value for value in found[key]]
    except (KeyError, TypeError) as error:
        raise UserError(f"{root / name}: no list {key} in it ({error}); save the dataset anew") from error
    if not all(isinstance(value, str) and Path(value).name == value for value in values):
        raise UserError(f"{root / name}: {key} holds {values}; expected plain names")
    return values


def _parsed(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read as JSON ({error}); save the dataset anew") from error
    if not isinstance(found, dict):
        raise UserError(f"{file}: holds {type(found).__name__}; expected an object: save the dataset anew")
    return found
