"""Votes of several annotators: columns that the user names, counted by class, and refused where they make no sense."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.miniatures import CLASSES, make_folders, make_rows, make_table
from diffinf.config import DataConfig
from diffinf.data.dataset import FaceDataset, open_dataset
from diffinf.data.inspect import inspect_dataset
from diffinf.errors import UserError

ORDER = tuple(sorted(CLASSES))  # angry, happy, sad


def opened(folder: Path, rows: list[dict[str, Any]], suffix: str = ".csv", **data: Any) -> FaceDataset:
    return open_dataset(make_table(folder, rows, suffix), DataConfig(split="subset", **data))


def with_votes(*votes: Any) -> list[dict[str, Any]]:
    """Rows whose first have these votes, and all others five for happy; the first are sad, happy, angry."""
    rows = make_rows()
    for index, row in enumerate(rows):
        row["votes"] = votes[index] if index < len(votes) else [0, 5, 0]
    return rows


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_lists_of_counts_are_in_the_order_of_the_classes(tmp_path: Path, suffix: str) -> None:
    rows = with_votes([1, 0, 3], [0, 0, 0], None, [0.25, 0.5, 0.25])
    dataset = opened(tmp_path, rows, suffix, votes=["votes"])
    assert dataset.class_names == ORDER and dataset.votes is not None
    agreement = dataset.votes.agreement(dataset.labels)
    np.testing.assert_allclose(agreement[:5], [0.75, np.nan, np.nan, 0.25, 1.0])
    shares = dataset.votes.shares(dataset.labels)
    np.testing.assert_allclose(shares[:4], [[0.25, 0, 0.75], [0, 1, 0], [1, 0, 0], [0.25, 0.5, 0.25]])
    assert shares.dtype == np.float32 and np.allclose(shares.sum(1), 1)
    assert any("2 of 36 rows have no votes" in sentence for sentence in dataset.notes)


def test_a_column_for_each_class_in_any_order(tmp_path: Path) -> None:
    rows = [{**row, "sad": 1, "angry": "", "happy": 2} for row in make_rows()]
    for row in rows:
        row["angry"] = 3
    for name in CLASSES:
        rows[1][name] = ""
    dataset = opened(tmp_path, rows, votes=["sad", "angry", "happy"])
    assert dataset.votes is not None
    assert dataset.votes.counts[0].tolist() == [3, 2, 1] and not dataset.votes.known[1]
    with pytest.raises(
        UserError, match=r"data\.votes names the columns sad, angry; expected one for each class"
    ):
        opened(tmp_path, rows, votes=["sad", "angry"])
    rows[4]["sad"] = ""
    with pytest.raises(UserError, match=r"row 5 of .*votes are .*expected numbers"):
        opened(tmp_path, rows, votes=["sad", "angry", "happy"])


@pytest.mark.parametrize(
    ("votes", "message"),
    [
        ([1, 2], r"row 2 of .*faces\.csv: votes are 2 numbers; expected 3, .* angry, happy, sad"),
        ([1, -2, 3], "at least 0"),
        ([1, float("inf"), 3], "finite"),
        (["a", 1, 2], "expected numbers"),
        (7, "no list; expected 3"),
        ("3 0 7", r"expected a list such as \[3, 0, 7\]"),
    ],
)
def test_votes_that_make_no_sense_are_refused(tmp_path: Path, votes: Any, message: str) -> None:
    if isinstance(votes, list):
        votes = str(votes).replace("'", '"').replace("inf", "Infinity")
    with pytest.raises(UserError, match=message):
        opened(tmp_path, with_votes([0, 0, 1], votes), votes=["votes"])


def test_annotators_are_counted(tmp_path: Path) -> None:
    rows = [{**row, "ann": row["label"], "bob": "happy", "cleo": ""} for row in make_rows()]
    rows[0]["cleo"] = "Sad "
    data = {"annotators": ["ann", "bob", "cleo"], "normalise_labels": True}
    rows[3]["label"] = "Sad "  # so that the spelling is known to be one of sad
    dataset = opened(tmp_path, rows, **data)
    assert dataset.votes is not None
    np.testing.assert_allclose(dataset.votes.agreement(dataset.labels)[:3], [2 / 3, 1, 0.5])
    rows[1]["bob"] = "glad"
    with pytest.raises(UserError, match=r"row 2 of .*: bob is 'glad'; expected one of angry, happy, sad"):
        opened(tmp_path, rows, **data)


def test_numbers_of_annotators_are_cut_like_the_label(tmp_path: Path) -> None:
    rows = [
        {**row, "label": 10 + index % 2 * 10, "ann": 11.5, "bob": 70} for index, row in enumerate(make_rows())
    ]
    dataset = opened(tmp_path, rows, annotators=["ann", "bob"], bins=[0, 13, 60])
    assert dataset.class_names == ("0-12", "13-59") and dataset.votes is not None
    # Nobody is labelled 60+: what Bob says is no class, but he does not agree either.
    assert dataset.votes.counts[0].tolist() == [1, 0] and dataset.votes.others[0] == 1
    assert dataset.votes.agreement(dataset.labels)[:2].tolist() == [0.5, 0]
    rows[0]["ann"] = "young"
    with pytest.raises(UserError, match="ann is 'young' somewhere, no number"):
        opened(tmp_path, rows, annotators=["ann"], bins=[0, 13, 60])


def test_only_what_the_user_names_is_read_and_never_the_truth(tmp_path: Path) -> None:
    rows = with_votes()
    plain = opened(tmp_path, rows)
    named = opened(tmp_path, rows, votes=["votes"])
    assert plain.votes is None and plain.fingerprint == named.fingerprint
    for data in ({"annotators": ["truth_label"]}, {"votes": ["votes"], "truth": ["votes"]}):
        with pytest.raises(UserError, match="holds the truth"):
            opened(tmp_path, rows, **data)
    with pytest.raises(UserError, match=r"no column 'ballots' for data\.votes"):
        opened(tmp_path, rows, votes=["ballots"])
    with pytest.raises(UserError, match="both set"):
        opened(tmp_path, rows, votes=["votes"], annotators=["label"])
    with pytest.raises(UserError, match="the layout folders has none"):
        open_dataset(make_folders(tmp_path / "folders"), DataConfig(votes=["votes"]))


def test_ferplus_votes_count_for_the_classes_of_fer2013(tmp_path: Path) -> None:
    grey = " ".join(["7"] * 256)
    lines = ["emotion,pixels,Usage"] + [f"{3 + n % 2},{grey},Training" for n in range(40)]
    (tmp_path / "fer2013.csv").write_text("\n".join(lines) + "\n")
    names = "neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"
    votes = ["Usage,Image name," + names] + ["Training,x.png,0,6,0,2,0,0,0,1,1,0"] * 40
    config = DataConfig(votes=["ferplus_votes"])
    with pytest.raises(UserError, match=r"no fer2013new\.csv"):
        open_dataset(tmp_path, config)
    (tmp_path / "fer2013new.csv").write_text("\n".join(votes) + "\n")
    dataset = open_dataset(tmp_path, config)
    assert dataset.class_names == ("Happy", "Sad") and dataset.votes is not None
    assert dataset.votes.counts[0].tolist() == [6, 2] and dataset.votes.others[0] == 2
    assert sorted(set(dataset.votes.agreement(dataset.labels).tolist())) == [0.2, 0.6]
    assert open_dataset(tmp_path, DataConfig()).votes is None


def test_inspect_says_how_far_annotators_agree(tmp_path: Path) -> None:
    dataset = opened(tmp_path, with_votes([0, 0, 0], [0, 2, 2]), votes=["votes"])
    found = inspect_dataset(dataset)["votes"]
    assert found["n"] == 35 and found["without"] == 1 and found["by_class"]["sad"] == 0
    assert found["outvoted"] == 23  # all but the happy ones and the first, of whom nobody said anything
    assert found["agreement"] == pytest.approx((11 + 0.5) / 35)
    assert inspect_dataset(opened(tmp_path, make_rows()))["votes"] is None


def test_votes_of_a_fixed_length_in_parquet(tmp_path: Path) -> None:
    path = make_table(tmp_path, make_rows(), ".parquet")
    table = pq.read_table(path)
    lists = pa.array([[1, 0, 2]] * table.num_rows, pa.list_(pa.int8(), 3))
    pq.write_table(table.set_column(table.column_names.index("votes"), "votes", lists), path)
    dataset = open_dataset(path, DataConfig(split="subset", votes=["votes"]))
    assert dataset.votes is not None and dataset.votes.counts[7].tolist() == [1, 0, 2]
