"""Rendered datasets: annotators, the Parquet file, presets."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffinf.config import DataConfig
from diffinf.data import open_dataset
from diffinf.data.rendered import (
    FACTORS,
    PRESETS,
    annotate,
    factors_from_table,
    render_dataset,
    render_faces,
    sample_dataset,
    sample_faces,
    true_labels,
)
from diffinf.data.rendered.annotate import Noise
from diffinf.data.rendered.tasks import CLASS_NAMES, Task
from diffinf.errors import UserError

TASKS = tuple(CLASS_NAMES)


@given(
    task=st.sampled_from(TASKS),
    noise=st.sampled_from(["symmetric", "asymmetric", "confounded"]),
    rate=st.floats(0.02, 0.45),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_the_realised_rate_is_the_asked_one(task: Task, noise: Noise, rate: float, seed: int) -> None:
    factors, _ = sample_faces(1000, seed, task, identities=100)
    labels = annotate(factors, task, noise, rate, seed)
    assert (labels != true_labels(factors, task)).mean() == pytest.approx(rate, abs=0.005)
    np.testing.assert_array_equal(labels, annotate(factors, task, noise, rate, seed))


@pytest.mark.parametrize("task", TASKS)
def test_without_noise_labels_are_true(task: Task) -> None:
    factors, _ = sample_faces(200, 1, task, identities=20)
    for noise, rate in (("none", 0.3), ("confounded", 0.0)):
        np.testing.assert_array_equal(annotate(factors, task, noise, rate, 0), true_labels(factors, task))  # type: ignore[arg-type]


def test_confounded_errors_are_near_boundaries_and_follow_the_picture() -> None:
    factors, _ = sample_faces(6000, 2, "expression", identities=600)
    truth = true_labels(factors, "expression")
    wrong = annotate(factors, "expression", "confounded", 0.27, 2) != truth
    shown = np.maximum.reduce([np.abs(factors.valence), factors.anger, factors.surprise])
    expressive = truth != 1
    weak, strong = expressive & (shown < 0.5), expressive & (shown > 0.8)
    assert wrong[weak].mean() > 2 * wrong[strong].mean()
    labels = annotate(factors, "expression", "confounded", 0.27, 2)
    called_surprised = labels[truth == 1] == 4
    speaking = factors.mouth_open[truth == 1] > 0.5
    assert called_surprised[speaking].mean() > 1.5 * called_surprised[~speaking].mean()


def test_asymmetric_errors_go_to_one_class() -> None:
    factors, _ = sample_faces(500, 0, "expression", identities=50)
    truth = true_labels(factors, "expression")
    labels = annotate(factors, "expression", "asymmetric", 0.4, 0)
    for k in range(5):
        assert len(set(labels[(truth == k) & (labels != truth)])) == 1


def test_bad_annotators_are_refused() -> None:
    factors, _ = sample_faces(5, 0, "age", identities=5)
    with pytest.raises(ValueError, match="noise"):
        annotate(factors, "age", "loud", 0.1, 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rate"):
        annotate(factors, "age", "symmetric", 1.0, 0)


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render_dataset(
        tmp_path_factory.mktemp("rendered"), n=200, size=32, identities=40, rate=0.3, seed=5
    )


def test_the_file_reads_with_datasets(parquet: Path, tmp_path: Path) -> None:
    import datasets

    loaded = datasets.load_dataset("parquet", data_files=str(parquet), split="train", cache_dir=str(tmp_path))
    assert isinstance(loaded.features["image"], datasets.Image)
    assert loaded.features["label"].names == list(CLASS_NAMES["expression"])
    assert loaded[3]["image"].size == (32, 32)
    assert len(loaded) == 200


def test_the_splits_hold_different_people_and_test_holds_the_truth(parquet: Path) -> None:
    table = pq.read_table(parquet)
    split = np.asarray(table["split"])
    people = {
        name: set(np.asarray(table["identity"])[split == name]) for name in ("train", "validation", "test")
    }
    assert [np.sum(split == name) for name in people] == [120, 20, 60]
    assert sum(map(len, people.values())) == len(set.union(*people.values())) == 40
    labels = np.asarray(CLASS_NAMES["expression"])[np.asarray(table["label"])]
    wrong = labels != np.asarray(table["truth_label"])
    assert not wrong[split == "test"].any()
    assert wrong[split != "test"].mean() == pytest.approx(0.3, abs=0.01)
    ids = table["id"].to_pylist()
    assert ids == sorted(set(ids))


def test_truth_columns_redraw_the_pictures(parquet: Path) -> None:
    table = pq.read_table(parquet)
    assert {f"truth_{name}" for name in FACTORS} <= set(table.column_names)
    factors = factors_from_table(table)
    stored = np.asarray(Image.open(io.BytesIO(table["image"][7]["bytes"].as_py())))
    np.testing.assert_array_equal(render_faces(factors.take([7]), 32)[0].transpose(1, 2, 0), stored)
    with pytest.raises(UserError, match="truth_age"):
        factors_from_table(table.drop_columns(["truth_age"]))


def test_same_arguments_same_bytes(parquet: Path, tmp_path: Path) -> None:
    again = render_dataset(tmp_path / "again.parquet", n=200, size=32, identities=40, rate=0.3, seed=5)
    assert again.read_bytes() == parquet.read_bytes()
    with pytest.raises(UserError, match="exists"):
        render_dataset(again)
    other = render_dataset(again, n=200, size=32, identities=40, rate=0.3, seed=6, overwrite=True)
    assert other.read_bytes() != parquet.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 10}, "n is 10"),
        ({"size": 8}, "size is 8"),
        ({"rate": 0.9}, "rate is 0.9"),
        ({"identities": 2}, "identities is 2"),
        ({"similarity": 1.0}, "similarity"),
        ({"task": "smell"}, "unknown task"),
        ({"noise": "loud"}, "unknown noise"),
        ({"preset": "bench-0"}, "bench-1"),
    ],
)
def test_bad_arguments_are_the_users(arguments: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        render_dataset(tmp_path, **arguments)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("n", "identities"), [(50, 3), (50, 50), (51, 17), (200, 199)])
def test_few_or_many_people(n: int, identities: int, tmp_path: Path) -> None:
    table = pq.read_table(render_dataset(tmp_path, n=n, size=24, identities=identities))
    assert table.num_rows == n
    assert len(set(table["identity"].to_pylist())) <= identities


def test_bench_1_is_frozen() -> None:
    plan = PRESETS["bench-1"]
    assert (plan.task, plan.size, plan.pictures, plan.noise) == (
        "expression",
        64,
        (4000, 600, 2000),
        "confounded",
    )
    faces = sample_dataset(plan, seed=0)
    annotated = faces.splits != "test"
    assert 0.25 <= (faces.labels != faces.truth)[annotated].mean() <= 0.30
    assert len(set(faces.identities[faces.splits == "train"])) >= 400
    digest = hashlib.sha256(faces.labels.astype("<i8").tobytes() + faces.truth.astype("<i8").tobytes())
    assert digest.hexdigest()[:16] == "1d37df30ca6504fc"


def test_a_rendered_file_is_opened_with_its_splits_and_people(tmp_path: Path) -> None:
    path = render_dataset(tmp_path / "faces.parquet", n=80, size=32, identities=20)
    found = open_dataset(path, DataConfig())
    named = open_dataset(path, DataConfig(id="id", split="split", identity="identity"))
    assert found.fingerprint == named.fingerprint
    assert found.identities is not None and found.identities.tolist() == named.identities.tolist()  # type: ignore[union-attr]
    assert found.splits.tolist() == pq.read_table(path)["split"].to_pylist()
