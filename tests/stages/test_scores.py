from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffinf.errors import UserError
from diffinf.stages.scores import RIVALS, read_flags, score_table

KNOWN = np.array(["a", "b", "c", "7"])
TEST = np.array(["t1", "t2"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("flags.txt", "c\n\n a \n7\n"),
        ("flags.csv", "score,id\n1,a\n2,c\n3,7\n"),
        ("flags.tsv", "id\tscore\na\t1\nc\t2\n7\t3\n"),
        ("only.csv", "sample\na\nc\n7\n"),
        ("bom.csv", "\ufeffid\na\nc\n7\n"),
    ],
)
def test_flags_are_read_from_text_and_tables(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    assert read_flags(path, KNOWN, TEST).tolist() == [True, False, True, True]


def test_flags_are_read_from_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.table({"score": [1.0], "id": ["b"]}), tmp_path / "flags.parquet")
    assert read_flags(tmp_path / "flags.parquet", KNOWN, TEST).tolist() == [False, True, False, False]
    pq.write_table(pa.table({"id": [7]}), tmp_path / "numbers.parquet")
    assert read_flags(tmp_path / "numbers.parquet", KNOWN, TEST).tolist() == [False, False, False, True]


def test_an_empty_file_flags_nothing(tmp_path: Path) -> None:
    for name in ("flags.txt", "flags.csv"):
        (tmp_path / name).touch()
        assert not read_flags(tmp_path / name, KNOWN, TEST).any()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("flags.txt", "a\nt2\n", "t2 are not in the split train; validation and test are never edited"),
        ("flags.txt", "a\nzebra\n", "zebra are not in the dataset; expected ids such as a"),
        ("flags.csv", "name,score\na,1\n", "no column 'id'; found name, score"),
        ("flags.parquet", "no parquet", "not a Parquet table"),
    ],
)
def test_wrong_flags_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=name) as caught:
        read_flags(tmp_path / name, KNOWN, TEST)
    assert message in str(caught.value)
    with pytest.raises(UserError, match="cannot be read"):
        read_flags(tmp_path / "missing.txt", KNOWN, TEST)


def test_the_table_has_a_column_for_every_rival() -> None:
    ones = np.ones(4)
    table = score_table(
        ids=KNOWN,
        labels=np.array([0, 1, 0, 1]),
        appears=np.array([0, 0, 1, 1]),
        class_names=("old", "young"),
        score=ones,
        self_influence=np.array([1.0, 2.0, 3.0, np.inf]),
        flagged=np.array([True, False, False, False]),
        threshold=None,
        label_trust=ones,
        rivals={"loss": ones, "entropy": ones},
        fold=np.zeros(4, dtype=np.int64),
    )
    assert {*RIVALS, "entropy", "fold", "label_trust"} <= set(table.column_names)
    assert table["aum"].null_count == table["threshold"].null_count == 4
    assert table["label"].to_pylist() == ["old", "young", "old", "young"]
    assert table["appears"].to_pylist() == ["old", "old", "young", "young"]
    assert table["target"].to_pylist() == [""] * 4 and not table["loss"].null_count
