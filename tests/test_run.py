from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from diffinf import run as run_module
from diffinf.config import make_config
from diffinf.errors import UserError
from diffinf.files import (
    atomic_path,
    load_tensors,
    read_class_names,
    read_json,
    read_table,
    save_tensors,
    stage_key,
    write_json,
    write_table,
)
from diffinf.run import Run


def new_run(path: Path, fingerprint: str = "f" * 64, **options: bool) -> Run:
    return Run.create(path, make_config("faces", preset_name="tiny"), fingerprint, **options)


def test_atomic_path_gives_the_whole_file_or_none(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("one")
        assert not target.exists()
    assert target.read_text() == "one"
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("tw")
        raise RuntimeError
    assert target.read_text() == "one" and [p.name for p in target.parent.iterdir()] == ["file.txt"]


def test_files_come_back(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1, None]})
    assert read_json(tmp_path / "a.json") == {"b": [1, None]}
    # A folder called key=value must not turn into a column.
    write_table(tmp_path / "k=1" / "a.parquet", pa.table({"id": ["x"]}), ("no", "yes"))
    table = read_table(tmp_path / "k=1" / "a.parquet")
    assert table.column_names == ["id"] and read_class_names(table) == ("no", "yes")
    save_tensors(tmp_path / "a.safetensors", {"x": torch.arange(6).reshape(2, 3).T}, {"note": "n"})
    assert load_tensors(tmp_path / "a.safetensors")["x"].tolist() == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize("read", [read_json, read_table, load_tensors])
def test_missing_and_damaged_files_are_named(tmp_path: Path, read) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=r"missing\.x: no such file"):
        read(tmp_path / "missing.x")
    (tmp_path / "damaged.x").write_bytes(b"\xff\xfe garbage")
    with pytest.raises(UserError, match=r"damaged\.x: not"):
        read(tmp_path / "damaged.x")


def test_json_has_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())


def test_stage_key_depends_on_content_alone() -> None:
    config = make_config("x")
    assert stage_key({"b": 1, "a": Path("p")}, config) == stage_key(
        {"a": Path("p"), "b": 1}, make_config("x")
    )
    assert stage_key(1, 2) != stage_key([1, 2]) != stage_key(2, 1)


def test_a_done_stage_is_skipped_and_a_changed_one_starts_clean(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    seen: list[tuple[bool, bool]] = []

    def work() -> None:
        part = run.scratch("s") / "part"
        seen.append((part.exists(), (run.path / "out").exists()))
        part.touch()
        (run.path / "out").touch()

    assert run.stage("s", "k1", work, outputs=("out",))
    assert not run.stage("s", "k1", work, outputs=("out",))
    assert not (run.path / ".work" / "s").exists()
    (run.path / "out").unlink()
    assert run.stage("s", "k1", work, outputs=("out",)), "an output that is gone must be made again"
    assert run.stage("s", "k2", work, outputs=("out",))
    assert seen == [(False, False)] * 3
    assert list(run.timings()) == ["s"] and run.key("s") == "k2"


def test_a_failed_stage_resumes_from_its_scratch_with_the_same_key_only(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    seen: list[list[str]] = []

    def work() -> None:
        seen.append(sorted(p.name for p in run.scratch("s").iterdir()))
        (run.scratch("s") / f"part{len(seen)}").touch()
        if len(seen) in (1, 3):
            raise RuntimeError("killed")

    for key in ("k1", "k1", "k2", "k3"):
        try:
            run.stage("s", key, work)
        except RuntimeError:
            assert not run.is_done("s")
    assert seen == [[], ["part1"], [], []]
    assert [event["event"] for event in run.events()] == [
        *("start", "error"),
        *("resume", "end"),
        *("start", "error"),
        *("start", "end"),
    ]


KILLED = """
import os, signal, sys
from pathlib import Path
from diffinf.run import Run
run = Run.open(Path(sys.argv[1]))
def work():
    (run.scratch("s") / "part").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
run.stage("s", "key", work, outputs=("out",))
"""


def test_a_killed_process_leaves_a_stage_that_resumes(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    killed = subprocess.run([sys.executable, "-c", KILLED, run.path], check=False)
    assert killed.returncode == -signal.SIGKILL and not run.is_done("s")

    def work() -> None:
        (run.path / "out").write_text((run.scratch("s") / "part").read_text() + " and whole")

    assert run.stage("s", "key", work, outputs=("out",))
    assert (run.path / "out").read_text() == "half and whole"


def test_torn_files_of_a_killed_process_are_swept(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    torn = [run.path / ".summary.json.7.part", run.path / "crossfit" / "fold-0" / ".model.safetensors.7.part"]
    mine = [run.refined / ".a.part", run.path / "crossfit" / "record.part"]
    for path in (*torn, *mine):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    run.sweep()
    assert not any(path.exists() for path in torn) and all(path.exists() for path in mine)


def test_a_torn_event_spoils_no_other(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    run.event("a", "one")
    with (run.path / "events.jsonl").open("a") as handle:
        handle.write('{"stage": "a", "ev')
    run.event("a", "two", n=1)
    assert [event["event"] for event in run.events()] == ["one", "two"]
    assert json.loads((run.path / "events.jsonl").read_text().splitlines()[-1])["n"] == 1


def test_a_run_of_another_dataset_is_refused(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    (run.path / "scores.parquet").touch()
    new_run(run.path)
    assert run.scores.exists()
    with pytest.raises(UserError, match=r"belongs to the dataset faces.*--fresh"):
        new_run(run.path, "0" * 64)
    new_run(run.path, "0" * 64, fresh=True)
    assert not run.scores.exists()


def test_a_directory_with_other_files_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    for fresh in (False, True):
        with pytest.raises(UserError, match="not a diffinf run"):
            new_run(tmp_path, fresh=fresh)
    assert (tmp_path / "thesis.tex").read_text() == "mine"
    with pytest.raises(UserError, match="expected a directory"):
        new_run(tmp_path / "thesis.tex")
    with pytest.raises(UserError, match="not a diffinf run directory"):
        Run.open(tmp_path)


def test_an_unfinished_stage_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'score' is not finished"):
        new_run(tmp_path / "run").key("score")


HOLDING = """
import sys
from pathlib import Path
from diffinf.run import Run
with Run.open(Path(sys.argv[1])).lock():
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_two_processes_cannot_work_on_one_run(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    command = [sys.executable, "-c", HOLDING, run.path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "ready\n"
        with pytest.raises(UserError, match="another process"), run.lock():
            pass
        with pytest.raises(UserError, match="another process"):
            new_run(run.path, fresh=True)
    with run.lock():  # its holder has ended
        pass


@pytest.mark.parametrize(
    ("number", "message"),
    [(errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only"), (errno.EACCES, "denied")],
)
def test_a_disk_that_cannot_be_written_is_said_clearly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(run_module.os, "fsync", refuse)
    with pytest.raises(UserError, match=rf"a\.json: cannot be written: .*{message}"):
        write_json(tmp_path / "a.json", {})
    assert not list(tmp_path.iterdir())


def test_a_full_disk_met_by_a_library_is_said_too(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="disk is full"), atomic_path(tmp_path / "a"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
