"""Pieces of the repair stage: the identity threshold whatever persons there are."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from diffinf.classify.model import ClassifierSpec
from diffinf.config import ClassifierConfig, RepairConfig
from diffinf.run import read_json, write_json
from diffinf.stages.repairing import IDENTITY_SIZE, Repair


def identity_threshold(scratch: Path, persons: list[str] | None) -> dict[str, Any] | None:
    """Run that step of the stage on noise."""
    count = len(persons or [])
    images = torch.randint(0, 256, (count, 1, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    workspace = SimpleNamespace(
        identities=None if persons is None else np.array(persons),
        seed=0,
        spec=ClassifierSpec("small_cnn", 2, 1, 32, ("calm", "smile")),
        config=SimpleNamespace(classifier=ClassifierConfig(steps=2, batch_size=8)),
    )
    repair: Any = SimpleNamespace(
        workspace=workspace,
        images=images,
        scratch=scratch,
        device=torch.device("cpu"),
        config=RepairConfig(),
    )
    return Repair.identity_threshold(repair)


def test_the_identity_threshold_is_measured_on_persons_held_out(tmp_path: Path) -> None:
    found = identity_threshold(tmp_path, [f"p{k // 3:02}" for k in range(30)])
    assert found is not None
    assert -1 <= found["threshold"] <= 1 and 0 <= found["accepted"] <= 1
    # A fifth of ten persons with three pictures each.
    assert (found["persons"], found["pairs_same"], found["pairs_other"]) == (2, 6, 9)
    spec = read_json(tmp_path / "identity" / "config.json")
    assert spec["num_classes"] == IDENTITY_SIZE
    assert (tmp_path / "identity" / "model.safetensors").is_file()


def test_where_nobody_names_persons_there_is_no_threshold(tmp_path: Path) -> None:
    assert identity_threshold(tmp_path, None) is None
    assert not list(tmp_path.iterdir())


def test_one_picture_a_person_can_be_written_down(tmp_path: Path) -> None:
    found = identity_threshold(tmp_path, [f"p{k:02}" for k in range(20)])
    write_json(tmp_path / "gate.json", {"identity": found})


@pytest.mark.parametrize("count", [1, 2])
def test_few_persons_do_not_stop_the_repair(tmp_path: Path, count: int) -> None:
    found = identity_threshold(tmp_path, [f"p{k % count}" for k in range(12)])
    write_json(tmp_path / "gate.json", {"identity": found})
