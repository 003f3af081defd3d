"""Writes a run directory as a real run would leave it: invented figures, all files, all columns."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from diffinf.evaluate.conversion import conversion
from diffinf.evaluate.detection import detection
from diffinf.evaluate.gain import arm_interval, balanced_accuracy
from diffinf.files import save_tensors, write_json, write_table, write_text

ARMS = ("baseline", "filter", "relabel", "resample", "diffinf")
DETECTION = ("average_precision", "base_rate", "precision_at_flagged", "n")
REASONS = ("judge", "identity", "roundtrip", "influence", "class_unreliable")
CLASSES = ("child", "young", "middle", "old")
FaceMaker = Callable[[int, int], np.ndarray]  # (class, sample) -> uint8 (C, H, W)


def blob_face(label: int, sample: int, size: int = 24) -> np.ndarray:
    """A coloured disc on a plain ground: enough of a picture for a test."""
    generator = np.random.default_rng([label, sample])
    y, x = np.mgrid[:size, :size] - size / 2
    inside = x**2 + y**2 < (size / 3) ** 2
    colours = generator.integers(40, 216, (2, 3))
    face = np.where(inside[None], colours[0][:, None, None], colours[1][:, None, None])
    return (face + 8 * label).clip(0, 255).astype(np.uint8)


def make_run(
    path: Path,
    *,
    n_train: int = 160,
    n_test: int = 120,
    flag_share: float = 0.2,
    gain: float = 0.25,
    seeds: int = 3,
    classes: Sequence[str] = CLASSES,
    truth: bool = True,
    identity: bool = True,
    face: FaceMaker = blob_face,
    edited_face: FaceMaker | None = None,
) -> Path:
    """Write a finished run; ``gain`` moves the accuracy of the diffinf arm."""
    generator = np.random.default_rng(0)
    names, labels = np.array(classes), generator.integers(0, len(classes), n_train)
    ids = np.array([f"face{index:05d}" for index in range(n_train)])
    wrong = generator.random(n_train) < 0.25
    other = (labels + generator.integers(1, len(classes), n_train)) % len(classes)
    true = np.where(wrong, other, labels)
    score = generator.normal(size=n_train) + 2.2 * wrong
    flagged = np.zeros(n_train, dtype=bool)
    flagged[np.argsort(-score)[: round(flag_share * n_train)]] = True
    appears = np.where(generator.random(n_train) < 0.8, true, other)
    appears[flagged] = np.where(appears == labels, other, appears)[flagged]

    write_text(path / "config.yaml", "dataset: faces/labels.csv\npreset: cpu\nseed: 7\ndevice: cpu\n")
    table = {"id": ids, "target": [""] * n_train, "label": names[labels]}
    splits = {"split": ["train"] * n_train, "identity": [None] * n_train}
    write_table(path / "dataset.parquet", _table({**table, **splits}, classes))
    quarantined = {"id": ["broken1"], "path": ["images/broken1.png"], "reason": ["truncated image"]}
    write_table(path / "quarantine.parquet", _table(quarantined, classes))
    rivals = ("loss", "margin", "squared_error", "aum", "self_confidence", "knn_agreement")
    columns = {
        "score": score,
        "self_influence": np.exp(score),
        "flagged": flagged,
        "threshold": np.full(n_train, score[flagged].min() if flagged.any() else np.nan),
        "appears": names[appears],
        "label_trust": 1 / (1 + np.exp(score - 1.5)),
        **dict.fromkeys(rivals, score),
        "fold": labels % 4,
    }
    write_table(path / "scores.parquet", _table({**table, **columns}, classes))
    flags = {"method": "share", "estimated_precision": 0.7, "estimated_noise": 0.3, "mixture": None}
    write_json(path / "flags.json", flags)
    rows = np.flatnonzero(flagged)
    edits = _edits(rows, ids, names, labels, appears, identity, generator)
    write_table(path / "edits.parquet", _table(edits, classes))
    if len(rows):
        original = np.stack([face(int(true[row]), int(row)) for row in rows])
        edited = np.stack([(edited_face or face)(int(labels[row]), int(row)) for row in rows])
        unreliable = np.array(edits["reason"]) == "class_unreliable"
        edited[unreliable] = original[unreliable]
        pictures = {"original": original, "roundtrip": original.copy(), "edited": edited}
        tensors = {name: torch.from_numpy(array) for name, array in pictures.items()}
        save_tensors(path / "repair" / "pictures.safetensors", tensors)
    arms = _compare(path, classes, n_train, n_test, gain, seeds)
    statuses = list(edits["status"])
    evaluation = (
        _evaluation(path, score, flagged, wrong, labels, true, names, ids, statuses) if truth else None
    )
    write_json(path / "repair" / "gate.json", _gate(identity))
    bins = [[0.04, 0.05, 60], [0.35, 0.3, 12], [0.72, 0.75, 8]]
    write_json(path / "surrogate" / "metrics.json", {"auroc": 0.871, "brier": 0.112, "bins": bins, "n": 80})
    terms = {"label": {"weight": 1.0, "before": 2.345, "after": 0.0971}}
    terms["influence"] = {"weight": 0.3, "before": 1.5, "after": 0.5}
    write_json(path / "repair" / "terms.json", terms)
    write_json(
        path / "autoencoder" / "metrics.json",
        {"last": {"roundtrip_l1": 0.034}, "history": [{}], "n": n_train},
    )
    reasons = list(edits["reason"])
    summary = {
        "dataset": {"n": n_train + n_test, "classes": list(classes), "quarantined": 1},
        "detection": evaluation and {name: evaluation["detection"][name] for name in DETECTION},
        "flagged": int(flagged.sum()),
        **{status: statuses.count(status) for status in ("edited", "kept", "relabelled", "dropped")},
        "kept_reasons": {reason: reasons.count(reason) for reason in REASONS},
        "conversion": evaluation and evaluation["conversion"],
        "arms": arms,
        "timings": {
            "train": 41.2,
            "score": 66.0,
            "train-autoencoder": 205.3,
            "repair": 88.1,
            "compare": 143.0,
        },
        "versions": {"diffinf": "0.1.0", "torch": "2.15.0"},
        "seed": 7,
        "device": "cpu",
        "identity_judged": identity,
    }
    write_json(path / "summary.json", summary)
    write_text(
        path / "events.jsonl", '{"time": 1.0, "stage": "train", "event": "end", "seconds": 41.2}\n{"tor'
    )
    return path


def _table(columns: dict[str, Any], classes: Sequence[str]) -> pa.Table:
    import json

    table = pa.table({name: pa.array(list(values)) for name, values in columns.items()})
    return table.replace_schema_metadata({b"class_names": json.dumps(list(classes)).encode()})


def _edits(
    rows: np.ndarray,
    ids: np.ndarray,
    names: np.ndarray,
    labels: np.ndarray,
    appears: np.ndarray,
    identity: bool,
    generator: np.random.Generator,
) -> dict[str, Any]:
    accepted = generator.random(len(rows)) < 0.6
    reason = ["" if taken else REASONS[i % len(REASONS)] for i, taken in enumerate(accepted)]
    draw = generator.random
    return {
        "id": ids[rows],
        "target": [""] * len(rows),
        "label": names[labels[rows]],
        "appears": names[appears[rows]],
        "status": ["edited" if taken else "kept" for taken in accepted],
        "reason": reason,
        "strength": [None if why == "class_unreliable" else 0.75 for why in reason],
        "judge_before": 0.2 * draw(len(rows)),
        "judge_after": [None if why == "class_unreliable" else 0.5 + 0.5 * draw() for why in reason],
        "influence_before": 5 * draw(len(rows)),
        "influence_after": draw(len(rows)),
        "identity_similarity": 0.6 + 0.4 * draw(len(rows)) if identity else [None] * len(rows),
        "code_similarity": 0.5 + 0.5 * draw(len(rows)),
        "roundtrip_error": 0.05 * draw(len(rows)),
        "path": [f"images/{name}.png" for name in ids[rows]],
        "source_sha256": ["0" * 64] * len(rows),
    }


def _gate(identity: bool) -> dict[str, Any]:
    figures = {
        "judge": "persons",
        "calibrated_on": "pairs of different persons",
        "quantile": 0.99,
        "failed": 0.0,
        "threshold": 0.42,
        "accepted": 0.83,
        "persons": 12,
        "pairs_same": 310,
        "pairs_other": 4200,
        "edges": [-1.0, 0.0, 1.0],
        "same": [0.1, 0.9],
        "other": [0.7, 0.3],
    }
    return {
        "identity_threshold": 0.42 if identity else None,
        "identity": figures if identity else None,
        "unreliable_classes": [],
    }


def _compare(
    path: Path, classes: Sequence[str], n_train: int, n_test: int, gain: float, seeds: int
) -> dict[str, Any]:
    generator = np.random.default_rng(1)
    labels = generator.integers(0, len(classes), n_test)
    save_tensors(path / "compare" / "test.safetensors", {"labels": torch.from_numpy(labels)})
    rows, summary = [], {}
    for number, arm in enumerate(ARMS):
        accuracy = min(1.0, 0.55 + 0.02 * number + (gain - 0.08 if arm == "diffinf" else 0.0))
        logits = []
        for seed in range(seeds):
            # One draw for all arms of a seed: arms differ by what they learned, not by luck on an image.
            right = np.random.default_rng([2, seed]).random(n_test) < accuracy
            guess = np.where(right, labels, (labels + 1 + generator.integers(0, 2, n_test)) % len(classes))
            logits.append(np.eye(len(classes), dtype=np.float32)[guess] * 3)
            scores = {
                "accuracy": float((guess == labels).mean()),
                "macro_f1": float((guess == labels).mean()),
            }
            balanced = balanced_accuracy(guess, labels)
            fixed = {"n_train": n_train, "steps": 1200, "seconds": 9.0, "diverged": False}
            rows.append({"arm": arm, "seed": seed, **fixed, **scores, "balanced_accuracy": balanced})
            name = f"compare/predictions/{arm}-{seed}.safetensors"
            save_tensors(path / name, {"logits": torch.from_numpy(logits[-1])})
        interval = arm_interval(np.stack(logits), labels, resamples=200)
        summary[arm] = {"balanced_accuracy": interval.estimate, "ci": interval.ci, "seeds": seeds}
    write_table(path / "compare.parquet", pa.Table.from_pylist(rows), classes)
    return summary


def _evaluation(
    path: Path,
    score: np.ndarray,
    flagged: np.ndarray,
    wrong: np.ndarray,
    labels: np.ndarray,
    true: np.ndarray,
    names: np.ndarray,
    ids: np.ndarray,
    statuses: list[str],
) -> dict[str, Any]:
    found = detection(score, flagged, wrong, bootstrap=50).to_dict()
    found["rivals"] = {"self_influence": 0.31, "loss": 0.44}
    accepted = np.array(statuses) == "edited"
    repaired = conversion(
        wrong=wrong[flagged],
        accepted=accepted,
        judged_edited=np.where(accepted, labels[flagged], true[flagged]),
        judged_original=true[flagged],
        judged_roundtrip=true[flagged],
        labels=labels[flagged],
    ).to_dict()
    write_json(path / "evaluation.json", {"detection": found, "conversion": repaired})
    truths = {"id": ids, "target": [""] * len(ids), "truth": names[true]}
    write_table(path / "evaluation.parquet", _table(truths, names.tolist()))
    return {"detection": found, "conversion": repaired}
