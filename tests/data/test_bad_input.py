"""Bad input ends in one clear line: what, where, what was expected, what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from miniatures import make_folders, make_huggingface, make_rows, make_table, picture

from diffinf.config import DataConfig
from diffinf.data import open_dataset
from diffinf.errors import UserError

TABLE = {"split": "subset"}


def refused(path: Path, *words: str, **config: Any) -> None:
    """Opening raises a UserError of one line that holds all these words."""
    with pytest.raises(UserError) as caught:
        open_dataset(path, DataConfig(**config))
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


def edited(folder: Path, edit: Callable[[list[dict[str, Any]]], object], suffix: str = ".csv") -> Path:
    rows = make_rows()
    edit(rows)
    return make_table(folder, rows, suffix)


def test_nothing_there(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "nowhere", "no such file")
    refused(tmp_path, "no images", "class folders")
    (tmp_path / "x.docx").write_bytes(b"x")
    refused(tmp_path / "x.docx", ".csv", ".parquet")


@pytest.mark.parametrize("role", ["image", "label", "id", "split", "identity"])
def test_a_column_that_is_not_there(tmp_path: Path, role: str) -> None:
    refused(make_table(tmp_path), "'emotion'", f"--{role}", "'subset'", **{role: "emotion"})


def test_a_truth_column_that_is_not_there(tmp_path: Path) -> None:
    refused(make_table(tmp_path), "'gold'", "--truth", "'votes'", truth=["gold"])


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_two_rows_with_one_id(tmp_path: Path, suffix: str) -> None:
    def edit(rows: list[dict[str, Any]]) -> None:
        rows[8]["image"] = rows[3]["image"]

    refused(edited(tmp_path, edit, suffix), "img/003.png", "row 9 of", "row 4 of", "--id")


@pytest.mark.parametrize(
    ("suffix", "value"), [(".csv", ""), (".csv", "NaN"), (".parquet", None), (".parquet", "")]
)
def test_missing_labels_are_left_out_and_counted(tmp_path: Path, suffix: str, value: str | None) -> None:
    def edit(rows: list[dict[str, Any]]) -> None:
        for index in range(2, 9):
            rows[index]["label"] = value

    dataset = open_dataset(edited(tmp_path, edit, suffix), DataConfig(**TABLE))
    assert [entry.id for entry in dataset.quarantine] == [f"img/{index:03}.png" for index in range(2, 9)]
    assert all("no label" in entry.reason for entry in dataset.quarantine) and len(dataset) == 29
    (said,) = [sentence for sentence in dataset.notes if "no label" in sentence]
    assert said.startswith("7 rows left out, img/002.png") and "2 more" in said


def test_missing_number_labels(tmp_path: Path) -> None:
    def edit(rows: list[dict[str, Any]]) -> None:
        for index, row in enumerate(rows):
            row["label"] = float("nan") if index == 5 else float(index % 3)

    dataset = open_dataset(edited(tmp_path, edit, ".parquet"), DataConfig())
    assert [entry.id for entry in dataset.quarantine] == ["img/005.png"]
    assert dataset.class_names == ("0", "1", "2")


def test_no_label_at_all(tmp_path: Path) -> None:
    rows = [{**row, "label": ""} for row in make_rows()]
    refused(make_table(tmp_path, rows), "not one of 36 rows", "img/000.png", "no label", **TABLE)


def test_labels_that_are_no_classes(tmp_path: Path) -> None:
    def edit(rows: list[dict[str, Any]]) -> None:
        for index, row in enumerate(rows):
            row["label"] = index / 7

    refused(edited(tmp_path, edit, ".parquet"), "'label'", "bin continuous values")
    path = make_huggingface(tmp_path / "hf" / "x.parquet")
    table = pq.read_table(path)
    codes = pa.array([17, *table["label"].to_pylist()[1:]])
    pq.write_table(table.set_column(2, table.schema.field("label"), codes), path)
    refused(path, "code 17", "3 class names")
    refused(path, "'votes'", "expected text", label="votes")


def test_a_class_with_a_single_training_sample(tmp_path: Path) -> None:
    def edit(rows: list[dict[str, Any]]) -> None:
        rows[0]["label"] = "bored"

    refused(edited(tmp_path, edit), "'bored'", "1 sample", "merge", **TABLE)
    one_class = [{**row, "label": "x"} for row in make_rows()]
    refused(make_table(tmp_path, one_class), "only label", "'x'", **TABLE)
    refused(make_table(tmp_path), "--limit 4", "raise it", limit=4, **TABLE)


@pytest.mark.parametrize("written", ["../secret.png", "/etc/passwd", "img/../../secret.png", "img/\0.png"])
def test_paths_out_of_the_root(tmp_path: Path, written: str) -> None:
    rows = make_rows()
    path = make_table(tmp_path / "data", rows, ".parquet")
    (tmp_path / "secret.png").write_bytes(picture(1))
    rows[6]["image"] = written
    pq.write_table(pa.Table.from_pylist(rows), path)
    refused(path, "row 7 of", "--root", repr(written))


def test_paths_out_of_the_root_inside_structs(tmp_path: Path) -> None:
    path = make_huggingface(tmp_path / "x.parquet")
    table = pq.read_table(path)
    images = table["image"].to_pylist()
    images[1] = {"bytes": None, "path": "../x.png"}
    column = pa.array(images, table.schema.field("image").type)
    pq.write_table(table.set_column(1, table.schema.field("image"), column), path)
    refused(path, "row 2", "'../x.png'", "--root")


def test_rows_without_path_or_id_or_split(tmp_path: Path) -> None:
    def empty(name: str) -> Callable[[list[dict[str, Any]]], object]:
        return lambda rows: rows[4].update({name: ""})

    rows = make_rows()
    path = make_table(tmp_path, rows)
    for name, config in (("person", {"id": "person"}), ("subset", TABLE)):
        broken = [{**row, name: "" if index == 4 else row[name]} for index, row in enumerate(rows)]
        refused(make_table(tmp_path, broken), "row 5 of", **config)
    text = path.read_text(encoding="utf-8").replace("img/004.png", "")
    path.write_text(text, encoding="utf-8")
    refused(path, "row 5 of", "'image'", "empty")


def test_splits(tmp_path: Path) -> None:
    refused(edited(tmp_path, lambda rows: rows[2].update(subset="holdout")), "'holdout'", "row 3 of", **TABLE)
    for_test = [{**row, "subset": "test"} for row in make_rows()]
    refused(make_table(tmp_path, for_test), "train split", **TABLE)
    few = make_rows(6)
    refused(make_table(tmp_path, few), "too few", "--split")


def test_nothing_readable(tmp_path: Path) -> None:
    path = make_table(tmp_path / "a")
    (tmp_path / "b").mkdir()
    refused(path, "not one of 36", "no such file", "--root", root=tmp_path / "b")
    refused(path, "no such folder", "--root", root=tmp_path / "nowhere")


def test_unreadable_images_that_cost_a_class(tmp_path: Path) -> None:
    root = make_folders(tmp_path / "faces", splits=("train", "val", "test"), per_class=3)
    for index in (0, 1):
        (root / "train" / "sad" / f"00{index}.png").write_bytes(b"junk")
    refused(root, "'sad'", "1 sample", "2 unreadable")


def test_odd_folders(tmp_path: Path) -> None:
    root = make_folders(tmp_path / "faces", splits=("train", "test"), per_class=3)
    (root / "extra").mkdir()
    refused(root, "'extra'", "train, validation nor test")
    (root / "extra").rmdir()
    (root / "train" / "stray.png").write_bytes(picture(0))
    refused(root, "'train/stray.png'", "SPLIT/CLASS/IMAGE")
    for option in ("id", "split", "identity"):
        refused(root, f"--{option}", "class folders", **{option: "x"})


@pytest.mark.parametrize(
    ("name", "data", "word"),
    [
        ("x.csv", b"", "CSV"),
        ("x.csv", b"image,label\n", "no rows"),
        ("x.csv", b"image,label\na.png,x,y\n", "CSV"),
        ("x.csv", b"image,label,label\na.png,x,y\n", "two columns"),
        ("x.csv", b"image,label\n\xff\xfe.png,x\n", "CSV"),
        ("x.parquet", b"PAR1", "PARQUET"),
        ("x.parquet", b"", "PARQUET"),
        ("x.parquet", b"PAR1" + b"\0" * 40 + b"PAR1", "PARQUET"),
    ],
)
def test_broken_tables(tmp_path: Path, name: str, data: bytes, word: str) -> None:
    (tmp_path / name).write_bytes(data)
    refused(tmp_path / name, name, word)


def test_image_columns_of_another_kind(tmp_path: Path) -> None:
    refused(make_table(tmp_path, suffix=".parquet"), "'votes'", "int64", "--image", image="votes")


def test_parquet_files_that_do_not_fit_together(tmp_path: Path) -> None:
    make_huggingface(tmp_path / "a.parquet")
    path = make_huggingface(tmp_path / "b.parquet")
    table = pq.read_table(path)
    metadata = {b"huggingface": table.schema.metadata[b"huggingface"].replace(b'"sad"', b'"sorrow"')}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    refused(tmp_path, "b.parquet", "different classes")
    pq.write_table(table.drop_columns(["votes"]), path)
    refused(tmp_path, "b.parquet", "same columns")


def write_arrow(path: Path, table: pa.Table, old: bytes, new: bytes) -> Path:
    """An Arrow stream with some bytes replaced, wherever they are."""
    with pa.OSFile(str(path), "wb") as handle, pa.ipc.new_stream(handle, table.schema) as writer:
        writer.write_table(table)
    data = path.read_bytes()
    assert old in data and len(old) == len(new)
    path.write_bytes(data.replace(old, new))
    return path


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"remark", b"\xff\xfemark"),  # the name of a column
        (b"sort", b"\xffort"),  # the name of a field below one
        (b"sadhappyangry", b"s\xffdhappyangry"),  # cells
    ],
)
def test_arrow_that_is_no_utf8(tmp_path: Path, old: bytes, new: bytes) -> None:
    table = pa.table(
        {
            "image": [picture(index) for index in range(36)],
            "label": [("sad", "happy", "angry")[index % 3] for index in range(36)],
            "remark": [{"sort": index} for index in range(36)],
        }
    )
    assert len(open_dataset(write_arrow(tmp_path / "sound.arrow", table, old, old), DataConfig())) == 36
    refused(write_arrow(tmp_path / "faces.arrow", table, old, new), "faces.arrow", "ARROW")


def test_text_that_is_half_a_character(tmp_path: Path) -> None:
    make_table(tmp_path)
    lines = [json.dumps(row) for row in make_rows()]
    path = tmp_path / "faces.jsonl"
    path.write_text("\n".join(lines).replace('"remark": ""', '"remark": "\\ud800"', 1))
    refused(path, "faces.jsonl", "line 2", "not JSON")


@pytest.mark.parametrize(
    ("column", "config"),
    [
        ("remark", {"id": "remark"}),
        ("person", {"identity": "person"}),
        ("remark", {"groups": ["remark"]}),
        ("label", {}),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_cell_too_long_to_be_a_name(
    tmp_path: Path, column: str, config: dict[str, Any], suffix: str
) -> None:
    def edit(rows: list[dict[str, Any]]) -> None:
        for index, row in enumerate(rows):
            row["remark"] = f"r{index}"
        rows[6][column] = "x" * 100_000

    refused(edited(tmp_path, edit, suffix), "row 7 of", "100,000 characters", "1,000", **config)


def test_a_cell_of_a_thousand_characters_is_a_name(tmp_path: Path) -> None:
    def edit(rows: list[dict[str, Any]]) -> None:
        rows[6]["person"] = "x" * 1000

    dataset = open_dataset(edited(tmp_path, edit), DataConfig(identity="person"))
    assert dataset.identities is not None and "x" * 1000 in dataset.identities
