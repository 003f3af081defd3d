from __future__ import annotations

import hashlib
import os
import random
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from miniatures import CLASSES, make_folders, make_huggingface, make_rows, make_table, picture

from diffinf.config import DataConfig
from diffinf.data import open_dataset, write_refined
from diffinf.data.splits import limited
from diffinf.errors import UserError

TABLE = DataConfig(split="subset", identity="person", truth=["votes"])


def test_class_folders(tmp_path: Path) -> None:
    root = make_folders(tmp_path / "faces")
    (root / "happy" / ".DS_Store").write_bytes(b"x")
    (root / "happy" / "notes.txt").write_text("x")
    dataset = open_dataset(root, DataConfig())
    assert dataset.class_names == ("angry", "happy", "sad")
    assert len(dataset) == 36 and list(dataset.ids) == sorted(dataset.ids)
    assert dataset.ids[0] == "angry/000.png" and dataset.labels[0] == 0
    assert set(dataset.splits) == {"train", "validation", "test"}
    assert dataset.encoded(0) == (root / "angry" / "000.png").read_bytes()
    assert dataset.source_sha256(0) == hashlib.sha256(dataset.encoded(0)).hexdigest()
    assert (dataset.image_size, dataset.channels, dataset.identities) == (32, 1, None)
    assert dataset.truth() == {} and dataset.truth_labels() is None
    with pytest.raises(UserError, match="--label names a column, class folders have none"):
        open_dataset(root, DataConfig(label="person"))


def test_what_is_only_measured_may_be_small_and_is_all_test(tmp_path: Path) -> None:
    root = make_folders(tmp_path / "faces")
    for place in sorted((root / "sad").iterdir())[1:]:
        place.unlink()
    with pytest.raises(UserError, match="'sad'"):
        open_dataset(root, DataConfig())
    dataset = open_dataset(root, DataConfig(), to_measure=True)
    assert len(dataset) == 25 and set(dataset.splits) == {"test"}
    shutil.rmtree(root / "happy")
    shutil.rmtree(root / "angry")
    assert open_dataset(root, DataConfig(), to_measure=True).class_names == ("sad",)


def test_split_folders(tmp_path: Path) -> None:
    root = make_folders(tmp_path / "faces", splits=("Training", "val", "test"), per_class=4)
    dataset = open_dataset(root, DataConfig())
    assert dataset.class_names == ("angry", "happy", "sad")
    assert Counter(dataset.splits.tolist()) == {"train": 12, "validation": 12, "test": 12}
    assert dataset.ids[dataset.rows("validation")][0] == "val/angry/000.png"


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_tables_of_paths(tmp_path: Path, suffix: str) -> None:
    path = make_table(tmp_path, suffix=suffix)
    dataset = open_dataset(path, TABLE)
    rows = make_rows()
    assert dataset.ids.tolist() == [row["image"] for row in rows]
    assert [dataset.class_names[label] for label in dataset.labels] == [row["label"] for row in rows]
    assert dataset.class_names == tuple(sorted(CLASSES))
    assert Counter(dataset.splits.tolist()) == {"train": 27, "validation": 3, "test": 6}
    assert dataset.identities is not None and dataset.identities.tolist() == [row["person"] for row in rows]
    assert set(dataset.truth()) == {"votes", "truth_label"}
    assert dataset.truth()["votes"].tolist() == [row["votes"] for row in rows]
    truth = dataset.truth_labels()
    assert truth is not None and [dataset.class_names[t] for t in truth] == [r["truth_label"] for r in rows]


def test_images_may_lie_under_another_root(tmp_path: Path) -> None:
    path = make_table(tmp_path / "images")
    table = shutil.move(path, tmp_path / "labels.csv")
    dataset = open_dataset(table, DataConfig(root=tmp_path / "images"))
    assert len(dataset) == 36 and not dataset.quarantine


def test_huggingface_parquet(tmp_path: Path) -> None:
    path = make_huggingface(tmp_path / "faces.parquet")
    dataset = open_dataset(path, DataConfig(split="subset", truth=["votes"]))
    assert dataset.class_names == CLASSES  # the order of the ClassLabel
    assert dataset.ids[5] == "face-005" and dataset.encoded(5) == picture(5)
    assert dataset.labels.tolist() == [index % 3 for index in range(36)]
    assert dataset.truth()["votes"].shape == (36, 2)
    truth = dataset.truth_labels()
    assert truth is not None and (truth != dataset.labels).sum() == 8


def test_rows_without_ids_are_numbered(tmp_path: Path) -> None:
    path = make_huggingface(tmp_path / "faces.parquet", ids=False)
    assert open_dataset(path, DataConfig()).ids[7] == "row00000007"


def test_a_folder_of_parquet_files_with_splits_in_their_names(tmp_path: Path) -> None:
    rows = make_rows()
    for name, part in (("train-0-of-2", rows[:12]), ("train-1-of-2", rows[12:24]), ("test", rows[24:])):
        make_huggingface(tmp_path / "data" / f"{name}.parquet", part)
    dataset = open_dataset(tmp_path, DataConfig())
    assert len(dataset) == 36
    assert set(dataset.splits[24:].tolist()) == {"test"} and "test" not in dataset.splits[:24].tolist()
    assert any("no validation split" in sentence for sentence in dataset.notes)
    assert all(dataset.encoded(row) == picture(row) for row in range(36))


def test_a_struct_without_bytes_points_to_a_file(tmp_path: Path) -> None:
    path = make_huggingface(tmp_path / "faces.parquet")
    make_table(tmp_path)
    table = pq.read_table(path)
    images = [{"bytes": None, "path": value["path"]} for value in table["image"].to_pylist()]
    column = pa.array(images, table.schema.field("image").type)
    pq.write_table(table.set_column(1, table.schema.field("image"), column), path)
    assert open_dataset(path, DataConfig()).encoded(3) == picture(3)


def test_numeric_classes_sort_by_value(tmp_path: Path) -> None:
    rows = make_rows()
    for index, row in enumerate(rows):
        row["label"] = (2, 10, 1)[index % 3]
    for suffix in (".csv", ".parquet"):
        assert open_dataset(make_table(tmp_path, rows, suffix), TABLE).class_names == ("1", "2", "10")


def test_images_are_squares_of_the_wanted_size(tmp_path: Path) -> None:
    dataset = open_dataset(make_folders(tmp_path / "faces"), DataConfig())
    images = dataset.images(size=16, channels=1)
    assert tuple(images.shape) == (36, 1, 16, 16) and str(images.dtype) == "torch.uint8"
    some = dataset.images([5, 2, 5], size=16, channels=1)
    assert (some == images[[5, 2, 5]]).all()
    assert tuple(dataset.images([0], size=24, channels=3).shape) == (1, 3, 24, 24)
    assert tuple(dataset.images([], size=24, channels=3).shape) == (0, 3, 24, 24)


def test_size_and_channels_follow_the_images(tmp_path: Path) -> None:
    rows = make_rows()
    path = make_table(tmp_path, rows)
    for row in rows:
        (tmp_path / row["image"]).write_bytes(picture(1, size=70))
    assert open_dataset(path, DataConfig()).image_size == 64
    config = DataConfig(image_size=48, channels=3)
    assert (open_dataset(path, config).image_size, open_dataset(path, config).channels) == (48, 3)


def test_a_file_that_vanishes_after_opening(tmp_path: Path) -> None:
    dataset = open_dataset(make_folders(tmp_path / "faces"), DataConfig())
    (tmp_path / "faces" / "angry" / "001.png").unlink()
    with pytest.raises(UserError, match=r"angry/001\.png.*restore"):
        dataset.images(size=16, channels=1)


# --- splits and limits


def test_hash_splits_do_not_depend_on_other_rows(tmp_path: Path) -> None:
    rows = [{**row, "image": f"img/{index:03}.png"} for index, row in enumerate(make_rows(300))]
    whole = open_dataset(make_table(tmp_path, rows), DataConfig())
    shares = Counter(whole.splits.tolist())
    assert 180 < shares["train"] < 240 and 15 < shares["validation"] < 45 and 40 < shares["test"] < 80
    part = open_dataset(make_table(tmp_path, rows[:150]), DataConfig())
    splits = dict(zip(whole.ids.tolist(), whole.splits.tolist(), strict=True))
    assert all(splits[sample] == split for sample, split in zip(part.ids, part.splits, strict=True))


def test_hash_splits_keep_a_person_together(tmp_path: Path) -> None:
    dataset = open_dataset(make_table(tmp_path, make_rows(150)), DataConfig(identity="person"))
    assert dataset.identities is not None
    pairs = set(zip(dataset.identities.tolist(), dataset.splits.tolist(), strict=True))
    assert len(pairs) == 50 and len(set(dataset.splits)) == 3


def test_missing_splits_come_out_of_train_only(tmp_path: Path) -> None:
    rows = make_rows(120)
    for index, row in enumerate(rows):
        row["subset"] = "PublicTest" if index % 4 == 0 else "Training"
    dataset = open_dataset(make_table(tmp_path, rows), TABLE)
    assert (dataset.splits == "validation").sum() == 30
    assert 5 < (dataset.splits == "test").sum() < 35
    assert any("no test split" in sentence for sentence in dataset.notes)


def test_a_limit_keeps_shares_and_the_smallest_hashes(tmp_path: Path) -> None:
    path = make_table(tmp_path, make_rows(120))
    whole = open_dataset(path, TABLE)
    part = open_dataset(path, DataConfig(**{**TABLE.model_dump(), "limit": 40}), seed=3)
    assert len(part) == 40 and set(part.ids) < set(whole.ids)
    cells = Counter(zip(part.splits.tolist(), part.labels.tolist(), strict=True))
    for cell, count in Counter(zip(whole.splits.tolist(), whole.labels.tolist(), strict=True)).items():
        assert abs(cells[cell] - count / 3) < 1
    train = [i for i in whole.rows("train") if whole.labels[i] == 0]
    ranked = sorted(train, key=lambda row: hashlib.sha256(f"3:{whole.ids[row]}".encode()).digest())
    kept = {s for s, sp, y in zip(part.ids, part.splits, part.labels, strict=True) if (sp, y) == ("train", 0)}
    assert kept == {str(whole.ids[row]) for row in ranked[: len(kept)]}


@given(
    st.lists(st.tuples(st.sampled_from(["train", "test"]), st.sampled_from("abc")), min_size=1, max_size=60),
    st.integers(1, 70),
)
def test_limits_are_met_exactly(cells: list[tuple[str, str]], limit: int) -> None:
    ids = [str(index) for index in range(len(cells))]
    splits, labels = [cell[0] for cell in cells], [cell[1] for cell in cells]
    kept = limited(ids, splits, labels, limit, 0)
    assert len(kept) == len(set(kept)) == min(limit, len(cells)) and kept == sorted(kept)
    for cell, count in Counter(cells).items():
        share = sum(cells[row] == cell for row in kept)
        assert abs(share - count * min(1, limit / len(cells))) < 1


# --- the order on disk is no part of a dataset


@settings(max_examples=8, deadline=None)
@given(st.permutations(range(36)))
def test_row_order_does_not_matter(order: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        rows = make_rows()
        first = open_dataset(make_table(root, rows), TABLE)
        second = open_dataset(make_table(root, [rows[index] for index in order], ".parquet"), TABLE)
        third = open_dataset(make_huggingface(root / "a" / "x.parquet", rows), DataConfig(split="subset"))
        shuffled = make_huggingface(root / "b" / "x.parquet", [rows[index] for index in order])
        fourth = open_dataset(shuffled, DataConfig(split="subset"))
    for one, other in ((first, second), (third, fourth)):
        assert one.fingerprint == other.fingerprint
        for name in ("ids", "labels", "splits"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_array_equal(
        third.images(size=16, channels=1).numpy(), fourth.images(size=16, channels=1).numpy()
    )
    assert first.fingerprint != third.fingerprint


def test_file_order_does_not_matter(tmp_path: Path) -> None:
    root = make_folders(tmp_path / "faces")
    files = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
    random.Random(0).shuffle(files)
    for file in files:
        target = tmp_path / "copy" / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / file, target)
    one, other = open_dataset(root, DataConfig()), open_dataset(tmp_path / "copy", DataConfig())
    assert one.fingerprint == other.fingerprint and one.ids.tolist() == other.ids.tolist()


def test_the_fingerprint_follows_labels_and_bytes(tmp_path: Path) -> None:
    rows = make_rows()
    prints = {open_dataset(make_table(tmp_path, rows), TABLE).fingerprint}
    (tmp_path / rows[4]["image"]).write_bytes(picture(99))
    prints.add(open_dataset(tmp_path / "faces.csv", TABLE).fingerprint)
    rows[4]["label"] = "sad" if rows[4]["label"] != "sad" else "happy"
    prints.add(open_dataset(make_table(tmp_path, rows), TABLE).fingerprint)
    assert len(prints) == 3


# --- quarantine


def test_unreadable_images_are_quarantined_and_counted(tmp_path: Path) -> None:
    root = make_folders(tmp_path / "faces")
    (root / "happy" / "001.png").write_bytes(picture(1)[:60])
    (root / "happy" / "003.png").write_bytes(b"")
    (root / "sad" / "000.png").unlink()
    (tmp_path / "outside.png").write_bytes(picture(5))
    (root / "sad" / "000.png").symlink_to(tmp_path / "outside.png")
    (root / "sad" / "001.png").unlink()
    (root / "sad" / "001.png").symlink_to("003.png")  # inside: fine
    (root / "sad" / "004.png").unlink()
    os.mkfifo(root / "sad" / "004.png")  # reading it would never end
    odd = os.fsdecode(b"angry/caf\xe9.png")
    (root / odd).write_bytes(picture(6))
    dataset = open_dataset(root, DataConfig())
    reasons = {entry.id: entry.reason for entry in dataset.quarantine}
    assert set(reasons) == {
        "angry/caf\\xe9.png",
        "happy/001.png",
        "happy/003.png",
        "sad/000.png",
        "sad/004.png",
    }
    assert "truncated" in reasons["happy/001.png"] and "empty" in reasons["happy/003.png"]
    assert "out of the dataset" in reasons["sad/000.png"] and "regular file" in reasons["sad/004.png"]
    assert len(dataset) + len(dataset.quarantine) == 37 and "sad/001.png" in dataset.ids


def test_too_many_pixels_and_missing_files_are_quarantined(tmp_path: Path) -> None:
    path = make_table(tmp_path)
    (tmp_path / "img" / "003.png").write_bytes(picture(3, size=40))
    (tmp_path / "img" / "004.png").unlink()
    dataset = open_dataset(path, DataConfig(max_pixels=1000))
    assert [(entry.id, entry.path) for entry in dataset.quarantine] == [
        ("img/003.png", "img/003.png"),
        ("img/004.png", "img/004.png"),
    ]
    assert (
        "max_pixels = 1000" in dataset.quarantine[0].reason and "no such file" in dataset.quarantine[1].reason
    )


def test_damaged_bytes_in_parquet_name_their_row(tmp_path: Path) -> None:
    path = make_huggingface(tmp_path / "faces.parquet")
    table = pq.read_table(path)
    images = table["image"].to_pylist()
    images[4] = {"bytes": b"junk", "path": None}
    images[5] = None
    column = pa.array(images, table.schema.field("image").type)
    pq.write_table(table.set_column(1, table.schema.field("image"), column), path)
    dataset = open_dataset(path, DataConfig())
    assert [entry.id for entry in dataset.quarantine] == ["face-004", "face-005"]
    assert "row 5 of" in dataset.quarantine[0].path and len(dataset) == 34


def named_columns(folder: Path, suffix: str = ".parquet", **columns: list[str]) -> Path:
    """A table with columns called split and identity, and the notes of nobody."""
    rows = make_rows()
    for name, values in columns.items():
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    return make_table(folder, rows, suffix)


SPLITS_OF_36 = ["train", "validation", "test"] * 12


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_columns_called_split_and_identity_are_taken_and_told(tmp_path: Path, suffix: str) -> None:
    # Classes take turns by three, so blocks of three keep every class in train.
    splits = [SPLITS_OF_36[index // 3] for index in range(36)]
    path = named_columns(tmp_path, suffix, split=splits, identity=[f"p{k // 2}" for k in range(36)])
    found, named, none = (
        open_dataset(path, DataConfig(split=split, identity=identity))
        for split, identity in ((None, None), ("split", "identity"), ("", ""))
    )
    assert found.fingerprint == named.fingerprint != none.fingerprint
    by_id = dict(zip(found.ids.tolist(), found.splits.tolist(), strict=True))
    assert [by_id[f"img/{index:03}.png"] for index in range(36)] == splits
    assert found.identities is not None and named.identities is not None and none.identities is None
    assert found.identities.tolist() == named.identities.tolist()
    told = " ".join(found.notes)
    assert "column 'split'" in told and "column 'identity'" in told and "column" not in " ".join(named.notes)
    assert "by a hash" in " ".join(none.notes)
    edited = str(found.ids[found.rows("train")[0]])
    write_refined(found, {edited: picture(99)}, [], {}, tmp_path / "out")
    again = open_dataset(tmp_path / "out" / path.name, DataConfig())
    assert again.splits.tolist() == found.splits.tolist()


@pytest.mark.parametrize(
    "values", [["a", "b", "c"] * 12, ["test"] * 36, ["train"] * 35 + [""], ["0", "1", "2"] * 12]
)
def test_a_column_called_split_that_holds_something_else(tmp_path: Path, values: list[str]) -> None:
    dataset = open_dataset(named_columns(tmp_path, split=values), DataConfig())
    assert any("'split' is not used" in note for note in dataset.notes)
    assert any("by a hash" in note for note in dataset.notes)


def test_files_named_after_splits_win_over_a_column(tmp_path: Path) -> None:
    rows = [{**row, "split": "train"} for row in make_rows()]
    make_table(tmp_path / "pictures", rows)
    (tmp_path / "data").mkdir()
    for name, part in (("train-0", rows[:24]), ("test-0", rows[24:])):
        pq.write_table(pa.Table.from_pylist(part), tmp_path / "data" / f"{name}.parquet")
    dataset = open_dataset(tmp_path / "data", DataConfig(root=tmp_path / "pictures"))
    assert dataset.ids[dataset.rows("test")].tolist() == [row["image"] for row in rows[24:]]


def test_an_empty_name_of_an_id_takes_the_path(tmp_path: Path) -> None:
    path = named_columns(tmp_path, id=[f"face{index}" for index in range(36)])
    assert open_dataset(path, DataConfig()).ids[0] == "face0"
    assert open_dataset(path, DataConfig(id="")).ids[0] == "img/000.png"
