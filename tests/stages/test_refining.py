"""What the policy makes of the gate's verdicts: edits.parquet, refined/, provenance, summary."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data.miniatures import make_folders, make_huggingface
from diffinf.config import DataConfig
from diffinf.data import open_dataset
from diffinf.data.export import refined_dataset
from diffinf.files import read_table, write_text
from diffinf.stages.refining import decisions, png_bytes, refine, spared
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
    run, dataset, ids = make_run(source, tmp_path / "run", DataConfig(), "edit-or-drop")
    refine(run, dataset)
    before = {row["id"]: row for row in read_table(run.edits).to_pylist()}
    assert [before[ids[m]]["status"] for m in EDITED] == ["edited", "edited"], "spare is 0"
    # 2.7 labels are estimated to be right: the last three fit best, and one edit of theirs has passed.
    changed = run.config.repair.model_copy(update={"spare": 1.0})
    write_text(run.path / "config.yaml", run.config.model_copy(update={"repair": changed}).to_yaml())
    assert refine(run, dataset) and not refine(run, dataset)
    after = {row["id"]: row for row in read_table(run.edits).to_pylist()}
    gone, spare = (ids[m] for m in EDITED)
    assert (after[spare]["status"], after[spare]["reason"]) == ("kept", "label_fits")
    assert after[spare]["path"] is not None, "not dropped: its label is right"
    # The best fitting of all was refused by the gate and is dropped no more.
    refused = ids[5]
    assert (before[refused]["status"], after[refused]["status"]) == ("dropped", "kept")
    assert after[refused]["reason"] == "influence"
    assert [sample for sample in ids if after[sample] != before[sample]] == [spare, refused]
    assert after[gone]["status"] == "edited"
    assert write_summary(run)["kept_reasons"]["label_fits"] == 1


@pytest.mark.parametrize(("spare", "kept"), [(0, 0), (1, 1), (2, 1), (100, 2)])
def test_as_many_are_spared_as_the_settings_say(tmp_path: Path, spare: float, kept: int) -> None:
    source = make_folders(tmp_path / "source")
    run, _, ids = make_run(source, tmp_path / "run", DataConfig(), spare=spare)
    rows = {row["id"]: row for row in decisions(run).to_pylist()}
    assert [rows[ids[m]]["status"] for m in EDITED] == ["edited"] * (2 - kept) + ["kept"] * kept
    # A refusal stays what it was.
    assert [rows[ids[m]]["reason"] for m in DOUBTED] == ["judge", "identity", "influence"]


def judged(**found: tuple[float | None, float]) -> list[dict[str, Any]]:
    """Rows of (label_fit, label_trust) by id."""
    return [{"id": name, "label_fit": fit, "label_trust": trust} for name, (fit, trust) in found.items()]


def names(rows: list[dict[str, Any]]) -> list[str]:
    return [row["id"] for row in rows]


def test_spared_are_as_many_as_labels_are_right_and_the_best_fitting_of_them() -> None:
    rows = judged(a=(0.2, 0.9), b=(0.7, 0.1), c=(0.1, 0.8), d=(0.9, 0.0), e=(0.5, 0.3))  # trust sums to 2.1
    assert names(spared(rows, 1)) == ["d", "b"], "by label_fit, not by label_trust"
    assert names(spared(rows, 2)) == ["d", "b", "e", "a"]
    assert names(spared(rows, 0.5)) == ["d"]
    assert names(spared(rows, 0.1)) == [], "less than half a label"
    assert names(spared(rows, 50)) == ["d", "b", "e", "a", "c"], "no more than there are"
    assert spared([], 1) == [] and all(row in rows for row in spared(rows, 2))
    assert names(rows) == ["a", "b", "c", "d", "e"], "the rows stay in their order"


def test_spared_of_equal_fit_are_the_first_by_id_whatever_the_order_of_the_rows() -> None:
    rows = judged(c=(0.5, 0.5), a=(0.5, 0.5), d=(0.6, 0.5), b=(0.5, 0.5), e=(0.1, 0.5))  # sums to 2.5
    assert names(spared(rows, 1.2)) == names(spared(rows[::-1], 1.2)) == ["d", "a", "b"]


@pytest.mark.parametrize("spare", [0, 1])
def test_without_a_second_look_nothing_is_spared(spare: float) -> None:
    assert spared(judged(a=(None, 0.9), b=(None, 0.8)), spare) == []
    assert spared([{"id": "a", "label_trust": 0.9}], spare) == [], "of a table that has no such column"


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
