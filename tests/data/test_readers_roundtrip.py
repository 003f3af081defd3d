"""Every layout: found by what is on disk, read, written, read again; edits change what they name alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from miniatures import PUBLIC, Public, picture

from diffinf.config import DataConfig
from diffinf.data import FaceDataset, open_dataset, write_refined
from diffinf.data.readers import READERS

layouts = pytest.mark.parametrize("layout", PUBLIC.values(), ids=PUBLIC)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def opened(layout: Public, folder: Path) -> tuple[Path, FaceDataset, DataConfig]:
    """What is opened, relative to the folder; the dataset; the configuration."""
    path, config = layout.make(folder), DataConfig(**layout.config)
    return path.relative_to(folder), open_dataset(path, config), config


def by_id(dataset: FaceDataset) -> dict[str, tuple[str, str, bytes]]:
    return {
        str(sample): (
            dataset.class_names[dataset.labels[row]],
            str(dataset.splits[row]),
            dataset.encoded(row),
        )
        for row, sample in enumerate(dataset.ids)
    }


@layouts
def test_what_is_on_disk_tells_the_layout(tmp_path: Path, layout: Public) -> None:
    path = layout.make(tmp_path)
    assert next(name for name, reader in READERS.items() if reader.detect(path)) == layout.format
    named = open_dataset(path, DataConfig(**layout.config, format=layout.format))
    assert named.fingerprint == open_dataset(path, DataConfig(**layout.config)).fingerprint


@layouts
def test_reading(tmp_path: Path, layout: Public) -> None:
    _, dataset, config = opened(layout, tmp_path)
    assert len(dataset) == layout.n and len(dataset.quarantine) == layout.quarantined
    assert len(dataset) + len(dataset.quarantine) == dataset.source.rows
    assert dataset.class_names == layout.classes and dataset.ids[0] == layout.first
    assert (dataset.identities is not None) == layout.identities
    hashed = any("no splits given" in sentence for sentence in dataset.notes)
    assert hashed != layout.splits and set(dataset.splits) == {"train", "validation", "test"}
    assert list(dataset.groups) == config.groups
    assert all(len(values) == len(dataset) and "" not in values for values in dataset.groups.values())
    assert dataset.ordered == bool(config.bins or dataset.class_names[-1] == "more than 70")
    assert tuple(dataset.images([0, 5], size=16, channels=1).shape) == (2, 1, 16, 16)


@layouts
def test_written_without_edits_it_is_the_same(tmp_path: Path, layout: Public) -> None:
    inside, dataset, config = opened(layout, tmp_path / "source")
    before = contents(tmp_path / "source")
    paths = write_refined(dataset, {}, [], {}, tmp_path / "out")
    again = open_dataset(tmp_path / "out" / inside, config)
    assert again.fingerprint == dataset.fingerprint and by_id(again) == by_id(dataset)
    assert [entry.id for entry in again.quarantine] == [entry.id for entry in dataset.quarantine]
    for name, values in dataset.groups.items():
        np.testing.assert_array_equal(again.groups[name], values)
    for name, array in dataset.carried.items():
        np.testing.assert_array_equal(again.carried[name], array)
    if dataset.identities is not None and again.identities is not None:
        np.testing.assert_array_equal(again.identities, dataset.identities)
    assert set(paths) == set(dataset.ids) and contents(tmp_path / "source") == before
    written = contents(tmp_path / "out")
    assert set(written) == {*before, "README.md"}  # nothing lost, nothing invented
    # Tables may be written in another dress, datasets' state has a fingerprint; all else is byte for byte.
    dressed = (".csv", ".parquet", ".arrow", ".json")
    assert all(written[name] == data for name, data in before.items() if not name.endswith(dressed))


@layouts
def test_edits_change_what_they_name_alone(tmp_path: Path, layout: Public) -> None:
    inside, dataset, config = opened(layout, tmp_path / "source")
    state = by_id(dataset)
    classes = list(dataset.class_names)
    crowded = [s for s in state if state[s][1] == "train"]
    edited, moved, dropped = crowded[0], crowded[1], crowded[2]
    target = next(name for name in classes if name != state[moved][0])
    new = picture(4321, size=24)
    paths = write_refined(dataset, {edited: new}, [dropped], {moved: target}, tmp_path / "out")
    again = open_dataset(tmp_path / "out" / inside, config)
    result = by_id(again)
    assert len(again) == len(dataset) - 1 and dropped not in result and dropped not in paths
    (renamed,) = [moved] if moved in result else set(result) - set(state)
    assert result[renamed][:2] == (target, "train") and result[renamed][2] == state[moved][2]
    assert result[edited][:2] == state[edited][:2] and result[edited][2] != state[edited][2]
    untouched = set(state) - {edited, moved, dropped}
    assert all(result[sample] == state[sample] for sample in untouched)
    assert len(again.quarantine) == len(dataset.quarantine)


@layouts
def test_the_order_on_disk_does_not_matter(tmp_path: Path, layout: Public) -> None:
    path = layout.make(tmp_path / "one")
    files = sorted((p for p in (tmp_path / "one").rglob("*") if p.is_file()), reverse=True)
    for file in files:
        target = tmp_path / "other" / file.relative_to(tmp_path / "one")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    other = tmp_path / "other" / path.relative_to(tmp_path / "one")
    config = DataConfig(**layout.config)
    assert open_dataset(other, config).fingerprint == open_dataset(path, config).fingerprint


@layouts
def test_hard_links_share_the_bytes(tmp_path: Path, layout: Public) -> None:
    _, dataset, _ = opened(layout, tmp_path / "source")
    write_refined(dataset, {}, [], {}, tmp_path / "out", link="hard")
    images = [p for p in (tmp_path / "source").rglob("*") if p.suffix in (".jpg", ".png", ".npy")]
    for image in images:
        assert image.samefile(tmp_path / "out" / image.relative_to(tmp_path / "source"))
