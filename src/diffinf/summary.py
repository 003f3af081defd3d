"""summary.json: the machine's view of a run, put together from its files."""

from __future__ import annotations

import platform
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from diffinf import __version__
from diffinf.evaluate.gain import arm_interval
from diffinf.run import Run, load_tensors, read_class_names, read_json, read_table, write_json

STATUSES = ("edited", "kept", "relabelled", "dropped")
REASONS = ("judge", "identity", "roundtrip", "influence", "class_unreliable")
_PACKAGES = ("torch", "timm", "diffusers", "numpy", "scikit-learn", "pyarrow", "pillow")


def write_summary(run: Run) -> dict[str, Any]:
    """Write summary.json from what the run has so far, and return it; what is missing is null or empty."""
    config = run.config
    evaluation = read_json(run.evaluation) if run.evaluation.exists() else {}
    summary: dict[str, Any] = {
        "dataset": _dataset(run),
        "detection": _plain(evaluation.get("detection")),
        "flagged": _flagged(run),
        **_edits(run),
        "conversion": _plain(evaluation.get("conversion")),
        "arms": _arms(run),
        "timings": run.timings(),
        "versions": _versions(),
        "seed": config.seed,
        "preset": config.preset,
        "device": _device(run),
    }
    write_json(run.summary, summary)
    return summary


def _dataset(run: Run) -> dict[str, Any]:
    table = read_table(run.path / "dataset.parquet")
    return {
        "path": run.config.dataset,
        "n": table.num_rows,
        "classes": list(read_class_names(table)),
        "splits": dict(Counter(table["split"].to_pylist())),
        "quarantined": read_table(run.path / "quarantine.parquet").num_rows,
    }


def _flagged(run: Run) -> int | None:
    if not run.scores.exists():
        return None
    return int(sum(read_table(run.scores)["flagged"].to_pylist()))


def _edits(run: Run) -> dict[str, Any]:
    """Counts of edits.parquet by status and reason; whether identity was judged."""
    if not run.edits.exists():
        return {**dict.fromkeys(STATUSES), "kept_reasons": {}, "identity_judged": None}
    table = read_table(run.edits)
    statuses = Counter(table["status"].to_pylist())
    rows = zip(table["status"].to_pylist(), table["reason"].to_pylist(), strict=True)
    reasons = Counter(reason for status, reason in rows if status == "kept")
    judged = table["identity_similarity"].null_count < table.num_rows
    return {
        **{status: statuses[status] for status in STATUSES},
        "kept_reasons": {reason: reasons[reason] for reason in REASONS},
        "identity_judged": judged,
    }


def _plain(figures: dict[str, Any] | None) -> dict[str, Any] | None:
    """Leave out what is a curve or a table; evaluation.json has it."""
    if figures is None:
        return None
    return {name: value for name, value in figures.items() if name not in ("curve", "per_class")}


def _device(run: Run) -> str:
    """The device that the last command used."""
    used = [event["device"] for event in run.events() if event["event"] == "begin"]
    return used[-1] if used else run.config.device


def _arms(run: Run) -> dict[str, Any]:
    """Mean measures of each arm over the seeds that did not diverge, with intervals over images and seeds."""
    if not run.comparison.exists():
        return {}
    rows = read_table(run.comparison).to_pylist()
    labels = _test_labels(run)
    arms: dict[str, Any] = {}
    for name in dict.fromkeys(row["arm"] for row in rows):
        sound = [row for row in rows if row["arm"] == name and not row["diverged"]]
        if not sound:
            continue
        paths = [run.path / "compare" / "predictions" / f"{name}-{row['seed']}.safetensors" for row in sound]
        logits = np.stack([load_tensors(path)["logits"].numpy() for path in paths])
        interval = arm_interval(logits, labels)
        arms[name] = {
            "accuracy": float(np.mean([row["accuracy"] for row in sound])),
            "balanced_accuracy": interval.estimate,
            "ci": list(interval.ci),
            "seeds": len(sound),
        }
    return arms


def _test_labels(run: Run) -> np.ndarray[Any, np.dtype[np.int64]]:
    table = read_table(run.path / "dataset.parquet")
    codes = {name: code for code, name in enumerate(read_class_names(table))}
    rows = zip(table["label"].to_pylist(), table["split"].to_pylist(), strict=True)
    return np.array([codes[label] for label, split in rows if split == "test"], dtype=np.int64)


def _versions() -> dict[str, str]:
    versions = {"diffinf": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "missing"
    return versions
