from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from miniatures import make_celeba, make_folders, make_huggingface, make_rows, make_table, picture

from diffinf import progress
from diffinf.config import DataConfig, RunConfig, apply_overrides
from diffinf.data import FaceDataset, cache, dataset, open_dataset
from diffinf.data.cache import DecodeCache
from diffinf.errors import UserError
from diffinf.pipeline import default_directory
from diffinf.run import Run


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each image that is decoded, at the door or for its pixels."""
    calls: list[int] = []

    def counted(inner: Callable[..., Any]) -> Callable[..., Any]:
        return lambda data, **options: calls.append(len(data)) or inner(data, **options)

    from diffinf.data import checks

    monkeypatch.setattr(dataset, "decode_square", counted(dataset.decode_square))
    monkeypatch.setattr(checks, "decode_image", counted(checks.decode_image))
    return calls


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "FEWEST", 4)
    monkeypatch.setattr(dataset, "FEWEST", 4)
    monkeypatch.setattr(dataset, "FILE_BYTES", 20 * 256)


def settings(folder: Path, **values: Any) -> DataConfig:
    return DataConfig(cache=folder / "cache", **values)


def pixels(opened: FaceDataset, size: int = 16) -> Any:
    return opened.images(size=size, channels=1).numpy()


def stored(folder: Path, kind: str = "16x1") -> list[Path]:
    return sorted((folder / "cache" / "diffinf-decoded").glob(f"{kind}*/*.npz"))


def strangers(n: int) -> list[dict[str, Any]]:
    """Rows whose pictures are none of `make_folders`."""
    return [{**row, "image": f"img/{500 + index}.png"} for index, row in enumerate(make_rows(n))]


@pytest.mark.parametrize(
    "make", [make_folders, make_celeba, lambda root: make_huggingface(root / "a.parquet")]
)
def test_a_second_pass_decodes_nothing_and_gives_the_same(
    tmp_path: Path, decoded: list[int], make: Callable[[Path], Path]
) -> None:
    root = make(tmp_path / "faces")
    plain = settings(tmp_path, label="Smiling" if make is make_celeba else "label")
    fresh = open_dataset(root, plain.model_copy(update={"cache": "none"}))
    first = open_dataset(root, plain)
    expected = pixels(fresh)
    np.testing.assert_array_equal(pixels(first), expected)
    decoded.clear()
    second = open_dataset(root, plain)
    order = np.random.default_rng(0).integers(0, len(second), 90)
    np.testing.assert_array_equal(second.images(order, size=16, channels=1), expected[order])
    assert decoded == []
    assert second.fingerprint == fresh.fingerprint and second.image_size == fresh.image_size
    assert (second.sha256, second.channels) == (fresh.sha256, fresh.channels)
    second.images(size=8, channels=1)
    second.images(size=16, channels=3)
    assert len(decoded) == 2 * len(second)


def test_without_a_setting_nothing_is_written(tmp_path: Path) -> None:
    root = make_folders(tmp_path / "faces")
    pixels(open_dataset(root, DataConfig()))
    assert [place.name for place in tmp_path.iterdir()] == ["faces"]


def test_a_changed_file_is_decoded_anew(tmp_path: Path, decoded: list[int]) -> None:
    root = make_folders(tmp_path / "faces")
    opened = open_dataset(root, settings(tmp_path))
    before = pixels(opened)
    changed = root / "happy" / "000.png"
    stamp = changed.stat()
    changed.write_bytes(picture(999))
    os.utime(changed, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    decoded.clear()
    again = open_dataset(root, settings(tmp_path))
    after, row = pixels(again), again.ids.tolist().index("happy/000.png")
    assert len(decoded) == 2 and not np.array_equal(after[row], before[row])
    np.testing.assert_array_equal(np.delete(after, row, 0), np.delete(before, row, 0))


def test_a_file_that_changes_after_opening_spoils_nothing(tmp_path: Path) -> None:
    root = make_folders(tmp_path / "faces")
    opened = open_dataset(root, settings(tmp_path))
    kept = (root / "happy" / "000.png").read_bytes()
    (root / "happy" / "000.png").write_bytes(picture(999))
    pixels(opened)
    (root / "happy" / "000.png").write_bytes(kept)
    without = open_dataset(root, DataConfig(cache="none"))
    np.testing.assert_array_equal(pixels(open_dataset(root, settings(tmp_path))), pixels(without))


def test_other_codecs_or_another_decoder_find_nothing(
    tmp_path: Path, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folders(tmp_path / "faces")
    pixels(open_dataset(root, settings(tmp_path)))
    decoded.clear()
    monkeypatch.setattr("PIL.features.version", lambda name: f"{name} 99")
    pixels(open_dataset(root, settings(tmp_path)))
    assert len(decoded) == 2 * 36
    decoded.clear()
    pixels(open_dataset(root, settings(tmp_path, icc=True)))
    assert len(decoded) == 2 * 36


def test_unreadable_images_are_never_taken_for_sound(tmp_path: Path) -> None:
    root = make_folders(tmp_path / "faces")
    (root / "sad" / "000.png").write_bytes(picture(1)[:90])
    for _ in range(2):
        opened = open_dataset(root, settings(tmp_path))
        assert [entry.id for entry in opened.quarantine] == ["sad/000.png"] and len(opened) == 35


class _Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (os.mkdir, ("evil",))


def _other_arrays(path: Path, **arrays: Any) -> None:
    with path.open("wb") as handle:
        np.savez(handle, **arrays)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "flipped bit": _flip,
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-300]),
    "empty": lambda path: path.write_bytes(b""),
    "a pickle": lambda path: path.write_bytes(pickle.dumps(_Evil())),
    "pickled arrays": lambda path: _other_arrays(
        path, sha256=np.array([_Evil()]), values=np.array([_Evil()])
    ),
    "another shape": lambda path: _other_arrays(
        path, sha256=np.load(path)["sha256"], values=np.load(path)["values"][:, :, :8]
    ),
    "another type": lambda path: _other_arrays(
        path, sha256=np.load(path)["sha256"], values=np.load(path)["values"].astype(np.float32)
    ),
    "too few rows": lambda path: _other_arrays(
        path, sha256=np.load(path)["sha256"], values=np.load(path)["values"][1:]
    ),
    "no digests": lambda path: _other_arrays(path, values=np.load(path)["values"]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_thrown_away_and_written_again(
    tmp_path: Path, decoded: list[int], capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    root = make_folders(tmp_path / "faces")
    before = pixels(open_dataset(root, settings(tmp_path)))
    file = stored(tmp_path)[0]
    DAMAGE[damage](file)
    decoded.clear()
    progress.set_quiet(False)
    np.testing.assert_array_equal(pixels(open_dataset(root, settings(tmp_path))), before)
    assert f"{file}: damaged" in capsys.readouterr().err and not Path("evil").exists()
    assert 0 < len(decoded) < 36
    decoded.clear()
    np.testing.assert_array_equal(pixels(open_dataset(root, settings(tmp_path))), before)
    assert decoded == []


def test_a_disk_that_takes_nothing_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folders(tmp_path / "faces")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    progress.set_quiet(False)
    opened = open_dataset(root, settings(tmp_path))
    assert len(pixels(opened)) == 36
    said = [line for line in capsys.readouterr().err.splitlines() if "not kept" in line]
    assert len(said) == 1 and "No space left" in said[0]
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]
    (tmp_path / "file").write_text("")  # a folder that cannot be made
    assert len(pixels(open_dataset(root, DataConfig(cache=tmp_path / "file" / "below")))) == 36


def test_no_more_is_kept_than_allowed(
    tmp_path: Path, decoded: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = make_folders(tmp_path / "old"), tmp_path / "new.parquet"
    make_huggingface(new, strangers(72))
    keeps = settings(tmp_path, cache_gb=25e-6)
    pixels(open_dataset(old, keeps))
    first = list((tmp_path / "cache").rglob("*.npz"))
    for file in first:
        os.utime(file, (1, 1))
    other = tmp_path / "cache" / "precious.txt"
    other.write_text("not ours")
    progress.set_quiet(False)
    opened = open_dataset(new, keeps)
    wanted = open_dataset(new, DataConfig(cache="none"))
    np.testing.assert_array_equal(pixels(opened), pixels(wanted))
    size = sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*.npz"))
    assert 15_000 < size < 26_500 and other.exists()
    assert len(first) == 3 and not any(file.exists() for file in first) and len(stored(tmp_path)) == 3
    assert capsys.readouterr().err.count("raise data.cache_gb") == 1
    decoded.clear()
    np.testing.assert_array_equal(pixels(open_dataset(new, keeps)), pixels(wanted))
    assert 0 < len(decoded) - 72 < 72 * 2  # those of `wanted`, and what found no room


def test_what_makes_too_little_room_stays(tmp_path: Path) -> None:
    root = make_folders(tmp_path / "faces")
    pixels(open_dataset(root, settings(tmp_path)))
    kept = sorted((tmp_path / "cache").rglob("*.npz"))
    full = DecodeCache(tmp_path / "cache", sum(file.stat().st_size for file in kept))
    opened = open_dataset(root, DataConfig(), cache=full)
    pixels(opened)  # uses all files but those of the other size
    stray = full.folder / "other" / "a.npz"
    stray.parent.mkdir()
    stray.write_bytes(b"1")
    pixels(opened, 32)
    assert stray.exists() and sorted((tmp_path / "cache").rglob("*.npz")) == sorted([*kept, stray])


def test_what_was_read_is_used_and_no_more(tmp_path: Path) -> None:
    one, two = make_folders(tmp_path / "one"), make_huggingface(tmp_path / "two.parquet", strangers(36))
    for root in (one, two):
        pixels(open_dataset(root, settings(tmp_path)))
        files = list((tmp_path / "cache").rglob("*.npz"))
        for file in files:
            os.utime(file, (1, 1))
    pixels(open_dataset(one, settings(tmp_path)))
    used = [file for file in files if file.stat().st_mtime > 1]
    assert len(used) == 3 and len(files) == 6  # two of pixels, one of checks


def test_equal_images_may_go_twice(tmp_path: Path) -> None:
    root = make_folders(tmp_path / "faces")
    files = sorted(root.rglob("*.png"))
    files[-1].write_bytes(files[0].read_bytes())  # kept with the first 20 images and again with the others
    opened = open_dataset(root, settings(tmp_path))
    before = pixels(opened)
    np.testing.assert_array_equal(pixels(opened), before)
    shutil.rmtree(tmp_path / "cache")
    np.testing.assert_array_equal(pixels(opened), before)


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), MemoryError()])
def test_what_cannot_be_read_now_stays(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    root = make_folders(tmp_path / "faces")
    before = pixels(open_dataset(root, settings(tmp_path)))

    def fails(*_: Any, **__: Any) -> None:
        raise error

    progress.set_quiet(False)
    with monkeypatch.context() as patch:
        patch.setattr(np, "load", fails)
        kept = stored(tmp_path)
        np.testing.assert_array_equal(pixels(open_dataset(root, settings(tmp_path))), before)
    assert stored(tmp_path) == kept and "cannot be read (" in capsys.readouterr().err


def test_the_codecs_of_the_key_have_versions() -> None:
    from PIL import features

    assert {"jpg", "libjpeg_turbo"} <= set(cache._CODECS) and all(map(features.version, cache._CODECS))


def test_another_decoder_of_jpeg_is_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = set()
    for module in (None, SimpleNamespace(__version__="1.9.0"), SimpleNamespace(__version__="1.9.1")):
        monkeypatch.setattr(cache, "fast_jpeg", lambda module=module: module)
        keys.add(cache._key(64, 3, False))
    assert len(keys) == 3


def test_another_process_may_take_files_away(tmp_path: Path) -> None:
    root = make_folders(tmp_path / "faces")
    opened = open_dataset(root, settings(tmp_path))
    before = pixels(opened)
    for file in stored(tmp_path):
        file.unlink()
    np.testing.assert_array_equal(pixels(opened), before)
    assert stored(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_processes_at_once(tmp_path: Path) -> None:
    root = make_huggingface(tmp_path / "a.parquet", make_rows(90))
    expected = pixels(open_dataset(root, DataConfig(cache="none")))

    def work() -> None:
        same = np.array_equal(pixels(open_dataset(root, settings(tmp_path))), expected)
        os._exit(0 if same else 1)

    processes = [multiprocessing.get_context("fork").Process(target=work) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert not list((tmp_path / "cache").rglob("*.part")) and stored(tmp_path)
    np.testing.assert_array_equal(pixels(open_dataset(root, settings(tmp_path))), expected)


def test_the_cache_of_a_run_waits_for_the_run(tmp_path: Path) -> None:
    root = make_folders(tmp_path / "faces")
    held = cache.open_cache(DataConfig(), tmp_path / "run")
    assert isinstance(held, DecodeCache)
    opened = open_dataset(root, DataConfig(), cache=held)
    assert not (tmp_path / "run").exists()
    Run.create(tmp_path / "run", RunConfig(dataset=str(root)), opened.fingerprint)
    held.release()
    assert list((tmp_path / "run" / ".cache").rglob("*.npz"))
    assert (
        cache.open_cache(DataConfig()) is None
        and cache.open_cache(DataConfig(cache="none"), tmp_path) is None
    )


def test_the_cache_may_not_mix_with_the_dataset(tmp_path: Path) -> None:
    root = make_folders(tmp_path / "diffinf-decoded" / "faces", splits=["train", "test"])
    before = sorted(root.rglob("*"))
    for place, said in ((root, "lies inside"), (root / "train", "lies inside"), (tmp_path, "holds")):
        with pytest.raises(
            UserError, match=rf"data\.cache: .*: {said} the dataset .*; choose a folder outside"
        ):
            open_dataset(root, DataConfig(cache=place))
    assert sorted(root.rglob("*")) == before
    table = make_table(tmp_path / "table")
    assert (
        len(pixels(open_dataset(table, DataConfig(cache=table.parent)))) == 36
    )  # beside it: nothing is mixed


def test_where_decoded_images_are_kept_makes_no_other_run(tmp_path: Path) -> None:
    config = RunConfig(dataset=str(tmp_path))
    other = apply_overrides(config, ["data.cache=somewhere", "data.cache_gb=1"])
    assert other.data.cache == Path("somewhere").absolute()
    assert default_directory(config) == default_directory(other)
