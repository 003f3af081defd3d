"""Files that are whole or not there at all, errors that name them, and what stage keys hash."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffinf.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

CLASS_NAMES = b"class_names"  # schema metadata key of every table
_DISK_ERRORS = {
    errno.ENOSPC: "the disk is full; free some space and run again: finished work is kept",
    errno.EDQUOT: "the disk quota is used up; free some space and run again: finished work is kept",
    errno.EROFS: "the file system is read-only; choose a place that can be written with --out",
    errno.EACCES: "permission denied; choose a place that can be written with --out",
    errno.EPERM: "not permitted; choose a place that can be written with --out",
}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a full, read-only or forbidden disk met while writing `path` into a UserError that says so."""
    try:
        yield
    except Exception as error:
        # torch and safetensors report a full disk in exceptions of their own, without an errno.
        full = "os error 28" in str(error) or "No space left" in str(error)
        number = errno.ENOSPC if full else error.errno if isinstance(error, OSError) else None
        if number in _DISK_ERRORS:
            raise UserError(f"{path}: cannot be written: {_DISK_ERRORS[number]}") from error
        raise


def make_directory(path: Path) -> Path:
    """Create `path` and its parents if missing and return it; UserError when that is not possible."""
    with writing(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise UserError(
                f"{path}: expected a directory, found a file; choose another with --out"
            ) from error
    return path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; at the end of the block it becomes `path`, whole, or not at all.

    Raises:
        UserError: the disk is full, read-only or forbidden.
    """
    make_directory(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with writing(path):
            yield temporary
            with temporary.open("rb+") as handle:
                os.fsync(handle.fileno())
            temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; NaN and infinity are refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file of a run; UserError when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; run the stage that writes it first") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); delete it and run the stage again") from error


def write_table(path: Path, table: pa.Table, class_names: Sequence[str] | None = None) -> None:
    """Write a Parquet table atomically, with `class_names` as JSON in its schema metadata when given."""
    import pyarrow.parquet as pq

    if class_names is not None:
        metadata = {**(table.schema.metadata or {}), CLASS_NAMES: json.dumps(list(class_names)).encode()}
        table = table.replace_schema_metadata(metadata)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_table(path: Path) -> pa.Table:
    """Read a Parquet table of a run; UserError when it is missing or damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # A single file: no columns are to be read out of "key=value" names of its folders.
        return pq.read_table(path, partitioning=None)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; run the stage that writes it first") from error
    except pa.ArrowInvalid as error:
        raise UserError(
            f"{path}: not a Parquet table ({error}); delete it and run the stage again"
        ) from error


def read_class_names(table: pa.Table) -> tuple[str, ...]:
    """Return the class names in a table's schema metadata."""
    return tuple(json.loads((table.schema.metadata or {})[CLASS_NAMES]))


def save_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors atomically as safetensors."""
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, temporary, metadata={"format": "pt", **(metadata or {})})


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file into CPU tensors; UserError when it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; run the stage that writes it first") from error
    except SafetensorError as error:
        raise UserError(f"{path}: not a safetensors file ({error})") from error


def stage_key(*parts: Any) -> str:
    """Return the sha256 of the canonical JSON of `parts`: equal settings and inputs give equal keys."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def files_sha256(directory: Path, pattern: str) -> str | None:
    """Return one sha256 of the files below `directory` that match `pattern`, names included; None if there are none."""
    files = [path for path in directory.glob(pattern) if path.is_file()]
    found = {path.relative_to(directory).as_posix(): file_sha256(path) for path in files}
    return stage_key(found) if found else None


def content_sha256(path: Path | None) -> dict[str, str]:
    """Return the sha256 by file of what a setting names, a file or a folder: a stage must notice when they change."""
    if path is None or not path.exists():
        return {}
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    return {str(file): file_sha256(file) for file in found if file.is_file()}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    raise TypeError(f"no canonical JSON for {type(value).__name__}")


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it; what is not there is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
