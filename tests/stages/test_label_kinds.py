"""Runs on labels of another kind: ordered classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffinf.classify.model import to_input
from diffinf.classify.train import load_checkpoints
from diffinf.config import RunConfig, make_config
from diffinf.data.dataset import open_dataset
from diffinf.errors import UserError
from diffinf.influence.self_influence import self_influence
from diffinf.pipeline import execute
from diffinf.run import load_tensors
from diffinf.stages.workspace import Workspace

TINY = {"steps": 6, "batch_size": 8, "checkpoints": 2, "folds": 2}


def settings(dataset: Path, **values: Any) -> RunConfig:
    values["classifier"] = {**TINY, **values.get("classifier", {})}
    fixed = {"device": "cpu", "compare": {"workers": 1}}
    return make_config(str(dataset), preset_name="tiny", values={**fixed, **values})


def test_self_influence_is_that_of_the_loss_trained_by(folders: Path, tmp_path: Path) -> None:
    config = settings(
        folders,
        data={"order": ["dark", "bright"]},
        classifier={"loss": "earth_mover"},
        influence={"count": 2},
    )
    run = execute(config, until="score", out=tmp_path / "run")
    workspace = Workspace(run, open_dataset(folders, config.data))
    assert workspace.dataset.class_names == ("dark", "bright") and workspace.dataset.ordered

    def by(loss: str) -> Any:
        checkpoints = load_checkpoints(run.classifier)
        return self_influence(checkpoints, workspace.images, workspace.labels, to_input=to_input, loss=loss)

    found = load_tensors(run.path / "influence.safetensors")["self_influence"].numpy()
    np.testing.assert_allclose(found, by("earth_mover"), rtol=1e-4)
    assert not np.allclose(found, by("cross_entropy"), rtol=0.1)


def test_a_loss_of_ordered_classes_needs_an_order(folders: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"classifier\.loss: earth_mover .* bright, dark .*data\.order"):
        execute(settings(folders, classifier={"loss": "earth_mover"}), until="train", out=tmp_path / "run")
