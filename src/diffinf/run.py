"""The run directory: whole files or none, stage keys, done markers, events, resume.

Everything a run knows lies in its directory. A stage is done when its marker holds the key it was asked with,
where the key is a hash of the stage's settings and of what it read; a killed stage goes on from its scratch
files as long as the key is the same.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from diffinf.config import RunConfig
from diffinf.errors import UserError
from diffinf.files import (
    make_directory,
    read_json,
    remove,
    write_json,
    write_text,
    writing,
)

GROUP = "group_"  # before the names of the columns of dataset.parquet that results are broken down by
_FORMAT = 1


class Run:
    """A run directory. Make one with `Run.create` or `Run.open`."""

    def __init__(self, path: Path) -> None:
        """Point at `path` and at what may come to be there; nothing is read or written."""
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

    def __repr__(self) -> str:
        """Say where it is."""
        return f"{type(self).__name__}({str(self.path)!r})"

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
                    remove(child)
        with writing(self.path):
            remove(self._state)

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
                    remove(self.path / output)
                remove(self.path / ".work" / name)
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
        remove(self.path / ".work" / name)
        return True

    def discard(self, name: str, outputs: Sequence[str] = ()) -> None:
        """Forget a finished stage and remove its outputs: what it rests on has changed."""
        if self.is_done(name):
            with writing(self.path):
                self._marker(name).unlink()
                for output in outputs:
                    remove(self.path / output)

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
