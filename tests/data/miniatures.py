"""Small datasets in every layout."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CLASSES = ("sad", "happy", "angry")  # not in alphabetical order, as in a ClassLabel
HF_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def picture(seed: int, kind: str = "PNG", size: int = 16) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind)
    return buffer.getvalue()


def make_folders(root: Path, *, per_class: int = 12, splits: Sequence[str] = ()) -> Path:
    """Class folders; names repeat in every class, every third image is a JPEG."""
    seed = 0
    for split in splits or [""]:
        for name in CLASSES:
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(per_class):
                kind, suffix = ("JPEG", "jpg") if index % 3 == 2 else ("PNG", "png")
                (folder / f"{index:03}.{suffix}").write_bytes(picture(seed, kind))
                seed += 1
    return root


def make_rows(n: int = 36) -> list[dict[str, Any]]:
    """Rows of a table; classes take turns, three images a person."""
    return [
        {
            "image": f"img/{index:03}.png",
            "label": CLASSES[index % 3],
            "subset": "Training" if index % 12 < 9 else "PublicTest" if index % 12 < 10 else "PrivateTest",
            "person": f"p{index // 3}",
            "votes": index % 10,
            "truth_label": CLASSES[(index + (index % 5 == 0)) % 3],
            "remark": f'of "{index}", comma\nand line' if index % 4 == 0 else "",
        }
        for index in range(n)
    ]


def make_table(folder: Path, rows: Sequence[dict[str, Any]] | None = None, suffix: str = ".csv") -> Path:
    """A table of image paths with its images beside it."""
    rows = make_rows() if rows is None else rows
    (folder / "img").mkdir(parents=True, exist_ok=True)
    for row in rows:
        (folder / "img" / Path(row["image"]).name).write_bytes(picture(int(Path(row["image"]).stem)))
    path = folder / f"faces{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    else:
        with path.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, list(rows[0]), delimiter="\t" if suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def make_huggingface(
    path: Path, rows: Sequence[dict[str, Any]] | None = None, *, ids: bool = True, row_group_size: int = 10
) -> Path:
    """A Parquet file as Hugging Face `datasets` writes it: Image and ClassLabel features."""
    rows = make_rows() if rows is None else rows
    data: dict[str, Any] = {
        "image": pa.array(
            [{"bytes": picture(int(Path(row["image"]).stem)), "path": row["image"]} for row in rows], HF_IMAGE
        ),
        "label": pa.array([CLASSES.index(row["label"]) for row in rows], pa.int64()),
        "subset": [row["subset"] for row in rows],
        "votes": pa.array([[row["votes"], 1] for row in rows], pa.list_(pa.int8(), 2)),
        "truth_label": [row["truth_label"] for row in rows],
    }
    features = {
        "image": {"_type": "Image"},
        "label": {"names": list(CLASSES), "_type": "ClassLabel"},
        "subset": {"dtype": "string", "_type": "Value"},
        "votes": {"feature": {"dtype": "int8", "_type": "Value"}, "length": 2, "_type": "List"},
        "truth_label": {"dtype": "string", "_type": "Value"},
    }
    if ids:
        data = {"id": [f"face-{Path(row['image']).stem}" for row in rows], **data}
        features = {"id": {"dtype": "string", "_type": "Value"}, **features}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(data).replace_schema_metadata(metadata)
    pq.write_table(table, path, row_group_size=row_group_size, compression="zstd")
    return path


@dataclass(frozen=True)
class Public:
    """A public dataset's layout in miniature: how to make it, how to open it, what comes out.

    Attributes:
        make: writes it into a folder and returns what is opened.
        format: what `format="auto"` must find.
        config: of `DataConfig`.
        n: usable samples.
        quarantined: the others.
        classes: in order.
        first: the first id.
        splits: whether the source has them.
        identities: whether it knows the persons.
    """

    make: Callable[[Path], Path]
    format: str
    classes: tuple[str, ...]
    first: str
    n: int = 60
    quarantined: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    splits: bool = False
    identities: bool = False


PEOPLE = ("Aaron_Eckhart", "Bai_Ling", "Carla_Del_Ponte", "Dinora_Rosales", "Emma_Watson")


def put(path: Path, data: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def make_celeba(root: Path) -> Path:
    """img_align_celeba/000001.jpg and the lists, in the columns and with the blanks of the authors."""
    names = [f"{index:06}.jpg" for index in range(1, 61)]
    for index, name in enumerate(names):
        put(root / "img_align_celeba" / name, picture(index, "JPEG"))
    values = [(1 if i % 2 else -1, 1 if i % 3 else -1, 1 if i % 7 else -1) for i in range(60)]
    rows = [f"{name} {a:2} {b:2} {c:2}" for name, (a, b, c) in zip(names, values, strict=True)]
    put(root / "list_attr_celeba.txt", "60\nMale Smiling Young \n" + "\n".join(rows) + "\n")
    part = [2 if index % 10 == 0 else 1 if index % 10 == 5 else 0 for index in range(60)]
    put(root / "list_eval_partition.txt", "".join(f"{n} {p}\n" for n, p in zip(names, part, strict=True)))
    people = [f"{name} {index // 3}\n" for index, name in enumerate(names)]
    put(root / "identity_CelebA.txt", "".join(reversed(people)))
    box = "60\nimage_id x_1 y_1 width height\n" + "".join(f"{name}    95  71 226 313\n" for name in names)
    put(root / "list_bbox_celeba.txt", box)
    return root


def make_celeba_csv(root: Path) -> Path:
    """The same as a well-known copy has it: CSV files, a folder within the folder."""
    make_celeba(root)
    (root / "img_align_celeba").rename(root / "moved")
    (root / "img_align_celeba").mkdir()
    (root / "moved").rename(root / "img_align_celeba" / "img_align_celeba")
    for stem, header in (("list_attr_celeba", None), ("list_eval_partition", "image_id,partition")):
        lines = (root / f"{stem}.txt").read_text().splitlines()
        lines = [f"image_id {lines[1]}", *lines[2:]] if header is None else [header, *lines]
        put(root / f"{stem}.csv", "".join(",".join(line.split()) + "\r\n" for line in lines))
        (root / f"{stem}.txt").unlink()
    (root / "identity_CelebA.txt").unlink()
    return root


def make_utkface(root: Path) -> Path:
    """Names as published, three of them malformed."""
    for index in range(60):
        name = f"{index + 1}_{index % 2}_{index % 5}_201701{10 + index % 20}1746{index:05}.jpg.chip.jpg"
        put(root / "part1" / name, picture(index, "JPEG"))
    for name in ("61_1_20170109150557335.jpg.chip.jpg", "39_1_20170116174525125.jpg", "55_0_0_.jpg"):
        put(root / "part1" / name, picture(7, "JPEG"))
    return root


def make_fairface(root: Path) -> Path:
    ages = ("20-29", "3-9", "more than 70")
    for split, count in (("train", 48), ("val", 12)):
        lines = ["file,age,gender,race,service_test"]
        for index in range(1, count + 1):
            put(root / split / f"{index}.jpg", picture(index, "JPEG"))
            row = [
                f"{split}/{index}.jpg",
                ages[index % 3],
                ("Male", "Female")[index % 2],
                "East Asian",
                "True",
            ]
            lines.append(",".join(row))
        put(root / f"fairface_label_{split}.csv", "\n".join(lines) + "\n")
    return root


def make_rafdb(root: Path) -> Path:
    lines = []
    for split, count in (("train", 48), ("test", 12)):
        for index in range(1, count + 1):
            stem = f"{split}_{index:05}"
            put(root / "Image" / "aligned" / f"{stem}_aligned.jpg", picture(index, "JPEG"))
            landmarks = "".join(f"{x}.0\t{x}.5\n" for x in range(5))
            attributes = f"{landmarks}{index % 3}\n{index % 2}\n{index % 5}\n"
            put(root / "Annotation" / "manual" / f"{stem}_manu_attri.txt", attributes)
            lines.append(f"{stem}.jpg {(4, 5, 7)[index % 3]}\n")
    put(root / "EmoLabel" / "list_patition_label.txt", "".join(lines))
    return root


def make_affectnet_csv(root: Path) -> Path:
    header = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal"
    for name, count in (("training", 50), ("validation", 12)):
        lines = [header]
        for index in range(count):
            file = f"{index % 7}/{name[0]}{index:03}.jpg"
            put(root / "Manually_Annotated_Images" / file, picture(index, "JPEG"))
            code = {48: 8, 49: 10}.get(index, index % 3)
            lines.append(f"{file},134,134,899,899,181.64;530.91;188.32,{code},-0.017,0.1")
        put(root / f"{name}.csv", "\n".join(lines) + "\n")
    return root


def make_affectnet_npy(root: Path) -> Path:
    """Sets of images and annotations; the expressions are 0-d arrays of text, as published."""
    for name, count in (("train_set", 50), ("val_set", 12)):
        for index in range(count):
            put(root / name / "images" / f"{index}.jpg", picture(index, "JPEG"))
            folder = root / name / "annotations"
            folder.mkdir(exist_ok=True)
            code = {48: "8", 49: "x"}.get(index, str(index % 3))
            np.save(folder / f"{index}_exp.npy", np.array(code))
            np.save(folder / f"{index}_val.npy", np.array("-0.0125"))
            np.save(folder / f"{index}_lnd.npy", np.arange(136.0))
    return root


def make_fer2013(root: Path, name: str = "fer2013.csv", header: str = "emotion,pixels,Usage") -> Path:
    usages = ("Training",) * 8 + ("PublicTest", "PrivateTest")
    lines = [header]
    for index in range(60):
        pixels = np.random.default_rng(index).integers(0, 256, 48 * 48)
        values = {
            "emotion": str(index % 3),
            "pixels": " ".join(map(str, pixels)),
            "usage": usages[index % 10],
        }
        lines.append(",".join(values[column.strip().casefold()] for column in header.split(",")))
    put(root / name, "\n".join(lines) + "\n")
    return root


def make_ferplus(root: Path) -> Path:
    """FER2013 as the challenge's archive has it, with blanks in the header, and FER+ beside it."""
    make_fer2013(root, "icml_face_data.csv", "emotion, Usage, pixels")
    usages = ("Training",) * 8 + ("PublicTest", "PrivateTest")
    votes = "neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"
    rows = [f"{usages[i % 10]},fer{i:07}.png,{i % 10},{9 - i % 10},0,1,0,0,0,0,0,0" for i in range(60)]
    put(root / "fer2013new.csv", "\n".join([f"Usage,Image name,{votes}", *rows]) + "\n")
    return root


def make_lfw(root: Path) -> Path:
    """Folders of people with a file of attributes, "Male" positive for three of five."""
    lines = ["#LFW Attribute classification scores.", "#\tperson\timagenum\tMale\tSmiling"]
    for who in range(20):
        person = f"{PEOPLE[who % 5]}_{'abcd'[who // 5]}"
        for number in (1, 2, 3):
            put(root / "lfw" / person / f"{person}_{number:04}.jpg", picture(10 * who + number, "JPEG"))
            male = 1.5682 if who % 5 < 3 else -0.3167
            lines.append(f"{person.replace('_', ' ')}\t{number}\t{male}\t{number - 1.5}")
    put(root / "lfw_attributes.txt", "\n".join(lines) + "\n")
    return root


def make_people_in_folders(root: Path) -> Path:
    for index in range(60):
        person = f"{PEOPLE[index % 5]}_{'abcdefghijkl'[index // 5]}"
        put(root / CLASSES[index % 3] / f"{person}_0001.jpg", picture(index, "JPEG"))
    return root


def make_imagefolder(root: Path, suffix: str = "csv") -> Path:
    for split, count in (("train", 48), ("test", 12)):
        rows = []
        for index in range(count):
            put(root / split / "img" / f"{index:03}.png", picture(index + (500 if split == "test" else 0)))
            rows.append({"file_name": f"img/{index:03}.png", "label": CLASSES[index % 3], "age": 20 + index})
        if suffix == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), root / split / "metadata.parquet")
        elif suffix == "csv":
            text = "\n".join(["file_name,label,age", *(",".join(map(str, r.values())) for r in rows)])
            put(root / split / "metadata.csv", text + "\n")
        else:
            put(root / split / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return root


def make_json(root: Path) -> Path:
    rows = make_rows(60)
    make_table(root, rows)
    (root / "faces.csv").unlink()
    put(root / "faces.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return root / "faces.jsonl"


def make_saved(root: Path) -> Path:
    """As `datasets.DatasetDict.save_to_disk` leaves it."""
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))}
    )
    datasets.disable_progress_bars()
    parts = {}
    for split, count in (("train", 48), ("test", 12)):
        images = [{"bytes": picture(index + 100 * count), "path": None} for index in range(count)]
        columns = {"image": images, "label": [index % 3 for index in range(count)]}
        parts[split] = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict(parts).save_to_disk(root)
    return root


SORTED = tuple(sorted(CLASSES))
PUBLIC = {
    "celeba": Public(
        make_celeba,
        "celeba",
        ("not Smiling", "Smiling"),
        "000001.jpg",
        config={"label": "Smiling", "groups": ["Male"]},
        splits=True,
        identities=True,
    ),
    "celeba csv": Public(
        make_celeba_csv,
        "celeba",
        ("not Male", "Male"),
        "000001.jpg",
        config={"label": "Male"},
        splits=True,
    ),
    "utkface gender": Public(
        make_utkface,
        "utkface",
        ("male", "female"),
        "part1/10_1_4_20170119174600009.jpg.chip.jpg",
        quarantined=3,
        config={"label": "gender", "groups": ["race", "age"]},
    ),
    "utkface age": Public(
        make_utkface,
        "utkface",
        ("1-12", "13-39", "40+"),
        "part1/10_1_4_20170119174600009.jpg.chip.jpg",
        quarantined=3,
        config={"label": "age", "bins": [1, 13, 40]},
    ),
    "fairface": Public(
        make_fairface,
        "fairface",
        ("3-9", "20-29", "more than 70"),
        "train/1.jpg",
        config={"label": "age", "groups": ["race"]},
        splits=True,
    ),
    "rafdb": Public(
        make_rafdb,
        "rafdb",
        ("Happiness", "Sadness", "Neutral"),
        "test_00001.jpg",
        config={"groups": ["gender", "age"]},
        splits=True,
    ),
    "affectnet csv": Public(
        make_affectnet_csv,
        "affectnet",
        ("Neutral", "Happy", "Sad"),
        "Manually_Annotated_Images/0/t000.jpg",
        quarantined=2,
        splits=True,
    ),
    "affectnet npy": Public(
        make_affectnet_npy,
        "affectnet",
        ("Neutral", "Happy", "Sad"),
        "train_set/images/0.jpg",
        quarantined=2,
        splits=True,
    ),
    "fer2013": Public(make_fer2013, "fer2013", ("Angry", "Disgust", "Fear"), "row00000000", splits=True),
    "fer+": Public(make_ferplus, "fer2013", ("Angry", "Disgust", "Fear"), "row00000000", splits=True),
    "fer2013 folders": Public(
        lambda root: make_folders(root, per_class=10, splits=("train", "test")),
        "folders",
        SORTED,
        "test/angry/000.png",
        splits=True,
    ),
    "lfw": Public(
        make_lfw,
        "lfw",
        ("not Male", "Male"),
        "Aaron_Eckhart_a_0001",
        config={"label": "Male", "groups": ["Smiling"]},
        identities=True,
    ),
    "lfw folders": Public(
        make_people_in_folders, "lfw", SORTED, "angry/Aaron_Eckhart_b_0001.jpg", identities=True
    ),
    "imagefolder csv": Public(
        make_imagefolder, "imagefolder", SORTED, "test/img/000.png", config={"groups": ["age"]}, splits=True
    ),
    "imagefolder jsonl": Public(
        lambda root: make_imagefolder(root, "jsonl"),
        "imagefolder",
        ("20-29", "30+"),
        "test/img/000.png",
        config={"label": "age", "bins": [20, 30]},
        splits=True,
    ),
    "imagefolder parquet": Public(
        lambda root: make_imagefolder(root, "parquet"),
        "imagefolder",
        SORTED,
        "test/img/000.png",
        splits=True,
    ),
    "jsonl": Public(
        make_json,
        "table",
        SORTED,
        "img/000.png",
        config={"split": "subset", "identity": "person"},
        splits=True,
        identities=True,
    ),
    "saved": Public(make_saved, "saved", CLASSES, "row00000000", splits=True),
    "parquet": Public(
        lambda root: make_huggingface(root / "x.parquet", make_rows(60)),
        "table",
        CLASSES,
        "face-000",
        config={"split": "subset"},
        splits=True,
    ),
    "csv": Public(
        lambda root: make_table(root, make_rows(60)),
        "table",
        SORTED,
        "img/000.png",
        config={"split": "subset", "groups": ["person"]},
        splits=True,
    ),
}
