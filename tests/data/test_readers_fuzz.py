"""Damaged annotation files end in one clear error, or in a dataset that accounts for every row."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from miniatures import PUBLIC, Public

from diffinf.config import DataConfig
from diffinf.data import open_dataset, write_refined
from diffinf.data.card import provenance_path
from diffinf.errors import UserError

IMAGES = (".jpg", ".png")
INSERTED = (
    b"\0",
    b"\r",
    b'"',
    b"\xff\xfe",
    b"../../x.jpg",
    b",",
    b"\n\n",
    b"-1e999",
    b"'=1+1'",
    b"\xef\xbb\xbf",
)


def damage(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    kind = rng.randrange(5)
    if kind == 0:
        return data[:at]
    if kind == 1:
        flipped = bytearray(data)
        for _ in range(rng.randrange(1, 8)):
            flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return bytes(flipped)
    if kind == 2:
        return data[:at] + rng.choice(INSERTED) + data[at:]
    if kind == 3:
        lines = data.splitlines(keepends=True)
        lines.insert(rng.randrange(len(lines)), rng.choice(lines))
        return b"".join(lines)
    return b"" if at % 2 else data[at:]


def annotations(folder: Path) -> list[Path]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix not in IMAGES)
    return files or sorted(p for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("layout", PUBLIC.values(), ids=PUBLIC)
def test_damaged_annotations(tmp_path: Path, layout: Public) -> None:
    rng = random.Random(layout.format)
    source = tmp_path / "source"
    path, config = layout.make(source), DataConfig(**layout.config)
    outside = tmp_path / "x.jpg"
    outside.write_bytes(b"secret")
    for turn in range(12):
        file = rng.choice(annotations(source))
        before = file.read_bytes()
        file.write_bytes(damage(before, rng))
        out = tmp_path / f"out{turn}"
        try:
            dataset = open_dataset(path, config)
            write_refined(dataset, {}, [], {}, out)
        except UserError as error:
            assert str(tmp_path) in str(error) or file.stem in str(error)
            assert not out.exists()
        else:
            assert len(dataset) + len(dataset.quarantine) == dataset.source.rows
            assert all(dataset.encoded(row) != b"secret" for row in range(len(dataset)))
            shutil.rmtree(out)
            provenance_path(out).unlink()
        assert {entry.name for entry in tmp_path.iterdir()} == {"source", "x.jpg"}
        file.write_bytes(before)
    assert outside.read_bytes() == b"secret"
