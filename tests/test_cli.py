from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer

import diffinf
from diffinf.cli import app, main
from diffinf.cli.evaluate import _show_rca
from diffinf.cli.settings import changed_settings, run_settings
from diffinf.cli.show import show, show_costs
from diffinf.config import make_config
from diffinf.evaluate.rca import rca_from_confusions
from diffinf.progress import set_quiet
from diffinf.run import Run
from diffusion.tiny_diffae import make_diffae
from faces import png


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must fail as a user's mistake; return what it says."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert caught.value.code == 2
    assert printed.out == "" and "Traceback" not in printed.err
    return printed.err


def table(path: Path, **columns: list[object]) -> Path:
    """A Parquet table of 30 faces in two classes, with columns replaced."""
    rng = np.random.default_rng(0)
    faces = [png(rng.integers(0, 256, (32, 32), dtype=np.uint8)) for _ in range(30)]
    values: dict[str, list[object]] = {
        "id": [f"f{index:02}" for index in range(30)],
        "image": list(faces),
        "label": [("old", "young")[index % 2] for index in range(30)],
    }
    pq.write_table(pa.table({**values, **columns}), path)
    return path


def test_a_mistake_is_one_line_without_traceback_in_a_real_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "diffinf", "run", str(tmp_path / "missing")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and "no such file" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_missing_path(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "no such file or directory" in refused(capsys, "run", tmp_path / "none")
    for stage in ("score", "train-autoencoder", "repair", "compare", "report", "restore"):
        assert "not a diffinf run" in refused(capsys, stage, tmp_path)
    assert "not a diffinf run" in refused(capsys, "predict", tmp_path, "x.png")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--label", "emotion"], "emotion"),
        (["--image", "picture"], "picture"),
        (["--set", "classifier.stps=3"], "classifier.stps: no such setting"),
        (["--set", "classifier.steps"], "stage.field=value"),
        (["--limit", "0"], "data.limit"),
        (["--preset", "huge"], "expected cpu, cpu-small, gpu, gpu-48, gpu-128 or tiny"),
        (["--device", "abacus"], "abacus"),
        (["--config", "missing.yaml"], "missing.yaml: no such settings file"),
        (["--classifier", "missing.safetensors"], "NAME:FILE.safetensors"),
        (["--no-such-option"], "no-such-option"),
        (["--format", "celebb"], "data.format"),
        (["--group", "race"], "no column 'race' for data.groups"),
        (["--bins", "0,thirteen"], "expected numbers with commas between"),
        (["--bins", "13,0"], "data.bins"),
        (["--bins", "5"], "data.bins"),
        (["--link", "soft"], "data.link"),
        (["--policy", "drop"], "'edit-or-relabel', 'edit-or-drop'"),
        (["--set", "repair.depth=0.8"], "repair.depth: 0.8 is a noise level beyond"),
        (["--set", "autoencoder.max_depth=0.2"], "autoencoder.max_depth (0.2)"),
        (["--set", "repair.diffusion_steps=900"], "the largest possible number is 266"),
        (["--split", "part"], "no column 'part' for --split"),
    ],
)
def test_wrong_options(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, options: list[str], message: str
) -> None:
    faces = table(tmp_path / "faces.parquet")
    said = refused(capsys, "train", faces, "--out", tmp_path / "run", *options)
    assert message in said
    assert not (tmp_path / "run" / "classifier").exists()


def test_threads_are_limited_here_and_in_other_processes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "7")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        refused(capsys, "--threads", 1, "report", tmp_path)
        assert torch.get_num_threads() == 1 and os.environ["OMP_NUM_THREADS"] == "1"
        code = "import torch; print(torch.get_num_threads())"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == "1\n"
    finally:
        torch.set_num_threads(before)
    assert "greater than or equal to 1" in refused(capsys, "--threads", 0, "report", tmp_path)


def test_threads_wait_in_short_loops_unless_the_user_says_how(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for names, expected in (
        ({}, "10000"),
        ({"GOMP_SPINCOUNT": "3"}, "3"),
        ({"OMP_WAIT_POLICY": "active"}, None),
    ):
        for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
            monkeypatch.setenv(name, "")  # so that it is taken back
            monkeypatch.delenv(name)
        for name, value in names.items():
            monkeypatch.setenv(name, value)
        refused(capsys, "report", tmp_path)
        assert os.environ.get("GOMP_SPINCOUNT") == expected


def test_settings_that_a_repeated_command_would_change_are_named(tmp_path: Path) -> None:
    first = make_config("faces.csv", overrides=["influence.share=0.2", "seed=3"])
    assert changed_settings(tmp_path / "run", first) == []
    Run.create(tmp_path / "run", first, "0" * 64)
    assert changed_settings(tmp_path / "run", first) == []
    again = make_config("faces.csv", overrides=["seed=3", "repair.strengths=[1.0]", "device=cpu"])
    assert changed_settings(tmp_path / "run", again) == [
        "influence.share: 0.2 -> None",
        f"repair.strengths: {first.repair.strengths} -> [1.0]",
    ]


def test_a_repeated_command_says_what_it_changes_before_it_does(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    faces = table(tmp_path / "faces.parquet")
    config = make_config(str(faces), overrides=["influence.share=0.2"])
    Run.create(tmp_path / "run", config, "0" * 64)
    # Of another dataset, so that nothing begins.
    said = refused(capsys, "train", faces, "--out", tmp_path / "run", "--preset", "cpu", "--device", "cpu")
    assert (
        "influence.share: 0.2 -> None" in said and f"changes none: diffinf train {tmp_path / 'run'}\n" in said
    )
    said = refused(capsys, "train", faces, "--out", tmp_path / "run", "--set", "influence.share=0.2")
    assert "influence.share" not in said
    said = refused(capsys, "train", faces, "--out", tmp_path / "run", "--preset", "tiny")
    assert "preset: cpu -> tiny, and " in said and "influence.share: 0.2 -> None" in said
    assert "settings that come with it" in said and "classifier.steps" not in said


def test_slow_imports_are_announced_unless_json_or_quiet_is_asked_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Run.create(tmp_path / "run", make_config("faces.csv"), "0" * 64)
    predict = ("predict", tmp_path / "run", "x.png")  # refused only once everything is loaded
    # As in a fresh process, where nothing is loaded yet.
    monkeypatch.setattr(importlib.import_module("diffinf.cli.app"), "sys", SimpleNamespace(modules={}))
    set_quiet(False)
    assert refused(capsys, *predict).startswith("loading PyTorch")
    assert refused(capsys, *predict, "--json").startswith("error: ")
    assert refused(capsys, *predict).startswith("loading PyTorch"), "--json is of one command"
    assert "loading" not in refused(capsys, "predict", tmp_path, "x.png"), "a mistake is told at once"
    assert refused(capsys, "--quiet", *predict).startswith("error: ")


def test_classes_without_a_relative_accuracy_are_named_below_the_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = ["good", "bad", "unread", "unmade", "unseen"]
    generated, real = np.diag([9, 4, 9, 0, 9]), np.diag([9, 9, 0, 9, 0])
    generated[1, 0], real[2, 0] = 6, 9
    _show_rca(rca_from_confusions(generated, real, names))
    said = capsys.readouterr().out
    table = said[said.index("by class") : said.index("no figure by class")]
    assert [name for name in table.split() if name in names] == ["bad", "good"]
    lacking = "unread (1 without real images that are read right); unmade (1 without generated images)"
    assert f"no figure by class: {lacking}; unseen (1 without real images)\n" in said
    _show_rca(rca_from_confusions(np.diag([9, 9]), np.diag([9, 9]), names[:2]))
    assert "no figure" not in capsys.readouterr().out


def test_what_a_run_prints_warns_of_groups_and_of_the_preset_tiny(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    uneven = {"column": "race", "measure": "edited", "group": "[B]", "share": 0.3, "n": 1200}
    uneven |= {"share_elsewhere": 0.1, "n_elsewhere": 300, "p_value": 1e-4}
    summary = {"arms": {}, "flagged": None, "group_warnings": [uneven], "preset": "tiny"}
    summary |= {"kept_reasons": {"judge": 7, "roundtrip": 0}, "dataset": {"quarantined": 1}}
    run = SimpleNamespace(path=tmp_path, summary=tmp_path / "summary.json", report=tmp_path / "report.html")
    run.summary.write_text(json.dumps(summary))
    show(run, False)
    said = capsys.readouterr().out
    assert "warning: Edits fall on race = [B] 3.0 times as often as on the others" in said
    assert "Preset tiny" in said and "mean nothing" in said
    assert (
        "kept because of: judge 7 (" in said and "1 of the samples is not usable: quarantine.parquet" in said
    )
    summary |= {"group_warnings": [], "preset": "cpu", "kept_reasons": {}, "dataset": {"quarantined": 0}}
    run.summary.write_text(json.dumps(summary))
    show(run, False)
    said = capsys.readouterr().out
    assert not any(word in said for word in ("warning", "tiny", "kept", "usable"))


def test_little_cost_is_told_as_little(capsys: pytest.CaptureFixture[str]) -> None:
    costs = [
        {"stage": name, "work": "steps", "seconds": seconds} for name, seconds in (("a", 0.0), ("b", 9.0))
    ]
    show_costs(costs, False)
    said = capsys.readouterr().out
    assert said.count("│ seconds ") == 2 and "under a minute" in said and "0:0" not in said
    show_costs([*costs, {"stage": "c", "work": "steps", "seconds": 75.0}], False)
    said = capsys.readouterr().out
    assert "1:15" in said and "1:24" in said and "under a minute" not in said


def test_commands_are_listed_as_a_user_meets_them() -> None:
    group: Any = typer.main.get_command(app)
    names = group.list_commands(None)
    met = ("inspect", "run", "train", "score", "repair", "compare", "report", "restore", "edit", "evaluate")
    places = [names.index(name) for name in met]
    assert places == sorted(places) and len(names) == len(set(names)) > len(met)


def test_bad_rows(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    labels: list[object] = [("old", "young")[index % 2] for index in range(30)]
    out = ("--out", tmp_path / "run", "--id", "id")
    twice = table(tmp_path / "twice.parquet", id=["same", "same", *(f"f{i}" for i in range(28))])
    assert "same" in refused(capsys, "run", twice, *out)
    empty = table(tmp_path / "nan.parquet", label=[None] * 30)
    assert "f00" in refused(capsys, "run", empty, *out)
    single = table(tmp_path / "single.parquet", label=["ancient", *labels[1:]])
    assert "ancient" in refused(capsys, "run", single, *out)
    unreadable = table(tmp_path / "unreadable.parquet", image=[b"no image"] * 30)
    assert "image" in refused(capsys, "run", unreadable, *out)
    assert not (tmp_path / "run").exists()


def test_directory_of_another_dataset(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    faces = table(tmp_path / "faces.parquet")
    Run.create(tmp_path / "run", make_config("others.parquet"), "0" * 64)
    said = refused(capsys, "run", faces, "--out", tmp_path / "run", "--preset", "tiny")
    assert "others.parquet" in said and "faces.parquet" in said and "--fresh" in said
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").touch()
    assert "not a diffinf run" in refused(capsys, "run", faces, "--out", tmp_path / "home", "--fresh")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_directory(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    faces = table(tmp_path / "faces.parquet")
    (tmp_path / "locked").mkdir(mode=0o500)
    said = refused(capsys, "run", faces, "--out", tmp_path / "locked" / "run", "--preset", "tiny")
    assert "cannot be written" in said


def test_a_file_where_the_directory_should_be(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    faces = table(tmp_path / "faces.parquet")
    assert "is a file" in refused(capsys, "run", faces, "--out", faces, "--preset", "tiny")


def test_a_run_inside_its_dataset_is_refused(capsys: pytest.CaptureFixture[str], folders: Path) -> None:
    said = refused(capsys, "train", folders, "--out", folders / "run", "--preset", "tiny")
    assert "lies inside the dataset" in said and not (folders / "run").exists()


def test_options_of_the_dataset(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    ages = [3 + index for index in range(30)]
    people = [f"p{index // 2}" for index in range(30)]
    splits = [("train", "train", "train", "validation", "test")[index // 2 % 5] for index in range(30)]
    gender = [("f", "m")[index % 2] for index in range(30)]
    faces = table(tmp_path / "faces.parquet", label=ages, identity=people, split=splits, gender=gender)
    options = ("--format", "table", "--bins", "0,13,20", "--group", "gender", "--icc", "--json")
    main_ok("inspect", str(faces), *options)
    found = json.loads(capsys.readouterr().out)
    assert found["class_names"] == ["0-12", "13-19", "20+"]
    assert sum(found["counts"]["groups"]["gender"]["f"].values()) == 15
    assert found["counts"]["splits"] == {"train": 18, "validation": 6, "test": 6}
    assert found["people"]["n"] == 15
    main_ok("inspect", str(faces), *options, "--split", "", "--identity", "")
    found = json.loads(capsys.readouterr().out)
    assert found["counts"]["splits"]["train"] != 18 and found["people"] is None
    twice = table(tmp_path / "twice.parquet", label=[("old", "Old ", "young")[i % 3] for i in range(30)])
    main_ok("inspect", str(twice), "--normalise-labels", "--json")
    assert json.loads(capsys.readouterr().out)["class_names"] == ["old", "young"]


def test_settings_of_a_url(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    settings = run_settings("memory://faces/f.csv", {"data": {"link": "hard"}}, None, [], "tiny", False)
    assert settings.dataset == "memory://faces/f.csv" and settings.data.link == "hard"
    with zipfile.ZipFile(tmp_path / "faces.zip", "w") as bundle:
        bundle.write(table(tmp_path / "faces.parquet"), "faces.parquet")
    main_ok("inspect", f"zip://faces.parquet::{tmp_path / 'faces.zip'}")
    with pytest.raises(SystemExit):
        main(["inspect", f"zip://none.parquet::{tmp_path / 'faces.zip'}"])


def test_groups_do_not_make_another_run() -> None:
    from diffinf.pipeline import default_directory

    plain, grouped, other = (
        default_directory(make_config("/data/faces.csv", values={"data": data}))
        for data in ({}, {"groups": ["gender"]}, {"label": "age"})
    )
    assert plain == grouped != other and plain.name.startswith("faces-")
    assert default_directory(make_config("zip://faces.csv::/data/faces.zip")).name.startswith("faces-")


def test_estimate_and_json(capsys: pytest.CaptureFixture[str], folders: Path, tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "run"), "--preset", "tiny")
    main_ok("train", str(folders), *out, "--estimate", "--json")
    costs = json.loads(capsys.readouterr().out)
    assert [row["stage"] for row in costs] == ["train"] and costs[0]["seconds"] >= 0
    assert not (tmp_path / "run").exists(), "an estimate starts nothing"


def test_a_judge_of_identity_that_is_not_there_is_missed_before_the_work(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faces = table(tmp_path / "faces.parquet")
    options = ("--preset", "tiny", "--out", tmp_path / "run")
    said = refused(capsys, "run", faces, *options, "--set", "repair.identity=persons")
    assert "0 persons" in said and "--identity" in said
    monkeypatch.setattr("diffinf.features.dlib_faces.find_spec", lambda _: None)
    for command in (("run",), ("run", "--estimate")):
        said = refused(capsys, *command, faces, *options, "--set", "repair.identity=dlib")
        assert 'pip install "diffinf[face]"' in said
    assert not (tmp_path / "run" / "classifier").exists()


def test_an_estimate_times_the_imported_autoencoder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    faces = table(tmp_path / "faces.parquet")
    make_diffae().save(tmp_path / "imported")
    options = ("--preset", "tiny", "--set", f"autoencoder.weights={tmp_path / 'imported'}", "--device", "cpu")
    assert "data.channels=3" in refused(capsys, "run", faces, "--estimate", *options)
    main_ok("run", str(faces), "--estimate", "--json", *options, "--set", "data.channels=3")
    costs = json.loads(capsys.readouterr().out)
    for work, stages in (
        ("semantic codes", ["train-autoencoder", "repair"]),
        ("error of the denoiser", ["train-autoencoder"]),
        ("second look", ["repair"]),
    ):
        assert [row["stage"] for row in costs if work in row["work"]] == stages


@pytest.mark.parametrize(("interrupted", "step", "timed"), [(1.0, 0.175, 7), (0.01, 0.01, 7 + 51)])
def test_a_busy_machine_is_part_of_the_estimate(
    monkeypatch: pytest.MonkeyPatch, interrupted: float, step: float, timed: int
) -> None:
    from diffinf import estimate
    from diffinf.classify.model import ClassifierSpec

    now, done = [0.0], []

    def train(*_: object, config: Any, on_step: Any, **__: object) -> None:
        for index in range(config.steps):
            now[0] += interrupted if index % 5 == 4 else 0.01
            done.append(index)
            on_step(index + 1)

    monkeypatch.setattr(estimate.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(estimate, "train_classifier", train)
    timing = object.__new__(estimate._Timing)
    timing.config, timing._steps, timing.device = make_config("faces.csv"), {}, "cpu"  # type: ignore[assignment]
    timing.spec = ClassifierSpec("small_cnn", 2, 3, 32)
    assert timing._step(None) == timing._step(None) == pytest.approx(step) and len(done) == timed


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    main_ok("--version")
    assert capsys.readouterr().out.strip() == f"diffinf {diffinf.__version__}"
    commands = ("demo", "render", "run", "train", "score", "repair", "compare", "report", "predict")
    for command in (*commands, "restore", "edit"):
        main_ok(command, "--help")
        assert "Usage" in capsys.readouterr().out


def main_ok(*arguments: str) -> None:
    try:
        main(list(arguments))
    except SystemExit as end:
        assert not end.code


def test_public_names() -> None:
    for name in diffinf.__all__:
        assert getattr(diffinf, name) is not None
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = diffinf.nothing_of_the_kind
