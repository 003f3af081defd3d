"""`diffinf crop` at the terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from diffinf.data.crop import Face
from test_cli import main_ok, refused, table


class FakeDetector:
    """A face in the middle of every picture that begins bright."""

    name = "fake"

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def detect(self, image: Image.Image) -> list[Face]:
        bright = image.getpixel((0, 0)) >= 100
        return [Face((8, 8, 24, 24), self.threshold, ((12, 12), (20, 12)), ())] if bright else []


def test_the_extra_is_asked_for_before_the_dataset_is_opened(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffinf.features.dlib_faces.find_spec", lambda _: None)
    said = refused(capsys, "crop", tmp_path, tmp_path / "out")
    assert 'pip install "diffinf[face]"' in said and len(said.splitlines()) == 1


def test_crops_are_written_and_counted(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffinf.features.dlib_detector.DlibDetector", FakeDetector)
    faces = table(tmp_path / "faces.parquet")
    options = ["--size", "24", "--align", "--min-score", "0.5"]
    main_ok("crop", str(faces), str(tmp_path / "out"), *options, "--json")
    result = json.loads(capsys.readouterr().out)
    assert result["samples"] == 30 == result["cropped"] + result["no_face"] and result["no_face"] > 0
    assert len(result["quarantine"]) == result["no_face"] and Path(result["provenance"]).is_file()
    main_ok("crop", str(faces), str(tmp_path / "out"), *options, "--overwrite")
    assert f"{result['cropped']} of 30 cropped" in capsys.readouterr().out
    main_ok("inspect", str(tmp_path / "out" / "faces.parquet"), "--json")
    seen = json.loads(capsys.readouterr().out)
    assert seen["read"] == result["cropped"] and seen["images"]["sizes"][0]["width"] == 24
    assert "not empty" in refused(capsys, "crop", faces, tmp_path / "out")
    assert "--size 7" in refused(capsys, "crop", faces, tmp_path / "other", "--size", "7")
