"""Several attributes in turn: one run each, tables keyed by (id, target), one refined dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data.miniatures import make_celeba, make_table
from diffinf import pipeline, targets
from diffinf.cli import main
from diffinf.config import RunConfig, make_config
from diffinf.data.cache import DecodeCache
from diffinf.data.dataset import open_dataset
from diffinf.errors import UserError
from diffinf.files import load_tensors, read_json, read_table, save_tensors
from diffinf.run import Run
from diffinf.stages.refining import refine
from diffinf.stages.summary import write_summary
from diffinf.targets import execute_targets
from stages.repaired_run import EDITED, GATE, make_run


class Trainings:
    """Takes the place of `execute`: nothing is trained, the first training samples are flagged and edited."""

    def __init__(self) -> None:
        self.read: list[tuple[str, str, bool]] = []
        self.caches: list[DecodeCache | None] = []

    def __call__(
        self, config: RunConfig, *, until: str, out: Path, fresh: bool, cache: DecodeCache | None
    ) -> Run:
        self.read.append((config.data.label, config.dataset, Run.exists(out)))
        self.caches.append(cache)
        run, dataset, _ = make_run(Path(config.dataset), out, config.data, policy=config.repair.policy)
        pictures = load_tensors(run.repair / "pictures.safetensors")
        pictures["edited"] = pictures["edited"].roll(ord(config.data.label[0]), dims=3)  # other edits of each
        save_tensors(run.repair / "pictures.safetensors", pictures)
        refine(run, dataset)
        write_summary(run)
        return run


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Trainings:
    made = Trainings()
    monkeypatch.setattr(targets, "execute", made)
    return made


@pytest.fixture
def celeba(tmp_path: Path) -> Path:
    return make_celeba(tmp_path / "celeba")


def settings(dataset: Path, **values: Any) -> RunConfig:
    return make_config(str(dataset), preset_name="tiny", values={"device": "cpu", **values})


def test_a_face_flagged_for_several_attributes_is_edited_in_turn(
    celeba: Path, tmp_path: Path, trainings: Trainings
) -> None:
    out = execute_targets(settings(celeba), ["Smiling", "Young"], until="report", out=tmp_path / "out")
    first, second = (out / "targets" / name for name in ("Smiling", "Young"))
    assert [(label, source) for label, source, _ in trainings.read] == (
        [("Smiling", str(celeba)), ("Young", str(first / "refined"))]
    )
    edits = read_table(out / "edits.parquet").to_pylist()
    assert len({(row["id"], row["target"]) for row in edits}) == len(edits) == 2 * len(GATE)
    assert {(row["target"], row["label"].split()[-1]) for row in edits} == (
        {("Smiling", "Smiling"), ("Young", "Young")}
    )
    scores = read_table(out / "scores.parquet")
    assert scores["target"].to_pylist().count("Young") == scores.num_rows // 2
    edited = edits[EDITED[0]]["id"]
    image = f"img_align_celeba/{edited}"
    versions = [(folder / image).read_bytes() for folder in (celeba, first / "refined", out / "refined")]
    assert len(set(versions)) == 3 and versions[2] == (second / "refined" / image).read_bytes()
    listed = "list_attr_celeba.txt"
    assert (out / "refined" / listed).read_bytes() == (celeba / listed).read_bytes()
    story = {
        row["target"]: row
        for row in read_table(out / "refined.provenance.parquet").to_pylist()
        if row["id"] == edited
    }
    assert story["Young"]["source_sha256"] == story["Smiling"]["sha256"]


def test_summary_page_and_card_tell_of_all(celeba: Path, tmp_path: Path, trainings: Trainings) -> None:
    out = execute_targets(settings(celeba), ["all"], until="report", out=tmp_path / "out")
    summary = read_json(out / "summary.json")
    assert list(summary["targets"]) == ["Male", "Smiling", "Young"]
    assert summary["edited_faces"] == summary["edited_for_several"] == len(EDITED)
    assert summary["targets"]["Young"]["edited"] == len(EDITED)
    page = (out / "report.html").read_text()
    assert 'href="targets/Smiling/report.html"' in page and "<h1>3 attributes</h1>" in page
    card = (out / "refined" / "README.md").read_text()
    assert card.startswith("---\ntags:") and card.count("---\n") == 2 and "- synthetic" in card
    assert "## Male" in card and "## Young" in card
    again = open_dataset(out / "refined", settings(celeba, data={"label": "Male"}).data)
    assert (
        again.ids.tolist() == open_dataset(celeba, settings(celeba, data={"label": "Male"}).data).ids.tolist()
    )


def test_a_new_label_is_of_its_attribute_alone(celeba: Path, tmp_path: Path, trainings: Trainings) -> None:
    config = settings(celeba, repair={"policy": "edit-or-relabel"})
    out = execute_targets(config, ["Smiling", "Young"], until="report", out=tmp_path / "out")
    changed = {
        (row["id"], row["target"])
        for row in read_table(out / "edits.parquet").to_pylist()
        if row["status"] == "relabelled"
    }
    assert changed

    def attributes(folder: Path) -> dict[str, list[str]]:
        lines = (folder / "list_attr_celeba.txt").read_text().splitlines()[2:]
        return {line.split()[0]: line.split()[1:] for line in lines}

    before, after = attributes(celeba), attributes(out / "refined")
    names = ["Male", "Smiling", "Young"]
    found = {
        (sample, names[at])
        for sample, values in before.items()
        for at, value in enumerate(values)
        if after[sample][at] != value
    }
    assert found == changed


def test_what_is_done_stays_until_what_it_read_changes(
    celeba: Path, tmp_path: Path, trainings: Trainings
) -> None:
    config, out = settings(celeba), tmp_path / "out"
    for _ in range(2):
        execute_targets(config, ["Smiling", "Young"], until="report", out=out)
    assert [there for _, _, there in trainings.read] == [False, False, True, True]
    other = settings(celeba, repair={"policy": "edit-or-relabel"})
    execute_targets(other, ["Smiling", "Young"], until="report", out=out)
    assert [there for _, _, there in trainings.read[4:]] == [True, False], "Young reads another dataset now"


def test_decoded_images_are_kept_once_for_all(celeba: Path, tmp_path: Path, trainings: Trainings) -> None:
    out = execute_targets(settings(celeba), ["Smiling", "Young"], until="report", out=tmp_path / "out")
    assert [cache and cache.folder.parent for cache in trainings.caches] == [out / ".cache"] * 2
    # The settings of a run name no place: its directory may be moved.
    assert Run.open(out / "targets" / "Young").config.data.cache == "run"
    execute_targets(settings(celeba, data={"cache": "none"}), ["Young"], until="report", out=tmp_path / "b")
    assert trainings.caches[2] is None


def test_a_run_opens_its_dataset_with_the_cache_it_is_given(
    celeba: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def opened(*_: Any, cache: DecodeCache, **__: Any) -> None:
        given.append(cache)
        raise UserError("enough")

    monkeypatch.setattr(pipeline, "open_dataset", opened)
    shared = DecodeCache(tmp_path / "shared", 1)
    for cache in (shared, None):
        with pytest.raises(UserError, match="enough"):
            pipeline.execute(settings(celeba), out=tmp_path / "out", cache=cache)
    assert given[0] is shared and given[1].folder.parent == tmp_path / "out" / ".cache"


def test_columns_of_a_table_and_a_cut_dataset(tmp_path: Path, trainings: Trainings) -> None:
    table = make_table(tmp_path / "faces")
    text = table.read_text().replace("label,", "label,glasses,", 1)
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines[1:]):
        if line.startswith("img/"):
            parts = line.split(",", 2)
            lines[number + 1] = ",".join([*parts[:2], str(number // 2 % 2), parts[2]])
    table.write_text("".join(lines))
    config = settings(table, data={"split": "subset", "root": str(table.parent), "limit": 30})
    out = execute_targets(config, ["label", "glasses"], until="report", out=tmp_path / "out")
    assert trainings.read[1][1] == str(out / "targets" / "label" / "refined" / table.name)
    second = Run.open(out / "targets" / "glasses").config
    assert second.data.limit is None and second.data.root is None
    assert (out / "refined" / table.name).is_file()


def test_a_directory_of_something_else_is_left_alone(
    celeba: Path, tmp_path: Path, trainings: Trainings
) -> None:
    (tmp_path / "out" / "refined").mkdir(parents=True)
    with pytest.raises(UserError, match="holds files that are not of several attributes"):
        execute_targets(settings(celeba), ["Young"], until="report", out=tmp_path / "out")
    assert not trainings.read


@pytest.mark.parametrize(
    ("out", "message"),
    [("celeba/out", "lies inside the dataset"), ("celeba/list_eval_partition.txt", "is a file")],
)
def test_a_refused_directory_is_not_made(
    celeba: Path, tmp_path: Path, trainings: Trainings, out: str, message: str
) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message):
        execute_targets(settings(celeba), ["Young"], until="report", out=tmp_path / out)
    assert sorted(tmp_path.rglob("*")) == before and not trainings.read


@pytest.mark.parametrize(
    ("names", "values", "message"),
    [
        (["Smiling", "Smiling"], {}, "found Smiling twice"),
        ([""], {}, "found none"),
        (["Bald"], {}, "no attribute 'Bald' for --targets; expected some of Male, Smiling, Young"),
        (["Young"], {"repair": {"policy": "edit-or-drop"}}, "edit-or-drop would take the labels"),
        (["Young"], {"influence": {"flags": "ids.txt"}}, "influence.flags: speaks of one label"),
        (["all"], {"data": {"votes": ["votes"]}}, "data.votes: speaks of one label"),
    ],
)
def test_what_cannot_be_is_refused(
    celeba: Path, tmp_path: Path, names: list[str], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        execute_targets(settings(celeba, **values), names, until="report", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tables_list_no_attributes(tmp_path: Path, trainings: Trainings) -> None:
    table = make_table(tmp_path / "faces")
    with pytest.raises(UserError, match="--targets all is for layouts that list"):
        execute_targets(settings(table), ["all"], until="report", out=tmp_path / "out")
    with pytest.raises(UserError, match="no column 'glasses' for --label"):
        execute_targets(settings(table), ["label", "glasses"], until="report", out=tmp_path / "out")
    assert not trainings.read


def test_the_option_takes_names(
    celeba: Path, tmp_path: Path, trainings: Trainings, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--preset", "tiny", "--device", "cpu", "--out", str(tmp_path / "out"), "--json"]
    with pytest.raises(SystemExit) as ended:
        main(["run", str(celeba), "--targets", "Male,Young", *options])
    assert not ended.value.code
    assert list(json.loads(capsys.readouterr().out)["targets"]) == ["Male", "Young"]
    with pytest.raises(SystemExit) as ended:
        main(["run", str(celeba), "--targets", "Male", "--label", "Male", *options])
    assert ended.value.code == 2 and "without --label" in capsys.readouterr().err
