"""Originals put back: in every layout, once or twice, and with the source or the process lost in between."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from data.miniatures import PUBLIC, make_folders, make_huggingface, make_table, picture
from diffinf.cli import main
from diffinf.config import DataConfig
from diffinf.data import FaceDataset, open_dataset
from diffinf.errors import UserError
from diffinf.files import read_json, read_table, write_json, write_table
from diffinf.run import Run
from diffinf.stages import refining
from diffinf.stages.refining import refine
from diffinf.stages.restoring import restore_originals
from diffinf.stages.summary import arms_stale
from stages.repaired_run import DOUBTED, EDITED, TRUSTED, make_run

SUBSET, TABLE = DataConfig(split="subset"), DataConfig(split="subset", identity="person")
Refined = tuple[Run, FaceDataset, list[str]]


def state(folder: Path) -> dict[str, str]:
    """Digest of every file but the log, the lock and what is written anew by every command."""
    passing = ("events.jsonl", "lock", "summary.json", "report.html")
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and file.name not in passing)
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def statuses(run: Run) -> dict[str, tuple[str, str]]:
    return {row["id"]: (row["status"], row["reason"]) for row in read_table(run.edits).to_pylist()}


@pytest.fixture
def refined(tmp_path: Path) -> Refined:
    """Class folders, PNG and JPEG; two edited, three dropped, one kept."""
    source = make_folders(tmp_path / "source")
    run, dataset, ids = make_run(source, tmp_path / "run", DataConfig(), "edit-or-drop")
    refine(run, dataset)
    return run, dataset, ids


LAYOUTS: dict[str, tuple[Callable[[Path], Path], DataConfig]] = {
    "folders": (make_folders, DataConfig()),
    "csv": (make_table, TABLE),
    "parquet": (lambda folder: make_table(folder, suffix=".parquet"), TABLE),
    "huggingface": (lambda folder: make_huggingface(folder / "x.parquet"), SUBSET),
    "row numbers": (lambda folder: make_huggingface(folder / "x.parquet", ids=False), SUBSET),
}
LAYOUTS |= {name: (layout.make, DataConfig(**layout.config)) for name, layout in PUBLIC.items()}


@pytest.mark.parametrize("policy", ["edit-or-relabel", "edit-or-drop"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_put_back_is_the_dataset_as_it_came(tmp_path: Path, layout: str, policy: str) -> None:
    make, config = LAYOUTS[layout]
    source = make(tmp_path / "source")
    run, dataset, ids = make_run(source, tmp_path / "run", config, policy)
    refine(run, dataset)
    inside = source.relative_to(dataset.source.base)
    assert open_dataset(run.refined / inside, config).fingerprint != dataset.fingerprint
    found = restore_originals(run, everything=True)
    assert sorted(found["restored"]) == sorted(ids[m] for m in (*EDITED, *DOUBTED))
    after = open_dataset(run.refined / inside, config)
    assert after.fingerprint == dataset.fingerprint and after.sha256 == dataset.sha256
    assert set(statuses(run).values()) == {("kept", "restored"), ("kept", "judge")}


def test_one_is_put_back_and_the_others_stay(refined: Refined) -> None:
    run, dataset, ids = refined
    back, other = ids[EDITED[0]], ids[EDITED[1]]
    found = restore_originals(run, [back])
    assert found == {"restored": [back], "unchanged": [], "arms_stale": False}
    source = dataset.source.path
    assert (run.refined / back).read_bytes() == (source / back).read_bytes()
    assert (run.refined / other).read_bytes() != (source / other).read_bytes()
    assert not any((run.refined / ids[m]).exists() for m in DOUBTED)
    assert statuses(run)[back] == ("kept", "restored") and statuses(run)[other] == ("edited", "")
    told = {row["id"]: row for row in read_table(run.provenance).to_pylist()}
    assert (told[back]["action"], told[back]["reason"], told[back]["sha256"]) == ("kept", "restored", None)
    summary = read_json(run.summary)
    assert summary["edited"] == 1 and summary["kept_reasons"]["restored"] == 1
    assert "put back by hand" in run.report.read_text(encoding="utf-8")


def test_twice_is_once(refined: Refined) -> None:
    run, _, ids = refined
    restore_originals(run, [ids[0]])
    before = state(run.path)
    found = restore_originals(run, [ids[0], ids[0]])
    assert found["restored"] == [] and found["unchanged"] == [ids[0]] and state(run.path) == before
    assert restore_originals(run, [ids[1], ids[0]])["restored"] == [ids[1]]
    assert statuses(run)[ids[0]] == statuses(run)[ids[1]] == ("kept", "restored")


def test_what_was_not_changed_is_left_alone(refined: Refined) -> None:
    run, dataset, ids = refined
    before = state(run.path)
    never_flagged = str(dataset.ids[dataset.rows("test")[0]])
    found = restore_originals(run, [ids[TRUSTED], never_flagged])
    assert found["restored"] == [] and found["unchanged"] == [ids[TRUSTED], never_flagged]
    assert state(run.path) == before and statuses(run)[ids[TRUSTED]] == ("kept", "judge")


def test_by_reason(refined: Refined) -> None:
    run, _, ids = refined
    found = restore_originals(run, reasons=["judge", "influence"])
    assert found["restored"] == [ids[1], ids[5]]
    assert statuses(run)[ids[2]] == ("dropped", "identity")


def test_what_cannot_be_meant_changes_nothing(refined: Refined) -> None:
    run, _, ids = refined
    before = state(run.path)
    with pytest.raises(UserError, match="--id nobody: no such sample"):
        restore_originals(run, [ids[0], "nobody"])
    with pytest.raises(UserError, match=r"--reason ugly: expected some of judge, identity"):
        restore_originals(run, reasons=["ugly"])
    for arguments in ({}, {"ids": [ids[0]], "everything": True}):
        with pytest.raises(UserError, match="expected one of --id, --reason and --all"):
            restore_originals(run, **arguments)
    assert state(run.path) == before


@pytest.mark.parametrize("loss", ["changed", "gone", "another changed"])
def test_a_lost_source_changes_nothing(refined: Refined, loss: str) -> None:
    run, dataset, ids = refined
    name = ids[0] if loss != "another changed" else ids[1]
    file = dataset.source.path / name
    if loss == "gone":
        file.unlink()
    else:
        file.write_bytes(picture(4711))
    before = state(run.path)
    expected = (
        rf"{ids[0]}: the original in .* is not what it was" if name == ids[0] else "the dataset has changed"
    )
    with pytest.raises(UserError, match=expected) as caught:
        restore_originals(run, [ids[0]])
    assert "nothing was changed" in str(caught.value) and state(run.path) == before


def test_a_dataset_that_is_gone_changes_nothing(refined: Refined) -> None:
    run, dataset, ids = refined
    before = state(run.path)
    dataset.source.path.rename(dataset.source.path.with_name("elsewhere"))
    with pytest.raises(UserError, match="source"):
        restore_originals(run, [ids[0]])
    assert state(run.path) == before


class Killed(BaseException):
    """As if the process had been killed there."""


@pytest.mark.parametrize("where", ["write_refined", "write_table"])
def test_killed_in_between_it_is_finished_by_the_next_command(
    refined: Refined, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    run, dataset, ids = refined
    before = state(run.refined)

    def kill(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(refining, where, kill)  # before refined/ is written, or before edits.parquet is
        with pytest.raises(Killed):
            restore_originals(run, [ids[0]])
    assert not run.is_done("refine"), "the run knows that it is not finished"
    back = hashlib.sha256((dataset.source.path / ids[0]).read_bytes()).hexdigest()
    if where == "write_refined":
        assert state(run.refined) == before and statuses(run)[ids[0]] == ("edited", "")
    else:
        assert state(run.refined)[str(run.refined / ids[0])] == back
    found = restore_originals(run, [ids[0]])
    assert run.is_done("refine") and found["restored"] == [] and found["unchanged"] == [ids[0]]
    assert state(run.refined)[str(run.refined / ids[0])] == back
    assert statuses(run)[ids[0]] == ("kept", "restored")
    assert [path.name for path in run.path.iterdir() if path.name.startswith(".refined")] == []


def compared(run: Run) -> None:
    """Leave what the stage compare leaves, with an arm that diverged: it has no figures to look after."""
    row = {"arm": "diffinf", "seed": 0, "n_train": 3, "steps": 1, "accuracy": None, "balanced_accuracy": None}
    row |= {"macro_f1": None, "seconds": 1.0, "diverged": True}
    write_table(run.comparison, pa.Table.from_pylist([row]), ["a", "b"])
    write_json(run.compare / "refined.json", {"refine": run.key("refine")})


def test_the_comparison_is_known_to_be_out_of_date(refined: Refined) -> None:
    run, _, ids = refined
    assert not arms_stale(run), "there is none"
    compared(run)
    assert not restore_originals(run, [ids[TRUSTED]])["arms_stale"]
    assert restore_originals(run, [ids[0]])["arms_stale"]
    assert read_json(run.summary)["arms_stale"] and "out of date" in run.report.read_text(encoding="utf-8")


def test_the_command(refined: Refined, capsys: pytest.CaptureFixture[str]) -> None:
    run, _, ids = refined
    compared(run)
    for arguments, code in (
        (["--id", ids[0], "--id", ids[1], "--json"], 0),
        (["--all"], 0),
        (["--id", "nobody"], 2),
    ):
        with pytest.raises(SystemExit) as end:
            main(["restore", str(run.path), *arguments])
        assert (end.value.code or 0) == code
        printed = capsys.readouterr()
        if "--json" in arguments:
            assert json.loads(printed.out)["restored"] == ids[:2]
        elif code:
            assert "no such sample" in printed.err and "Traceback" not in printed.err
        else:
            assert "3 put back" in printed.out and "diffinf compare" in printed.out


def test_before_the_repair_there_is_nothing_to_restore(tmp_path: Path, refined: Refined) -> None:
    run = Run.create(tmp_path / "young", refined[0].config, refined[1].fingerprint)
    with pytest.raises(UserError, match="'repair' is not finished"):
        restore_originals(run, everything=True)
