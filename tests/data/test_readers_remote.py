"""Tables and images behind URLs."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from miniatures import make_huggingface, make_json, make_rows, make_table, picture

from diffinf.config import DataConfig
from diffinf.data import open_dataset, write_refined
from diffinf.data.readers.remote import located
from diffinf.errors import UserError

fsspec = pytest.importorskip("fsspec")
TABLE = DataConfig(split="subset", identity="person")


@pytest.fixture
def memory() -> Iterator[str]:
    """The root of an empty file system in memory."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield "memory://"
    files.store.clear()


def upload(folder: Path) -> None:
    files = fsspec.filesystem("memory")
    for path in folder.rglob("*"):
        if path.is_file():
            files.pipe_file(f"/faces/{path.relative_to(folder).as_posix()}", path.read_bytes())


def pack(folder: Path, archive: Path) -> Path:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as bundle:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                bundle.write(path, path.relative_to(folder))
    return archive


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_the_same_from_memory_and_from_an_archive(tmp_path: Path, memory: str, suffix: str) -> None:
    folder = tmp_path / "source"
    path = make_json(folder) if suffix == ".jsonl" else make_table(folder, suffix=suffix)
    local = open_dataset(path, TABLE)
    upload(folder)
    archive = pack(folder, tmp_path / "faces.zip")
    for url in (f"{memory}faces/faces{suffix}", f"zip://faces{suffix}::{archive}"):
        remote = open_dataset(url, TABLE)
        assert remote.fingerprint == local.fingerprint and remote.source.name == url
        edited = str(remote.ids[remote.rows("train")[0]])
        out = tmp_path / url.partition(":")[0]
        write_refined(remote, {edited: picture(77)}, [], {}, out)
        again = open_dataset(out / f"faces{suffix}", TABLE)
        at = again.ids.tolist().index(edited)
        assert again.encoded(at) == picture(77)
        assert all(again.encoded(row) == local.encoded(row) for row in range(len(local)) if row != at)


def test_a_folder_of_parquet_files(tmp_path: Path, memory: str) -> None:
    rows = make_rows()
    for name, part in (("train-0", rows[:24]), ("test-0", rows[24:])):
        make_huggingface(tmp_path / "data" / f"{name}.parquet", part)
    upload(tmp_path)
    remote = open_dataset(f"{memory}faces", DataConfig())
    assert remote.fingerprint == open_dataset(tmp_path, DataConfig()).fingerprint
    write_refined(remote, {}, [], {}, tmp_path / "out")
    assert open_dataset(tmp_path / "out", DataConfig()).fingerprint == remote.fingerprint


def test_missing_and_oversized_images_are_quarantined(tmp_path: Path, memory: str) -> None:
    make_table(tmp_path / "a")
    (tmp_path / "a" / "img" / "003.png").unlink()
    (tmp_path / "a" / "img" / "004.png").write_bytes(b"\0" * 3_000_000)  # packs to nothing
    archive = pack(tmp_path / "a", tmp_path / "faces.zip")
    dataset = open_dataset(f"zip://faces.csv::{archive}", DataConfig(max_pixels=1000))
    reasons = {entry.id: entry.reason for entry in dataset.quarantine}
    assert set(reasons) == {"img/003.png", "img/004.png"}
    assert "cannot be read" in reasons["img/003.png"] and "max_pixels" in reasons["img/004.png"]


def test_names_in_archives_do_not_lead_out(tmp_path: Path) -> None:
    table = make_table(tmp_path / "a")
    table.write_text(table.read_text().replace("img/004.png", "../../secret.png"))
    archive = pack(tmp_path / "a", tmp_path / "faces.zip")
    url = f"zip://faces.csv::{archive}"
    with pytest.raises(UserError, match=r"row 5 of .*'\.\./\.\./secret\.png' leads out") as caught:
        open_dataset(url, TABLE)
    assert "diffinf-" not in str(caught.value)  # the temporary copy is nobody's business
    with zipfile.ZipFile(tmp_path / "slip.zip", "w") as bundle:
        bundle.writestr("../../slipped.parquet", b"PAR1")
    with pytest.raises(UserError, match="zip://"):
        open_dataset(f"zip://::{tmp_path / 'slip.zip'}", TABLE)
    assert not list(tmp_path.parent.rglob("slipped.parquet"))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("memory://faces/nowhere.csv", "no such file"),
        ("memory://faces/faces.docx", "not a known kind"),
        ("gopher://faces.csv", "gopher"),
        ("zip://faces.csv::/nowhere/faces.zip", "cannot be opened"),
        ("memory://faces/img", "without Parquet files"),
    ],
)
def test_addresses_that_lead_nowhere(tmp_path: Path, memory: str, url: str, expected: str) -> None:
    make_table(tmp_path)
    (tmp_path / "faces.docx").write_bytes(b"x")
    upload(tmp_path)
    with pytest.raises(UserError, match=expected) as caught:
        open_dataset(url, TABLE)
    assert str(caught.value).startswith(url)


def test_a_broken_archive(tmp_path: Path) -> None:
    (tmp_path / "faces.zip").write_bytes(b"PK\x03\x04 nothing more")
    with pytest.raises(UserError, match="cannot be opened"):
        open_dataset(f"zip://faces.csv::{tmp_path / 'faces.zip'}", TABLE)


def test_an_address_is_the_same_from_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = tmp_path.resolve()
    assert located("faces.csv") == located(Path("faces.csv")) == str(here / "faces.csv")
    assert located("zip://faces.csv::packed/faces.zip") == f"zip://faces.csv::{here}/packed/faces.zip"
    for url in ("memory://faces/faces.csv", "zip://faces.csv::s3://bucket/faces.zip", "s3://bucket/faces/"):
        assert located(url) == url
