import numpy as np
import pyarrow as pa
import pytest
from fake_run import ARMS, CLASSES, make_run
from test_report_page import page, plain, section

from diffinf.files import load_tensors, read_json, read_table, save_tensors, write_json, write_table
from diffinf.report import plots
from diffinf.report.groups import warning
from diffinf.run import Run
from diffinf.stages import summary
from diffinf.stages.summary import write_summary


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run whose flags fall on women, with a column of groups and one without any value."""
    path = make_run(tmp_path_factory.mktemp("runs") / "grouped")
    scores = read_table(path / "scores.parquet").to_pylist()
    draw = np.random.default_rng(0).random(len(scores))
    gender = [
        None if index % 16 == 0 else "f" if row["flagged"] or draw[index] < 0.3 else "m"
        for index, row in enumerate(scores)
    ]
    tested = load_tensors(path / "compare" / "test.safetensors")["labels"].tolist()
    rows = [
        {"id": row["id"], "label": row["label"], "split": "train", "group_gender": value}
        for row, value in zip(scores, gender, strict=True)
    ]
    rows += [
        {"id": f"t{index}", "label": CLASSES[code], "split": "test", "group_gender": ("f", "m")[index % 2]}
        for index, code in enumerate(tested)
    ]
    table = pa.Table.from_pylist([{**row, "group_empty": None} for row in rows])
    empty = table.schema.get_field_index("group_empty")
    table = table.set_column(empty, "group_empty", pa.nulls(len(table), pa.string()))
    write_table(path / "dataset.parquet", table, CLASSES)
    write_summary(Run(path))
    return Run(path)


def test_the_summary_counts_by_group(run):
    found = read_json(run.summary)
    assert set(found["groups"]) == {"gender", "empty"} and found["groups"]["empty"] == {}
    women, men = (found["groups"]["gender"][name] for name in ("f", "m"))
    gender = {row["id"]: row["group_gender"] for row in read_table(run.path / "dataset.parquet").to_pylist()}
    scores, edits = read_table(run.scores).to_pylist(), read_table(run.edits).to_pylist()
    assert women["n"] == sum(gender[row["id"]] == "f" for row in scores)
    assert women["flagged"] == sum(gender[row["id"]] == "f" and row["flagged"] for row in scores)
    assert women["edited"] == sum(gender[row["id"]] == "f" and row["status"] == "edited" for row in edits)
    assert men["flagged"] == 0 and men["flagged_ci"][0] == 0 < men["flagged_ci"][1]
    assert set(women["accuracy"]) == set(ARMS) > {"baseline", "diffinf"}
    for arm in ARMS:
        figures = women["accuracy"][arm]
        assert figures["n"] == 60 and figures["ci"][0] <= figures["accuracy"] <= figures["ci"][1]
    warned = {(row["column"], row["group"], row["measure"]) for row in found["group_warnings"]}
    assert ("gender", "f", "flagged") in warned and all(group == "f" for _, group, _ in warned)


def test_accuracies_are_resampled_once_for_the_same_predictions(run, monkeypatch):
    before, asked = read_json(run.summary), []
    monkeypatch.setattr(summary, "accuracy_by_group", lambda *arrays: asked.append(arrays) or {})
    assert write_summary(run)["groups"] == before["groups"] and not asked
    file = next((run.compare / "predictions").iterdir())
    save_tensors(file, {"logits": -load_tensors(file)["logits"]})
    assert write_summary(run)["groups"] != before["groups"] and len(asked) == 2 * len(ARMS)
    save_tensors(file, {"logits": -load_tensors(file)["logits"]})
    write_json(run.summary, before)


def test_the_page_shows_the_groups_and_warns(run, monkeypatch):
    monkeypatch.setattr(plots, "_svg", lambda figure: "data:image/svg+xml;base64,")
    text = plain(section(page(run.path), "groups"))
    assert "Flags fall on gender = f and on none of the others" in text and "p < 0.001" in text
    assert "accuracy before" in text and "median score" in text
    assert "Accuracy of all arms by gender" in text and "f (60)" in text and "empty" not in text


def test_without_groups_there_is_no_section(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "_svg", lambda figure: "data:image/svg+xml;base64,")
    text = page(make_run(tmp_path / "run"))
    assert 'id="groups"' not in text and "#groups" not in text


def test_a_warning_in_words():
    uneven = {"column": "race", "measure": "edited", "group": "B", "share": 0.3, "n": 1200}
    uneven |= {"share_elsewhere": 0.15, "n_elsewhere": 300, "p_value": 0.004}
    said = warning(uneven).replace("\N{NO-BREAK SPACE}", " ")
    assert said == (
        "Edits fall on race = B 2.0 times as often as on the others: on 30.0 % of 1,200 training samples, elsewhere "
        "on 15.0 % of 300 (p = 0.004)."
    )
