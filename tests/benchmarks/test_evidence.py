"""The comparison: choice on validation, tests, gaps, costs, knobs, studies, and what the arms are made of."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

from benchmarks.fake_arms import CLASSES, FakeArms, trainings
from diffinf.config import ClassifierConfig, RunConfig
from diffinf.data.rendered.factors import FACTORS, FaceFactors
from diffinf.data.rendered.sample import sample_faces
from diffinf.data.rendered.tasks import CLASS_NAMES, class_names, true_labels
from diffinf.data.rendered.write import render_dataset
from diffinf.errors import UserError
from diffinf.evaluate.gain import editing_gap_closed, paired_difference
from diffinf.files import read_json, read_table, save_tensors, write_table
from diffinf.run import Run

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import evidence
import evidence_material as material
import evidence_studies as studies
import evidence_training as training
from evidence_results import Trained, choose, costs, on_validation_truth, read_trained, results
from evidence_show import draw_arms, show

NAMES = tuple("abcde")
ALL = list(range(CLASSES))
ARMS = [*evidence.ARMS, "sce", "diffinf+gce", "diffinf-paper"]
SKILLS = {
    "baseline": 0.4,
    "gce": 0.5,
    "sce": 0.45,
    "elr": 0.3,
    "diffinf": 0.6,
    "diffinf+gce": 0.75,
    "diffinf-paper": 0.9,
    "oracle-edit": 0.9,
    "clean": 0.95,
}


def trained_by(arms: FakeArms, names: list[str], directory: Path, **sizes: int) -> Trained:
    table = trainings(arms, names, directory, **sizes)
    return read_trained(directory, table, np.arange(CLASSES).repeat(4))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    arms = FakeArms(SKILLS, diverged=(("gce", 1), ("sce", 0), ("sce", 1), ("sce", 2)), seconds={"gce": 6.0})
    return trained_by(arms, ARMS, tmp_path_factory.mktemp("arms"))


@pytest.fixture(scope="module")
def found(trained: Trained) -> dict[str, Any]:
    timings = {"crossfit": 3.0, "influence": 1.0, "score": 1.0, "repair": 10.0, "train": 1.0, "compare": 99.0}
    return results(trained, ALL[:4], NAMES, timings, resamples=200)


def test_the_choice_is_made_on_validation_alone(tmp_path: Path) -> None:
    # On the test images everything is the other way round.
    arms = FakeArms(
        {"diffinf": 0.9, "diffinf+gce": 0.1, "gce": 0.9, "sce": 0.1},
        {"diffinf": 0.3, "diffinf+gce": 0.8, "gce": 0.3, "sce": 0.8, "diffinf-paper": 0.95, "baseline": 0.99},
    )
    names = ["baseline", "gce", "sce", "diffinf", "diffinf+gce", "diffinf-paper"]
    chosen = choose(trained_by(arms, names, tmp_path), ALL)
    assert (chosen["diffinf"], chosen["robust"]) == ("diffinf+gce", "sce")
    assert chosen["validation"].keys() == set(names)


def test_nothing_is_chosen_where_there_is_nothing(tmp_path: Path) -> None:
    trained = trained_by(FakeArms(), ["baseline", "filter"], tmp_path)
    assert choose(trained, ALL)["diffinf"] is None and choose(trained, ALL)["robust"] is None
    found = results(trained, ALL, NAMES, {}, resamples=20)
    assert found["tests"] is None and found["arms"]["filter"]["gap_closed"] is None
    show(found, Console(quiet=True))


def test_other_pictures_to_test_on(trained: Trained) -> None:
    """The validation images under the truth: as the same arms, tested on them, would be measured."""
    truth = np.roll(trained.validation_labels, 7)
    found = on_validation_truth(trained, truth, ALL[:4], resamples=100)
    stack = {arm: np.stack([trained.validation[arm][s] for s in range(3)]) for arm in ("diffinf", "filter")}
    expected = paired_difference(*stack.values(), truth, classes=ALL[:4], resamples=100)
    row = found["minus"]["diffinf"]["filter"]
    assert row["estimate"] == expected.estimate and row["p_value"] == expected.p_value <= row["p_holm"]
    assert set(found["minus"]["diffinf"]) == {"baseline", "filter", "relabel", "resample", "gce"}
    assert found["n"] == len(truth) and "sce" not in found["arms"] and "filter" not in found["minus"]


def test_results_are_those_of_the_measures(trained: Trained, found: dict[str, Any]) -> None:
    assert found["chosen"]["diffinf"] == "diffinf+gce" and found["chosen"]["robust"] == "gce"
    stack = {arm: np.stack([seeds[s] for s in sorted(seeds)]) for arm, seeds in trained.test.items() if seeds}
    expected = paired_difference(
        stack["diffinf+gce"], stack["filter"], trained.labels, classes=ALL[:4], resamples=200
    )
    won = found["tests"]["confirmatory"]["filter"]
    assert won["estimate"] == expected.estimate and won["p_value"] == expected.p_value
    assert set(found["tests"]["confirmatory"]) == {"baseline", "filter", "relabel", "resample", "gce"}
    assert won["won"] and won["p_holm"] >= won["p_value"] and found["tests"]["editing_helps"] is True
    gap = editing_gap_closed(
        *(stack[arm] for arm in ("diffinf", "baseline", "oracle-edit")),
        trained.labels,
        classes=ALL[:4],
        resamples=200,
    )
    assert found["arms"]["diffinf"]["gap_closed"] == gap.to_dict()
    assert found["arms"]["diffinf"]["as_trained"]["recalls"].keys() == set(NAMES)
    assert "a, b, c, d" in found["primary"]
    json.dumps(found, allow_nan=False)


def test_a_diverged_arm_is_named_with_its_seeds_and_pairs_go_without(found: dict[str, Any]) -> None:
    assert found["arms"]["gce"]["diverged"] == [1] and found["arms"]["gce"]["seeds"] == [0, 2]
    assert found["tests"]["confirmatory"]["gce"]["seeds"] == 2
    assert found["arms"]["sce"]["diverged"] == [0, 1, 2] and "as_trained" not in found["arms"]["sce"]


def test_an_arm_that_is_worse_does_not_win(tmp_path: Path) -> None:
    skills = {"diffinf": 0.3, "baseline": 0.6, "resample": 0.6, "roundtrip": 0.1}
    trained = trained_by(FakeArms(skills), list(skills), tmp_path)
    tests = results(trained, ALL, NAMES, {}, resamples=200)["tests"]
    assert tests["confirmatory"]["baseline"]["p_holm"] < 0.05 and not tests["confirmatory"]["baseline"]["won"]
    assert tests["editing_helps"] is False and tests["missing"] == ["filter", "relabel"]


def test_adjusting_takes_the_prior_of_each_arms_own_labels(tmp_path: Path) -> None:
    table = trainings(FakeArms(), ["baseline", "filter"], tmp_path, seeds=1)
    record = tmp_path / "predictions" / "filter-0.json"
    record.write_text(json.dumps({"label_counts": [8, 1, 1, 1, 1]}))
    trained = read_trained(tmp_path, table, np.arange(CLASSES).repeat(4))
    freed = trained.adjusted().test
    level = freed["baseline"][0] - trained.test["baseline"][0]
    assert level == pytest.approx(np.full(level.shape, np.log(CLASSES))), "as many of each: nothing moves"
    moved = freed["filter"][0] - trained.test["filter"][0]
    assert moved[0] == pytest.approx(-np.log(np.array([8, 1, 1, 1, 1]) / 12))


def test_costs_are_in_trainings_of_the_baseline(found: dict[str, Any], trained: Trained) -> None:
    cost = {arm: row["cost"] for arm, row in found["arms"].items()}
    assert cost["baseline"] == {"training": 1, "whole": 1}
    assert cost["gce"] == {"training": 3, "whole": 3}
    assert cost["filter"] == {"training": 1, "whole": 1 + 6 / 2}
    assert cost["diffinf"] == cost["roundtrip"] == {"training": 1, "whole": 1 + 16 / 2}
    assert cost["oracle-edit"]["whole"] == 1
    assert costs(Trained(**{**vars(trained), "seconds": {}}), {}) == {}


def test_table_and_chart(found: dict[str, Any], tmp_path: Path) -> None:
    console = Console(width=200, record=True, quiet=True)
    show(found, console)
    draw_arms(found, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 5000


# What the arms are made of


def workspace(**changes: Any) -> Any:
    """Ten photographs, all of one grey each, the first five flagged; their truth is their row mod 2."""
    shade = torch.arange(10, dtype=torch.uint8)
    labels = torch.tensor([1, 0, 1, 0, 2, 1, 0, 1, 0, 1])
    ids = np.array([f"p{row}" for row in range(14)])
    fields: dict[str, Any] = {
        "ids": ids[:10],
        "labels": labels,
        "images": shade[:, None, None, None].expand(10, 1, 4, 4).clone(),
        "rows": np.arange(10),
        "seed": 0,
        "config": SimpleNamespace(dataset="x.parquet"),
        "truth": lambda: np.arange(10) % 2,
        "images_of": lambda rows: torch.as_tensor(rows)[:, None, None, None].expand(-1, 1, 4, 4).byte(),
        "dataset": SimpleNamespace(
            truth=dict, identities=None, ids=ids, rows=lambda split: np.arange(10, 14), class_names=NAMES
        ),
        "rows_of": lambda ids: np.array([int(i[1:]) for i in ids]),
    }
    return SimpleNamespace(**{**fields, **changes})


def with_scores(folder: Path, **columns: Any) -> Run:
    run = Run(folder)
    write_table(run.scores, pa.table({name: pa.array(list(values)) for name, values in columns.items()}))
    return run


def test_photographs_give_way_to_training_images_that_fit(tmp_path: Path) -> None:
    here = workspace(run=with_scores(tmp_path, flagged=[True] * 5 + [False] * 5))
    found = material.oracle_images(here)
    assert sorted(found) == [0, 1, 2, 3], "label 2 fits no image: the sample stays as it is"
    for row, image in found.items():
        shade = int(image[0, 0, 0])
        assert shade < 10 and shade % 2 == int(here.labels[row]), "a training image whose truth is the label"
    again = material.oracle_images(here)
    assert all(torch.equal(found[row], again[row]) for row in found)
    others = [material.oracle_images(workspace(run=here.run, seed=seed)) for seed in range(1, 6)]
    assert any(not torch.equal(found[0], other[0]) for other in others)


def test_rendered_faces_are_rendered_again_with_the_attribute_moved(tmp_path: Path) -> None:
    factors, _ = sample_faces(10, 0, "expression", identities=5, similarity=0.0, nuisance=1.0)
    truth = {f"truth_{name}": getattr(factors, name) for name in FACTORS}
    names = CLASS_NAMES["expression"]
    given = (true_labels(factors, "expression") + 1) % 5
    dataset = SimpleNamespace(truth=lambda: truth, class_names=names, image_size=24)
    run = with_scores(tmp_path, flagged=[True, True] + [False] * 8)
    here = workspace(run=run, dataset=dataset, labels=torch.from_numpy(given))
    found = material.oracle_images(here)
    assert sorted(found) == [0, 1] and found[0].shape == (3, 24, 24)
    read = material.rendered_factors(here)
    assert isinstance(read, FaceFactors) and np.array_equal(read.yaw, factors.yaw)
    same = material.oracle_images(
        workspace(run=run, dataset=dataset, labels=torch.from_numpy(true_labels(factors, "expression")))
    )
    assert not torch.equal(found[0], same[0]), "the label decides"


def test_flags_of_the_truth_and_of_self_influence(tmp_path: Path) -> None:
    influence = [0.1, 0.2, np.inf, 3, 0, 0, 9, 0, 0, 0]
    run = with_scores(tmp_path, flagged=[True] * 3 + [False] * 7, self_influence=influence)
    here = workspace(run=run)
    assert material.influential_ids(here) == ["p2", "p3", "p6"], "as many as the run flagged"
    wrong = (np.arange(10) % 2) != here.labels.numpy()
    assert material.wrong_ids(here) == here.ids[wrong].tolist()
    with pytest.raises(UserError, match="no column truth_label"):
        material.wrong_ids(workspace(truth=lambda: None))


def test_a_run_under_other_flags_keeps_what_does_not_depend_on_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Run.create(tmp_path / "run", RunConfig(dataset="d", device="cpu"), "f" * 64)
    for stage in ("score", "train-autoencoder", "repair", "refine"):
        base.stage(stage, f"key of {stage}", lambda: None)
    for file in ("crossfit/x", "autoencoder/x", "repair/x", "edits.parquet", "compare/x"):
        (base.path / file).parent.mkdir(exist_ok=True)
        (base.path / file).write_text("x")
    asked: list[RunConfig] = []

    def execute(config: RunConfig, *, until: str, out: Path) -> Run:
        asked.append(config)
        run = Run(out)
        assert (out / "crossfit/x").exists() and run.is_done("train-autoencoder")
        assert not (out / "repair").exists() and not (out / "compare").exists() and not run.is_done("refine")
        write_table(run.edits, pa.table({"id": ["p1", "p2"], "status": ["edited", "kept"]}))
        save_tensors(run.repair / "pictures.safetensors", {"edited": torch.ones(2, 1, 4, 4).byte()})
        return run

    monkeypatch.setattr(material, "execute", execute)
    leftover = tmp_path / ".flags.part"
    leftover.mkdir()
    (leftover / "half").write_text("a copy that was killed")
    here = workspace(run=base, config=base.config)
    found = material.edits_under_flags(here, ["p2", "p1"], tmp_path / "flags")
    assert list(found) == [1] and not (tmp_path / "flags" / "half").exists()
    assert asked[0].influence.flags is not None and asked[0].repair.spare == 0
    assert asked[0].influence.flags.read_text().split() == ["p1", "p2"]
    assert base.is_done("repair"), "the run itself is left alone"
    assert material.edits_under_flags(here, [], tmp_path / "none") == {} and len(asked) == 1


def test_only_what_the_arms_ask_for_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {"images_test": torch.zeros(1), "images_validation": torch.zeros(1)}
    apart: list[str] = []
    monkeypatch.setattr(material, "arm_material", lambda here, arms: dict(given))
    monkeypatch.setattr(material, "check_apart", lambda config, dataset: apart.append("files"))
    monkeypatch.setattr(material, "check_pictures", lambda here, images: apart.append("pictures"))
    monkeypatch.setattr(material, "edits_under_flags", lambda here, ids, folder: {folder.name: ids})
    monkeypatch.setattr(material, "wrong_ids", lambda here: ["w"])
    monkeypatch.setattr(material, "influential_ids", lambda here: ["i"])
    found = material.read_material(workspace(), ["baseline", "true-flags", "diffinf-paper+gce"], tmp_path)
    assert found["true_flag_edits"] == {"true-flags": ["w"]} and found["paper_edits"] == {"paper": ["i"]}
    assert apart == ["files", "pictures"]
    assert material.read_material(workspace(), ["baseline", "gce"], tmp_path).keys() == given.keys()
    with pytest.raises(UserError, match="no column truth_label"):
        material.read_material(workspace(truth=lambda: None), ["clean"], tmp_path)
    given["images_validation"] = None
    with pytest.raises(UserError, match="validation, to choose on"):
        material.read_material(workspace(), ["baseline"], tmp_path)


# Knobs, studies, the command


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> FakeArms:
    """Trainings that cost nothing, of material that is two splits of labels."""
    arms = FakeArms(SKILLS)
    labels = torch.arange(200) % CLASSES
    splits = {"labels_test": labels, "images_test": "test", "labels_validation": labels.flip(0)}
    monkeypatch.setattr(training, "run_arms", arms)
    monkeypatch.setattr(training, "read_material", lambda *_: {**splits, "images_validation": "validation"})
    monkeypatch.setattr(studies, "workspace_of", lambda run: HERE)
    return arms


HERE = workspace(labels=torch.arange(50) % CLASSES)
BUDGET = training.Budget(ClassifierConfig(steps=5), seeds=2)


def test_knobs_are_searched_without_the_test_images(trainer: FakeArms, tmp_path: Path) -> None:
    figures = training.tune(HERE, ["gce", "elr"], BUDGET, tmp_path, ALL)
    assert [call["images_test"] for call in trainer.calls] == ["validation"] * 4
    assert all("images_validation" not in call for call in trainer.calls)
    assert [call["compare"].knobs["gce"] for call in trainer.calls] == list(training.GRID["gce"])
    assert all(call["compare"].seeds == 1 for call in trainer.calls)
    assert figures["elr"].keys() == {f"{value:g}" for value in training.GRID["elr"]}


def test_the_same_budget_for_every_method() -> None:
    assert {len(values) for values in training.GRID.values()} == {4}
    assert training.best_knobs({"a": {"0.5": 0.7, "10": 0.9, "2": 0.9}, "b": {}}) == {"a": 2}


def test_arms_are_trained_alike_and_their_predictions_read_back(trainer: FakeArms, tmp_path: Path) -> None:
    budget = training.Budget(ClassifierConfig(steps=5), seeds=2, workers=1, knobs={"gce": 0.3})
    trained = training.train_arms(HERE, ["baseline", "gce"], budget, tmp_path)
    assert list(trained.test) == ["baseline", "gce"] and list(trained.validation["gce"]) == [0, 1]
    assert trained.counts["baseline"].tolist() == [10] * CLASSES
    asked = trainer.calls[0]
    assert asked["compare"].knobs == {"gce": 0.3} and asked["compare"].workers == 1
    assert asked["config"].steps == 5 and asked["directory"] == tmp_path / "arms"


def fake_case(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[studies.Case]:
    run = with_scores(folder / "run", flagged=[True, False, True])
    write_table(run.edits, pa.table({"status": ["edited", "kept"]}))
    seen: list[studies.Case] = []

    def repaired(case: studies.Case, *_: Any) -> tuple[Run, Path]:
        seen.append(case)
        return run, folder / case.name

    monkeypatch.setattr(studies, "_repaired", repaired)
    monkeypatch.setattr(studies, "RESAMPLES", 30)
    return seen


@pytest.mark.parametrize("name", ["clean", "share"])
def test_a_study_writes_figures_of_every_case(
    name: str, trainer: FakeArms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = fake_case(tmp_path, monkeypatch)
    found = studies.run_study(name, BUDGET, tmp_path, [], "tiny")
    study = studies.STUDIES[name]
    assert tuple(seen) == study.cases
    assert read_json(tmp_path / f"{name}.json") == json.loads(json.dumps(found))
    assert (tmp_path / f"{name}.png").stat().st_size > 5000
    case = found["cases"][0]
    assert (case["n"], case["flagged"], case["edited"]) == (3, 2, 1)
    assert case["arms"].keys() == set(study.arms)
    gain = case["arms"]["diffinf"]["minus_baseline"]
    assert gain["estimate"] > 0 if "baseline" in study.arms else gain is None
    studies.show_study(found, Console(quiet=True))


def test_a_class_is_made_rare_in_training_alone(tmp_path: Path) -> None:
    source = render_dataset(tmp_path / "all.parquet", n=200, size=24, identities=20)
    studies._thin(source, tmp_path / "thin.parquet", 0.25)
    before, after = pq.read_table(source), pq.read_table(tmp_path / "thin.parquet")
    assert after.schema.metadata == before.schema.metadata
    gone = set(before["id"].to_pylist()) - set(after["id"].to_pylist())
    code = class_names("expression").index(studies.RARE)

    def rows_of(table: pa.Table) -> list[str]:
        labelled = zip(
            table["id"].to_pylist(), table["split"].to_pylist(), table["label"].to_pylist(), strict=True
        )
        return [name for name, split, label in labelled if split == "train" and label == code]

    assert gone < set(rows_of(before)) and len(rows_of(after)) == round(0.25 * len(rows_of(before))) > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "one of the arguments --rendered --data is required"),
        (["--rendered", "--studies", "--study", "noise,weather"], "weather: no such study"),
        (["--rendered", "--arms", "baseline,diffinf+luck"], "there is no arm 'diffinf+luck'"),
        (["--data", "x", "--studies"], "say --rendered"),
        (["--rendered", "--tune", "--studies"], "not allowed with argument"),
    ],
)
def test_options_that_do_not_fit(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        evidence.main(arguments)
    assert stopped.value.code == 2 and words in capsys.readouterr().err


def test_a_run_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        evidence.main(["--rendered", "--run", str(tmp_path), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2 and "not a diffinf run directory" in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_way_on_rendered_faces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A repair and two more under other flags are real, the trainings of the arms are not."""
    from diffinf.data.rendered.write import render_dataset

    arms = FakeArms(SKILLS)
    monkeypatch.setattr(training, "run_arms", arms)
    render_dataset(tmp_path / "faces.parquet", n=120, size=32, identities=30, rate=0.3)
    loose = ("judge_margin=0", "spare=0", "roundtrip_limit=2", "influence_quantile=1", "identity=none")
    command = ["--rendered", "--out", str(tmp_path), "--preset", "tiny", "--set", "device=cpu"]
    command += ["--set", "autoencoder.weights=null", "--set", "compare.workers=1", "--seeds", "2"]
    command += ["--knobs", str(tmp_path / "knobs.json")]
    command += [part for setting in loose for part in ("--set", f"repair.{setting}")]
    evidence.main([*command, "--tune"])
    assert read_json(tmp_path / "knobs.json")["rendered"]["knobs"].keys() == training.GRID.keys()
    evidence.main([*command, "--arms", "all"])
    assert "editing helps" in capsys.readouterr().out
    report = read_json(tmp_path / "evidence.json")
    assert str(tmp_path) not in json.dumps(report) and (tmp_path / "evidence.png").exists()
    trained_with = arms.calls[-1]
    assert f"diffinf+{report['results']['chosen']['robust']}" in trained_with["compare"].arms
    assert trained_with["compare"].knobs == report["knobs"] and report["knobs"]
    flagged = read_table(tmp_path / "true-flags" / "scores.parquet")["flagged"].to_numpy()
    wrong = trained_with["truth"].numpy() != trained_with["labels_train"].numpy()
    assert (flagged == wrong).all() and set(trained_with["true_flag_edits"]) <= set(np.flatnonzero(wrong))
    assert sorted(trained_with["oracle_images"]) == np.flatnonzero(trained_with["flagged"]).tolist()
    # Taken from a finished run, nothing is repaired again.
    before = (tmp_path / "run" / "events.jsonl").read_bytes()
    evidence.main([*command[:2], str(tmp_path / "again"), "--run", str(tmp_path / "run"), "--seeds", "1"])
    assert (tmp_path / "run" / "events.jsonl").read_bytes() == before
