"""Reads what a report needs from a run directory; whatever is not there yet is simply absent."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from diffinf.errors import UserError
from diffinf.files import read_class_names, read_json, read_table

T = TypeVar("T")

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class RunFiles:
    """The contents of a run directory, None or empty where a file is missing.

    Attributes:
        name: name of the run directory.
        config: config.yaml as read; ``config_text`` as it is written.
        summary: summary.json.
        events: events.jsonl, one dict a line.
        class_names: the classes, from the metadata of the tables.
        dataset, quarantine, scores, edits, compare: rows of the tables, None where the table is missing.
        truths: rows of evaluation.parquet (id, target, truth) by id, where truth is known.
        pictures: uint8 (M, C, H, W) by name (original, roundtrip, edited), rows as ``edits``.
        labels: (T,) labels of the test images; ``logits`` (T, K) by arm and seed of ``compare``.
        flags, evaluation, surrogate, autoencoder, gate, identity_head, terms: figures from their JSON files.
        damaged: files that are there but cannot be read, with the reason.
    """

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    summary: dict[str, Any] = field(default_factory=dict)
    events: Rows = field(default_factory=list)
    class_names: tuple[str, ...] = ()
    dataset: Rows | None = None
    quarantine: Rows | None = None
    scores: Rows | None = None
    edits: Rows | None = None
    compare: Rows | None = None
    truths: dict[str, dict[str, Any]] = field(default_factory=dict)
    pictures: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    labels: NDArray[np.int64] | None = None
    logits: dict[str, dict[int, NDArray[np.float32]]] = field(default_factory=dict)
    flags: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    surrogate: dict[str, Any] = field(default_factory=dict)
    autoencoder: dict[str, Any] = field(default_factory=dict)
    gate: dict[str, Any] = field(default_factory=dict)
    identity_head: dict[str, Any] = field(default_factory=dict)
    terms: dict[str, Any] = field(default_factory=dict)
    damaged: tuple[str, ...] = ()


def read_run(directory: Path) -> RunFiles:
    """Read the files of a run; a missing file is absent, a damaged one is named in ``damaged``.

    Raises:
        UserError: if there is no such directory.
    """
    if not directory.is_dir():
        raise UserError(
            f"{directory}: no such run directory; make one with `diffinf run DATASET --out {directory}`"
        )
    reader = _Reader(directory)
    tables = {name: reader.table(f"{name}.parquet") for name in ("dataset", "quarantine", "scores", "edits")}
    compare, truths = reader.table("compare.parquet"), reader.table("evaluation.parquet")
    labels = reader.tensors("compare/test.safetensors").get("labels")
    text = reader.read("config.yaml", lambda path: path.read_text(encoding="utf-8")) or ""
    return RunFiles(
        name=directory.resolve().name,
        config=reader.read("config.yaml", _yaml) or {},
        config_text=text,
        summary=reader.json("summary.json"),
        events=reader.read("events.jsonl", _json_lines) or [],
        class_names=reader.class_names,
        dataset=tables["dataset"],
        quarantine=tables["quarantine"],
        scores=tables["scores"],
        edits=tables["edits"],
        compare=compare,
        truths={str(row["id"]): row for row in truths or []},
        pictures=_pictures(reader, len(tables["edits"] or [])),
        labels=labels,
        logits=_logits(reader, labels, compare or []),
        flags=reader.json("flags.json"),
        evaluation=reader.json("evaluation.json"),
        surrogate=reader.json("surrogate/metrics.json"),
        autoencoder=reader.json("autoencoder/metrics.json"),
        gate=reader.json("repair/gate.json"),
        identity_head=reader.json("surrogate/identity_head.json"),
        terms=reader.json("repair/terms.json"),
        damaged=tuple(reader.damaged),
    )


class _Reader:
    """Reads files below a directory, remembering the damaged ones and the class names met in tables."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.damaged: list[str] = []
        self.class_names: tuple[str, ...] = ()

    def read(self, name: str, load: Callable[[Path], T]) -> T | None:
        path = self.directory / name
        if not path.is_file():
            return None
        try:
            return load(path)
        except (UserError, SafetensorError, OSError, ValueError, KeyError, yaml.YAMLError) as error:
            self.damaged.append(f"{name}: {error}")
            return None

    def table(self, name: str) -> Rows | None:
        table = self.read(name, read_table)
        if table is None:
            return None
        if not self.class_names:
            self.class_names = self.read(name, lambda _: read_class_names(table)) or ()
        rows: Rows = table.to_pylist()
        return rows

    def json(self, name: str) -> dict[str, Any]:
        value = self.read(name, read_json)
        return value if isinstance(value, dict) else {}

    def tensors(self, name: str) -> dict[str, NDArray[Any]]:
        return self.read(name, load_file) or {}


def _yaml(path: Path) -> dict[str, Any]:
    value = yaml.safe_load(path.read_text(encoding="utf-8"))
    return value if isinstance(value, dict) else {}


def _json_lines(path: Path) -> Rows:
    """The whole lines of a log; a last line cut off by a kill is no error."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return [row for row in rows if isinstance(row, dict)]


def _pictures(reader: _Reader, rows: int) -> dict[str, NDArray[np.uint8]]:
    """Pictures whose rows are those of edits.parquet; others belong to another repair and would mislead."""
    pictures = reader.tensors("repair/pictures.safetensors")
    fitting = {name: array for name, array in pictures.items() if len(array) == rows and array.ndim == 4}
    if len(fitting) < len(pictures):
        reader.damaged.append("repair/pictures.safetensors: its rows are not those of edits.parquet")
        return {}
    return fitting


def _logits(
    reader: _Reader, labels: NDArray[Any] | None, compare: Rows
) -> dict[str, dict[int, NDArray[np.float32]]]:
    """Predictions of the trainings in compare.parquet that did not diverge, and of no earlier ones."""
    found: dict[str, dict[int, NDArray[np.float32]]] = {}
    for row in compare:
        arm, seed = str(row["arm"]), int(row["seed"])
        name = f"compare/predictions/{arm}-{seed}.safetensors"
        logits = None if row.get("diverged") else reader.tensors(name).get("logits")
        if logits is None:
            continue
        if labels is not None and (logits.ndim != 2 or len(logits) != len(labels)):
            reader.damaged.append(f"{name}: its rows are not the test images of compare/test.safetensors")
        elif np.isfinite(logits).all():
            found.setdefault(arm, {})[seed] = logits
    return found
