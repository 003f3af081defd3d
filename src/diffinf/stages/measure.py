"""evaluation.json: detection and conversion against the truth, where the dataset carries it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from diffinf.classify.crossfit import CrossFit, cross_fit, out_of_fold_logits
from diffinf.evaluate.conversion import conversion
from diffinf.evaluate.detection import detection
from diffinf.files import load_tensors, read_json, read_table, write_json, write_table
from diffinf.stages.scores import RIVALS
from diffinf.stages.workspace import Ints, Workspace

VIEWS = ("original", "roundtrip", "edited")


def evaluate_scores(workspace: Workspace, truth: Ints) -> None:
    """Measure scores and flags against the truth, (N,): evaluation.json, and evaluation.parquet by sample."""
    names = np.array(workspace.dataset.class_names)
    wrong = truth != workspace.labels.numpy()
    columns = {
        "id": pa.array(workspace.ids, pa.string()),
        "target": pa.array([""] * len(truth), pa.string()),
        "truth": pa.array(names[truth], pa.string()),
        "wrong": pa.array(wrong, pa.bool_()),
    }
    write_table(workspace.run.path / "evaluation.parquet", pa.table(columns), names.tolist())
    # What was said of edits was said of other flags.
    write_json(workspace.run.evaluation, {"detection": _detection(workspace, wrong), "conversion": None})


def evaluate_edits(workspace: Workspace, truth: Ints) -> None:
    """Measure the edits against the truth, (N,): the conversion in evaluation.json."""
    wrong = truth != workspace.labels.numpy()
    found = _conversion(workspace, wrong, _readings(workspace, torch.from_numpy(truth)))
    write_json(workspace.run.evaluation, {**read_json(workspace.run.evaluation), "conversion": found})


def _detection(workspace: Workspace, wrong: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Detection by the score that flags, and the average precision of every other score beside it."""
    table = read_table(workspace.run.scores)
    flagged = table["flagged"].to_numpy()

    def scores(name: str) -> npt.NDArray[np.float64]:
        # A gradient that overflowed is as suspicious as can be, and a measure takes finite scores.
        finite: npt.NDArray[np.float64] = np.nan_to_num(
            table[name].to_numpy(), posinf=np.finfo(np.float64).max
        )
        return finite

    labels, names = workspace.labels.numpy(), workspace.dataset.class_names
    result = detection(
        scores("score"), flagged, wrong, labels=labels, class_names=names, seed=workspace.seed
    ).to_dict()
    others = ("self_influence", *(name for name in RIVALS if not table[name].null_count))
    result["rivals"] = {
        name: detection(scores(name), flagged, wrong, bootstrap=0).average_precision for name in others
    }
    return result


def _readings(workspace: Workspace, truth: Tensor) -> dict[str, Ints]:
    """The class an oracle reads in each flagged image, (M,): as it came, after a round trip, after the edit."""
    rows = workspace.rows_of(read_table(workspace.run.edits)["id"].to_pylist())
    if not len(rows):
        return {}
    pictures = load_tensors(workspace.run.repair / "pictures.safetensors")
    oracle = fit_oracle(workspace, truth, workspace.run.scratch("evaluate-edits"))
    fold = oracle.fold[rows]
    return {
        view: out_of_fold_logits(oracle, pictures[view], fold, device=workspace.device).argmax(1).numpy()
        for view in VIEWS
    }


def fit_oracle(workspace: Workspace, truth: Tensor, directory: Path) -> CrossFit:
    """Cross-fit an oracle on the TRUE labels (N,), for measuring alone; its folds stay in `directory`.

    It learns originals and unedited round trips, so that the texture of a decoded image means nothing to it, and reads
    a sample with the model that never saw it.
    """
    rows = workspace.rows_of(read_table(workspace.run.edits)["id"].to_pylist())
    second_view = workspace.images.clone()
    second_view[rows] = load_tensors(workspace.run.repair / "pictures.safetensors")["roundtrip"]
    return cross_fit(
        workspace.images,
        truth,
        workspace.ids,
        spec=workspace.spec,
        config=workspace.config.classifier,
        folds=workspace.config.repair.judge_folds,
        seed=workspace.seed,
        directory=directory,
        device=workspace.device,
        workers=workspace.config.compare.workers,
        extra_images=second_view,
        identities=workspace.identities,
        description="oracle on the truth",
    )


def _conversion(
    workspace: Workspace, wrong: npt.NDArray[np.bool_], readings: dict[str, Ints]
) -> dict[str, Any] | None:
    if not readings:
        return None
    edits = read_table(workspace.run.edits)
    rows = workspace.rows_of(edits["id"].to_pylist())
    similarity = edits["identity_similarity"].to_numpy().astype(np.float64)  # null becomes NaN
    gate = workspace.run.repair / "gate.json"
    threshold = read_json(gate).get("identity_threshold") if gate.exists() else None
    return conversion(
        wrong=wrong[rows],
        accepted=np.array(edits["status"].to_pylist()) == "edited",
        judged_original=readings["original"],
        judged_roundtrip=readings["roundtrip"],
        judged_edited=readings["edited"],
        labels=workspace.labels.numpy()[rows],
        identity_similarity=None if threshold is None else similarity,
        identity_threshold=threshold,
    ).to_dict()
