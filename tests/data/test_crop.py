"""Faces cut out of pictures: where the crop lies, what is counted, and that it goes on after a kill."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from miniatures import make_celeba, make_fer2013, make_folders, make_huggingface, make_rows, make_table
from PIL import Image
from test_writers import state

from diffinf.config import DataConfig
from diffinf.data import open_dataset
from diffinf.data.crop import CropSettings, Face, crop_dataset, geometry
from diffinf.data.crop import dataset as crop_module
from diffinf.data.crop.geometry import Square, choose, cut_out, share_outside, square_around
from diffinf.data.images import UnreadableImageError
from diffinf.errors import UserError

SMALL = CropSettings(size=16, margin=0.0)


def face(left: float, top: float, right: float, bottom: float, score: float = 1.0) -> Face:
    """A face whose eyes are level, half a width apart."""
    width, height = right - left, bottom - top
    eyes = ((left + width / 4, top + height / 4), (left + 3 * width / 4, top + height / 4))
    return Face((left, top, right, bottom), score, eyes, eyes)


@dataclass
class FakeDetector:
    """Finds a face in the middle, and none where the first pixel is dark."""

    name: str = "fake 1"
    stop_after: int | None = None
    seen: list[bytes] = field(default_factory=list)

    def detect(self, image: Image.Image) -> list[Face]:
        if len(self.seen) == self.stop_after:
            raise KeyboardInterrupt
        self.seen.append(image.tobytes())
        if self.dark(image):
            return []
        side = min(image.size)
        return [face(2, 2, side - 2, side - 2, 0.5), face(1, 1, 4, 4, 0.7)]

    @staticmethod
    def dark(image: Image.Image) -> bool:
        return int(np.asarray(image).flat[0]) < 60


@pytest.mark.parametrize("angle", [0, 20, -35])
@pytest.mark.parametrize("distance", [20.0, 150.0])
@pytest.mark.parametrize("margin", [0.0, 0.25, 1.0])
def test_aligned_eyes_are_level_and_equally_far_apart(angle: int, distance: float, margin: float) -> None:
    middle, turn = np.array([420.0, 380.0]), math.radians(angle)
    half = distance / 2 * np.array([math.cos(turn), math.sin(turn)])
    down, across = np.mgrid[0:800, 0:900] + 0.5
    picture = np.zeros((800, 900, 3))
    eyes = (middle - half, middle + half)
    for channel, (x, y) in enumerate(eyes):  # red and green blobs
        picture[:, :, channel] = 255 * np.exp(
            -((across - x) ** 2 + (down - y) ** 2) / (2 * (distance / 8) ** 2)
        )
    found = Face((0, 0, 1, 1), 1.0, (tuple(eyes[1].tolist()), tuple(eyes[0].tolist())), ())
    square = square_around(found, margin, align=True)
    crop = np.asarray(cut_out(Image.fromarray(picture.astype(np.uint8)), square, 96)).astype(float)
    assert crop.shape == (96, 96, 3) and square.angle == pytest.approx(angle)
    rows, columns = np.mgrid[0:96, 0:96] + 0.5
    whole = 1 + 2 * margin
    for channel, sign in ((0, -1), (1, 1)):
        weight = crop[:, :, channel]
        x, y = (weight * columns).sum() / weight.sum(), (weight * rows).sum() / weight.sum()
        assert x == pytest.approx(96 * (0.5 + sign * 0.25 / whole), abs=0.6)
        assert y == pytest.approx(96 * (0.25 + margin) / whole, abs=0.6)


def test_a_square_of_whole_pixels_comes_out_pixel_for_pixel() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8)
    crop = cut_out(Image.fromarray(pixels), square_around(face(7, 5, 27, 25), 0.0, align=False), 20)
    assert np.array_equal(np.asarray(crop), pixels[5:25, 7:27])


def test_beyond_the_picture_its_outermost_pixels_go_on() -> None:
    pixels = np.full((20, 30, 3), (9, 90, 200), dtype=np.uint8)
    square = square_around(face(-10, -10, 10, 10), 0.5, align=False)
    assert np.array_equal(
        np.asarray(cut_out(Image.fromarray(pixels), square, 40)), np.full((40, 40, 3), pixels[0, 0])
    )
    assert share_outside(square, (30, 20)) == pytest.approx(0.75, abs=0.02)
    assert share_outside(Square(15, 10, 10, 45.0), (30, 20)) == 0
    with pytest.raises(UnreadableImageError, match="outside of the picture"):
        cut_out(Image.fromarray(pixels), Square(-500, 0, 20), 16)


@pytest.mark.parametrize("align", [False, True])
def test_a_large_picture_is_shrunk_before_it_is_turned(align: bool) -> None:
    down, across = np.mgrid[0:3000, 0:2000]
    image = Image.fromarray(((across // 10 + down // 20) % 256).astype(np.uint8))
    square = Square(900, 1400, 2000, 30.0 if align else 0.0)
    crop = np.asarray(cut_out(image, square, 16))
    assert crop.shape == (16, 16)
    assert abs(int(crop[8, 8]) - (900 // 10 + 1400 // 20)) <= 12


def test_eyes_in_one_place_tell_no_angle() -> None:
    with pytest.raises(UnreadableImageError, match="told apart"):
        square_around(Face((0, 0, 9, 9), 1.0, ((3, 3), (3.5, 3)), ()), 0.1, align=True)


def test_which_of_several_faces() -> None:
    large, sure, central = face(0, 0, 50, 50), face(0, 60, 20, 80, 3.0), face(40, 40, 60, 60)
    faces = [central, sure, large]
    assert choose(faces, "largest", (100, 100)) is large
    assert choose(faces, "surest", (100, 100)) is sure
    assert choose(faces, "central", (100, 100)) is central
    twins = [face(30, 0, 40, 10), face(0, 0, 10, 10)]
    assert choose(twins, "largest", (40, 10)) == choose(twins[::-1], "largest", (40, 10))


def folders(root: Path) -> tuple[Path, DataConfig, str]:
    return make_folders(root), DataConfig(), "."


def csv(root: Path) -> tuple[Path, DataConfig, str]:
    return make_table(root), DataConfig(split="subset", identity="person"), "faces.csv"


def parquet(root: Path) -> tuple[Path, DataConfig, str]:
    root.mkdir()
    return make_huggingface(root / "x.parquet", ids=False), DataConfig(split="subset"), "x.parquet"


def celeba(root: Path) -> tuple[Path, DataConfig, str]:
    return make_celeba(root), DataConfig(label="Smiling", groups=("Male",)), "."


def fer2013(root: Path) -> tuple[Path, DataConfig, str]:
    return make_fer2013(root), DataConfig(), "."


Layout = Callable[[Path], tuple[Path, DataConfig, str]]


@pytest.mark.parametrize("layout", [folders, csv, parquet, celeba, fer2013])
def test_a_layout_keeps_ids_labels_and_splits(layout: Layout, tmp_path: Path) -> None:
    path, config, inside = layout(tmp_path / "source")
    dataset, before = open_dataset(path, config), state(tmp_path / "source")
    result = crop_dataset(dataset, tmp_path / "out", FakeDetector(), SMALL)
    again = open_dataset(tmp_path / "out" / inside, config)
    without = {str(dataset.ids[row]) for row in range(len(dataset)) if FakeDetector.dark(dataset.image(row))}
    kept = [row for row in range(len(dataset)) if dataset.ids[row] not in without]
    assert 0 < len(without) < len(dataset) and not again.quarantine
    assert again.ids.tolist() == dataset.ids[kept].tolist()
    assert again.splits.tolist() == dataset.splits[kept].tolist()
    names = np.array(dataset.class_names)
    assert np.array(again.class_names)[again.labels].tolist() == names[dataset.labels[kept]].tolist()
    side = 48 if layout is fer2013 else 16  # grey values in text keep their side
    assert {again.image(row).size for row in range(len(again))} == {(side, side)}
    assert result["cropped"] == result["several_faces"] == len(kept)
    assert result["no_face"] == len(without) and {entry["id"] for entry in result["quarantine"]} == without
    assert sum(n["n"] for n in result["classes"].values()) == result["samples"] == len(dataset)
    assert sum(n["cropped"] for n in result["classes"].values()) == len(kept)
    assert list(result["groups"]) == (["Male"] if layout is celeba else [])
    assert state(tmp_path / "source") == before
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


def test_what_was_found_is_told_of_every_sample(tmp_path: Path) -> None:
    rows = make_rows()
    rows[3]["label"] = ""
    path = make_table(tmp_path / "source", rows)
    (tmp_path / "source" / "img" / "005.png").write_bytes(b"no picture")
    dataset = open_dataset(path, DataConfig(split="subset"))
    result = crop_dataset(dataset, tmp_path / "out", FakeDetector(), SMALL)
    story = {row["id"]: row for row in pq.read_table(tmp_path / "out.provenance.parquet").to_pylist()}
    assert len(story) == result["samples"] == len(rows) and result["not_usable"] == 2
    total = sum(result[name] for name in ("cropped", "no_face", "not_cut_out", "not_usable"))
    assert total == len(rows) == result["cropped"] + len(result["quarantine"])
    again = open_dataset(tmp_path / "out" / "faces.csv", DataConfig(split="subset"))
    for row, sample in enumerate(again.ids.tolist()):
        entry = story[sample]
        assert entry["action"] == "cropped" and entry["faces"] == 2 and entry["score"] == 0.5
        assert entry["box"] == [2, 2, 14, 14] and entry["landmarks"] == [5, 5, 11, 5]
        assert (entry["x"], entry["y"], entry["side"], entry["angle"], entry["outside"]) == (8, 8, 12, 0, 0)
        assert (entry["width"], entry["height"]) == (16, 16)
        assert entry["sha256"] == again.source_sha256(row)
        assert entry["source_sha256"] == dataset.source_sha256(dataset.ids.tolist().index(sample))
    left_out = [entry for entry in story.values() if entry["action"] == "quarantined"]
    assert {entry["reason"] for entry in left_out} >= {crop_module.NO_FACE}
    assert all(entry["path"] is None and entry["reason"] for entry in left_out)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "fake 1" in card and f"{result['no_face']} in which no face" in card
    assert "truth_label" in (tmp_path / "out" / "faces.csv").read_text().splitlines()[0]


def test_aligned_crops_are_those_of_the_square(tmp_path: Path) -> None:
    dataset = open_dataset(make_huggingface(tmp_path / "x.parquet"), DataConfig(split="subset"))
    settings = CropSettings(size=16, margin=0.25, align=True, face="surest")
    crop_dataset(dataset, tmp_path / "out", FakeDetector(), settings)
    again = open_dataset(tmp_path / "out" / "x.parquet", DataConfig(split="subset"))
    square = square_around(face(1, 1, 4, 4), 0.25, align=True)
    row = dataset.ids.tolist().index(again.ids[0])
    assert again.image(0).tobytes() == cut_out(dataset.image(row), square, 16).tobytes()


def test_a_killed_crop_goes_on_and_ends_with_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crop_module, "_CHUNK", 4)
    dataset = open_dataset(make_folders(tmp_path / "source"), DataConfig())
    whole = FakeDetector()
    crop_dataset(dataset, tmp_path / "whole", whole, SMALL)
    with pytest.raises(KeyboardInterrupt):
        crop_dataset(dataset, tmp_path / "out", FakeDetector(stop_after=len(dataset) // 2), SMALL)
    assert not (tmp_path / "out").exists()
    rest = FakeDetector()
    crop_dataset(dataset, tmp_path / "out", rest, SMALL)
    assert 0 < len(rest.seen) < len(whole.seen) == len(dataset)

    def files(name: str) -> list[tuple[str, bytes]]:
        below = sorted((tmp_path / name).rglob("*.??g"))
        return [(str(file.relative_to(tmp_path / name)), file.read_bytes()) for file in below]

    assert files("out") == files("whole") and len(files("out")) > 0
    tables = [pq.read_table(tmp_path / f"{name}.provenance.parquet") for name in ("out", "whole")]
    assert tables[0].equals(tables[1])


@pytest.mark.parametrize("change", ["settings", "detector"])
def test_crops_of_other_settings_are_not_taken_over(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crop_module, "_CHUNK", 4)
    dataset = open_dataset(make_folders(tmp_path / "source"), DataConfig())
    with pytest.raises(KeyboardInterrupt):
        crop_dataset(dataset, tmp_path / "out", FakeDetector(stop_after=20), SMALL)
    settings = CropSettings(size=16, margin=0.1) if change == "settings" else SMALL
    other = FakeDetector("fake 2" if change == "detector" else "fake 1")
    crop_dataset(dataset, tmp_path / "out", other, settings)
    assert len(other.seen) == len(dataset)


def test_a_face_that_cannot_be_cut_out_is_counted_apart(tmp_path: Path) -> None:
    class Cyclops(FakeDetector):
        def detect(self, image: Image.Image) -> list[Face]:
            return (
                [Face((0, 0, 9, 9), 1.0, ((3, 3), (3, 3)), ())] if self.dark(image) else super().detect(image)
            )

    dataset = open_dataset(make_folders(tmp_path / "source"), DataConfig())
    result = crop_dataset(dataset, tmp_path / "out", Cyclops(), CropSettings(size=16, align=True))
    assert result["no_face"] == 0 < result["not_cut_out"]
    assert result["cropped"] + result["not_cut_out"] == len(dataset)


def test_no_face_at_all_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    class Blind(FakeDetector):
        def detect(self, image: Image.Image) -> list[Face]:
            return []

    dataset = open_dataset(make_folders(tmp_path / "source"), DataConfig())
    with pytest.raises(UserError, match=r"not one of 36 images has a face that fake 1 finds"):
        crop_dataset(dataset, tmp_path / "out", Blind(), SMALL)
    assert [file.name for file in tmp_path.iterdir()] == ["source"]


def test_a_folder_that_is_not_empty_is_replaced_only_when_asked(tmp_path: Path) -> None:
    dataset = open_dataset(make_folders(tmp_path / "source"), DataConfig())
    crop_dataset(dataset, tmp_path / "out", FakeDetector(), SMALL)
    with pytest.raises(UserError, match="--overwrite"):
        crop_dataset(dataset, tmp_path / "out", FakeDetector(), SMALL)
    crop_dataset(dataset, tmp_path / "out", FakeDetector(), CropSettings(size=24), overwrite=True)
    assert open_dataset(tmp_path / "out", DataConfig()).image(0).size == (24, 24)
    with pytest.raises(UserError, match="lies inside the dataset"):
        crop_dataset(dataset, tmp_path / "source" / "out", FakeDetector(), SMALL)


def test_settings_out_of_range_are_refused() -> None:
    for given, said in (
        ({"size": 8}, "--size 8"),
        ({"margin": -0.1}, "--margin"),
        ({"face": "best"}, "--face best"),
    ):
        with pytest.raises(UserError, match=said):
            CropSettings(**given)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="--margin nan"):
        CropSettings(margin=math.nan)


def test_grey_stays_grey_and_colour_colour(tmp_path: Path) -> None:
    grey = Image.fromarray(np.full((20, 20), 200, dtype=np.uint8))
    for image in (grey, grey.convert("RGB")):
        assert geometry.cut_out(image, Square(2, 2, 12, 10.0), 16).mode == image.mode
