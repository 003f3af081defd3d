"""The score stage on a tiny run whose classifiers' outputs are written by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from diffinf.config import RunConfig
from diffinf.files import read_json, read_table, save_tensors
from diffinf.run import Run
from diffinf.stages.scoring import score_run

N, CLASSES = 40, ("happy", "sad")


@pytest.fixture
def workspace(tmp_path: Path) -> Any:
    """Labels that are right but for the first four samples; every classifier is sure of the truth."""
    truth = np.arange(N) % 2
    labels = np.where(np.arange(N) < 4, 1 - truth, truth)
    logits = torch.from_numpy(np.eye(2, dtype=np.float32)[truth]) * 4
    run = Run.create(tmp_path / "run", RunConfig(dataset="faces"), "fingerprint")
    fold = torch.arange(N) // 2 % 4
    outputs = {"fold": fold, "features": logits.clone(), "logits": logits, "fitted": logits.softmax(1)}
    save_tensors(run.crossfit / "outputs.safetensors", outputs)
    save_tensors(run.classifier / "dynamics.safetensors", {"logits": logits[None]})
    influence = torch.ones(N, dtype=torch.float64)
    influence[7] = torch.inf
    save_tensors(run.path / "influence.safetensors", {"self_influence": influence})
    ids = np.array([f"face{i:02d}" for i in range(N)])
    dataset = SimpleNamespace(class_names=CLASSES, ids=ids, ordered=False)
    return SimpleNamespace(
        run=run,
        config=run.config,
        dataset=dataset,
        ids=ids,
        labels=torch.from_numpy(labels),
        rows=np.arange(N),
        agreement=None,
    )


def set_influence(workspace: Any, **values: Any) -> None:
    influence = workspace.config.influence.model_copy(update=values)
    workspace.config = workspace.config.model_copy(update={"influence": influence})


def test_wrong_labels_and_infinite_gradients_come_first(workspace: Any) -> None:
    set_influence(workspace, flag="count", count=5)
    score_run(workspace)
    table = read_table(workspace.run.scores)
    assert np.flatnonzero(table["flagged"].to_numpy()).tolist() == [0, 1, 2, 3, 7]
    assert np.isposinf(table["score"].to_numpy()).sum() == 1
    trust = table["label_trust"].to_numpy()
    assert trust[:4].max() < 0.5 < trust[8:].min()


def test_of_ordered_classes_the_table_says_how_far_off_the_label_is(workspace: Any) -> None:
    score_run(workspace)
    assert not {"level", "distance"} & set(read_table(workspace.run.scores).column_names)
    workspace.dataset.ordered = True
    score_run(workspace)
    table = read_table(workspace.run.scores)
    codes = {name: code for code, name in enumerate(CLASSES)}
    rows = table.to_pylist()
    assert [row["distance"] for row in rows] == [
        abs(codes[row["appears"]] - codes[row["label"]]) for row in rows
    ] and {0, 1} == set(table["distance"].to_pylist())
    assert all(abs(row["level"] - codes[row["appears"]]) < 0.1 for row in rows)


def test_the_account_of_the_flags_says_what_is_estimated(workspace: Any) -> None:
    score_run(workspace)
    flags, table = read_json(workspace.run.flags), read_table(workspace.run.scores)
    assert flags["method"] == "share" and flags["n"] == N
    assert flags["flagged"] == sum(table["flagged"].to_pylist()) > 0
    assert flags["estimated_noise"] == pytest.approx(1 - table["label_trust"].to_numpy().mean())
    assert set(flags["estimated_class_noise"]) == set(CLASSES) and 0.5 < flags["estimated_precision"] <= 1


def test_a_mixture_is_kept_for_the_report(workspace: Any) -> None:
    set_influence(workspace, flag="auto")
    score_run(workspace)
    assert read_json(workspace.run.flags)["method"] == "auto"


def test_given_ids_are_flagged_whatever_the_score(workspace: Any, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("face20\nface21\n")
    set_influence(workspace, flags=tmp_path / "ids.txt")
    score_run(workspace)
    flags = read_json(workspace.run.flags)
    assert flags["method"] == "ids" and flags["flagged"] == 2 and flags["threshold"] is None
