"""Runs on labels of another kind: ordered classes, votes of several annotators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffinf.classify.model import to_input
from diffinf.classify.train import load_checkpoints
from diffinf.config import RunConfig, make_config
from diffinf.data.dataset import open_dataset
from diffinf.errors import UserError
from diffinf.files import load_tensors, read_json, read_table
from diffinf.influence.self_influence import self_influence
from diffinf.pipeline import execute
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
    scores = read_table(run.scores)
    assert 0 < min(scores["level"].to_pylist()) <= max(scores["level"].to_pylist()) < 1
    flagged = [row["distance"] for row in scores.to_pylist() if row["flagged"]]
    assert read_json(run.summary)["distance"]["flagged"] == np.mean(flagged)

    def by(loss: str) -> Any:
        checkpoints = load_checkpoints(run.classifier)
        return self_influence(checkpoints, workspace.images, workspace.labels, to_input=to_input, loss=loss)

    found = load_tensors(run.path / "influence.safetensors")["self_influence"].numpy()
    np.testing.assert_allclose(found, by("earth_mover"), rtol=1e-4)
    assert not np.allclose(found, by("cross_entropy"), rtol=0.1)


def test_a_loss_of_ordered_classes_needs_an_order(folders: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"classifier\.loss: earth_mover .* bright, dark .*data\.order"):
        execute(settings(folders, classifier={"loss": "earth_mover"}), until="train", out=tmp_path / "run")


@pytest.fixture
def voted(folders: Path, tmp_path: Path) -> Path:
    """The images of the folders in a table with votes; of every eighth nobody said anything."""
    rows = []
    for index, file in enumerate(sorted(folders.rglob("*.png"))):
        bright = 4.0 if file.parent.name == "bright" else 1.0
        votes = [0.0, 0.0] if index % 8 == 7 else [bright, 5 - bright]
        rows.append({"image": str(file.relative_to(tmp_path)), "label": file.parent.name, "votes": votes})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "faces.parquet")
    return tmp_path / "faces.parquet"


def test_votes_are_learned_where_they_are_asked_for(voted: Path, tmp_path: Path) -> None:
    data, influence = {"votes": ["votes"]}, {"count": 2}
    config = settings(voted, data=data, influence=influence, classifier={"targets": "votes"})
    run = execute(config, until="score", out=tmp_path / "run")
    workspace = Workspace(run, open_dataset(voted, config.data))
    assert workspace.targets is not None
    learned = {tuple(row) for row in workspace.targets.double().numpy().round(2).tolist()}
    assert {(0.2, 0.8), (0.8, 0.2)} <= learned <= {(0, 1), (0.2, 0.8), (0.8, 0.2), (1, 0)}
    checkpoints = load_checkpoints(run.classifier)
    found = load_tensors(run.path / "influence.safetensors")["self_influence"].numpy()
    softly = self_influence(checkpoints, workspace.images, workspace.targets, to_input=to_input)
    np.testing.assert_allclose(found, softly, rtol=1e-4)
    agreement = read_table(run.scores)["agreement"].to_pylist()
    assert 0.8 in agreement and set(agreement) <= {0.8, None}
    assert read_table(run.path / "dataset.parquet")["agreement"].null_count == 3
    assert read_json(run.summary)["agreement"].keys() == {"flagged", "unflagged"}
    other = execute(settings(voted, data=data, influence=influence), until="score", out=tmp_path / "run")
    labels = load_tensors(other.path / "influence.safetensors")["self_influence"].numpy()
    assert not np.allclose(labels, found, rtol=0.05), "the labels were learned anew"


def test_votes_that_nobody_named_cannot_be_learned(voted: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"classifier\.targets: votes: no column"):
        execute(settings(voted, classifier={"targets": "votes"}), until="train", out=tmp_path / "run")
