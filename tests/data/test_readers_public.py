"""What is particular to a public layout: what is read, what is refused, what is written back."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from miniatures import (
    make_affectnet_csv,
    make_affectnet_npy,
    make_celeba,
    make_fairface,
    make_fer2013,
    make_ferplus,
    make_folders,
    make_imagefolder,
    make_json,
    make_lfw,
    make_rafdb,
    make_saved,
    make_utkface,
    picture,
)
from PIL import Image

from diffinf.config import DataConfig
from diffinf.data import FaceDataset, open_dataset, write_refined
from diffinf.errors import UserError


def refused(path: Path, *expected: str, **config: Any) -> None:
    with pytest.raises(UserError) as caught:
        open_dataset(path, DataConfig(**config))
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in expected), message


def edit(file: Path, old: str, new: str) -> Path:
    text = file.read_bytes().decode()
    assert old in text
    file.write_bytes(text.replace(old, new, 1).encode())
    return file.parent


def labels_of(dataset: FaceDataset) -> dict[str, str]:
    return {str(s): dataset.class_names[y] for s, y in zip(dataset.ids, dataset.labels, strict=True)}


# --- CelebA


def test_celeba_attributes_partitions_identities(tmp_path: Path) -> None:
    dataset = open_dataset(make_celeba(tmp_path), DataConfig(label="Young", groups=["Male", "Smiling"]))
    labels = labels_of(dataset)
    assert labels["000001.jpg"] == "not Young" and labels["000002.jpg"] == "Young"
    assert dataset.groups["Male"][:2].tolist() == ["not Male", "Male"]
    assert Counter(dataset.splits.tolist()) == {"train": 48, "validation": 6, "test": 6}
    assert dataset.identities is not None and dataset.identities[:4].tolist() == ["0", "0", "0", "1"]


def test_celeba_lists_are_written_line_by_line(tmp_path: Path) -> None:
    dataset = open_dataset(make_celeba(tmp_path / "a"), DataConfig(label="Smiling"))
    write_refined(dataset, {}, ["000003.jpg"], {"000004.jpg": "Smiling"}, tmp_path / "out")
    for name in (
        "list_attr_celeba.txt",
        "list_eval_partition.txt",
        "identity_CelebA.txt",
        "list_bbox_celeba.txt",
    ):
        before = (tmp_path / "a" / name).read_text().splitlines()
        after = (tmp_path / "out" / name).read_text().splitlines()
        expected = [line for line in before if not line.startswith("000003.jpg")]
        expected = ["59" if line == "60" else line for line in expected]
        if name == "list_attr_celeba.txt":
            expected = [line.replace("1 -1  1", "1 1  1") if "000004" in line else line for line in expected]
        assert after == expected, name
    assert not (tmp_path / "out" / "img_align_celeba" / "000003.jpg").exists()


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        (
            "list_attr_celeba.txt",
            "000002.jpg  1  1  1",
            "000002.jpg  1  1",
            ("line 4", "2 values", "expected a name"),
        ),
        ("list_attr_celeba.txt", "000002.jpg  1", "000002.jpg  7", ("line 4", "'7'")),
        ("list_attr_celeba.txt", "000002.jpg", "../../x.jpg", ("line 4", "leads out")),
        ("list_attr_celeba.txt", "000002.jpg", "/etc/passwd", ("line 4", "leads out")),
        ("list_attr_celeba.txt", "000002.jpg", "000001.jpg", ("'000001.jpg'", "twice", "line 3")),
        ("list_eval_partition.txt", "000007.jpg 0\n", "", ("list_eval_partition.txt", "'000007.jpg'")),
        ("list_eval_partition.txt", "000007.jpg 0", "000007.jpg 5", ("line 9 of", "'5'")),
    ],
)
def test_celeba_broken(tmp_path: Path, file: str, old: str, new: str, expected: tuple[str, ...]) -> None:
    make_celeba(tmp_path)
    edit(tmp_path / file, old, new)
    refused(tmp_path, *expected, label="Smiling")


def test_celeba_needs_an_attribute(tmp_path: Path) -> None:
    make_celeba(tmp_path)
    refused(tmp_path, "'label'", "--label", "Male, Smiling, Young")
    refused(tmp_path, "'Bald'", "data.groups", label="Male", groups=["Bald"])
    (tmp_path / "list_attr_celeba.txt").write_text("0\nMale\n")
    refused(tmp_path, "no rows", label="Male")
    (tmp_path / "list_attr_celeba.txt").write_bytes(b"1\nMale\n\xff.jpg 1\n")
    refused(tmp_path, "line 3", "UTF-8", label="Male")


def test_lists_may_not_lead_out(tmp_path: Path) -> None:
    make_celeba(tmp_path / "data")
    (tmp_path / "data" / "identity_CelebA.txt").rename(tmp_path / "identity_CelebA.txt")
    (tmp_path / "data" / "identity_CelebA.txt").symlink_to(tmp_path / "identity_CelebA.txt")
    refused(tmp_path / "data", "identity_CelebA.txt", "leads out", label="Male")


# --- UTKFace


def test_utkface_names(tmp_path: Path) -> None:
    root = make_utkface(tmp_path)
    dataset = open_dataset(root, DataConfig(label="race", groups=["age", "gender"]))
    first = dataset.ids.tolist().index("part1/1_0_0_20170110174600000.jpg.chip.jpg")
    assert dataset.class_names == ("White", "Black", "Asian", "Indian", "Others")
    assert dataset.labels[first] == 0
    assert (dataset.groups["age"][first], dataset.groups["gender"][first]) == ("1", "male")
    assert {entry.path for entry in dataset.quarantine} == {
        "part1/61_1_20170109150557335.jpg.chip.jpg",
        "part1/39_1_20170116174525125.jpg",
        "part1/55_0_0_.jpg",
    }
    assert all("[age]_[gender]_[race]" in entry.reason for entry in dataset.quarantine)
    refused(root, "'label'", "age, gender, race")
    refused(root, "data.bins", label="age")  # a class for every year
    refused(root, "'skin'", "age, gender, race", label="age", groups=["skin"])


def test_utkface_relabelled_keeps_its_split_and_the_nearest_age(tmp_path: Path) -> None:
    config = DataConfig(label="age", bins=[1, 13, 40])
    dataset = open_dataset(make_utkface(tmp_path / "a"), config)
    splits = dict(zip(dataset.ids.tolist(), dataset.splits.tolist(), strict=True))
    ages = {int(Path(s).name.split("_")[0]): s for s in sorted(splits) if splits[s] == "train"}
    child, adult = ages[min(ages)], ages[max(ages)]
    paths = write_refined(dataset, {}, [], {child: "40+", adult: "1-12"}, tmp_path / "out")
    assert paths[child] == child.replace(f"/{min(ages)}_", "/40_")
    assert paths[adult] == adult.replace(f"/{max(ages)}_", "/12_")
    again = open_dataset(tmp_path / "out", config)
    assert again.splits[again.ids.tolist().index(paths[child])] == "train"
    assert labels_of(again)[paths[child]] == "40+" and labels_of(again)[paths[adult]] == "1-12"


# --- FairFace, RAF-DB, AffectNet


def test_fairface(tmp_path: Path) -> None:
    root = make_fairface(tmp_path / "a")
    dataset = open_dataset(root, DataConfig(label="gender", groups=["race", "age"]))
    assert dataset.class_names == ("Female", "Male") and set(dataset.groups["race"]) == {"East Asian"}
    assert all(s.startswith("val/") for s in dataset.ids[dataset.rows("validation")])
    refused(root, "age, gender, race")
    write_refined(
        dataset,
        {},
        [],
        {"train/5.jpg": "Male"} if "train/5.jpg" in dataset.ids[dataset.rows("train")] else {},
        tmp_path / "out",
    )
    with (tmp_path / "out" / "fairface_label_train.csv").open(newline="") as handle:
        assert next(csv.DictReader(handle)) == {
            "file": "train/1.jpg",
            "age": "3-9",
            "gender": "Female",
            "race": "East Asian",
            "service_test": "True",
        }
    edit(root / "fairface_label_train.csv", "train/2.jpg,more than 70", "train/2.jpg,ancient")
    (strange,) = open_dataset(root, DataConfig(label="age")).quarantine
    assert strange.id == "train/2.jpg" and "'ancient'" in strange.reason and "20-29" in strange.reason


def test_rafdb(tmp_path: Path) -> None:
    root = make_rafdb(tmp_path)
    dataset = open_dataset(root, DataConfig(groups=["gender", "race", "age"]))
    at = dataset.ids.tolist().index("train_00001.jpg")
    assert dataset.class_names[dataset.labels[at]] == "Sadness"
    assert [dataset.groups[name][at] for name in ("gender", "race", "age")] == [
        "female",
        "African-American",
        "4-19",
    ]
    edit(root / "EmoLabel" / "list_patition_label.txt", "train_00003.jpg 4", "train_00003.jpg 9")
    (strange,) = open_dataset(root, DataConfig()).quarantine
    assert strange.id == "train_00003.jpg" and "'9'" in strange.reason
    edit(root / "EmoLabel" / "list_patition_label.txt", "train_00005.jpg 7", "train_00005.jpg")
    refused(root, "list_patition_label.txt", "line 5")
    refused(root, "--split", "RAF-DB", split="x")


def test_affectnet_tables(tmp_path: Path) -> None:
    dataset = open_dataset(make_affectnet_csv(tmp_path), DataConfig(groups=["valence"]))
    reasons = [entry.reason for entry in dataset.quarantine]
    assert len(reasons) == 2 and "None" in reasons[0] + reasons[1] and "Non-Face" in reasons[0] + reasons[1]
    assert Counter(dataset.splits.tolist())["validation"] == 12 and dataset.groups["valence"][0] == "-0.017"


def test_affectnet_annotations_are_never_unpickled(tmp_path: Path) -> None:
    root = make_affectnet_npy(tmp_path)
    bad = root / "train_set" / "annotations"
    np.save(bad / "4_exp.npy", np.array({"evil": 1}, dtype=object), allow_pickle=True)
    (bad / "5_exp.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'shape': (99999999999,)}")
    np.save(bad / "6_exp.npy", np.zeros(20_000))
    (bad / "7_exp.npy").unlink()
    np.save(bad / "8_exp.npy", np.array(2))  # a number will do
    dataset = open_dataset(root, DataConfig())
    reasons = {Path(entry.path).stem: entry.reason for entry in dataset.quarantine}
    assert set(reasons) == {"4", "5", "6", "7", "48", "49"} and len(dataset) + len(reasons) == 62
    assert (
        "allow_pickle" in reasons["4"] and "no array of one value" in reasons["5"] and "bytes" in reasons["6"]
    )
    assert "no annotation" in reasons["7"] and "'x'" in reasons["49"]
    assert labels_of(dataset)["train_set/images/8.jpg"] == "Sad"


def test_affectnet_relabelled_annotations_keep_their_type(tmp_path: Path) -> None:
    dataset = open_dataset(make_affectnet_npy(tmp_path / "a"), DataConfig())
    sample = next(str(dataset.ids[row]) for row in dataset.rows("train"))
    write_refined(
        dataset, {}, [], {sample: "Sad" if labels_of(dataset)[sample] != "Sad" else "Happy"}, tmp_path / "out"
    )
    name = f"train_set/annotations/{Path(sample).stem}_exp.npy"
    before, after = np.load(tmp_path / "a" / name), np.load(tmp_path / "out" / name)
    assert after.shape == () and after.dtype == before.dtype and after != before


# --- FER2013


def test_fer2013_pixels_and_usage(tmp_path: Path) -> None:
    dataset = open_dataset(make_fer2013(tmp_path / "a"), DataConfig())
    pixels = np.random.default_rng(7).integers(0, 256, (48, 48))
    np.testing.assert_array_equal(dataset.images([7], size=48, channels=1)[0, 0].numpy(), pixels)
    assert dataset.image_size == 48 and dataset.splits[[0, 8, 9]].tolist() == ["train", "validation", "test"]
    write_refined(dataset, {"row00000000": picture(5, size=96)}, [], {}, tmp_path / "out")
    with (tmp_path / "out" / "fer2013.csv").open(newline="") as handle:
        cells = [row["pixels"].split() for row in csv.DictReader(handle)]
    assert {len(cell) for cell in cells} == {48 * 48}  # a drop-in replacement: the side stays
    refused(tmp_path / "a" / "fer2013.csv", "'gold'", truth=["gold"])


@pytest.mark.parametrize("cell", ["1 2 3", "1 2 x 4", "1 2 3 256", "-1 2 3 4", "", "9 " * 2304 + "1"])
def test_fer2013_broken_pixels_are_quarantined(tmp_path: Path, cell: str) -> None:
    make_fer2013(tmp_path)
    lines = (tmp_path / "fer2013.csv").read_text().splitlines()
    emotion, _, usage = lines[5].split(",")
    lines[5] = f"{emotion},{cell},{usage}"
    (tmp_path / "fer2013.csv").write_text("\n".join(lines))
    (broken,) = open_dataset(tmp_path, DataConfig()).quarantine
    assert broken.id == "row00000004" and "row 5 of" in broken.path


def test_ferplus_votes_are_carried(tmp_path: Path) -> None:
    root = make_ferplus(tmp_path / "a")
    dataset = open_dataset(root, DataConfig())
    votes = dataset.carried["ferplus_votes"]
    assert votes.shape == (60, 10) and votes[3].tolist() == [3, 6, 0, 1, 0, 0, 0, 0, 0, 0]
    write_refined(dataset, {}, ["row00000001", "row00000002"], {}, tmp_path / "out")
    again = open_dataset(tmp_path / "out", DataConfig())
    np.testing.assert_array_equal(again.carried["ferplus_votes"], np.delete(votes, [1, 2], axis=0))
    edit(root / "fer2013new.csv", "Training,fer0000003.png", "PublicTest,fer0000003.png")
    refused(root, "fer2013new.csv", "row 4", "'PublicTest'")
    lines = (root / "fer2013new.csv").read_text().splitlines()
    (root / "fer2013new.csv").write_text("\n".join(lines[:-1]))
    refused(root, "59 rows", "60")


# --- LFW, ImageFolder, JSON lines, datasets saved to disk


def test_lfw_scores_change_their_sign(tmp_path: Path) -> None:
    dataset = open_dataset(make_lfw(tmp_path / "a"), DataConfig(label="Male"))
    assert dataset.identities is not None and dataset.identities[0] == "Aaron Eckhart a"
    sample = str(dataset.ids[dataset.rows("train")[0]])
    target = "Male" if labels_of(dataset)[sample] == "not Male" else "not Male"
    write_refined(dataset, {}, [], {sample: target}, tmp_path / "out")
    before = (tmp_path / "a" / "lfw_attributes.txt").read_text().splitlines()
    after = (tmp_path / "out" / "lfw_attributes.txt").read_text().splitlines()
    ((old, new),) = [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
    assert float(old.split("\t")[2]) == -float(new.split("\t")[2])
    edit(tmp_path / "a" / "lfw_attributes.txt", "\t1.5682", "\tmuch")
    refused(tmp_path / "a", "lfw_attributes.txt", "line 3", "'much'", label="Male")


def test_class_folders_of_numbered_files_are_not_people(tmp_path: Path) -> None:
    root = make_folders(tmp_path)
    for file in [p for p in root.rglob("*") if p.is_file()]:
        file.rename(file.with_name(f"{file.parent.name.title()}_Face_{int(file.stem):04}{file.suffix}"))
    assert open_dataset(root, DataConfig()).identities is None


def test_imagefolder_paths_start_from_their_table(tmp_path: Path) -> None:
    root = make_imagefolder(tmp_path / "a")
    dataset = open_dataset(root, DataConfig())
    assert {"train/img/000.png", "test/img/000.png"} <= set(dataset.ids)
    edit(root / "train" / "metadata.csv", "img/003.png", "../../secret.png")
    refused(root, "row 4 of", "'../../secret.png'")
    edit(root / "train" / "metadata.csv", "../../secret.png", "/etc/passwd")
    refused(root, "row 4 of", "leads out")


@pytest.mark.parametrize(
    ("line", "expected"),
    [("{", "line 3"), ("[1]", "line 3 holds list"), ("\udcff", "line 3"), ('{"label": "sad"}', "row 3 of")],
)
def test_broken_json_lines_are_named(tmp_path: Path, line: str, expected: str) -> None:
    path = make_json(tmp_path)
    lines = path.read_text().splitlines()
    lines[2] = line
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    refused(path, "faces.jsonl", expected)


def test_json_lines_stay_as_they_are(tmp_path: Path) -> None:
    path = make_json(tmp_path / "a")
    lines = path.read_text().splitlines()
    lines[4] = lines[4].replace(", ", " ,   ")
    path.write_text("\n".join([*lines[:9], "", *lines[9:]]))  # a blank line, no end of line at the end
    dataset = open_dataset(path, DataConfig(split="subset"))
    assert len(dataset) == 60
    sample = str(dataset.ids[dataset.rows("train")[0]])
    target = next(name for name in dataset.class_names if name != labels_of(dataset)[sample])
    write_refined(dataset, {}, [], {sample: target}, tmp_path / "out")
    after = (tmp_path / "out" / "faces.jsonl").read_text().splitlines()
    assert [a for a, b in zip(lines, after, strict=True) if a != b] == [lines[0]]
    assert json.loads(after[0]) == {**json.loads(lines[0]), "label": target}


def test_datasets_opens_what_was_saved_to_disk(tmp_path: Path) -> None:
    import datasets

    dataset = open_dataset(make_saved(tmp_path / "a"), DataConfig())
    dropped, edited = dataset.ids[dataset.rows("train")[:2]].tolist()
    write_refined(dataset, {edited: picture(3)}, [dropped], {}, tmp_path / "out")
    again = datasets.load_from_disk(tmp_path / "out")
    before = datasets.load_from_disk(tmp_path / "a")
    assert again["train"].num_rows == 47 and again["train"].features["label"].names == [
        "sad",
        "happy",
        "angry",
    ]
    row = again["train"]["id"].index(edited)
    assert np.array_equal(again["train"][row]["image"], Image.open(io.BytesIO(picture(3))))
    assert again["train"]._fingerprint != before["train"]._fingerprint  # no cached result of the old data
    (tmp_path / "a" / "train" / "state.json").write_text('{"_data_files": [{"filename": "../x.arrow"}]}')
    refused(tmp_path / "a", "state.json", "plain names")


@pytest.mark.parametrize(
    ("make", "config"),
    [(make_celeba, {"label": "Male"}), (make_rafdb, {}), (make_fer2013, {}), (make_affectnet_csv, {})],
)
def test_windows_line_ends_and_marks_make_no_difference(
    tmp_path: Path, make: Callable[[Path], Path], config: dict[str, Any]
) -> None:
    root = make(tmp_path)
    before = open_dataset(root, DataConfig(**config))
    for file in [p for p in root.rglob("*") if p.suffix in (".txt", ".csv")]:
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    after = open_dataset(root, DataConfig(**config))
    assert after.fingerprint == before.fingerprint
