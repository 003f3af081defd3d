"""Numbers cut into bins, spellings of one class, groups, and what is written for a class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from miniatures import CLASSES, make_folders, make_rows, make_table

from diffinf.config import DataConfig, DataFormat
from diffinf.data import open_dataset, write_refined
from diffinf.data.readers import READERS
from diffinf.data.readers.labels import LabelCoding, bin_names, bin_of, spelling_variants
from diffinf.errors import UserError


def test_every_reader_can_be_named() -> None:
    assert DataFormat.__args__ == ("auto", *READERS)  # type: ignore[attr-defined]


def test_bins_have_readable_names() -> None:
    assert bin_names([0, 13, 20, 21]) == ("0-12", "13-19", "20", "21+")
    assert bin_names([0, 0.5, 1]) == ("0 to 0.5", "0.5 to 1", "1+")


edges = st.lists(st.integers(-50, 150), min_size=2, max_size=6, unique=True).map(sorted)


@given(edges, st.integers(-60, 200), st.integers(0, 5))
def test_what_is_written_for_a_bin_lies_in_it_and_near(bins: list[int], before: int, target: int) -> None:
    target %= len(bins)
    written = LabelCoding(bins=tuple(bins)).written(bin_names(bins)[target], str(before))
    assert bin_of(written, bins) == target
    inside = [number for number in range(-60, 400) if bin_of(str(number), bins) == target]
    assert abs(int(written) - before) == min(abs(number - before) for number in inside)


def aged(folder: Path, suffix: str = ".csv", **changes: Any) -> Path:
    rows = [{**row, "age": index, **changes} for index, row in enumerate(make_rows(60))]
    return make_table(folder, rows, suffix)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_number_becomes_ordered_classes(tmp_path: Path, suffix: str) -> None:
    config = DataConfig(label="age", bins=[5, 13, 100], split="subset")
    with pytest.raises(UserError, match=r"data\.bins"):
        open_dataset(aged(tmp_path / "a", suffix), DataConfig(label="age", split="subset"))
    dataset = open_dataset(tmp_path / "a" / f"faces{suffix}", config)
    assert dataset.class_names == ("5-12", "13-99") and dataset.ordered  # nobody is 100
    assert [entry.id for entry in dataset.quarantine] == [f"img/{index:03}.png" for index in range(5)]
    assert "below the first of data.bins" in dataset.quarantine[0].reason
    sample = "img/030.png"
    write_refined(dataset, {}, [], {sample: "5-12"}, tmp_path / "out")
    again = open_dataset(tmp_path / "out" / f"faces{suffix}", config)
    assert again.class_names[again.labels[again.ids.tolist().index(sample)]] == "5-12"
    exact = open_dataset(
        tmp_path / "out" / f"faces{suffix}", DataConfig(**{**config.model_dump(), "bins": [0, 12, 13]})
    )
    assert exact.class_names[exact.labels[exact.ids.tolist().index(sample)]] == "12"


def test_fractions_can_be_cut_too(tmp_path: Path) -> None:
    rows = [{**row, "valence": (index - 30) / 30} for index, row in enumerate(make_rows(60))]
    path = make_table(tmp_path, rows, ".parquet")
    dataset = open_dataset(path, DataConfig(label="valence", bins=[-1, -0.2, 0.2], split="subset"))
    assert dataset.class_names == ("-1 to -0.2", "-0.2 to 0.2", "0.2+") and not dataset.quarantine


def test_bins_need_numbers(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"row 1 of .*'sad' is no number.*--label"):
        open_dataset(make_table(tmp_path), DataConfig(bins=[0, 10]))
    for bins in ([1], [2, 1], [1, 1], [0, float("inf")], [0, float("nan")]):
        with pytest.raises(ValueError, match="expected"):
            DataConfig(bins=bins)


SPELLINGS = {"happy": ("happy", "Happy", "happy "), "sad": ("sad",), "angry": ("angry", "ANGRY")}


def spelt(folder: Path) -> Path:
    rows = make_rows(120)
    for index, row in enumerate(rows):
        spellings = SPELLINGS[row["label"]]
        row["label"] = spellings[index // 12 % len(spellings)] if index % 4 == 0 else spellings[0]
    return make_table(folder, rows)


def test_spellings_are_reported_and_merged_on_request(tmp_path: Path) -> None:
    path = spelt(tmp_path / "a")
    plain = open_dataset(path, DataConfig(split="subset"))
    assert set(plain.class_names) == {"happy", "Happy", "happy ", "sad", "angry", "ANGRY"}
    (said,) = [sentence for sentence in plain.notes if "one class" in sentence]
    assert (
        "'happy' (" in said and "= 'Happy' (" in said and "'ANGRY' (" in said and "normalise_labels" in said
    )
    config = DataConfig(split="subset", normalise_labels=True)
    merged = open_dataset(path, config)
    assert merged.class_names == tuple(sorted(CLASSES))
    assert any("taken together" in sentence for sentence in merged.notes)
    write_refined(merged, {}, [], {}, tmp_path / "out")
    assert open_dataset(tmp_path / "out" / "faces.csv", config).fingerprint == merged.fingerprint
    assert (tmp_path / "out" / "faces.csv").read_text().count("happy ") == path.read_text().count("happy ")


def test_folders_of_two_spellings(tmp_path: Path) -> None:
    root = make_folders(tmp_path / "a", per_class=20)
    (root / "Happy ").mkdir()
    for file in sorted((root / "happy").iterdir())[:6]:
        file.rename(root / "Happy " / file.name)
    dataset = open_dataset(root, DataConfig(normalise_labels=True))
    assert dataset.class_names == ("angry", "happy", "sad")
    sample = next(str(dataset.ids[r]) for r in dataset.rows("train") if dataset.ids[r].startswith("sad"))
    paths = write_refined(dataset, {}, [], {sample: "happy"}, tmp_path / "out")
    assert paths[sample].startswith("happy/") and len(list((tmp_path / "out" / "Happy ").iterdir())) == 6


def test_what_is_one_class_and_what_is_not() -> None:
    assert spelling_variants(["no beard", "No_Beard", "no-beard ", None]) == [
        {"No_Beard": 1, "no beard": 1, "no-beard ": 1}
    ]
    assert spelling_variants(["0-2", "02", "1", "-1", "a", "b", "20-29", "20_29"]) == []


def test_groups_are_carried_and_their_gaps_kept(tmp_path: Path) -> None:
    rows = make_rows()
    rows[3]["person"] = ""
    path = make_table(tmp_path, rows)
    dataset = open_dataset(path, DataConfig(groups=["person", "votes"], split="subset"))
    assert dataset.groups["person"][:5].tolist() == ["p0", "p0", "p0", "", "p1"]
    assert dataset.groups["votes"][:3].tolist() == ["0", "1", "2"]
    plain = open_dataset(path, DataConfig(split="subset"))
    assert plain.groups == {} and plain.fingerprint == dataset.fingerprint
    with pytest.raises(UserError, match=r"'sex' for data\.groups; the table has 'image'"):
        open_dataset(path, DataConfig(groups=["sex"]))
    with pytest.raises(UserError, match="there are none to name"):
        open_dataset(make_folders(tmp_path / "f"), DataConfig(groups=["sex"]))


def test_the_user_says_how_classes_rise(tmp_path: Path) -> None:
    path = make_table(tmp_path)
    dataset = open_dataset(path, DataConfig(split="subset", order=["sad", "angry", "bored", "happy"]))
    assert dataset.ordered and dataset.class_names == ("sad", "angry", "happy")
    plain = open_dataset(path, DataConfig(split="subset"))
    assert not plain.ordered and plain.fingerprint != dataset.fingerprint
    with pytest.raises(UserError, match=r"data\.order does not name the class 'happy'"):
        open_dataset(path, DataConfig(split="subset", order=["sad", "angry"]))
    with pytest.raises(ValueError, match="each class once"):
        DataConfig(order=["sad", "sad"])


def test_one_letter_may_be_written_in_two_ways() -> None:
    composed, decomposed = "m\u00fcde", "mu\u0308de"
    assert spelling_variants([composed, composed, decomposed, "wach"]) == [{composed: 2, decomposed: 1}]


def test_rows_without_a_label_are_counted_by_reason(tmp_path: Path) -> None:
    rows = [{**row, "label": 10 + index % 40} for index, row in enumerate(make_rows(120))]
    for index in range(6):
        rows[index]["label"] = "" if index < 4 else -3
    dataset = open_dataset(make_table(tmp_path, rows), DataConfig(split="subset", bins=[0, 20, 30]))
    assert len(dataset) + len(dataset.quarantine) == 120 and len(dataset.quarantine) == 6
    said = [sentence for sentence in dataset.notes if "rows left out" in sentence]
    assert said[0].startswith("4 rows left out") and "no label" in said[0]
    assert said[1].startswith("2 rows left out, img/004.png, img/005.png: -3 lies below")
