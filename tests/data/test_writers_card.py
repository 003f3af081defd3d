"""Provenance and card of a refined dataset, and exports of a run."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from miniatures import (
    CLASSES,
    make_fer2013,
    make_ferplus,
    make_folders,
    make_huggingface,
    make_rows,
    make_table,
    picture,
)
from PIL import Image

from diffinf.cli import main
from diffinf.config import DataConfig, RunConfig
from diffinf.data import FaceDataset, export, open_dataset, sample_columns, write_refined
from diffinf.data.export import export_imagefolder, export_parquet
from diffinf.data.readers import embedded
from diffinf.errors import UserError
from diffinf.files import read_class_names, read_table, write_table
from diffinf.run import Run


@pytest.fixture
def refined(tmp_path: Path) -> tuple[FaceDataset, list[str], Path]:
    """A dataset with an unreadable image; ids of its training samples; its refined copy.

    The first training sample is edited, the second relabelled, the third dropped, the fourth flagged and kept.
    """
    root = make_folders(tmp_path / "faces")
    (root / "sad" / "001.png").write_bytes(b"junk | <b>")
    dataset = open_dataset(root, DataConfig())
    train = dataset.ids[dataset.rows("train")].tolist()
    other = next(name for name in CLASSES if not train[1].startswith(name))
    reasons = {train[0]: "label and face disagree", train[3]: "judge"}
    out = tmp_path / "refined"
    write_refined(dataset, {train[0]: picture(9)}, [train[2]], {train[1]: other}, out, reasons=reasons)
    return dataset, train, out


def test_provenance_accounts_for_every_sample(refined: tuple[FaceDataset, list[str], Path]) -> None:
    dataset, train, out = refined
    table = read_table(out.with_name("refined.provenance.parquet"))
    rows = {row["id"]: row for row in table.to_pylist()}
    assert read_class_names(table) == dataset.class_names and list(rows) == sorted(rows)
    assert set(rows) == {*dataset.ids.tolist(), "sad/001.png"} and len(rows) == table.num_rows == 36
    edited, moved, dropped, kept = (rows[sample] for sample in train[:4])
    assert [row["action"] for row in (edited, moved, dropped, kept)] == [
        "edited",
        "relabelled",
        "dropped",
        "kept",
    ]
    assert edited["reason"] == "label and face disagree" and kept["reason"] == "judge"
    assert edited["sha256"] == hashlib.sha256((out / edited["path"]).read_bytes()).hexdigest()
    assert edited["source_sha256"] == dataset.source_sha256(
        0 if dataset.ids[0] == train[0] else dataset.ids.tolist().index(train[0])
    )
    assert moved["label_before"] != moved["label_after"] and (out / moved["path"]).is_file()
    assert dropped["path"] is None and dropped["label_after"] is None
    assert rows["sad/001.png"]["action"] == "quarantined" and rows["sad/001.png"]["reason"]
    assert sum(row["action"] == "untouched" for row in rows.values()) == 31


def test_the_card_says_what_is_synthetic(refined: tuple[FaceDataset, list[str], Path]) -> None:
    dataset, _, out = refined
    text = (out / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert "synthetic" in front["tags"] and "1 of 35 images were edited by a generative model" in text
    for line in ("| edited | 1 |", "| relabelled | 1 |", "| dropped | 1 |", "| kept | judge | 1 |"):
        assert line in text
    assert (
        dataset.fingerprint in text and "refined.provenance.parquet" in text and str(out.parent) not in text
    )
    write_refined(dataset, {}, [], {}, out.with_name("plain"))
    plain = out.with_name("plain").joinpath("README.md").read_text()
    assert (
        "no image of 36 was edited" in plain
        and "synthetic" not in yaml.safe_load(plain.split("---")[1])["tags"]
    )


# --- exports of a dataset


def test_parquet_opens_with_datasets(tmp_path: Path) -> None:
    import datasets

    config = DataConfig(split="subset", identity="person", groups=["votes"])
    dataset = open_dataset(make_table(tmp_path / "a", make_rows(60)), config)
    export_parquet(dataset, tmp_path / "out", {str(dataset.ids[0]): "edited"})
    front = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---")[1])
    files = {entry["split"]: entry["path"] for entry in front["configs"][0]["data_files"]}
    assert set(files) == {"train", "validation", "test"} and "synthetic" in front["tags"]
    seen = 0
    for split, pattern in files.items():
        (file,) = (tmp_path / "out").glob(pattern)
        part = datasets.Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "cache"))
        rows = dataset.rows(split)
        assert part["id"][:] == dataset.ids[rows].tolist() and part.features["label"].names == list(
            dataset.class_names
        )
        assert part["identity"][:] == dataset.identities[rows].tolist() and "votes" in part.column_names  # type: ignore[index]
        np.testing.assert_array_equal(
            np.asarray(part[0]["image"]), dataset.images([rows[0]], size=16, channels=1)[0, 0]
        )
        seen += len(part)
    assert seen == 60
    again = open_dataset(tmp_path / "out", DataConfig(id="id", identity="identity"))
    assert again.ids.tolist() == dataset.ids.tolist() and again.sha256 == dataset.sha256
    assert (
        again.splits.tolist() == dataset.splits.tolist() and again.labels.tolist() == dataset.labels.tolist()
    )
    with pytest.raises(UserError, match="exists already"):
        export_parquet(dataset, tmp_path / "out")


def test_imagefolder_holds_every_image_once(tmp_path: Path) -> None:
    rows = [{"id": f"a/{index // 2}{'?*'[index % 2]}", **row} for index, row in enumerate(make_rows(60))]
    dataset = open_dataset(make_table(tmp_path / "a", rows), DataConfig(split="subset"))
    paths = export_imagefolder(dataset, tmp_path / "out")
    assert len(set(paths.values())) == 60 and set(paths) == set(dataset.ids)
    for row, sample in enumerate(dataset.ids.tolist()):
        split, label, _ = paths[sample].split("/")
        assert (split, label) == (dataset.splits[row], dataset.class_names[dataset.labels[row]])
        assert (tmp_path / "out" / paths[sample]).read_bytes() == dataset.encoded(row)
    assert open_dataset(tmp_path / "out", DataConfig()).splits.tolist().count("test") == len(
        dataset.rows("test")
    )


def exported(folder: Path) -> dict[str, dict[str, object]]:
    """Rows of exported tables by id."""
    return {
        row["id"]: row
        for file in sorted(folder.rglob("*.parquet"))
        for row in read_table(file)
        .drop_columns("image" if "image" in read_table(file).column_names else [])
        .to_pylist()
    }


@pytest.mark.parametrize("write", [export_parquet, export_imagefolder])
def test_other_columns_come_along(tmp_path: Path, write: Callable[..., object]) -> None:
    rows = make_rows(60)
    rows = [{**row, "action": "x", "id": f"p{index:02}"} for index, row in enumerate(rows)]
    config = DataConfig(split="subset", identity="person", truth=["votes"])
    dataset = open_dataset(make_table(tmp_path / "a", rows), config)
    write(dataset, tmp_path / "out", {"p00": "edited"})
    found = exported(tmp_path / "out")
    assert len(found) == 60
    for row in rows:
        got = found[row["id"]]
        assert got["remark"] == row["remark"] and got["truth_label"] == row["truth_label"]
        assert (got["votes"], got["identity"], got["source_action"]) == (
            str(row["votes"]),
            row["person"],
            "x",
        )
        assert "subset" not in got and "person" not in got
    assert found["p00"]["action"] == "edited"
    again = open_dataset(tmp_path / "out", DataConfig(truth=["votes"]))
    assert again.ids.tolist() == dataset.ids.tolist() and again.sha256 == dataset.sha256
    assert again.splits.tolist() == dataset.splits.tolist() and again.class_names == dataset.class_names
    np.testing.assert_array_equal(again.labels, dataset.labels)
    np.testing.assert_array_equal(again.truth_labels(), dataset.truth_labels())


@pytest.mark.parametrize("write", [export_parquet, export_imagefolder])
def test_groups_called_as_other_columns_keep_their_values(
    tmp_path: Path, write: Callable[..., object]
) -> None:
    names = ("action", "identity", "label", "source_action")
    rows = [
        {**row, **{name: f"{name} {index % 2}" for name in names}} for index, row in enumerate(make_rows())
    ]
    rows = [{**row, "mood": str(index % 3)} for index, row in enumerate(rows)]
    config = DataConfig(label="mood", identity="person", groups=list(names))
    dataset = open_dataset(make_table(tmp_path / "a", rows), config)
    write(dataset, tmp_path / "out", {str(dataset.ids[0]): "edited"})
    first = exported(tmp_path / "out")[str(dataset.ids[0])]
    assert (first["action"], first["identity"], first["label"]) == ("edited", "p0", 0)
    assert (first["source_action"], first["source_source_action"]) == ("source_action 0", "action 0")
    assert (first["source_identity"], first["source_label"]) == ("identity 0", "label 0")


def test_other_columns_keep_their_types(tmp_path: Path) -> None:
    dataset = open_dataset(
        make_huggingface(tmp_path / "a.parquet", make_rows(60)), DataConfig(split="subset", votes=[])
    )
    export_parquet(dataset, tmp_path / "out")
    schema = pq.read_schema(next((tmp_path / "out" / "data").glob("train-*")))
    assert schema.field("votes").type == pa.list_(pa.int8(), 2)
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert features["votes"]["length"] == 2 and features["label"]["names"] == list(CLASSES)


@pytest.mark.parametrize("write", [export_parquet, export_imagefolder])
@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_second_picture_comes_along_a_row_group_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[..., object], suffix: str
) -> None:
    rows = make_rows(60)
    masks = [None if index == 7 else bytes([index]) * 1000 for index in range(60)]
    pictures = [{"bytes": bytes([index, 1]), "path": f"{index}.png"} for index in range(60)]
    table = pq.read_table(make_huggingface(tmp_path / "a.parquet", rows))
    table = table.append_column("mask", pa.array(masks, pa.binary()))
    table = table.append_column("before", pa.array(pictures))
    table = table.append_column("frames", pa.array([pictures[index : index + 2] for index in range(60)]))
    source = tmp_path / f"b{suffix}"
    if suffix == ".parquet":
        pq.write_table(table, source, row_group_size=9)
    else:
        with pa.ipc.new_stream(source, table.schema) as writer:
            writer.write_table(table, max_chunksize=9)
    dataset = open_dataset(source, DataConfig(split="subset"))

    def read(*given: Any, raw: Any = (), **options: Any) -> pa.Table:
        assert not {"mask", "before", "frames"} & {*given[1]}, "not as a whole"
        return read_columns(*given, raw=raw, **options)

    read_columns = sample_columns.read_columns
    monkeypatch.setattr(sample_columns, "read_columns", read)
    monkeypatch.setattr(export, "_ROWS", 11)
    write(dataset, tmp_path / "out")
    found = exported(tmp_path / "out")
    for row, sample in enumerate(dataset.ids.tolist()):
        position = int(dataset.positions[row])
        assert found[sample]["mask"] == masks[position] and found[sample]["before"] == pictures[position]
        assert found[sample]["frames"] == pictures[position : position + 2]
        assert found[sample]["truth_label"] == rows[position]["truth_label"]


def test_row_groups_are_read_once_for_many_rows_in_any_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pq.read_table(make_huggingface(tmp_path / "a.parquet", make_rows(60)))
    order = np.random.default_rng(0).permutation(60)
    table = table.append_column("mask", pa.array([bytes([index]) * 1000 for index in range(60)], pa.binary()))
    table = table.append_column("name", pa.array([f"{place:02}" for place in order]))
    pq.write_table(table, tmp_path / "b.parquet", row_group_size=5)
    dataset = open_dataset(tmp_path / "b.parquet", DataConfig(id="name", split="subset"))
    columns = sample_columns.SampleColumns(dataset, None)
    read: list[int] = []
    group = embedded._ParquetColumn.group
    monkeypatch.setattr(embedded, "_CACHE_BYTES", 10_000)
    monkeypatch.setattr(
        embedded._ParquetColumn, "group", lambda self, number: read.append(number) or group(self, number)
    )
    found = columns.rows(range(60))["mask"].to_pylist()
    assert found == [bytes([int(place)]) * 1000 for place in dataset.positions]
    assert sorted(read) == list(range(12))


def test_a_dataset_may_have_more_files_than_a_process_may_open(tmp_path: Path) -> None:
    table = pq.read_table(make_huggingface(tmp_path / "a.parquet", make_rows(60)))
    table = table.append_column("mask", pa.array([bytes([index]) for index in range(60)], pa.binary()))
    (tmp_path / "shards").mkdir()
    for start in range(60):
        pq.write_table(table.slice(start, 1), tmp_path / "shards" / f"{start:02}.parquet")
    dataset = open_dataset(tmp_path / "shards", DataConfig(split="subset"))
    before = len(list(Path("/dev/fd").iterdir()))
    columns = sample_columns.SampleColumns(dataset, None)
    assert len(columns.rows(range(60))) == 60
    assert len(list(Path("/dev/fd").iterdir())) < before + 10


def test_votes_beside_a_table_and_numbers_under_bins_come_along(tmp_path: Path) -> None:
    rows = [{**row, "label": str(10 * (index % 3) + index % 2)} for index, row in enumerate(make_rows(60))]
    dataset = open_dataset(make_table(tmp_path / "a", rows), DataConfig(bins=[0, 10, 20]))
    export_parquet(dataset, tmp_path / "ages")
    assert {row["source_label"] for row in exported(tmp_path / "ages").values()} == {
        row["label"] for row in rows
    }
    dataset = open_dataset(make_ferplus(tmp_path / "b"), DataConfig())
    export_imagefolder(dataset, tmp_path / "votes")
    found = exported(tmp_path / "votes")
    for row, sample in enumerate(dataset.ids.tolist()):
        assert found[sample]["ferplus_votes"] == dataset.carried["ferplus_votes"][row].tolist()


def test_an_exported_imagefolder_opens_with_datasets(tmp_path: Path) -> None:
    import datasets

    dataset = open_dataset(make_table(tmp_path / "a", make_rows(60)), DataConfig(split="subset"))
    export_imagefolder(dataset, tmp_path / "out")
    loaded = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "out"), cache_dir=str(tmp_path / "cache")
    )
    assert {name: len(part) for name, part in loaded.items()} == {
        split: len(dataset.rows(split)) for split in ("train", "validation", "test")
    }
    assert loaded["train"].features["label"].names == list(dataset.class_names)
    row = dataset.ids.tolist().index(loaded["test"][0]["id"])
    assert loaded["test"][0]["label"] == dataset.labels[row] and "remark" in loaded["test"].column_names
    np.testing.assert_array_equal(
        np.asarray(loaded["test"][0]["image"]), dataset.images([row], size=16, channels=1)[0, 0]
    )


def test_grey_values_are_exported_as_png(tmp_path: Path) -> None:
    dataset = open_dataset(make_fer2013(tmp_path / "a"), DataConfig())
    paths = export_imagefolder(dataset, tmp_path / "out")
    for row in (0, 7):
        with Image.open(tmp_path / "out" / paths[str(dataset.ids[row])]) as image:
            assert image.format == "PNG"
            original = Image.open(io.BytesIO(dataset.encoded(row)))
            np.testing.assert_array_equal(np.asarray(image), np.asarray(original))


# --- the command


@pytest.fixture
def run(tmp_path: Path, refined: tuple[FaceDataset, list[str], Path]) -> Run:
    """A run with scores, edits and a refined dataset, its models left out."""
    dataset, train, out = refined
    made = Run.create(tmp_path / "run", RunConfig(dataset=str(tmp_path / "faces")), dataset.fingerprint)
    labels = [dataset.class_names[dataset.labels[row]] for row in dataset.rows("train")]
    n = len(train)
    scores = {
        "id": train,
        "target": [""] * n,
        "label": labels,
        "appears": labels[1:] + labels[:1],
        "score": np.linspace(0, 1, n),
        "flagged": [index >= n - 2 for index in range(n)],
        "label_trust": np.linspace(1, 0, n),
        "self_influence": np.ones(n),
    }
    write_table(made.scores, pa.table(scores), dataset.class_names)
    edits = {
        "id": train[-2:],
        "target": ["", ""],
        "status": ["kept", "edited"],
        "reason": ["judge", ""],
        "path": train[-2:],
    }
    write_table(made.edits, pa.table(edits), dataset.class_names)
    out.rename(made.refined)
    out.with_name("refined.provenance.parquet").rename(made.path / "refined.provenance.parquet")
    return made


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def test_issues_as_csv(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = read_table(run.scores)["id"].to_pylist()
    call("export", run.path, "--to", "csv", tmp_path / "issues.csv")
    rows = read_csv(tmp_path / "issues.csv")
    assert [row["id"] for row in rows] == ids[
        ::-1
    ] and capsys.readouterr().out.strip() == f"{tmp_path}/issues.csv"
    assert [row["status"] for row in rows[:3]] == ["edited", "kept", ""] and rows[1]["reason"] == "judge"
    refuse("exists already", "export", run.path, "--to", "csv", tmp_path / "issues.csv")
    call("export", run.path, "--to", "csv", tmp_path / "issues.csv", "--overwrite")
    refuse("for CSV files", "export", run.path, "--to", "imagefolder", tmp_path / "faces", "--overwrite")


def test_issues_as_cleanlab_has_them(run: Run, tmp_path: Path) -> None:
    cleanlab = pytest.importorskip("cleanlab")
    call("export", run.path, "--to", "cleanlab", tmp_path / "issues.csv")
    rows = read_csv(tmp_path / "issues.csv")
    scores = read_table(run.scores)
    names = read_class_names(scores)
    assert [names[int(row["given_label"])] for row in rows] == scores["label"].to_pylist()
    assert sum(row["is_label_issue"] == "true" for row in rows) == 2
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 20)
    found = cleanlab.classification.CleanLearning(seed=0).find_label_issues(rng.normal(size=(40, 2)), labels)
    assert set(found.columns) <= {*rows[0], "sample_weight"}


@pytest.mark.parametrize(("kind", "reader"), [("parquet", "table"), ("imagefolder", "imagefolder")])
def test_the_refined_dataset_in_another_layout(run: Run, tmp_path: Path, kind: str, reader: str) -> None:
    call("export", run.path, "--to", kind, tmp_path / "out")
    again = open_dataset(tmp_path / "out", DataConfig(id="id"))
    own = open_dataset(run.refined, DataConfig())
    assert again.source.layout == reader and len(again) == len(own) == 34
    assert sorted(again.sha256) == sorted(own.sha256)
    assert "1 of 34 images were edited" in (tmp_path / "out" / "README.md").read_text()
    if kind == "parquet":
        (file,) = (tmp_path / "out" / "data").glob("train-*")
        assert pq.read_table(file)["action"].to_pylist().count("edited") == 1


def test_export_refuses(run: Run, tmp_path: Path) -> None:
    refuse("expected cleanlab", "export", run.path, "--to", "xlsx", tmp_path / "x")
    refuse("not a diffinf run", "export", tmp_path, "--to", "csv", tmp_path / "x")
    run.scores.unlink()
    refuse("no such file", "export", run.path, "--to", "csv", tmp_path / "x")
    run.refined.rename(tmp_path / "gone")
    refuse("no refined dataset", "export", run.path, "--to", "parquet", tmp_path / "x")


def call(*arguments: object) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments)])
    assert ended.value.code == 0


def refuse(expected: str, *arguments: object) -> None:
    stderr = io.StringIO()
    with pytest.raises(SystemExit) as ended, redirect_stderr(stderr):
        main([*map(str, arguments)])
    assert ended.value.code == 2 and expected in stderr.getvalue()
