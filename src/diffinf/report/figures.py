"""The figures of a report: classes, arms, confusion, truth, costs."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffinf.evaluate.gain import Difference, arm_interval, holm, paired_difference
from diffinf.report import plots
from diffinf.report.files import RunFiles
from diffinf.report.words import Gain, plain_figures

ARMS = {
    "baseline": "trained on the data as given",
    "gce": "generalised cross-entropy",
    "sce": "symmetric cross-entropy",
    "elr": "early-learning regularisation",
    "aldr-kl": "the adaptive robust loss ALDR-KL",
    "co-teaching": "two networks that choose each other's samples",
    "sam": "sharpness-aware minimisation",
    "cleanlab": "what cleanlab prunes left out",
    "filter": "flagged samples left out",
    "down-weight": "flagged samples count less",
    "relabel": "flagged samples given the label they appear to show",
    "resample": "each flagged picture replaced by an unflagged one of its label",
    "roundtrip": "flagged pictures sent through the autoencoder, unedited",
    "diffinf": "flagged pictures edited to show their label",
    "diffinf-edit-or-relabel": "as diffinf; refused ones relabelled where their label is probably wrong",
    "diffinf-edit-or-drop": "as diffinf; refused ones left out where their label is probably wrong",
    "diffinf-edit-or-resample": "as edit-or-drop; an unflagged picture of the label in the place of each one left out",
    "diffinf-paper": "edits under flags by self-influence, as published",
    "true-flags": "edits under perfect flags",
    "clean": "all labels replaced by the true ones",
    "oracle-edit": "flagged pictures replaced by ones that truly fit their label",
}
_REPAIR, _REFERENCE = "diffinf", "baseline"
_MEASURES = ("balanced_accuracy", "accuracy", "macro_f1")
_MOST_CLASSES = 24  # more bars than this say nothing; the table has them all


def found(files: RunFiles) -> dict[str, Any] | None:
    """Scores and flags over all and by class; None before scoring."""
    if not files.scores:
        return None
    labels = np.array([str(row["label"]) for row in files.scores])
    flagged = np.array([bool(row["flagged"]) for row in files.scores])
    scores = np.array([row["score"] for row in files.scores], dtype=np.float64)
    trust = np.array([row.get("label_trust") for row in files.scores], dtype=np.float64)
    names = [name for name in files.class_names if (labels == name).any()] or sorted(set(labels.tolist()))
    classes = []
    for name in names:
        rows = labels == name
        noise = None if np.isnan(trust[rows]).all() else float(1 - np.nanmean(trust[rows]))
        n, hits = int(rows.sum()), int(flagged[rows].sum())
        classes.append({"name": name, "n": n, "flagged": hits, "share": hits / n, "noise": noise})
    threshold = _common_threshold(files)
    finite = np.isfinite(scores)
    return {
        "n": len(scores),
        "flagged": int(flagged.sum()),
        "noise": None if np.isnan(trust).all() else float(1 - np.nanmean(trust)),
        "threshold": threshold,
        "classes": classes,
        "method": files.flags.get("method"),
        "precision": files.flags.get("estimated_precision"),
        "mixture": files.flags.get("mixture"),
        "histogram": plots.score_histogram(
            scores[finite], flagged[finite], threshold, mixture=files.flags.get("mixture")
        )
        if finite.any()
        else None,
        "chart": _class_chart(classes),
    }


def _common_threshold(files: RunFiles) -> float | None:
    """The threshold, if all samples had the same."""
    thresholds = {row.get("threshold") for row in files.scores or []}
    value = thresholds.pop() if len(thresholds) == 1 else None
    return float(value) if value is not None and np.isfinite(value) else None


def _class_chart(classes: list[dict[str, Any]]) -> str:
    shown = classes
    if len(classes) > _MOST_CLASSES:
        shown = sorted(classes, key=lambda row: -row["share"])[:_MOST_CLASSES]
    series = {"flagged": np.array([row["share"] for row in shown], dtype=np.float64)}
    if all(row["noise"] is not None for row in shown):
        series["estimated wrong"] = np.array([row["noise"] for row in shown], dtype=np.float64)
    return plots.class_bars([row["name"] for row in shown], series)


def arms(files: RunFiles, differences: Mapping[str, Difference]) -> dict[str, Any] | None:
    """Arms with intervals and paired `differences`; None before anything was retrained.

    The p values are adjusted for the number of differences by Holm's method.
    """
    if not files.compare:
        return None
    present = {str(row["arm"]) for row in files.compare}
    order = [arm for arm in ARMS if arm in present] + sorted(present - ARMS.keys())
    table = [row for arm in order if (row := _arm_row(files, arm))]
    steps = sorted({int(row["steps"]) for row in files.compare})
    adjusted = holm({arm: difference.p_value for arm, difference in differences.items()})
    whiskers = [
        plots.Whisker(row["name"], row["balanced_accuracy"], row["ci"], row["points"], row["name"] == _REPAIR)
        for row in table
    ]
    reference = next((row["balanced_accuracy"] for row in table if row["name"] == _REFERENCE), None)
    return {
        "table": table,
        "chart": plots.whiskers(whiskers, "balanced accuracy on the test images", reference)
        if table
        else None,
        "differences": [
            {"arm": arm, "p": adjusted[arm], **differences[arm].to_dict()} for arm in differences
        ],
        "n_test": n_test(files),
        "steps": steps,
        "seeds": sorted({int(row["seed"]) for row in files.compare}),
        "diverged": sum(bool(row.get("diverged")) for row in files.compare),
        "confusion": _confusions(files),
        "ordered": any(row["mean_absolute_error"] is not None for row in table),
    }


def _arm_row(files: RunFiles, arm: str) -> dict[str, Any] | None:
    """Means over the seeds of an arm that did not diverge; None if all did."""
    rows = [row for row in files.compare or [] if row["arm"] == arm and not row.get("diverged")]
    if not rows:
        return None
    means = {name: float(np.mean([row[name] for row in rows])) for name in _MEASURES}
    errors = [error for row in rows if (error := row.get("mean_absolute_error")) is not None]
    return {
        "name": arm,
        "meaning": "; ".join(ARMS[part] for part in arm.split("+") if part in ARMS),
        "ci": _interval(files, arm),
        "seeds": len(rows),
        "n_train": sorted({int(row["n_train"]) for row in rows}),
        "points": tuple(float(row["balanced_accuracy"]) for row in rows) if len(rows) > 1 else (),
        "mean_absolute_error": float(np.mean(errors)) if len(errors) == len(rows) else None,
        **means,
    }


def _interval(files: RunFiles, arm: str) -> tuple[float, float] | None:
    """The interval of summary.json; before there is one, the same from the predictions."""
    ends = ((files.summary.get("arms") or {}).get(arm) or {}).get("ci")
    if ends:
        return float(ends[0]), float(ends[1])
    if files.labels is None or arm not in files.logits:
        return None
    return arm_interval(np.stack(list(files.logits[arm].values())), files.labels).ci


def differences(files: RunFiles) -> dict[str, Difference]:
    """Paired difference of the repair to each other arm, over the seeds whose predictions both have."""
    found: dict[str, Difference] = {}
    ours = files.logits.get(_REPAIR, {})
    for arm, theirs in files.logits.items():
        seeds = sorted(ours.keys() & theirs.keys())
        if arm != _REPAIR and seeds and files.labels is not None:
            repaired, other = (np.stack([logits[seed] for seed in seeds]) for logits in (ours, theirs))
            found[arm] = paired_difference(repaired, other, files.labels)
    return found


def gain(files: RunFiles, difference: Difference | None) -> Gain | None:
    """Balanced accuracy without and with the repair; None unless both were trained."""
    before, after = (_arm_row(files, arm) for arm in (_REFERENCE, _REPAIR))
    if before is None or after is None:
        return None
    return Gain(before["balanced_accuracy"], after["balanced_accuracy"], difference)


def n_test(files: RunFiles) -> int | None:
    """Number of test images, if it is known."""
    if files.labels is not None:
        return len(files.labels)
    splits = (files.summary.get("dataset") or {}).get("splits") or {}
    return int(splits["test"]) if "test" in splits else None


def _confusions(files: RunFiles) -> list[dict[str, str]]:
    """Confusion before, after and their difference, as far as there are predictions."""
    if files.labels is None:
        return []
    compared = [arm for arm in (_REFERENCE, _REPAIR) if arm in files.logits]
    matrices = {arm: _confusion(files.logits[arm], files.labels) for arm in compared}
    captions = {
        _REFERENCE: "Before: trained on the data as given",
        _REPAIR: "After: trained on the repaired data",
    }
    size = max((len(matrix) for matrix in matrices.values()), default=0)
    names = files.class_names if len(files.class_names) == size else [str(index) for index in range(size)]
    shown = [
        {"caption": captions[arm], "chart": plots.confusion(matrix, names)}
        for arm, matrix in matrices.items()
    ]
    if len(matrices) == 2:
        change = matrices[_REPAIR] - matrices[_REFERENCE]
        caption = "Change in points: blue more, orange less"
        shown.append({"caption": caption, "chart": plots.confusion(change, names, change=True)})
    return shown


def _confusion(logits: dict[int, NDArray[np.float32]], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Row shares (K, K) of true by predicted class over all seeds; NaN for classes without test images."""
    classes = next(iter(logits.values())).shape[1]
    counts = np.zeros((classes, classes))
    for prediction in logits.values():
        np.add.at(counts, (labels, prediction.argmax(axis=1)), 1)
    totals = counts.sum(axis=1, keepdims=True)
    shares: NDArray[np.float64] = np.divide(
        counts, totals, out=np.full_like(counts, np.nan), where=totals > 0
    )
    return shares


def truth(files: RunFiles) -> dict[str, Any] | None:
    """Detection and conversion against known truth; None where there is none."""
    detection = files.evaluation.get("detection") or files.summary.get("detection")
    conversion = files.evaluation.get("conversion") or files.summary.get("conversion")
    if not detection and not conversion:
        return None
    curve = np.array((detection or {}).get("curve") or [], dtype=np.float64)
    chart = None
    if detection and len(curve):
        recall, precision = detection.get("recall_at_flagged"), detection.get("precision_at_flagged")
        point = None if recall is None or precision is None else (float(recall), float(precision))
        chart = plots.precision_recall(curve, float(detection["base_rate"]), point)
    return {
        "detection": {"ci": None, "recall_at_flagged": None, **detection} if detection else None,
        "lift": _lift(detection),
        "rivals": _rivals(detection),
        "curve": chart,
        "conversion": conversion,
        "conversion_chart": _conversion_chart(conversion),
    }


def _lift(detection: dict[str, Any] | None) -> float | None:
    if not detection or not detection.get("base_rate") or detection.get("average_precision") is None:
        return None
    return float(detection["average_precision"] / detection["base_rate"])


def _rivals(detection: dict[str, Any] | None) -> list[tuple[str, float]]:
    """Average precision of the score and of every other score, the best first."""
    others = {
        name: value for name, value in ((detection or {}).get("rivals") or {}).items() if value is not None
    }
    if not others or detection is None or detection.get("average_precision") is None:
        return []
    every = {"score": detection["average_precision"], **others}
    return sorted(every.items(), key=lambda item: -item[1])


def _conversion_chart(conversion: dict[str, Any] | None) -> str | None:
    if not conversion or conversion.get("conversion") is None:
        return None
    steps = {"as they came": "before", "unedited round trip": "roundtrip", "after repair": "conversion"}
    rows = [
        plots.Whisker(
            name,
            float(conversion[key]),
            conversion.get("ci" if key == "conversion" else f"{key}_ci"),
            emphasis=key == "conversion",
        )
        for name, key in steps.items()
        if conversion.get(key) is not None
    ]
    return plots.whiskers(rows, "share that shows its label, of those with a wrong label")


def costs(files: RunFiles) -> dict[str, Any]:
    """Seconds by stage, versions, the seed, the device and the commands that make the run again."""
    timings = {str(name): float(seconds) for name, seconds in (files.summary.get("timings") or {}).items()}
    if not timings:
        ends = [event for event in files.events if event.get("event") == "end" and "seconds" in event]
        timings = {str(event["stage"]): float(event["seconds"]) for event in ends}
    longest = max(timings.values(), default=0.0) or 1.0
    return {
        "stages": [(name, seconds, seconds / longest) for name, seconds in timings.items()],
        "total": sum(timings.values()),
        "versions": files.summary.get("versions") or {},
        "seed": files.summary.get("seed", files.config.get("seed")),
        "device": files.summary.get("device", files.config.get("device")),
        "commands": _commands(files),
        "config": files.config_text,
        "parts": [
            (title, plain_figures(figures))
            for title, figures in (("Autoencoder", files.autoencoder), ("Surrogate", files.surrogate))
            if plain_figures(figures)
        ],
    }


def _commands(files: RunFiles) -> list[tuple[str, str]]:
    run, dataset = shlex.quote(files.name), shlex.quote(str(files.config.get("dataset", "DATASET")))
    again = shlex.quote(f"{files.name}-again")
    return [
        ("the same run once more", f"diffinf run {dataset} --config {run}/config.yaml --out {again}"),
        ("this page once more", f"diffinf report {run}"),
        ("the retrained classifier on pictures of your own", f"diffinf predict {run} PICTURES"),
    ]


def quarantine(files: RunFiles) -> dict[str, Any] | None:
    """Files that could not be read, by reason; None if the run has no such table."""
    if files.quarantine is None:
        return None
    reasons = Counter(str(row["reason"]) for row in files.quarantine)
    return {"n": len(files.quarantine), "rows": files.quarantine[:100], "reasons": reasons.most_common()}
