"""Hostile input, a few hundred examples of it; benchmarks/fuzz_data.py runs ten thousand of the same kinds."""

from __future__ import annotations

import csv
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from miniatures import picture

from diffinf.config import DataConfig
from diffinf.data import open_dataset
from diffinf.data.images import UnreadableImageError, decode_image, square
from diffinf.data.readers.base import relative_inside
from diffinf.errors import UserError
from diffinf.progress import set_quiet

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import fuzz_data
from fuzz_cases import damaged, lying, odd_parquet, sound_images

SOUND = sound_images()


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=300, deadline=None)
@given(st.sampled_from(SOUND), st.integers(0, 2**32 - 1), st.booleans())
def test_a_damaged_image_is_decoded_or_refused(file: tuple[str, bytes], seed: int, lie: bool) -> None:
    kind, data = file
    rng = np.random.default_rng(seed)
    data = lying(kind, data, rng) if lie else damaged(data, rng)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = decode_image(data, max_pixels=100_000)
        except UnreadableImageError as error:
            assert str(error) and "\n" not in str(error)
            return
    assert image.mode in ("L", "RGB") and image.width * image.height <= 100_000
    assert square(image, size=16, channels=3).shape == (3, 16, 16)


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_no_text_leads_out_of_the_root(written: str) -> None:
    root = Path("/data/faces")
    for text in (written, f"../{written}", f"img/../../{written}", f"/{written}"):
        inside = relative_inside(root, text)
        if inside is not None:
            assert not inside.startswith("/") and ".." not in inside.split("/")


@pytest.fixture(scope="module")
def faces() -> Any:
    """Sixty images in a folder, for tables to point at."""
    set_quiet(True)
    with tempfile.TemporaryDirectory() as folder:
        for index in range(60):
            (Path(folder) / f"{index}.png").write_bytes(picture(index))
        yield Path(folder)
    set_quiet(False)


CELL = st.one_of(
    st.text(max_size=8), st.sampled_from(["", " ", "../0.png", "0.png", "\n", '"', "NaN", "/etc/passwd"])
)


@settings(max_examples=120, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 59), CELL, CELL), max_size=4),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_a_table_of_any_cells_is_accounted_for_or_refused(
    faces: Path, edits: list[tuple[int, str, str]], end: str, encoding: str
) -> None:
    rows = [[f"{index}.png", ("sad", "happy")[index % 2]] for index in range(60)]
    for row, image, label in edits:
        rows[row] = [image, label]
    path = faces / "table.csv"
    with path.open("w", newline="", encoding=encoding, errors="replace") as handle:
        csv.writer(handle, lineterminator=end).writerows([["image", "label"], *rows])
    try:
        dataset = open_dataset(path, DataConfig())
    except UserError as error:
        assert "table.csv" in str(error) or str(faces) in str(error)
        assert edits or end == "\r" or encoding == "utf-16"  # nothing wrong: nothing to refuse
    else:
        assert len(dataset) + len(dataset.quarantine) == dataset.source.rows


@pytest.mark.filterwarnings("ignore")
def test_the_benchmark_finds_nothing(tmp_path: Path) -> None:
    fuzz = fuzz_data.Fuzz(tmp_path, keep=None)
    fuzz.images(240, seed=1, batch=120, with_bombs=False)
    fuzz.tables(60, seed=1)
    fuzz.folders(4, seed=1)
    assert fuzz.account.failures == []
    outcomes = fuzz.account.outcomes
    images = [n for name, n in outcomes.items() if name.startswith("image, ")]
    assert (
        sum(images) == 240
        and outcomes["images: rows read"] + outcomes["images: rows in quarantine"] == 240 + 120
    )
    assert outcomes["table: refused"] > 5 and outcomes["folder: rows in quarantine"] > 0
    assert outcomes["table: read"] + outcomes["table: read, some rows in quarantine"] > 5


def test_the_benchmark_would_find_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash, a stray file, a changed source and rows that are lost are failures."""
    real = fuzz_data.open_dataset

    def crash(path: Path, config: DataConfig) -> Any:
        raise ValueError("no")

    def write(path: Path, config: DataConfig) -> Any:
        (tmp_path / "out" / "stray").touch()
        return real(path, config)

    def change(path: Path, config: DataConfig) -> Any:
        next(path.rglob("*.png")).write_bytes(b"")
        return real(path, config)

    def lose(path: Path, config: DataConfig) -> Any:
        dataset = real(path, config)
        object.__setattr__(dataset, "quarantine", (*dataset.quarantine, "one more"))
        return dataset

    for wrong, said in ((crash, "ValueError"), (write, "stray"), (change, "changed"), (lose, "accounted")):
        folder = tmp_path if wrong is write else tmp_path / wrong.__name__
        monkeypatch.setattr(fuzz_data, "open_dataset", wrong)
        fuzz = fuzz_data.Fuzz(folder, keep=None)
        fuzz.images(12, seed=0, with_bombs=False)
        assert any(said in failure for failure in fuzz.account.failures), wrong


def test_odd_parquet_files_are_tables(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    for seed in range(20):
        (tmp_path / "x.parquet").write_bytes(odd_parquet(np.random.default_rng(seed)))
        assert pq.read_table(tmp_path / "x.parquet").column_names == ["image", "label"]
