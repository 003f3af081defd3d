"""summary.json: the machine's view of a run, put together from its files."""

from __future__ import annotations

import platform
from collections import Counter
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import pyarrow.compute as pc

from diffinf import __version__
from diffinf.evaluate.gain import arm_interval
from diffinf.evaluate.groups import accuracy_by_group, count_groups, uneven_groups
from diffinf.files import (
    file_sha256,
    files_sha256,
    load_tensors,
    read_class_names,
    read_json,
    read_table,
    stage_key,
    write_json,
)
from diffinf.report import write_report
from diffinf.run import GROUP, Run

STATUSES = ("edited", "kept", "relabelled", "dropped")
REASONS = ("judge", "identity", "roundtrip", "influence", "class_unreliable", "label_fits", "restored")
_PACKAGES = ("torch", "timm", "diffusers", "numpy", "scikit-learn", "pyarrow", "pillow")


def write_summary(run: Run) -> dict[str, Any]:
    """Write summary.json from what the run has so far, and return it; what is missing is null or empty."""
    config = run.config
    evaluation = read_json(run.evaluation) if run.evaluation.exists() else {}
    summary: dict[str, Any] = {
        "dataset": _dataset(run),
        "detection": _plain(evaluation.get("detection")),
        "flagged": _flagged(run),
        "agreement": _means(run, "agreement"),
        "distance": _means(run, "distance"),
        **_edits(run),
        "conversion": _plain(evaluation.get("conversion")),
        "arms": _arms(run),
        "arms_stale": arms_stale(run),
        **_groups(run),
        "timings": run.timings(),
        "versions": _versions(),
        "seed": config.seed,
        "preset": config.preset,
        "device": _device(run),
    }
    write_json(run.summary, summary)
    return summary


def write_results(run: Run) -> None:
    """Write summary.json and report.html from the run's files."""
    write_summary(run)
    write_report(run.path)


def arms_stale(run: Run) -> bool:
    """Whether the arms were trained on another state of refined/ than is there now, or will be."""
    if not run.comparison.exists():
        return False
    compared = run.compare / "refined.json"
    return not compared.exists() or not run.is_done("refine", str(read_json(compared)["refine"]))


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


def _means(run: Run, column: str) -> dict[str, float | None] | None:
    """Mean of a column of scores.parquet, of flagged and of other samples; None where it is not there.

    `agreement` is the share of the annotators' votes that are for the label, `distance` the number of classes between
    the label and what the image appears to show, where classes are ordered.
    """
    table = read_table(run.scores) if run.scores.exists() else None
    if table is None or column not in table.column_names:
        return None
    values = np.array(table[column].to_pylist(), dtype=np.float64)
    flagged = np.array(table["flagged"].to_pylist(), dtype=bool)
    parts = {"flagged": values[flagged], "unflagged": values[~flagged]}
    return {name: None if np.isnan(part).all() else float(np.nanmean(part)) for name, part in parts.items()}


def _edits(run: Run) -> dict[str, Any]:
    """Counts of edits.parquet by status and reason; whether identity was judged."""
    if not run.edits.exists():
        missing: dict[str, Any] = {
            "kept_reasons": {},
            "class_counts": {},
            "policy": None,
            "identity_judged": None,
        }
        return {**dict.fromkeys(STATUSES), **missing}
    table = read_table(run.edits)
    statuses = Counter(table["status"].to_pylist())
    rows = zip(table["status"].to_pylist(), table["reason"].to_pylist(), strict=True)
    reasons = Counter(reason for status, reason in rows if status == "kept")
    judged = table["identity_similarity"].null_count < table.num_rows
    return {
        **{status: statuses[status] for status in STATUSES},
        "kept_reasons": {reason: reasons[reason] for reason in REASONS},
        "class_counts": _class_counts(run, table.to_pylist()),
        "policy": run.config.repair.policy,
        "identity_judged": judged,
    }


def _class_counts(run: Run, edits: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Training samples of each class in the dataset, and in the refined one."""
    scores = read_table(run.scores)
    before = Counter(scores["label"].to_pylist())
    after = before.copy()
    for row in edits:
        if row["status"] in ("relabelled", "dropped"):
            after[row["label"]] -= 1
        if row["status"] == "relabelled":
            after[row["new_label"]] += 1
    return {name: {"before": before[name], "after": after[name]} for name in read_class_names(scores)}


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
        sound = _sound(rows, name)
        if not sound:
            continue
        interval = arm_interval(_logits(run, sound), labels)
        arms[name] = {
            "accuracy": float(np.mean([row["accuracy"] for row in sound])),
            "balanced_accuracy": interval.estimate,
            "ci": list(interval.ci),
            "seeds": len(sound),
        }
        errors = [error for row in sound if (error := row.get("mean_absolute_error")) is not None]
        if len(errors) == len(sound):  # the classes are ordered
            arms[name]["mean_absolute_error"] = float(np.mean(errors))
    return arms


def _sound(rows: list[dict[str, Any]], arm: str) -> list[dict[str, Any]]:
    """The trainings of an arm that did not diverge."""
    return [row for row in rows if row["arm"] == arm and not row["diverged"]]


def _logits(run: Run, trainings: list[dict[str, Any]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Predictions (S, T, K) of trainings on the test images."""
    folder = run.path / "compare" / "predictions"
    files = [folder / f"{row['arm']}-{row['seed']}.safetensors" for row in trainings]
    return np.stack([load_tensors(file)["logits"].numpy() for file in files])


def _groups(run: Run) -> dict[str, Any]:
    """Flags, edits and accuracy by group, and the groups that flags or edits fall on far more than on others."""
    people = read_table(run.path / "dataset.parquet")
    columns = [name for name in people.column_names if name.startswith(GROUP)]
    if not columns or not run.scores.exists():
        return {"groups": {}, "group_warnings": []}
    scores = read_table(run.scores).to_pylist()
    flagged = [row["flagged"] for row in scores]
    marks = {"flagged": flagged}
    if run.edits.exists():
        edits = read_table(run.edits).to_pylist()
        edited = {row["id"] for row in edits if row["status"] == "edited"}
        marks["edited"] = [row["id"] in edited for row in scores]
    tested = people.filter(pc.equal(people["split"], "test"))
    accuracies = _accuracies(run, {name.removeprefix(GROUP): tested[name].to_pylist() for name in columns})
    groups: dict[str, Any] = {}
    warnings = []
    for column in columns:
        name, values = column.removeprefix(GROUP), people[column].to_pylist()
        of_id = dict(zip(people["id"].to_pylist(), values, strict=True))
        scored = [of_id[row["id"]] for row in scores]
        counts = count_groups(scored, [row["score"] for row in scores], flagged, marks.get("edited"))
        measured = accuracies.get(name, {})
        groups[name] = {
            value: {**found.to_dict(), "accuracy": measured.get(value, {})} for value, found in counts.items()
        }
        for measure, marked in marks.items():
            uneven = uneven_groups(scored, marked)
            warnings += [{"column": name, "measure": measure, **asdict(group)} for group in uneven]
    return {"groups": groups, "group_warnings": warnings}


def _accuracies(run: Run, groups: dict[str, list[str | None]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Column -> group -> arm -> accuracy, of every arm that was trained; `groups` are those of the test images.

    Resampling takes its time, and every command ends here: what was found is kept beside the predictions.
    """
    if not run.comparison.exists():
        return {}
    read = [file_sha256(file) for file in (run.path / "dataset.parquet", run.comparison)]
    key = stage_key(__version__, read, files_sha256(run.compare / "predictions", "*"))
    kept = run.compare / "groups.json"
    if kept.exists() and (known := read_json(kept))["key"] == key:
        return dict(known["accuracy"])
    rows, labels = read_table(run.comparison).to_pylist(), _test_labels(run)
    found: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in groups}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        if not (sound := _sound(rows, arm)):
            continue
        logits = _logits(run, sound)
        for name, values in groups.items():
            for value, (n, accuracy) in accuracy_by_group(values, logits, labels).items():
                figures = {"accuracy": accuracy.estimate, "ci": list(accuracy.ci), "n": n}
                found[name].setdefault(value, {})[arm] = figures
    write_json(kept, {"key": key, "accuracy": found})
    return found


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
