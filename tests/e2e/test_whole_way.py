"""The whole way on a small rendered dataset, through the command line."""

from __future__ import annotations

import html
import json
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from diffinf.files import read_class_names, read_table
from diffinf.run import Run

pytestmark = pytest.mark.slow

OPTIONS = (
    *("--preset", "tiny", "--id", "id", "--split", "split", "--identity", "identity"),
    *("--set", "compare.arms=[baseline, diffinf]", "--set", "classifier.steps=24", "--device", "cpu"),
)


def diffinf(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "diffinf", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faces") / "faces.parquet"
    diffinf("render", path, "--n", 160, "--size", 32, "--identities", 40, "--rate", 0.3)
    return path


@pytest.fixture(scope="module")
def whole(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An undisturbed run."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    done = diffinf("run", faces, "--out", path, *OPTIONS, "--json")
    assert json.loads(done.stdout)["run"] == str(path), "JSON alone on stdout"
    return Run.open(path)


def test_persons_judge_identity(whole: Run) -> None:
    gate = json.loads((whole.repair / "gate.json").read_text())
    assert (
        gate["identity"]["judge"] == "persons" and gate["identity"]["threshold"] == gate["identity_threshold"]
    )
    assert (
        gate["identity"]["calibrated_on"] == "pairs of different persons" and gate["identity"]["failed"] == 0
    )
    edits = read_table(whole.edits)
    assert not edits["identity_similarity"].null_count and not edits["code_similarity"].null_count
    assert not (whole.surrogate / "identity_head.json").exists()


@pytest.mark.skipif(
    find_spec("dlib") is None or find_spec("face_recognition_models") is None,
    reason='the extra is not installed: pip install "diffinf[face]"',
)
def test_dlib_judges_identity_where_nobody_names_persons(faces: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    options = ("--identity", "", "--set", "repair.identity=dlib", "--set", "repair.distill_images=100")
    diffinf("train", faces, "--out", path, *OPTIONS, *options)
    diffinf("repair", path)
    run = Run.open(path)
    gate = json.loads((run.repair / "gate.json").read_text())
    assert gate["identity"]["judge"] == "dlib" and 0.5 < gate["identity_threshold"] < 1
    assert gate["identity"]["calibrated_on"] == "pairs of different images"
    quality = json.loads((run.surrogate / "identity_head.json").read_text())
    shown = min(100, read_table(run.scores).num_rows)
    seen = round((1 - gate["identity"]["failed"]) * shown)
    assert quality["trained"] + quality["held_out"] == seen and 0 <= quality["auroc"] <= 1
    similar = [
        value for value in read_table(run.edits)["identity_similarity"].to_pylist() if value is not None
    ]
    assert similar and max(similar) <= 1 + 1e-5
    assert "dlib's face recogniser" in html.unescape(run.report.read_text())


def test_summary_and_tables_agree(whole: Run) -> None:
    summary = json.loads(whole.summary.read_text())
    scores, edits = read_table(whole.scores), read_table(whole.edits)
    assert summary["dataset"]["n"] == 160 and summary["dataset"]["splits"]["train"] == scores.num_rows
    assert summary["flagged"] == sum(scores["flagged"].to_pylist()) == edits.num_rows
    statuses = ("edited", "kept", "relabelled", "dropped")
    assert summary["flagged"] == sum(summary[status] for status in statuses)
    assert summary["kept"] == sum(summary["kept_reasons"].values())
    assert set(summary["arms"]) == {"baseline", "diffinf"}
    assert summary["detection"]["n"] == scores.num_rows and summary["conversion"] is not None
    assert {"train", "score", "repair", "compare"} <= set(summary["timings"])
    assert scores["id"].to_pylist() == sorted(scores["id"].to_pylist())
    assert len(read_class_names(scores)) == 5 and set(scores["target"].to_pylist()) == {""}
    page = whole.report.read_text()
    assert page.lstrip().startswith("<!") and 'src="http' not in page


def test_the_terms_of_the_objective_are_told(whole: Run) -> None:
    terms = json.loads((whole.repair / "terms.json").read_text())
    assert list(terms) == ["label", "influence", "identity", "proximity", "realism"]
    assert all(set(term) == {"weight", "before", "after"} for term in terms.values())
    weighted = {
        ends: sum(term["weight"] * term[ends] for term in terms.values()) for ends in ("before", "after")
    }
    assert weighted["after"] < weighted["before"] and terms["proximity"]["before"] == 0
    page = html.unescape(whole.report.read_text())
    assert "What moved the codes" in page and "Is the surrogate calibrated?" in page and "AUROC" in page


def test_the_refined_dataset_has_the_same_rows_and_untouched_splits(whole: Run, faces: Path) -> None:
    before = pq.read_table(faces)
    (path,) = whole.refined.rglob("*.parquet")
    after = pq.read_table(path, partitioning=None)
    assert after.drop_columns("image").equals(before.drop_columns("image"))
    pairs = list(zip(before.to_pylist(), after.to_pylist(), strict=True))
    edited = {row["id"] for row in read_table(whole.edits).to_pylist() if row["status"] == "edited"}
    assert {old["id"] for old, new in pairs if old["image"] != new["image"]} == edited
    assert all(old["image"] == new["image"] for old, new in pairs if old["split"] != "train")


def test_running_again_does_nothing_twice(whole: Run, faces: Path) -> None:
    before = [event for event in whole.events() if event["event"] == "start"]
    diffinf("run", faces, "--out", whole.path, *OPTIONS)
    diffinf("repair", whole.path)
    assert [event for event in whole.events() if event["event"] == "start"] == before


def stages_started(run: Run) -> list[str]:
    return [event["stage"] for event in run.events() if event["event"] == "start"]


def test_another_policy_then_all_originals_back(whole: Run, faces: Path, tmp_path: Path) -> None:
    run = Run(Path(shutil.copytree(whole.path, tmp_path / "run")))
    before = len(stages_started(run))
    summary = json.loads(diffinf("repair", run.path, "--policy", "edit-or-drop", "--json").stdout)
    assert stages_started(run)[before:] == ["refine"], "no edit is made anew"
    assert summary["dropped"] > 0 and summary["arms_stale"] and summary["policy"] == "edit-or-drop"
    codes = load_file(run.repair / "codes.safetensors")
    assert len(codes["before"]) == len(codes["after"]) == summary["flagged"]
    with safe_open(run.repair / "codes.safetensors", "pt") as file:
        assert json.loads(file.metadata()["ids"]) == read_table(run.edits)["id"].to_pylist()
    summary = json.loads(diffinf("compare", run.path, "--json").stdout)
    assert not summary["arms_stale"]
    arms = {row["arm"]: row for row in read_table(run.comparison).to_pylist()}
    assert arms["baseline"]["n_train"] - arms["diffinf"]["n_train"] == summary["dropped"]
    seconds = {row["arm"]: row["seconds"] for row in read_table(whole.comparison).to_pylist()}
    assert arms["baseline"]["seconds"] == seconds["baseline"], "an arm of the same material is kept"
    found = json.loads(diffinf("restore", run.path, "--all", "--json").stdout)
    assert len(found["restored"]) == summary["dropped"] + summary["edited"] and found["arms_stale"]
    (path,) = run.refined.rglob("*.parquet")
    assert pq.read_table(path, partitioning=None).equals(pq.read_table(faces))
    diffinf("compare", run.path)
    arms = {row["arm"]: row for row in read_table(run.comparison).to_pylist()}
    assert arms["baseline"]["balanced_accuracy"] == arms["diffinf"]["balanced_accuracy"]


def test_editing_a_picture_with_a_run(whole: Run, faces: Path, tmp_path: Path) -> None:
    (tmp_path / "face.png").write_bytes(pq.read_table(faces)["image"][0].as_py()["bytes"])
    options = ("--to", "happy", "--model", whole.path, "--out", tmp_path / "strip.png", "--json")
    (row,) = json.loads(diffinf("edit", tmp_path / "face.png", *options).stdout)["pictures"]
    assert row["read_by"] == "classifier" and not row["resized"] and row["from"] != "happy"
    assert (tmp_path / "strip.png").stat().st_size > 1000


def test_predict_and_report(whole: Run, tmp_path: Path, faces: Path) -> None:
    image = pq.read_table(faces)["image"][0].as_py()["bytes"]
    (tmp_path / "a face.png").write_bytes(image)
    (row,) = json.loads(diffinf("predict", whole.path, tmp_path / "a face.png", "--json").stdout)
    assert sum(row["probabilities"].values()) == pytest.approx(1) and row["label"] in row["probabilities"]
    (tmp_path / "text.png").write_text("no image")
    refusal = diffinf("predict", whole.path, tmp_path / "a face.png", tmp_path / "text.png", code=2).stderr
    assert "text.png" in refusal and "nothing was classified" in refusal
    whole.report.unlink()
    told = diffinf("report", whole.path).stdout
    assert whole.report.exists()
    kept = json.loads(whole.summary.read_text())["kept_reasons"]
    assert all(f"{reason} {n}" in told for reason, n in kept.items() if n)


def test_a_run_can_be_inspected(whole: Run, faces: Path) -> None:
    found = json.loads(diffinf("inspect", whole.path, "--json").stdout)
    assert found["rows"] == pq.read_metadata(faces).num_rows


def test_flags_and_classifier_of_the_user(whole: Run, faces: Path, tmp_path: Path) -> None:
    ids = read_table(whole.scores)["id"].to_pylist()
    flags = tmp_path / "flags.txt"
    flags.write_text("\n".join(ids[3:6]))
    own = ("--flags", flags, "--classifier", whole.classifier)
    diffinf("score", diffinf_train(faces, tmp_path / "run", *own))
    scores = read_table(tmp_path / "run" / "scores.parquet")
    assert [row["id"] for row in scores.to_pylist() if row["flagged"]] == ids[3:6]
    rows = read_table(whole.path / "dataset.parquet").to_pylist()
    tested = next(row["id"] for row in rows if row["split"] == "test")
    flags.write_text(tested)
    said = diffinf("score", tmp_path / "run", code=2).stderr
    assert tested in said and "never edited" in said


def test_no_flags_is_a_legal_result(faces: Path, tmp_path: Path) -> None:
    diffinf("run", faces, "--out", tmp_path / "run", *OPTIONS, "--set", "influence.share=0")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["flagged"] == summary["edited"] == summary["kept"] == 0
    arms = summary["arms"]
    assert arms["baseline"]["balanced_accuracy"] == arms["diffinf"]["balanced_accuracy"]


def diffinf_train(faces: Path, out: Path, *options: object) -> Path:
    diffinf("train", faces, "--out", out, *OPTIONS, *options)
    return out


# Those that take longest; how training and self-influence go on has tests of its own.
STAGES = ("crossfit", "train-autoencoder", "repair", "compare")


def test_kill_and_resume_gives_the_same_result(whole: Run, faces: Path, tmp_path: Path) -> None:
    """kill -9 once in each of these stages, some moments after it began; then run to the end, on two workers."""
    run = Run(tmp_path / "run")
    command = [sys.executable, "-m", "diffinf", "run", faces, "--out", run.path, *OPTIONS]
    command += ["--set", "compare.workers=2"]
    killed = []
    for stage in STAGES:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (run.path / ".state" / f"{stage}.json").exists():
            time.sleep(0.02)
        time.sleep(1.0)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed.append(stage)
        process.wait()
    assert killed, "no process lived long enough to be killed"
    diffinf(*command[3:])
    for name in ("scores.parquet", "edits.parquet"):
        assert (run.path / name).read_bytes() == (whole.path / name).read_bytes(), name
    assert not list(run.path.rglob("*.part")), "no torn file is left"


def test_the_same_from_python(whole: Run, faces: Path, tmp_path: Path) -> None:
    import diffinf as package

    run = package.repair_dataset(
        faces,
        out=tmp_path / "run",
        until="score",
        preset="tiny",
        device="cpu",
        data={"id": "id", "split": "split", "identity": "identity"},
        classifier={"steps": 24},
        compare={"arms": ["baseline", "diffinf"]},
    )
    assert run.scores.read_bytes() == whole.scores.read_bytes()
    assert json.loads(run.summary.read_text())["arms"] == {}


def test_two_processes_score_as_one_and_one_repairs(whole: Run, faces: Path, tmp_path: Path) -> None:
    diffinf("train", faces, "--out", tmp_path / "run", *OPTIONS)
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "diffinf")
    command = [sys.executable, *launch, "repair", str(tmp_path / "run"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)  # one of the two prints, and the other nothing
    assert summary["flagged"] == summary["edited"] + summary["kept"]
    alone, both = (read_table(path / "scores.parquet") for path in (whole.path, tmp_path / "run"))
    assert both["id"] == alone["id"]
    np.testing.assert_allclose(both["self_influence"], alone["self_influence"], rtol=1e-5)
    np.testing.assert_allclose(both["score"], alone["score"], rtol=1e-4, atol=1e-4)


def test_figures_of_other_scores_go_when_samples_are_scored_anew(whole: Run, tmp_path: Path) -> None:
    shutil.copytree(whole.path, tmp_path / "run")
    diffinf("detect", tmp_path / "run")
    assert (tmp_path / "run" / "detection.png").stat().st_size > 1000
    diffinf("score", tmp_path / "run")
    assert (tmp_path / "run" / "detection.json").exists(), "nothing was scored anew"
    diffinf("score", tmp_path / "run", "--set", "influence.share=0.1")
    assert not (tmp_path / "run" / "detection.json").exists()
