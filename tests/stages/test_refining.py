"""What the policy makes of the gate's verdicts: edits.parquet, refined/, provenance, summary."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.miniatures import make_folders, make_huggingface
from diffinf.config import DataConfig
from diffinf.data import open_dataset
from diffinf.data.export import refined_dataset
from diffinf.run import read_table, write_text
from diffinf.stages.refining import png_bytes, refine
from diffinf.stages.summary import write_results, write_summary
from stages.repaired_run import DOUBTED, EDITED, TRUSTED, make_run

SUBSET = DataConfig(split="subset")
STATUS = {"edit": "kept", "edit-or-relabel": "relabelled", "edit-or-drop": "dropped"}


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_a_picture_survives_png(channels: int, mode: str) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (channels, 7, 9), generator=generator, dtype=torch.uint8)
    opened = Image.open(io.BytesIO(png_bytes(image)))
    assert opened.format == "PNG" and opened.mode == mode and opened.size == (9, 7)
    pixels = np.asarray(opened).reshape(7, 9, channels)
    assert np.array_equal(pixels, image.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("policy", STATUS)
def test_the_policy_decides_on_what_the_gate_refused(tmp_path: Path, policy: str) -> None:
    source = make_huggingface(tmp_path / "source" / "x.parquet")
    run, dataset, ids = make_run(source, tmp_path / "run", SUBSET, policy)
    assert refine(run, dataset)
    edits = {row["id"]: row for row in read_table(run.edits).to_pylist()}
    assert list(edits) == ids
    assert [edits[ids[m]]["status"] for m in EDITED] == ["edited", "edited"]
    assert [edits[ids[m]]["status"] for m in DOUBTED] == [STATUS[policy]] * 3
    assert edits[ids[TRUSTED]]["status"] == "kept", "the label is probably right"
    assert [edits[ids[m]]["reason"] for m in DOUBTED] == ["judge", "identity", "influence"]
    after = open_dataset(run.refined / "x.parquet", SUBSET)
    dropped = [ids[m] for m in DOUBTED] if policy == "edit-or-drop" else []
    assert after.ids.tolist() == [sample for sample in dataset.ids.tolist() if sample not in dropped]
    before = dict(zip(dataset.ids.tolist(), dataset.labels.tolist(), strict=True))
    changed = {
        sample: after.class_names[label]
        for sample, label in zip(after.ids.tolist(), after.labels.tolist(), strict=True)
        if label != before[sample]
    }
    assert changed == {
        sample: row["new_label"] for sample, row in edits.items() if row["new_label"] is not None
    }
    assert bool(changed) == (policy == "edit-or-relabel")
    assert {sample for sample, row in edits.items() if row["path"] is None} == set(dropped)
    told = {row["id"]: row for row in read_table(run.provenance).to_pylist()}
    assert all(told[sample]["action"] == row["status"] for sample, row in edits.items())


@pytest.mark.parametrize("policy", STATUS)
def test_the_summary_counts_what_there_is(tmp_path: Path, policy: str) -> None:
    source = make_folders(tmp_path / "source")
    run, dataset, _ = make_run(source, tmp_path / "run", DataConfig(), policy)
    refine(run, dataset)
    summary = write_summary(run)
    assert summary["policy"] == policy and summary["edited"] == 2
    assert summary[STATUS[policy]] == (4 if policy == "edit" else 3)
    assert (
        sum(summary[status] for status in ("edited", "kept", "relabelled", "dropped")) == summary["flagged"]
    )
    assert sum(summary["kept_reasons"].values()) == summary["kept"]
    after = open_dataset(run.refined, DataConfig())
    moved = len(dataset.rows("train")) - (3 if policy == "edit-or-drop" else 0)
    counts = np.bincount(after.labels[after.rows("train")], minlength=3)
    assert counts.sum() == moved
    assert {name: n["after"] for name, n in summary["class_counts"].items()} == dict(
        zip(after.class_names, counts.tolist(), strict=True)
    )
    before = np.bincount(dataset.labels[dataset.rows("train")], minlength=3)
    assert [n["before"] for n in summary["class_counts"].values()] == before.tolist()
    write_results(run)
    page = run.report.read_text(encoding="utf-8")
    assert ("Relabelled or dropped" in page) == (policy != "edit")


def test_another_policy_needs_no_new_edits_and_the_same_one_nothing(tmp_path: Path) -> None:
    source = make_folders(tmp_path / "source")
    run, dataset, ids = make_run(source, tmp_path / "run", DataConfig())
    assert refine(run, dataset) and not refine(run, dataset)
    config = run.config.model_copy(
        update={"repair": run.config.repair.model_copy(update={"policy": "edit-or-drop"})}
    )
    write_text(run.path / "config.yaml", config.to_yaml())
    assert refine(run, dataset)
    assert not (run.refined / ids[DOUBTED[0]]).exists() and run.is_done("repair", "the key of the repair")
    run.edits.unlink()
    assert refine(run, dataset), "what is missing is written again"


def test_what_shows_its_label_on_a_second_look_is_kept(tmp_path: Path) -> None:
    source = make_folders(tmp_path / "source")
    run, dataset, _ = make_run(source, tmp_path / "run", DataConfig(), "edit-or-drop")
    refine(run, dataset)
    before = {row["id"]: row for row in read_table(run.edits).to_pylist()}
    edited = [sample for sample, row in before.items() if row["status"] == "edited"]
    surest = max(edited, key=lambda sample: before[sample]["label_fit"])
    limit = before[surest]["label_fit"]
    changed = run.config.repair.model_copy(update={"fit_limit": limit})
    write_text(run.path / "config.yaml", run.config.model_copy(update={"repair": changed}).to_yaml())
    assert refine(run, dataset)
    after = {row["id"]: row for row in read_table(run.edits).to_pylist()}
    assert (after[surest]["status"], after[surest]["reason"]) == ("kept", "label_fits")
    assert [s for s in edited if after[s]["status"] == "edited"] == [s for s in edited if s != surest]
    assert after[surest]["path"] is not None, "not dropped: its label is right"
    assert write_summary(run)["kept_reasons"]["label_fits"] == 1


def test_tables_and_card_name_what_made_the_edits(tmp_path: Path) -> None:
    source = make_folders(tmp_path / "source")
    run, dataset, _ = make_run(source, tmp_path / "run", DataConfig(), "edit-or-drop")
    refine(run, dataset)
    for path in (run.edits, run.provenance):
        made_by = json.loads(read_table(path).schema.metadata[b"made_by"])
        assert made_by["models"]["judges"] == "b" * 64 and made_by["settings"] == "the key of the repair"
        assert made_by["policy"] == "edit-or-drop"
    card = (run.refined / "README.md").read_text(encoding="utf-8")
    assert "a" * 64 in card and "identity embedder" not in card


def test_an_export_knows_relabelled_samples_by_their_new_place(tmp_path: Path) -> None:
    source = make_folders(tmp_path / "source")
    run, dataset, ids = make_run(source, tmp_path / "run", DataConfig(), "edit-or-relabel")
    refine(run, dataset)
    after, actions = refined_dataset(run)
    assert actions is not None
    found = {sample: actions[sample] for sample in after.ids.tolist()}
    relabelled = {read for read, action in found.items() if action == "relabelled"}
    paths = {row["id"]: row["path"] for row in read_table(run.edits).to_pylist()}
    assert relabelled == {paths[ids[m]] for m in DOUBTED} and not relabelled & set(ids)
