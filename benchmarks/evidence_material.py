"""What the arms of the comparison train on: the files of a run, runs under other flags, and edits made of the truth."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffinf.config import RunConfig, split_arm
from diffinf.data.dataset import open_dataset
from diffinf.data.rendered.render import render_faces
from diffinf.data.rendered.tasks import CLASS_NAMES, Task, counterfactual
from diffinf.errors import UserError
from diffinf.files import load_tensors, read_table, write_text
from diffinf.influence.flag import flag
from diffinf.pipeline import execute
from diffinf.run import Run
from diffinf.stages.comparing import arm_material, check_apart, check_pictures
from diffinf.stages.workspace import Workspace
from repair_run import rendered_factors

# What rests on the flags: a run under other flags makes it anew.
_OF_THE_FLAGS = (
    "repair*",
    "surrogate",
    "refine*",
    "edits.parquet",
    "compare*",
    "evaluate-edits.json",
    "summary.json",
    "report.html",
    "events.jsonl",
    ".work",
    "lock",
)


def workspace_of(run: Run) -> Workspace:
    """Open the dataset of a finished repair; UserError where it is not finished."""
    run.key("refine")
    config = run.config
    return Workspace(run, open_dataset(config.dataset, config.data, seed=config.seed))


def read_material(workspace: Workspace, arms: Sequence[str], folder: Path) -> dict[str, Any]:
    """Keyword arguments of `run_arms` out of the run's files and, for the arms that ask for them, of the truth.

    The editor's runs under other flags (`true-flags`, `diffinf-paper`) are made in `folder`.

    Raises:
        UserError: test and training are not apart, there is no validation split, or an arm needs a truth that nobody
            knows.
    """
    check_apart(workspace.config, workspace.dataset)
    found = arm_material(workspace, arms)
    check_pictures(workspace, found["images_test"])
    if found["images_validation"] is None:
        raise UserError(f"{workspace.config.dataset}: no sample is in the split validation, to choose on")
    bases = {split_arm(arm)[0] for arm in arms}
    if "clean" in bases:
        _truth(workspace)
    if "oracle-edit" in bases:
        found["oracle_images"] = oracle_images(workspace)
    if "true-flags" in bases:
        found["true_flag_edits"] = edits_under_flags(workspace, wrong_ids(workspace), folder / "true-flags")
    if "diffinf-paper" in bases:
        found["paper_edits"] = edits_under_flags(workspace, influential_ids(workspace), folder / "paper")
    return found


def accepted_edits(run: Run, workspace: Workspace) -> dict[int, Tensor]:
    """Sample (row of the training split) -> its accepted edit by `run`, uint8 (C, H, W)."""
    edits = read_table(run.edits).to_pylist()
    if not edits:
        return {}
    pictures = load_tensors(run.repair / "pictures.safetensors")["edited"]
    rows = workspace.rows_of([edit["id"] for edit in edits])
    return {int(rows[m]): pictures[m] for m, edit in enumerate(edits) if edit["status"] == "edited"}


def oracle_images(workspace: Workspace) -> dict[int, Tensor]:
    """Flagged sample -> an image that truly fits its label, uint8 (C, H, W).

    Rendered faces: the same face with the attribute alone moved. Photographs: a training image whose truth is the
    label, by a hash of seed and id; a label that fits no training image leaves its samples as they are.
    """
    flagged = np.flatnonzero(read_table(workspace.run.scores)["flagged"].to_numpy())
    labels = workspace.labels.numpy()
    if (factors := rendered_factors(workspace)) is not None:
        moved = counterfactual(factors.take(flagged), labels[flagged], _task(workspace))
        images = torch.from_numpy(render_faces(moved, workspace.dataset.image_size))
        return dict(zip(flagged.tolist(), images, strict=True))
    truth, ids = _truth(workspace), workspace.ids
    fitting = {
        label: sorted(np.flatnonzero(truth == label).tolist(), key=lambda row: str(ids[row]))
        for label in np.unique(labels[flagged]).tolist()
    }
    found = {}
    for row in flagged.tolist():
        if pool := fitting[int(labels[row])]:
            digest = hashlib.sha256(f"{workspace.seed}:oracle-edit:{ids[row]}".encode()).hexdigest()
            found[row] = workspace.images[pool[int(digest, 16) % len(pool)]]
    return found


def wrong_ids(workspace: Workspace) -> list[str]:
    """Ids of the training samples whose label is not the truth."""
    ids: list[str] = workspace.ids[_truth(workspace) != workspace.labels.numpy()].tolist()
    return ids


def influential_ids(workspace: Workspace) -> list[str]:
    """Ids of the training samples with the largest self-influence, as many as the run flagged."""
    scores = read_table(workspace.run.scores)
    values = np.nan_to_num(scores["self_influence"].to_numpy(), posinf=np.finfo(np.float64).max)
    count = int(scores["flagged"].to_numpy().sum())
    chosen: list[str] = workspace.ids[
        flag(values, workspace.ids, method="count", count=count).flagged
    ].tolist()
    return chosen


def edits_under_flags(workspace: Workspace, ids: list[str], folder: Path) -> dict[int, Tensor]:
    """Accepted edits of our editor for exactly these samples, made by a run of its own in `folder`, resumable.

    All flagged samples are to be edited: none is relabelled, dropped or spared by a second look.
    """
    if not ids:
        return {}
    config = workspace.config
    flags = folder.with_suffix(".ids.txt")
    write_text(flags, "\n".join(sorted(ids)) + "\n")
    changed = config.model_copy(
        update={
            "influence": config.influence.model_copy(update={"flags": flags.resolve()}),
            "repair": config.repair.model_copy(update={"policy": "edit", "spare": 0.0}),
        }
    )
    return accepted_edits(run_like(workspace.run, changed, folder), workspace)


def run_like(run: Run, config: RunConfig, folder: Path) -> Run:
    """Take `run` to the repair under other settings in `folder`; what they do not change is copied, not made again."""
    if not Run.exists(folder):
        partial = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(run.path, partial, ignore=shutil.ignore_patterns(*_OF_THE_FLAGS))
        partial.rename(folder)
    return execute(config, until="repair", out=folder)


def _truth(workspace: Workspace) -> np.ndarray[Any, np.dtype[np.int64]]:
    truth = workspace.truth()
    if truth is None:
        raise UserError(
            f"{workspace.config.dataset}: no column truth_label; leave out the arms clean, true-flags, oracle-edit"
        )
    return truth


def _task(workspace: Workspace) -> Task:
    names = workspace.dataset.class_names
    tasks: dict[tuple[str, ...], Task] = {CLASS_NAMES["expression"]: "expression", CLASS_NAMES["age"]: "age"}
    if names not in tasks:
        raise UserError(f"{workspace.config.dataset}: rendered faces of unknown classes {', '.join(names)}")
    return tasks[names]
