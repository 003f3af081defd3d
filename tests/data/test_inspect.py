"""`inspect` finds what was planted: copies, leaks, conflicts, damage; and nothing in what is sound."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from miniatures import HF_IMAGE, make_folders, picture
from PIL import Image, ImageEnhance

from diffinf.cli import main
from diffinf.config import DataConfig
from diffinf.data import open_dataset
from diffinf.data.inspect import LEVELS, inspect_dataset
from diffinf.data.inspect.duplicates import (
    MAX_DISTANCE,
    blank_images,
    connected_groups,
    correlations,
    near_pairs,
    perceptual_hash,
    same_groups,
)
from diffinf.errors import UserError

SPLITS = ("train", "validation", "test")


def smooth(seed: int, size: int = 48) -> Image.Image:
    """A picture with large shapes, as faces have; the values of `picture` are noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """Folders of 54 different pictures, and 4 copies: a file, the pixels, a near one, a near one of another class."""
    root = tmp_path / "faces"
    for number, split in enumerate(SPLITS):
        for place, name in enumerate(("happy", "sad")):
            (root / split / name).mkdir(parents=True)
            for index in range(9):
                seed = 100 * number + 10 * place + index
                (root / split / name / f"{index}.png").write_bytes(encode(smooth(seed)))
    shutil.copy(root / "train/happy/0.png", root / "test/happy/file.png")
    (root / "train/sad/pixels.bmp").write_bytes(encode(smooth(11), "BMP"))  # train/sad/1.png
    (root / "train/happy/near.jpg").write_bytes(encode(smooth(2), "JPEG", quality=40))  # train/happy/2.png
    darker = ImageEnhance.Brightness(smooth(3)).enhance(0.8)
    (root / "validation/sad/conflict.png").write_bytes(encode(darker))  # train/happy/3.png
    (root / "train/sad/broken.png").write_bytes(encode(smooth(99))[:-200])
    return root


def looked_at(path: Path, out: Path | None = None, **config: Any) -> dict[str, Any]:
    return inspect_dataset(open_dataset(path, DataConfig(**config)), out)


def test_planted_copies_are_found_and_nothing_else(planted: Path) -> None:
    duplicates = looked_at(planted)["duplicates"]
    groups = {level: [set(entry["ids"]) for entry in duplicates[level]["list"]] for level in LEVELS}
    file = {"test/happy/file.png", "train/happy/0.png"}
    pixels = {"train/sad/1.png", "train/sad/pixels.bmp"}
    near = {"train/happy/2.png", "train/happy/near.jpg"}
    conflict = {"train/happy/3.png", "validation/sad/conflict.png"}
    assert groups["files"] == [file]
    assert groups["pixels"] == [file, pixels]
    assert sorted(map(sorted, groups["near"])) == sorted(map(sorted, [file, pixels, near, conflict]))
    counted = {level: {k: v for k, v in duplicates[level].items() if k != "list"} for level in LEVELS}
    assert counted["near"] == {
        "groups": 4, "images": 8, "superfluous": 4, "across_splits": 2, "label_conflicts": 1,
    }  # fmt: skip
    assert counted["files"]["across_splits"] == 1 and counted["pixels"]["label_conflicts"] == 0
    assert duplicates["near_complete"]
    assert all(pair["distance"] <= MAX_DISTANCE for pair in duplicates["near_pairs"])


def test_everything_is_counted(planted: Path) -> None:
    result = looked_at(planted)
    assert (result["rows"], result["read"], result["unreadable"]) == (59, 58, 1)
    assert result["left_out_by_limit"] == 0
    assert result["quarantine"][0]["id"] == "train/sad/broken.png"
    assert "truncated" in result["quarantine"][0]["reason"]
    assert result["counts"]["splits"] == {"train": 20, "validation": 19, "test": 19}
    assert result["counts"]["classes"]["happy"] == {"train": 10, "validation": 9, "test": 10}
    assert result["images"]["formats"] == {"PNG": 56, "BMP": 1, "JPEG": 1}
    assert result["images"]["modes"] == {"L": 58}
    assert result["images"]["sizes"] == [{"width": 48, "height": 48, "n": 58}]
    assert result["images"]["bytes"]["total"] == sum(
        path.stat().st_size for path in planted.rglob("*.*") if path.name != "broken.png"
    )
    assert result["people"] is None


def test_a_limit_is_accounted_for(planted: Path) -> None:
    result = looked_at(planted, limit=30)
    assert result["read"] + result["unreadable"] + result["left_out_by_limit"] == result["rows"] == 59
    assert result["left_out_by_limit"] == 29


def table(path: Path) -> Path:
    """40 rows of 10 people; p0 is in train and test; rows 4 and 5 show one picture of two people."""
    rows = range(40)
    images = [{"bytes": encode(smooth(4 if row == 5 else row)), "path": None} for row in rows]
    columns = {
        "image": pa.array(images, HF_IMAGE),
        "label": ["old" if row % 2 else "young" for row in rows],
        "person": [f"p{row // 4}" for row in rows],
        "part": ["test" if row in (1, 37) else "val" if row == 39 else "train" for row in rows],
        "tone": [("dark", "light", "")[row % 3] for row in rows],
    }
    columns["person"][4] = "p9x"
    pq.write_table(pa.table(columns), path)
    return path


def test_people_in_several_splits_and_pictures_of_several_people(tmp_path: Path) -> None:
    result = looked_at(table(tmp_path / "x.parquet"), identity="person", split="part")
    people = result["people"]
    assert (people["n"], people["across_splits"], people["images_across_splits"]) == (11, 2, 8)
    assert people["leaks"] == [
        {"identity": "p0", "splits": {"train": 3, "test": 1}},
        {"identity": "p9", "splits": {"train": 2, "validation": 1, "test": 1}},
    ]
    near = result["duplicates"]["near"]
    assert near["identity_conflicts"] == near["label_conflicts"] == 1
    assert near["list"][0]["identities"] == ["p9x", "p1"]


def test_groups_are_counted_by_split(tmp_path: Path) -> None:
    result = looked_at(table(tmp_path / "x.parquet"), groups=["tone"], split="part")
    tones = result["counts"]["groups"]["tone"]
    assert {name: sum(counts.values()) for name, counts in tones.items()} == {"": 13, "dark": 14, "light": 13}


def test_modes_sizes_and_blank_images(tmp_path: Path) -> None:
    root = make_folders(tmp_path / "faces", splits=SPLITS, per_class=2)
    (root / "train/sad/blank.png").write_bytes(encode(Image.new("RGBA", (30, 40), "grey")))
    (root / "train/sad/also.png").write_bytes(encode(Image.new("P", (10, 12), 3)))
    result = looked_at(root)["images"]
    assert result["modes"] == {"L": 18, "P": 1, "RGBA": 1} and result["distinct_sizes"] == 3
    assert result["short_side"] == {"min": 10, "median": 16.0, "max": 30}
    assert result["blank"] == ["train/sad/also.png", "train/sad/blank.png"]


def test_it_is_deterministic(planted: Path, tmp_path: Path) -> None:
    looked_at(planted, tmp_path / "a")
    looked_at(planted, tmp_path / "b")
    for name in ("inspect.json", "classes.png", "duplicates.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_contact_sheets(planted: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in planted.rglob("*")}
    looked_at(planted, tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in planted.rglob("*")} == before
    classes = Image.open(tmp_path / "out" / "classes.png")
    copies = Image.open(tmp_path / "out" / "duplicates.png")
    assert classes.height == 4 + 2 * 68 and copies.height == 4 + 4 * 68
    assert classes.width == 190 + 12 * 68 + 4 and copies.width == 190 + 2 * 68 + 4
    rows = [np.asarray(copies)[4 + 68 * row :][:64] for row in range(4)]
    reds = [((row[:, :190, 0] > 150) & (row[:, :190, 1] < 60)).sum() for row in rows]
    assert reds[0] > reds[1] > 0 and reds[2] == reds[3] == 0  # the conflict, what crosses splits, the rest
    # two copies side by side
    assert np.abs(rows[1][:, 190:254].astype(int) - rows[1][:, 258:322]).max() == 0


def thumbnails(n: int, seed: int = 0) -> np.ndarray:
    """Pictures, each third one a changed copy of the one before."""
    pixels = np.stack([np.asarray(smooth(seed * 1000 + k, 32)) for k in range(n)]).astype(float)
    noise = np.random.default_rng(seed).normal(0, 6, pixels.shape)
    for k in range(2, n, 3):
        pixels[k] = pixels[k - 1] * 0.9 + noise[k] * (k % 7)
    return pixels.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("seed", range(3))
def test_near_pairs_are_those_of_comparing_all(seed: int) -> None:
    pictures = thumbnails(300, seed)
    hashes = perceptual_hash(pictures)
    left, right = np.triu_indices(len(pictures), 1)
    distances = np.bitwise_count(hashes[left] ^ hashes[right])
    alike = (distances <= MAX_DISTANCE) & (correlations(pictures, left, right) >= 0.5)
    found = near_pairs(pictures, min_correlation=0.5)
    assert found.pairs.tolist() == np.stack([left, right], axis=1)[alike].tolist()
    assert found.distances.tolist() == distances[alike].tolist()
    assert len(found.pairs) >= 70 and len(set(found.distances.tolist())) >= 4 and found.complete


def test_every_distance_up_to_the_limit_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes made to differ in 0 to 12 bits, in the worst places for the tables."""
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2**63, 200, dtype=np.uint64)
    flips = [rng.permutation(64)[: k % 13] for k in range(200)]
    masks = np.array([sum(1 << int(bit) for bit in bits) for bits in flips], dtype=np.uint64)
    monkeypatch.setattr(
        "diffinf.data.inspect.duplicates.perceptual_hash", lambda _: np.concatenate([base, base ^ masks])
    )
    one = np.asarray(smooth(0, 32))
    found = near_pairs(np.stack([one] * 400))
    expected = [[k, k + 200] for k in range(200) if k % 13 <= MAX_DISTANCE]
    assert found.pairs.tolist() == expected


def test_brightness_does_not_change_the_hash_and_correlation_is_pearsons() -> None:
    pictures = thumbnails(20)
    np.testing.assert_array_equal(perceptual_hash(pictures // 2), perceptual_hash(pictures // 2 + 100))
    expected = np.corrcoef(pictures.reshape(20, -1).astype(float))[3, 8]
    assert correlations(pictures, np.array([3]), np.array([8])) == pytest.approx(expected, abs=1e-5)


def test_too_many_copies_end_the_search() -> None:
    many = np.stack([np.asarray(smooth(0, 32))] * 60)
    found = near_pairs(many, max_pairs=100)
    assert not found.complete and len(found.pairs) >= 100


def test_blank_pictures_are_nobodys_copies() -> None:
    blank = np.stack([np.full((32, 32), grey, dtype=np.uint8) for grey in (0, 128, 255)])
    assert blank_images(blank).all() and len(near_pairs(blank).pairs) == 0
    assert len(near_pairs(np.zeros((0, 32, 32), dtype=np.uint8)).pairs) == 0


def test_grouping() -> None:
    assert same_groups(["a", "b", "a", "c", "b", "a"]) == [[0, 2, 5], [1, 4]]
    assert connected_groups(np.array([[3, 4], [0, 3], [1, 5]]), 7) == [[0, 3, 4], [1, 5]]
    assert connected_groups(np.zeros((0, 2), dtype=np.int64), 3) == []


def test_the_command_says_it_to_people_and_machines(
    planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as caught:
        main(["inspect", str(planted), "--out", str(out)])
    said = capsys.readouterr().out
    assert caught.value.code == 0
    assert "59 samples, 58 read, 1 not usable" in said and "happy / sad" not in said
    assert "train/sad/broken.png" in said and "truncated" in said
    assert "happy, sad" in said and "train, validation" in said  # the conflict
    for heading in ("same file", "same pixels", "nearly the same", "across splits", "label conflicts"):
        assert heading in said, "whole, on one line"
    assert max(len(line) for line in said.splitlines() if line[:1] in "┏┃┡│└") <= 80
    with pytest.raises(SystemExit):
        main(["inspect", str(planted), "--json"])
    assert json.loads(capsys.readouterr().out) == json.loads((out / "inspect.json").read_text())


def test_the_similarity_can_be_raised(planted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["inspect", str(planted), "--json", "--similarity", "1"])
    assert json.loads(capsys.readouterr().out)["duplicates"]["near"]["groups"] <= 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--label", "mood"], "--label"),
        (["--limit", "0"], "data.limit"),
        (["--similarity", "2"], "similarity"),
        (["--out", "{planted}/out"], "lies inside the dataset"),
        (["--out", "{planted}/train/happy/1.png"], "is a file"),
    ],
)
def test_mistakes(planted: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str) -> None:
    (planted.parent / "x.csv").write_text("image,label\nfaces/train/happy/1.png,happy\n")
    path = planted.parent / "x.csv" if "--label" in options else planted
    with pytest.raises(SystemExit) as caught:
        main(["inspect", str(path), *(option.format(planted=planted) for option in options)])
    assert caught.value.code == 2
    assert words in capsys.readouterr().err
    assert not (planted / "out").exists()


def test_a_file_that_went_away_is_named(planted: Path) -> None:
    dataset = open_dataset(planted, DataConfig())
    (planted / "train/happy/4.png").write_bytes(picture(0)[:50])
    with pytest.raises(UserError, match=r"train/happy/4\.png.*not now"):
        inspect_dataset(dataset)
