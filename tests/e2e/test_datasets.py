"""Public layouts all the way: what was read as CelebA or UTKFace comes back as such."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from diffinf.cli import main
from diffinf.config import DataConfig
from diffinf.data import FaceDataset, open_dataset
from diffinf.files import read_table
from diffinf.run import Run

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from miniatures import make_celeba, make_table, make_utkface

pytestmark = pytest.mark.slow

QUICK = (
    *("--preset", "tiny", "--device", "cpu", "--set", "classifier.steps=8", "--set", "influence.share=0.1"),
    # Eight steps teach nobody to judge: what is asked here is what becomes of edits, so they may pass.
    *("--set", "repair.roundtrip_limit=2", "--set", "repair.influence_quantile=1"),
    *("--set", "compare.arms=[baseline, diffinf]", "--set", "autoencoder.steps=2"),
)


def diffinf(*arguments: object) -> None:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    assert not end.value.code


def story(run: Run) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in read_table(run.provenance).to_pylist()}


def check(run: Run, before: FaceDataset, config: DataConfig, opened: Path | None = None) -> None:
    """The refined dataset has the layout, ids, labels, splits and untouched images of the source."""
    after = open_dataset(opened or run.refined, config)
    assert after.source.layout == before.source.layout
    assert after.class_names == before.class_names and after.ids.tolist() == before.ids.tolist()
    assert after.labels.tolist() == before.labels.tolist() and after.splits.tolist() == before.splits.tolist()
    told = story(run)
    assert set(told) == {*before.ids.tolist(), *(entry.id for entry in before.quarantine)}
    for row, sample in enumerate(before.ids.tolist()):
        same = after.encoded(row) == before.encoded(row)
        assert same == (told[sample]["action"] != "edited"), sample
        assert told[sample]["source_sha256"] == before.source_sha256(row)
    edits = {row["id"]: row for row in read_table(run.edits).to_pylist()}
    assert edits and all(told[sample]["action"] == row["status"] for sample, row in edits.items())
    assert all(told[sample]["reason"] for sample in edits)


def test_celeba(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_celeba(tmp_path / "celeba")
    run = Run(tmp_path / "run")
    # The persons of the miniature are in all its splits, as CelebA's own are not.
    options = ("--label", "Smiling", "--group", "Male", "--set", "compare.allow_overlap=true")
    diffinf("run", source, *options, "--out", run.path, *QUICK, "--json")
    summary = json.loads(capsys.readouterr().out)
    config = DataConfig(label="Smiling", groups=["Male"])
    before = open_dataset(source, config)
    check(run, before, config)
    for name in ("list_attr_celeba.txt", "list_eval_partition.txt", "identity_CelebA.txt"):
        assert (run.refined / name).read_bytes() == (source / name).read_bytes()
    groups = summary["groups"]["Male"]
    assert set(groups) == {"Male", "not Male"}
    assert sum(group["n"] for group in groups.values()) == summary["dataset"]["splits"]["train"]
    assert sum(group["flagged"] for group in groups.values()) == summary["flagged"]
    assert set(groups["not Male"]["accuracy"]) == {"baseline", "diffinf"}
    assert groups["Male"]["accuracy"] == {}, "no test image of the miniature shows one"
    assert 'id="groups"' in run.report.read_text()
    # Other groups are another question, not another run: nothing is trained again.
    before_events = [event for event in run.events() if event["event"] == "start"]
    diffinf("run", run.path, "--group", "Young", "--json")
    assert set(json.loads(capsys.readouterr().out)["groups"]) == {"Young"}
    assert [event for event in run.events() if event["event"] == "start"] == before_events


def test_utkface_with_ages_in_bins(tmp_path: Path) -> None:
    source = make_utkface(tmp_path / "utkface")
    run = Run(tmp_path / "run")
    options = ("--label", "age", "--bins", "0,30,45", "--group", "gender", "--link", "hard")
    diffinf("run", source, *options, "--out", run.path, *QUICK)
    config = DataConfig(label="age", bins=[0, 30, 45], groups=["gender"])
    before = open_dataset(source, config)
    assert before.class_names == ("0-29", "30-44", "45+") and before.quarantine
    check(run, before, config)
    name = next(sample for sample, row in story(run).items() if row["action"] == "untouched")
    assert (run.refined / name).samefile(source / name), "a hard link"
    diffinf("export", run.path, tmp_path / "issues.csv", "--to", "csv")
    diffinf("export", run.path, tmp_path / "exported", "--to", "imagefolder")
    assert (tmp_path / "exported" / "train" / "0-29").is_dir()


def test_a_table_in_an_archive(tmp_path: Path) -> None:
    table = make_table(tmp_path / "faces")
    with zipfile.ZipFile(tmp_path / "faces.zip", "w") as bundle:
        for file in sorted(table.parent.rglob("*.*")):
            bundle.write(file, file.relative_to(table.parent))
    url, run = f"zip://faces.csv::{tmp_path / 'faces.zip'}", Run(tmp_path / "run")
    # Its persons are in validation and test.
    options = ("--split", "subset", "--identity", "person", "--set", "compare.allow_overlap=true")
    diffinf("run", url, *options, "--out", run.path, *QUICK)
    config = DataConfig(split="subset", identity="person")
    check(run, open_dataset(url, config), config, run.refined / "faces.csv")
    diffinf("export", run.path, tmp_path / "exported", "--to", "parquet")
    diffinf("repair", run.path)
