"""The benchmark of generation, on a miniature: every part, the report, and that it goes on where it was."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import generation
import generation_parts as parts

MINIATURE = {
    "people": 6,
    "pictures": 6,
    "judge-people": 6,
    "held-people": 4,
    "context-pictures": 3,
    "oracle-pictures": 6,
    "real-pictures": 4,
    "embedder-steps": 3,
    "oracle-steps": 3,
    "regressor-steps": 3,
    "steps": 3,
    "known-pictures": 4,
    "known-steps": 3,
    "per-context": 3,
    "sampling-steps": 2,
}


def arguments(tmp_path: Path) -> list[str]:
    settings = ["unet_channels=[32]", "patch_size=4", "batch_size=8", "sheets=0"]
    return [
        *(f"--{name}={value}" for name, value in MINIATURE.items()),
        *(f"--set={text}" for text in settings),
        f"--work={tmp_path / 'work'}",
        f"--json={tmp_path / 'report.json'}",
        f"--picture={tmp_path / 'people.png'}",
    ]


@pytest.mark.slow
def test_the_whole_way_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generation.main(arguments(tmp_path))
    report = json.loads((tmp_path / "report.json").read_text())
    rows = {row["arm"]: row for row in report["rows"]}
    assert len(rows) == 1 + 6 + 2 * (2 + 5) + 5 + 2 + 6
    with Image.open(tmp_path / "people.png") as sheet:
        assert sheet.size == (2 * 4 * (3 * 32 + 12), 2 * 4 * 32)
    assert rows["none"]["fdr_of_none"] == 1 and rows["none"]["gap_closed"] == 0
    assert rows["real held-out pictures"]["gap_closed"] == pytest.approx(1)
    # The same pictures of the wrong people: what sees pictures alone sees nothing.
    assert rows["contexts shuffled"]["frechet"] == rows["none"]["frechet"]
    assert rows["contexts shuffled"]["fdr"] == rows["none"]["fdr"]
    assert all(row["n"] == 12 for name, row in rows.items() if name in generation.STRATEGIES)
    monkeypatch.setattr(generation, "sample_images", lambda *_: pytest.fail("sampled again"))
    monkeypatch.setattr(generation, "train_generator", lambda *_, **__: pytest.fail("trained again"))
    generation.main(arguments(tmp_path))
    again = json.loads((tmp_path / "report.json").read_text())
    assert again["rows"] == report["rows"]


def test_the_cost_of_a_step_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "BATCHES", (2,))
    settings = ["unet_channels=[32]", "patch_size=4"]
    generation.main(["--step-cost", *(f"--set={text}" for text in settings)])
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown] == ["16", "2"] and all("times an unguided" in x for x in shown)


def test_parts_are_of_everybody_and_of_nothing_twice() -> None:
    scale = parts.Scale(size=24)
    faces = parts.render(4, 6, 0, scale)
    faces["row"] = torch.arange(24)
    first, second = parts.parts_of(faces, [2, 3])
    assert (
        torch.bincount(first["who"]).tolist() == [2] * 4 and torch.bincount(second["who"]).tolist() == [3] * 4
    )
    assert not set(first["row"].tolist()) & set(second["row"].tolist())


@pytest.mark.parametrize(
    ("schedule", "expected"), [("constant", 2.0), ("adaptive", 2.0), ("interval:0-0.5", 1.5)]
)
def test_evaluations_of_a_schedule(schedule: str, expected: float) -> None:
    assert generation.evaluations(schedule, 20, 1000) == pytest.approx(expected, abs=0.051)
