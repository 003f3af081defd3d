"""Who judges identity: the choice, the threshold whatever persons there are, and the head that dlib teaches."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffinf.classify.model import ClassifierSpec
from diffinf.config import ClassifierConfig, CompareConfig, RepairConfig
from diffinf.errors import UserError
from diffinf.files import read_json, write_json
from diffinf.repair import batches
from diffinf.stages import identifying
from diffinf.stages.identifying import IDENTITY_SIZE, IdentityJudge, identity_provider, judge_identity

FOUR = np.array(["a", "a", "b", "b", "c", "c", "d", "d"])


def judge(scratch: Path, persons: list[str] | None, *, count: int = 0, **settings: Any) -> IdentityJudge:
    """Prepare the judge for noise."""
    count = count or len(persons or [])
    images = torch.randint(0, 256, (count, 1, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    workspace: Any = SimpleNamespace(
        run=SimpleNamespace(repair=scratch),
        identities=None if persons is None else np.array(persons),
        images=images,
        seed=0,
        device=torch.device("cpu"),
        spec=ClassifierSpec("small_cnn", 2, 1, 32, ("calm", "smile")),
        config=SimpleNamespace(
            classifier=ClassifierConfig(steps=2, batch_size=8),
            repair=RepairConfig(**settings),
            compare=CompareConfig(workers=1),
        ),
    )
    return judge_identity(workspace, scratch)


class SeesEven:
    """In the place of dlib: finds a face where the first pixel is even, and describes it by its first row."""

    name, judges_identity = "dlib", True

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        found = images[:, 0, 0, 0] % 2 == 0
        vectors = F.normalize(images[:, 0, 0, :8].float() + 300, dim=1)
        return vectors * found[:, None], found


@pytest.fixture
def dlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identifying, "DlibFaces", SeesEven)
    monkeypatch.setattr(batches, "identity_embedder", lambda *_: SeesEven())


@pytest.mark.usefixtures("dlib")
@pytest.mark.parametrize(
    ("wanted", "identities", "expected"),
    [
        ("auto", FOUR, "persons"),
        ("persons", FOUR, "persons"),
        ("auto", FOUR[:7], "none"),  # the fourth person has one picture
        ("auto", np.array([f"id{k}" for k in range(50)]), "none"),  # the nameless go by their ids
        ("auto", None, "none"),
        ("none", FOUR, "none"),
        ("dlib", FOUR, "dlib"),
        ("dlib", None, "dlib"),
    ],
)
def test_the_judge_is_the_one_asked_for_else_the_datasets_persons(
    wanted: Any, identities: Any, expected: str
) -> None:
    assert identity_provider(wanted, identities) == expected


@pytest.mark.parametrize("identities", [None, FOUR[:6]])
def test_persons_that_are_not_there_cannot_judge(identities: Any) -> None:
    count = 0 if identities is None else 3
    with pytest.raises(UserError, match=rf"repair.identity: persons: {count} persons .*--identity"):
        identity_provider("persons", identities)


def test_dlib_that_is_not_installed_is_missed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffinf.features.dlib_faces.find_spec", lambda _: None)
    assert identity_provider("auto", None) == "none"  # results do not hang on what is installed
    with pytest.raises(UserError, match="diffinf\\[face\\]"):
        identity_provider("dlib", None)


def test_the_threshold_is_measured_on_persons_held_out(tmp_path: Path) -> None:
    found = judge(tmp_path, [f"p{k // 3:02}" for k in range(30)])
    figures = found.figures
    assert figures is not None and found.provider == "persons" and found.own_head
    assert -1 <= figures["threshold"] <= 1 and 0 <= figures["accepted"] <= 1
    # A fifth of ten persons with three pictures each.
    assert (figures["persons"], figures["pairs_same"], figures["pairs_other"]) == (2, 6, 9)
    assert (figures["judge"], figures["failed"]) == ("persons", 0)
    assert figures["calibrated_on"] == "pairs of different persons"
    spec = read_json(tmp_path / "identity" / "config.json")
    assert spec["num_classes"] == IDENTITY_SIZE
    assert (tmp_path / "identity" / "model.safetensors").is_file()
    write_json(tmp_path / "gate.json", {"identity": figures})
    assert found.distilled_head(torch.zeros(30, 4), 0) is None


@pytest.mark.parametrize("persons", [None, ["p"] * 12, [f"p{k % 2}" for k in range(12)]])
def test_where_persons_are_not_told_apart_nobody_judges(tmp_path: Path, persons: list[str] | None) -> None:
    found = judge(tmp_path, persons, count=12)
    assert found.figures is None and found.threshold is None
    assert not found.own_head and found.distilled_head(torch.zeros(12, 4), 0) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("dlib")
def test_without_persons_dlib_is_calibrated_on_other_images(tmp_path: Path) -> None:
    found = judge(tmp_path, None, count=300, identity="dlib", distill_images=200, identity_quantile=0.9)
    figures, rows, vectors = found.figures, found.rows, found.vectors
    assert figures is not None and rows is not None and vectors is not None
    n = len(rows)
    assert figures["failed"] == pytest.approx(1 - n / 200) and 0.3 < figures["failed"] < 0.7
    assert (figures["persons"], figures["pairs_same"], figures["pairs_other"]) == (n, 0, n * (n - 1) // 2)
    pairs = (vectors @ vectors.T)[*np.triu_indices(n, 1)]
    assert figures["threshold"] == found.threshold == pytest.approx(np.quantile(pairs, 0.9))
    assert figures["calibrated_on"] == "pairs of different images" and figures["accepted"] is None
    write_json(tmp_path / "gate.json", {"identity": figures})


@pytest.mark.usefixtures("dlib")
def test_dlib_teaches_a_head_on_the_codes_of_the_faces_it_found(tmp_path: Path) -> None:
    found = judge(tmp_path, None, count=300, identity="dlib")
    assert found.rows is not None and found.vectors is not None
    codes = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    codes[found.rows] = 10 * found.vectors  # linear in what the teacher sees
    taught = found.distilled_head(codes, 0)
    assert taught is not None and not found.own_head
    head, quality = taught
    assert quality.auroc > 0.99 and quality.trained + quality.held_out == len(found.rows)
    torch.testing.assert_close(head(codes).norm(dim=1), torch.ones(300))


@pytest.mark.usefixtures("dlib")
def test_known_persons_are_what_dlib_is_calibrated_on_and_the_own_head_holds_edits_back(
    tmp_path: Path,
) -> None:
    found = judge(tmp_path, [f"p{k % 20}" for k in range(200)], identity="dlib", distill_images=100)
    assert found.figures is not None
    assert found.figures["calibrated_on"] == "pairs of different persons"
    assert found.figures["persons"] == 10 and found.figures["pairs_same"] > 0
    assert found.own_head and found.distilled_head(torch.zeros(200, 4), 0) is None


@pytest.mark.usefixtures("dlib")
def test_a_judge_that_hardly_finds_a_face_does_not_judge(tmp_path: Path) -> None:
    found = judge(tmp_path, None, count=12, identity="dlib")
    assert found.figures is not None and found.threshold is None and found.figures["failed"] > 0
    assert found.distilled_head(torch.zeros(12, 4), 0) is None
    write_json(tmp_path / "gate.json", {"identity": found.figures})
