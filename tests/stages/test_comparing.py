from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from data.miniatures import make_folders, make_rows, make_table
from diffinf import pipeline
from diffinf.cli import main
from diffinf.config import DataConfig
from diffinf.data import open_dataset
from diffinf.errors import UserError
from diffinf.files import load_tensors, read_table, save_tensors, write_table
from diffinf.run import Run
from diffinf.stages import comparing
from diffinf.stages.comparing import check_comparison, compare_run
from diffinf.stages.refining import refine
from diffinf.stages.workspace import Workspace
from stages.repaired_run import DOUBTED, EDITED, make_run


def workspace_of(folder: Path, source: Path, data: DataConfig | None = None, **compare: Any) -> Workspace:
    """A refined run, ready to be compared with these settings."""
    run, dataset, _ = make_run(source, folder / "run", data or DataConfig())
    pictures = load_tensors(run.repair / "pictures.safetensors")
    save_tensors(run.repair / "pictures.safetensors", {**pictures, "roundtrip": pictures["original"].clone()})
    refine(run, dataset)
    workspace = Workspace(run, dataset)
    workspace.config = workspace.config.model_copy(
        update={"compare": workspace.config.compare.model_copy(update={"workers": 1, **compare})}
    )
    return workspace


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the stage gives to the trainings, which are left out."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(comparing, "run_arms", lambda **options: given.update(options))
    monkeypatch.setattr(comparing, "write_json", lambda *_: None)
    return given


def test_arms_get_what_they_ask_for(
    tmp_path: Path, handed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = workspace_of(tmp_path, make_folders(tmp_path / "source"), allow_overlap=True)
    compare_run(workspace)
    assert not {"truth", "cleanlab_issues", "relabelled_instead", "dropped_instead"} & handed.keys()
    validation = workspace.dataset.rows("validation")
    assert torch.equal(handed["images_validation"], workspace.images_of(validation))
    assert handed["labels_validation"].tolist() == workspace.dataset.labels[validation].tolist()
    trust = read_table(workspace.run.scores)["label_trust"].to_numpy()
    assert handed["noise_rate"] == pytest.approx(1 - trust.mean())
    assert set(handed["edited_images"]) == set(EDITED)
    assert handed["relabelled"] == {} and handed["dropped"] == set()

    arms = ["diffinf-edit-or-relabel", "diffinf-edit-or-drop+gce"]
    workspace.config = workspace.config.model_copy(
        update={"compare": workspace.config.compare.model_copy(update={"arms": arms})}
    )
    compare_run(workspace)
    codes = [
        workspace.dataset.class_names.index(name)
        for name in read_table(workspace.run.scores)["appears"].to_pylist()
    ]
    # The doubted ones alone: of a label that is probably right nothing is done under any policy.
    assert handed["relabelled_instead"] == {row: codes[row] for row in DOUBTED}
    assert handed["dropped_instead"] == set(DOUBTED)
    assert handed["relabelled"] == {} and handed["dropped"] == set()  # the arm diffinf stays as it was


def test_cleanlab_prunes_by_the_run_s_out_of_fold_probabilities(
    tmp_path: Path, handed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cleanlab")
    source = make_folders(tmp_path / "source")
    workspace = workspace_of(tmp_path, source, arms=["cleanlab"], allow_overlap=True)
    labels, classes = workspace.labels, len(workspace.dataset.class_names)
    read = labels.clone()
    read[1] = (labels[1] + 1) % classes
    logits = 6.0 * torch.nn.functional.one_hot(read, classes).float()
    blank = torch.zeros(len(labels), dtype=torch.int64)
    outputs = {"fold": blank, "features": -logits, "logits": logits, "fitted": logits.softmax(1)}
    save_tensors(workspace.run.crossfit / "outputs.safetensors", outputs)
    compare_run(workspace)
    assert np.flatnonzero(handed["cleanlab_issues"]).tolist() == [1]
    monkeypatch.setattr(comparing, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"cleanlab needs a package.*diffinf\[peers\]"):
        check_comparison(workspace.config, workspace.dataset)


@pytest.mark.parametrize("arm", ["clean", "true-flags", "oracle-edit", "clean+gce"])
def test_references_are_refused_without_truth(tmp_path: Path, arm: str) -> None:
    workspace = workspace_of(tmp_path, make_folders(tmp_path / "source"), arms=[arm])
    with pytest.raises(
        UserError, match=f"the arm {arm.split('+')[0]} is a reference that knows the truth.*truth_label"
    ):
        check_comparison(workspace.config, workspace.dataset)


def test_images_of_benchmarks_are_not_there_in_a_run(tmp_path: Path) -> None:
    workspace = workspace_of(tmp_path, make_folders(tmp_path / "source"), arms=["diffinf-paper+sam"])
    with pytest.raises(UserError, match=r"diffinf-paper needs images that a run does not make.*run_arms"):
        check_comparison(workspace.config, workspace.dataset)


def test_what_is_refused_leaves_the_settings_of_the_run_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = workspace_of(tmp_path, make_folders(tmp_path / "source"))
    before = Run.open(workspace.run.path).config
    with pytest.raises(SystemExit) as end:
        main(["compare", str(workspace.run.path), "--arms", "baseline,clean"])
    assert end.value.code == 2 and "no column truth_label" in capsys.readouterr().err
    assert Run.open(workspace.run.path).config == before


def copy_into_test(folder: Path, *, encoded_anew: bool) -> tuple[Path, str]:
    """Put a training picture among the test pictures of class folders; return the folder and the copy's id."""
    source = make_folders(folder)
    data = open_dataset(source, DataConfig())
    train, test = data.rows("train"), data.rows("test")
    row = next(int(r) for r in train if str(data.ids[r]).endswith(".png"))
    place = next(source / str(data.ids[r]) for r in test if str(data.ids[r]).endswith(".png"))
    if encoded_anew:
        Image.open(source / str(data.ids[row])).save(place, compress_level=1, pnginfo=None, dpi=(72, 72))
    else:
        place.write_bytes((source / str(data.ids[row])).read_bytes())
    return source, str(place.relative_to(source))


@pytest.mark.parametrize("encoded_anew", [False, True])
def test_a_test_picture_of_training_is_named_and_refused(
    tmp_path: Path, handed: Mapping[str, Any], encoded_anew: bool
) -> None:
    source, name = copy_into_test(tmp_path / "source", encoded_anew=encoded_anew)
    workspace = workspace_of(tmp_path, source)
    assert name in workspace.dataset.ids[workspace.dataset.rows("test")]
    with pytest.raises(
        UserError, match=rf"of training in 1 of .* test samples \({name}\).*compare\.allow_overlap=true"
    ):
        compare_run(workspace)
    assert not handed
    allowed = workspace.config.compare.model_copy(update={"allow_overlap": True})
    workspace.config = workspace.config.model_copy(update={"compare": allowed})
    compare_run(workspace)
    assert handed


def table_of_persons(folder: Path) -> Path:
    """A table whose persons each are in one split alone."""
    return make_table(folder, [{**row, "person": f"{row['subset']} {row['person']}"} for row in make_rows()])


def test_persons_in_both_splits_are_named_and_refused(tmp_path: Path) -> None:
    data = DataConfig(split="subset", identity="person")
    workspace = workspace_of(tmp_path, table_of_persons(tmp_path / "source"), data)
    dataset = workspace.dataset
    assert dataset.identities is not None
    test, train = dataset.rows("test"), dataset.rows("train")
    assert not set(dataset.identities[test]) & set(dataset.identities[train])
    check_comparison(workspace.config, workspace.dataset)
    dataset.identities[test[0]] = dataset.identities[train[0]]
    with pytest.raises(
        UserError, match=rf"persons of training in 1 of .* test samples \({dataset.ids[test[0]]}\)"
    ):
        check_comparison(workspace.config, workspace.dataset)
    dataset.identities[test[0]] = dataset.identities[train[0]] = ""  # nobody knows who these are
    check_comparison(workspace.config, workspace.dataset)


def test_persons_and_pictures_of_validation_are_not_tested_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(comparing, "note", said.append)
    data = DataConfig(split="subset", identity="person")
    workspace = workspace_of(tmp_path, table_of_persons(tmp_path / "source"), data)
    dataset = workspace.dataset
    assert dataset.identities is not None
    test, validation, train = (dataset.rows(split) for split in ("test", "validation", "train"))
    dataset.identities[validation[0]] = dataset.identities[train[0]]
    check_comparison(workspace.config, dataset)
    assert len(said) == 1 and f"persons of training in 1 of {len(validation)} validation samples" in said[0]
    dataset.identities[validation[0]] = dataset.identities[test[0]]
    with pytest.raises(UserError, match=rf"persons of validation in \d of {len(test)} test samples"):
        check_comparison(workspace.config, dataset)
    images = workspace.images_of(test).clone()
    images[0] = workspace.images_of(validation)[0]
    with pytest.raises(UserError, match=r"pictures of validation in [1-9]\d* of .* test samples"):
        comparing.check_pictures(workspace, images)


def test_other_truth_compares_again_where_an_arm_is_trained_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = workspace_of(tmp_path, make_folders(tmp_path / "source"))
    keys: dict[str, str] = {}
    monkeypatch.setattr(Run, "stage", lambda _, name, key, *__, **___: keys.update({name: key}))

    def key(arms: list[str], truth: int) -> str:
        compare = workspace.config.compare.model_copy(update={"arms": arms})
        workspace.config = workspace.config.model_copy(update={"compare": compare})
        monkeypatch.setattr(workspace, "truth", lambda: np.array([0, truth]))
        pipeline.compare(workspace)
        return keys["compare"]

    assert key(["baseline", "clean+gce"], 0) != key(["baseline", "clean+gce"], 1)
    assert key(["baseline", "gce"], 0) == key(["baseline", "gce"], 1)


def test_the_command_takes_arms_and_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = workspace_of(tmp_path, make_folders(tmp_path / "source"))
    seen: list[Any] = []
    monkeypatch.setattr("diffinf.pipeline.execute", lambda config, **options: seen.append((config, options)))
    monkeypatch.setattr("diffinf.cli.runs.show", lambda *_: None)
    path = str(workspace.run.path)
    with pytest.raises(SystemExit) as end:
        main(["compare", path, "--arms", "baseline, gce,diffinf+gce", "--seeds", "5"])
    assert not end.value.code
    [(config, options)] = seen
    assert config.compare.arms == ["baseline", "gce", "diffinf+gce"] and config.compare.seeds == 5
    assert options["until"] == "compare"
    with pytest.raises(SystemExit) as end:
        main(["compare", path, "--arms", "baseline,magic"])
    assert end.value.code == 2 and "there is no arm 'magic'" in capsys.readouterr().err


def test_the_estimate_counts_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffinf.estimate import _Timing

    workspace = workspace_of(tmp_path, make_folders(tmp_path / "source"))
    monkeypatch.setattr(_Timing, "_step", lambda *_, **__: 0.01)
    seconds = []
    for arms in (["baseline", "gce"], ["baseline", "sam"], ["baseline", "diffinf+co-teaching", "sam"]):
        compare = workspace.config.compare.model_copy(update={"arms": arms, "seeds": 1})
        config = workspace.config.model_copy(update={"compare": compare})
        seconds.append(_Timing(config, workspace.dataset).compare()[0][1])
    assert seconds == [20.0, 30.0, 50.0]


def test_arms_that_leave_the_table_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = workspace_of(tmp_path, make_folders(tmp_path / "source"), allow_overlap=True)
    said: list[str] = []
    monkeypatch.setattr(comparing, "note", said.append)

    def compared(*arms: str) -> None:
        def trained(_: Workspace) -> None:
            write_table(workspace.run.comparison, pa.table({"arm": [arm for arm in arms for _ in range(2)]}))

        monkeypatch.setattr(pipeline, "compare_run", trained)
        workspace.config = workspace.config.model_copy(
            update={"compare": workspace.config.compare.model_copy(update={"arms": list(arms)})}
        )
        pipeline.compare(workspace)

    compared("baseline", "gce")
    compared("baseline", "gce", "filter")
    assert not said
    compared("filter", "baseline")
    assert len(said) == 1 and "no longer have gce; their trainings stay" in said[0]
    compared("filter", "baseline")
    assert len(said) == 1
