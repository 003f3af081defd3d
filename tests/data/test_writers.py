from __future__ import annotations

import csv
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from miniatures import CLASSES, make_folders, make_huggingface, make_rows, make_table, picture
from PIL import Image

from diffinf.config import DataConfig
from diffinf.data import FaceDataset, check_output, open_dataset, write_refined
from diffinf.errors import UserError

TABLE = DataConfig(split="subset", identity="person")
SUBSET = DataConfig(split="subset")


def open_layout(layout: str, folder: Path) -> tuple[Path, FaceDataset, DataConfig, str]:
    """A dataset of each layout: its path, itself, its configuration, and what to open below the output."""
    if layout.startswith("folders"):
        splits = ("train", "val", "test") if layout == "folders with splits" else ()
        path, config, inside = make_folders(folder, splits=splits), DataConfig(), "."
    elif layout == "huggingface folder":
        path, config, inside = folder, DataConfig(), "."
        for name, part in (("train", make_rows()[:24]), ("test", make_rows()[24:])):
            make_huggingface(folder / "data" / f"{name}-0.parquet", part)
    elif layout == "huggingface":
        path, config, inside = make_huggingface(folder / "x.parquet"), SUBSET, "x.parquet"
    else:
        path, config, inside = make_table(folder, suffix=f".{layout}"), TABLE, f"faces.{layout}"
    return path, open_dataset(path, config), config, inside


LAYOUTS = ("folders", "folders with splits", "csv", "tsv", "parquet", "huggingface", "huggingface folder")


def state(folder: Path) -> dict[str, tuple[str, int]]:
    """Digest and time of change of every file."""
    return {
        str(file): (hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_mtime_ns)
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_written_without_edits_it_reads_the_same(tmp_path: Path, layout: str) -> None:
    _, dataset, config, inside = open_layout(layout, tmp_path / "source")
    before = state(tmp_path / "source")
    paths = write_refined(dataset, {}, [], {}, tmp_path / "out")
    again = open_dataset(tmp_path / "out" / inside, config)
    assert again.fingerprint == dataset.fingerprint
    for row in range(len(dataset)):
        assert again.encoded(row) == dataset.encoded(row)
    assert list(paths) and all((tmp_path / "out" / path).is_file() for path in paths.values())
    assert set(paths) == set(dataset.ids) and state(tmp_path / "source") == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_edits_change_what_they_name_and_nothing_else(tmp_path: Path, layout: str) -> None:
    _, dataset, config, inside = open_layout(layout, tmp_path / "source")
    before = state(tmp_path / "source")
    train = [str(dataset.ids[row]) for row in dataset.rows("train")]
    new = picture(1234)
    labels = {str(s): dataset.class_names[y] for s, y in zip(dataset.ids, dataset.labels, strict=True)}
    other = {sample: next(n for n in dataset.class_names if n != labels[sample]) for sample in train}
    paths = write_refined(
        dataset,
        {train[0]: new, train[3]: new},
        [train[1]],
        {train[2]: other[train[2]], train[3]: other[train[3]]},
        tmp_path / "out",
    )
    again = open_dataset(tmp_path / "out" / inside, config)
    assert train[1] not in paths and len(again) == len(dataset) - 1 == len(paths)
    assert state(tmp_path / "source") == before
    rows = {str(sample): row for row, sample in enumerate(again.ids)}
    for row, sample in enumerate(dataset.ids.tolist()):
        if sample == train[1]:
            continue
        found = rows[paths[sample] if layout.startswith("folders") else sample]
        relabelled = sample in train[2:4]
        expected = other[sample] if relabelled else labels[sample]
        assert again.class_names[again.labels[found]] == expected
        assert again.splits[found] == dataset.splits[row]  # relabelled files too
        if sample not in (train[0], train[3]):
            assert again.encoded(found) == dataset.encoded(row)
        elif Path(paths[sample]).suffix == ".png":
            assert again.encoded(found) == new


def test_a_replaced_jpeg_stays_a_jpeg(tmp_path: Path) -> None:
    dataset = open_dataset(make_folders(tmp_path / "source"), DataConfig())
    sample = next(str(dataset.ids[r]) for r in dataset.rows("train") if dataset.ids[r].endswith(".jpg"))
    buffer = io.BytesIO()
    Image.new("L", (16, 16), 77).save(buffer, "PNG")
    paths = write_refined(dataset, {sample: buffer.getvalue()}, [], {}, tmp_path / "out")
    image = Image.open(tmp_path / "out" / paths[sample])
    assert paths[sample] == sample and image.format == "JPEG"
    assert np.abs(np.asarray(image, dtype=int) - 77).max() <= 1


def test_csv_cells_keep_their_text(tmp_path: Path) -> None:
    rows = [
        {**row, "code": f"00{index}", "number": "1.50", "nul": "NULL"}
        for index, row in enumerate(make_rows())
    ]
    path = make_table(tmp_path / "source", rows)
    path.write_text("\ufeff" + path.read_text(encoding="utf-8"), encoding="utf-8")  # as spreadsheets do
    write_refined(open_dataset(path, TABLE), {}, [], {}, tmp_path / "out")
    with (tmp_path / "out" / "faces.csv").open(newline="", encoding="utf-8") as handle:
        written = list(csv.DictReader(handle))
    assert written == [{name: str(value) for name, value in row.items()} for row in rows]


def test_parquet_keeps_schema_metadata_and_row_groups(tmp_path: Path) -> None:
    path = make_huggingface(tmp_path / "source" / "x.parquet")
    dataset = open_dataset(path, SUBSET)
    train = dataset.ids[dataset.rows("train")].tolist()
    write_refined(dataset, {train[0]: picture(77)}, [], {train[1]: "angry"}, tmp_path / "out")
    old, new = pq.ParquetFile(path), pq.ParquetFile(tmp_path / "out" / "x.parquet")
    assert new.schema_arrow.equals(old.schema_arrow, check_metadata=True)
    assert new.metadata.num_row_groups == old.metadata.num_row_groups == 4
    assert new.metadata.row_group(0).column(0).compression == "ZSTD"
    one, other = old.read().to_pylist(), new.read().to_pylist()
    changed = [a["id"] for a, b in zip(one, other, strict=True) if a != b]
    assert changed == train[:2] and other[1]["label"] == CLASSES.index("angry")
    assert other[0]["image"] == {"bytes": picture(77), "path": one[0]["image"]["path"]}


def test_huggingface_datasets_opens_the_result(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    dataset = open_dataset(make_huggingface(tmp_path / "source" / "x.parquet", ids=False), SUBSET)
    dropped = [str(dataset.ids[dataset.rows("train")[0]])]
    write_refined(dataset, {}, dropped, {}, tmp_path / "out")
    features = datasets.Features.from_arrow_schema(pq.read_schema(tmp_path / "out" / "x.parquet"))
    assert features["label"].names == list(CLASSES)
    assert isinstance(features["image"], datasets.Image) and features["id"].dtype == "string"


def test_rows_keep_their_numbers_when_others_leave(tmp_path: Path) -> None:
    dataset = open_dataset(make_huggingface(tmp_path / "source" / "x.parquet", ids=False), SUBSET)
    dropped = dataset.ids[dataset.rows("train")[:3]].tolist()
    write_refined(dataset, {}, dropped, {}, tmp_path / "out")
    again = open_dataset(tmp_path / "out" / "x.parquet", SUBSET)
    assert again.ids.tolist() == [sample for sample in dataset.ids if sample not in dropped]
    described = json.loads(pq.read_schema(tmp_path / "out" / "x.parquet").metadata[b"huggingface"])
    assert described["info"]["features"]["id"]["dtype"] == "string"
    assert not open_dataset(tmp_path / "source" / "x.parquet", SUBSET).source.columns.get("id")


def test_a_limited_dataset_is_written_as_limited(tmp_path: Path) -> None:
    path = make_folders(tmp_path / "source", per_class=40)
    dataset = open_dataset(path, DataConfig(limit=60))
    write_refined(dataset, {}, [], {}, tmp_path / "out")
    assert open_dataset(tmp_path / "out", DataConfig()).fingerprint == dataset.fingerprint


@pytest.mark.parametrize("layout", ["folders", "csv", "huggingface"])
def test_quarantined_samples_are_not_lost(tmp_path: Path, layout: str) -> None:
    path, _, config, inside = open_layout(layout, tmp_path / "source")
    if layout == "huggingface":
        table = pq.read_table(path)
        images = table["image"].to_pylist()
        images[4]["bytes"] = b"junk"
        column = pa.array(images, table.schema.field("image").type)
        pq.write_table(table.set_column(1, table.schema.field("image"), column), path)
    else:
        (tmp_path / "source" / ("happy/004.png" if layout == "folders" else "img/004.png")).write_bytes(
            b"junk"
        )
    dataset = open_dataset(path, config)
    paths = write_refined(dataset, {}, [], {}, tmp_path / "out")
    again = open_dataset(tmp_path / "out" / inside, config)
    assert len(again.quarantine) == 1 and again.quarantine[0].id == dataset.quarantine[0].id not in paths
    assert again.fingerprint == dataset.fingerprint


def test_a_file_that_two_rows_show_is_replaced_for_one(tmp_path: Path) -> None:
    rows = [{"id": f"s{index}", **row} for index, row in enumerate(make_rows())]
    rows[1]["image"] = rows[0]["image"]
    dataset = open_dataset(make_table(tmp_path / "source", rows), TABLE)
    paths = write_refined(dataset, {"s1": picture(50)}, [], {}, tmp_path / "out")
    again = open_dataset(tmp_path / "out" / "faces.csv", TABLE)
    at = again.ids.tolist().index
    assert again.encoded(at("s0")) == picture(0) and again.encoded(at("s1")) == picture(50)
    assert paths["s0"] == rows[0]["image"] != paths["s1"]


def test_absolute_paths_below_the_root_become_relative(tmp_path: Path) -> None:
    rows = make_rows()
    path = make_table(tmp_path / "source", rows)
    text = path.read_text(encoding="utf-8").replace("img/", f"{tmp_path}/source/img/")
    path.write_text(text, encoding="utf-8")
    dataset = open_dataset(path, TABLE)
    assert dataset.ids[0] == "img/000.png"
    write_refined(dataset, {}, [], {}, tmp_path / "out")
    assert str(tmp_path) not in (tmp_path / "out" / "faces.csv").read_text(encoding="utf-8")
    assert open_dataset(tmp_path / "out" / "faces.csv", TABLE).fingerprint == dataset.fingerprint


def test_untouched_files_are_links_only_on_request(tmp_path: Path) -> None:
    dataset = open_dataset(make_folders(tmp_path / "source"), DataConfig())
    sample = str(dataset.ids[dataset.rows("train")[0]])
    for name, link in (("copied", None), ("linked", "hard")):
        write_refined(dataset, {sample: picture(9)}, [], {}, tmp_path / name, link=link)
        links = {
            str(other): (tmp_path / "source" / other).samefile(tmp_path / name / other)
            for other in dataset.ids
        }
        assert not links.pop(sample) and set(links.values()) == {link == "hard"}
    by_setting = open_dataset(tmp_path / "source", DataConfig(link="hard"))
    write_refined(by_setting, {}, [], {}, tmp_path / "set")
    assert (tmp_path / "set" / sample).samefile(tmp_path / "source" / sample)


def test_an_earlier_result_is_replaced_only_on_request(tmp_path: Path) -> None:
    dataset = open_dataset(make_folders(tmp_path / "source"), DataConfig())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    with pytest.raises(UserError, match="not empty"):
        write_refined(dataset, {}, [], {}, tmp_path / "out")
    assert (tmp_path / "out" / "precious").exists()
    (tmp_path / ".out.partial").mkdir()  # of a killed process
    write_refined(dataset, {}, [], {}, tmp_path / "out", replace=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.provenance.parquet", "source"]
    assert not (tmp_path / "out" / "precious").exists()


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    dataset = open_dataset(make_folders(tmp_path / "source"), DataConfig())
    (tmp_path / "source" / "sad" / "011.jpg").unlink()
    with pytest.raises(UserError, match=r"sad/011\.jpg"):
        write_refined(dataset, {}, [], {}, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_the_output_may_not_mix_with_the_source(tmp_path: Path) -> None:
    dataset = open_dataset(make_folders(tmp_path / "a" / "source"), DataConfig())
    for out in (tmp_path / "a" / "source" / "refined", tmp_path / "a" / "source", tmp_path / "a", tmp_path):
        with pytest.raises(UserError, match="--out"):
            check_output(dataset, out)
        with pytest.raises(UserError, match="--out"):
            write_refined(dataset, {}, [], {}, out, replace=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        check_output(dataset, tmp_path / "file")
    table = open_dataset(make_table(tmp_path / "b"), TABLE)
    check_output(table, tmp_path / "b" / "runs" / "refined")  # beside the table: nothing is mixed
    with pytest.raises(UserError, match="belongs to the dataset"):
        check_output(table, tmp_path / "b" / "img")


def test_only_train_may_be_edited(tmp_path: Path) -> None:
    dataset = open_dataset(make_folders(tmp_path / "source"), DataConfig())
    sample = str(dataset.ids[dataset.rows("test")[0]])
    with pytest.raises(UserError, match="only train"):
        write_refined(dataset, {sample: picture(1)}, [], {}, tmp_path / "out")
    with pytest.raises(ValueError, match="no such id"):
        write_refined(dataset, {}, ["nobody"], {}, tmp_path / "out")
    with pytest.raises(ValueError, match="no class"):
        write_refined(
            dataset, {}, [], {str(dataset.ids[dataset.rows("train")[0]]): "bored"}, tmp_path / "out"
        )
