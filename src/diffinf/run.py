"""The run directory: whole files or none, stage keys, done markers, events, resume.

Everything a run knows lies in its directory. A stage is done when its marker holds the key it was asked with,
where the key is a hash of the stage's settings and of what it read; a killed stage goes on from its scratch
files as long as the key is the same.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffinf.config import RunConfig
from diffinf.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

CLASS_NAMES = b"class_names"  # schema metadata key of every table
GROUP = "group_"  # before the names of the columns of dataset.parquet that results are broken down by
_FORMAT = 1
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


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    raise TypeError(f"no canonical JSON for {type(value).__name__}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class Run:
    """A run directory. Make one with `Run.create` or `Run.open`."""

    def __init__(self, path: Path) -> None:
        """Point at `path`; nothing is read or written."""
        self.path = path
        self.scores = path / "scores.parquet"  # one row a training sample
        self.flags = path / "flags.json"  # how they were drawn, and what is estimated without truth
        self.edits = path / "edits.parquet"  # one row a flagged sample
        self.comparison = path / "compare.parquet"  # one row an arm and seed
        self.evaluation = path / "evaluation.json"  # only where there is truth
        self.summary = path / "summary.json"
        self.report = path / "report.html"
        self.classifier = path / "classifier"  # baseline, checkpoints, dynamics; final/: the retrained model
        self.crossfit = path / "crossfit"
        self.autoencoder = path / "autoencoder"
        self.repair = path / "repair"  # pictures and codes of every attempt
        self.attempts = self.repair / "attempts.parquet"  # one row a flagged sample: what the gate said
        self.restored = self.repair / "restored.json"  # ids whose originals were asked back
        self.surrogate = path / "surrogate"
        self.compare = path / "compare"  # predictions of the arms
        self.refined = path / "refined"  # the repaired dataset, in the layout it came in
        self.provenance = path / "refined.provenance.parquet"  # one row a sample: what became of it
        self._state = path / ".state"

    @staticmethod
    def exists(path: Path) -> bool:
        """Whether `path` is a run directory."""
        return (path / ".state" / "run.json").is_file()

    @classmethod
    def create(cls, path: Path, config: RunConfig, dataset_fingerprint: str, *, fresh: bool = False) -> Run:
        """Make a run directory, or take up the one that is there.

        Args:
            path: the directory; parents are made.
            config: saved as config.yaml; stages whose settings changed since the last time run again.
            dataset_fingerprint: hash of the data, `FaceDataset.fingerprint`.
            fresh: empty the run directory first.

        Raises:
            UserError: the directory belongs to another dataset, holds other files, or cannot be written.
        """
        run = cls(path)
        mine = {"format": _FORMAT, "dataset": config.dataset, "fingerprint": dataset_fingerprint}
        if cls.exists(path):
            if fresh:
                run._empty()
            else:
                run._refuse_other_dataset(mine)
        elif path.is_dir() and any(path.iterdir()):
            raise UserError(
                f"{path}: the directory holds files that are not a diffinf run; choose another with --out"
            )
        make_directory(path)
        write_json(run._state / "run.json", mine)
        write_text(path / "config.yaml", config.to_yaml())
        return run

    def _empty(self) -> None:
        """Remove everything, what makes it a run last: after a kill in between it can be emptied again."""
        with self.lock(), writing(self.path):
            for child in self.path.iterdir():
                if child != self._state:
                    _remove(child)
        with writing(self.path):
            _remove(self._state)

    def _refuse_other_dataset(self, mine: dict[str, Any]) -> None:
        theirs = read_json(self._state / "run.json")
        if theirs["format"] != _FORMAT:
            raise UserError(
                f"{self.path}: the run has format {theirs['format']}, this version reads {_FORMAT}; choose "
                "another directory with --out, or start over with --fresh"
            )
        if theirs["fingerprint"] != mine["fingerprint"]:
            raise UserError(
                f"{self.path}: this run belongs to the dataset {theirs['dataset']} "
                f"({theirs['fingerprint'][:12]}), not to {mine['dataset']} ({mine['fingerprint'][:12]}) "
                "as it is now read; choose another directory with --out, or start over with --fresh"
            )

    @classmethod
    def open(cls, path: Path) -> Run:
        """Open a run directory that exists; UserError when `path` is none."""
        if not cls.exists(path):
            raise UserError(
                f"{path}: not a diffinf run directory; make one with `diffinf run DATASET --out {path}`"
            )
        return cls(path)

    @property
    def fingerprint(self) -> str:
        """`FaceDataset.fingerprint` of the dataset that the run belongs to."""
        return str(read_json(self._state / "run.json")["fingerprint"])

    @property
    def config(self) -> RunConfig:
        """The settings in config.yaml."""
        return RunConfig.from_yaml(self.path / "config.yaml")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process; UserError when another one holds it. Without effect on Windows."""
        try:
            import fcntl
        except ImportError:
            yield
            return
        with (self._state / "lock").open("w") as handle:
            try:
                # A record lock: it ends with this process, however that ends, and no child inherits it.
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(
                    f"{self.path}: another process is working on this run; wait for it, or choose --out"
                ) from error
            yield

    def sweep(self) -> None:
        """Remove what a killed process was in the middle of writing; call it with the lock held."""
        for place in self.path.iterdir():
            if place != self.refined:  # holds files of the dataset's owner, whatever they are called
                for part in [place, *place.rglob(".*.part")] if place.is_dir() else [place]:
                    if part.is_file() and part.name.startswith(".") and part.suffix == ".part":
                        part.unlink()

    def scratch(self, name: str) -> Path:
        """Return the directory for the resumable intermediate files of a stage, made if missing."""
        return make_directory(self.path / ".work" / name)

    def _marker(self, name: str) -> Path:
        return self._state / f"{name}.json"

    def is_done(self, name: str, key: str | None = None) -> bool:
        """Whether a stage is finished (with this key, if given)."""
        if not self._marker(name).is_file():
            return False
        marker = read_json(self._marker(name))
        return bool(marker["done"]) and (key is None or marker["key"] == key)

    def key(self, name: str) -> str:
        """Return the key of a finished stage, for the keys of its readers; UserError if it is not done."""
        if not self.is_done(name):
            raise UserError(
                f"{self.path}: the stage {name!r} is not finished; run `diffinf {name} {self.path}` first"
            )
        return str(read_json(self._marker(name))["key"])

    def stage(self, name: str, key: str, work: Callable[[], None], outputs: Sequence[str] = ()) -> bool:
        """Run `work` unless it was done with the same key.

        A changed key clears what the stage left: `outputs` (names in the run directory) and its scratch. With
        the same key an unfinished stage finds both as they were, and goes on.

        Returns:
            True when `work` ran, False when the stage was already done.
        """
        if self.is_done(name, key) and all((self.path / output).exists() for output in outputs):
            return False
        marker = read_json(self._marker(name)) if self._marker(name).is_file() else None
        resumed = marker is not None and marker["key"] == key
        if not resumed:
            with writing(self.path):
                # The marker first: a kill in between must not leave half an output that counts as done.
                self._marker(name).unlink(missing_ok=True)
                for output in outputs:
                    _remove(self.path / output)
                _remove(self.path / ".work" / name)
        write_json(self._marker(name), {"key": key, "done": False, "seconds": None})
        self.event(name, "resume" if resumed else "start", key=key)
        start = time.monotonic()
        try:
            work()
        except BaseException as error:
            with suppress(UserError):  # the error under way says more than a full disk met while logging it
                self.event(name, "error", error=f"{type(error).__name__}: {error}")
            raise
        seconds = round(time.monotonic() - start, 3)
        write_json(self._marker(name), {"key": key, "done": True, "seconds": seconds})
        self.event(name, "end", seconds=seconds)
        _remove(self.path / ".work" / name)
        return True

    def discard(self, name: str, outputs: Sequence[str] = ()) -> None:
        """Forget a finished stage and remove its outputs: what it rests on has changed."""
        if self.is_done(name):
            with writing(self.path):
                self._marker(name).unlink()
                for output in outputs:
                    _remove(self.path / output)

    def timings(self) -> dict[str, float]:
        """Return the seconds of each finished stage's last run, in the order they finished."""
        seconds: dict[str, float] = {}
        for event in self.events():
            if event["event"] == "end":
                seconds.pop(event["stage"], None)
                seconds[event["stage"]] = event["seconds"]
        return seconds

    def event(self, stage: str, event: str, **fields: Any) -> None:
        """Append one line to events.jsonl."""
        path = self.path / "events.jsonl"
        line = json.dumps({"time": round(time.time(), 3), "stage": stage, "event": event, **fields})
        with writing(path), path.open("ab+") as handle:
            if handle.tell() > 0:
                handle.seek(-1, os.SEEK_END)
                if handle.read(1) != b"\n":  # a kill in the middle of a line must not spoil the next one
                    line = "\n" + line
            handle.write((line + "\n").encode())

    def events(self) -> list[dict[str, Any]]:
        """Read events.jsonl; a line torn by a kill is left out."""
        path = self.path / "events.jsonl"
        found: list[dict[str, Any]] = []
        if path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                with suppress(json.JSONDecodeError):
                    found.append(json.loads(line))
        return found
