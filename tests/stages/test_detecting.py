"""`diffinf detect`: every score against the truth."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from diffinf.cli import main
from diffinf.errors import UserError
from diffinf.files import write_table
from diffinf.stages.detecting import detect

N = 60


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    """A table in which "score" is perfect, "loss" is its opposite and "margin" is missing."""
    wrong = np.arange(N) % 3 == 0
    columns = {
        "id": [f"face{i:03d}" for i in range(N)],
        "label": np.where(wrong, "sad", "happy").tolist(),
        "score": wrong + np.linspace(0, 0.5, N),
        "self_influence": np.where(wrong, np.inf, 1.0),
        "flagged": wrong,
        "loss": -wrong.astype(float),
        "margin": pa.nulls(N, pa.float64()),
    }
    write_table(tmp_path / "scores.parquet", pa.table(columns), ("happy", "sad"))
    return tmp_path / "scores.parquet"


def truth_file(path: Path, column: str, values: list[object]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("id", column), *((f"face{i:03d}", value) for i, value in enumerate(values))])
    return path


def test_scores_are_measured_against_names_or_flags_of_truth(scores: Path, tmp_path: Path) -> None:
    by_name = detect(scores, truth_file(tmp_path / "a.csv", "truth", ["happy"] * N))
    wrong = ["true" if i % 3 == 0 else "false" for i in range(N)]
    by_flag = detect(scores, truth_file(tmp_path / "b.csv", "wrong", wrong))
    for found in (by_name, by_flag):
        assert next(iter(found)) == "score" and "margin" not in found
        assert found["score"].average_precision == pytest.approx(1)
        assert found["self_influence"].average_precision == pytest.approx(1)  # infinite is most suspicious
        assert found["score"].precision_at_flagged == 1 and found["loss"].precision_at_flagged < 0.1
        assert found["loss"].average_precision == pytest.approx(1 / 3) and found["loss"].roc_auc == 0
        assert found["score"].per_class["sad"].base_rate == 1


def test_samples_without_truth_are_left_out(scores: Path, tmp_path: Path) -> None:
    found = detect(scores, truth_file(tmp_path / "a.csv", "truth_label", ["happy"] * 30))
    assert found["score"].n == 30


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("opinion", ["happy"] * N, "found id, opinion"),
        ("wrong", ["perhaps"] * N, "true or false"),
        ("truth", ["nobody"] * N, "face000: truth is 'nobody'; expected one of happy, sad"),
        ("wrong", ["true"] * N, "every label"),
        ("truth", [], "none of its ids"),
    ],
)
def test_bad_truth_is_named(
    scores: Path, tmp_path: Path, column: str, values: list[object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        detect(scores, truth_file(tmp_path / "a.csv", column, values))


def test_unknown_truth_is_no_wrong_label_and_ids_stay_text(scores: Path, tmp_path: Path) -> None:
    found = detect(scores, truth_file(tmp_path / "a.csv", "truth", ["happy"] * 40 + [""] * 20))
    assert found["score"].n == 40
    (tmp_path / "b.csv").write_text("id,truth\nface000,happy\nface000,sad\n")
    with pytest.raises(UserError, match="face000 occurs more than once"):
        detect(scores, tmp_path / "b.csv")
    table = pa.table(
        {"id": ["007", "008"], "label": ["sad", "happy"], "score": [1.0, 0.0], "flagged": [True, False]}
    )
    write_table(tmp_path / "numbers.parquet", table, ("happy", "sad"))
    (tmp_path / "c.csv").write_text("id,truth\n007,happy\n008,happy\n")
    assert detect(tmp_path / "numbers.parquet", tmp_path / "c.csv")["score"].average_precision == 1


def test_without_truth_it_says_where_to_give_some(scores: Path) -> None:
    with pytest.raises(UserError, match="--truth"):
        detect(scores)


def test_command_prints_json_and_draws(
    scores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = truth_file(tmp_path / "a.csv", "truth", ["happy"] * N)
    picture = tmp_path / "curves.png"
    with pytest.raises(SystemExit) as stop:
        main(["detect", str(scores), "--truth", str(truth), "--picture", str(picture), "--json"])
    assert stop.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert found["score"]["average_precision"] == pytest.approx(1)
    with Image.open(picture) as image:
        assert min(image.size) > 300
