from __future__ import annotations

import pytest

from diffinf import progress
from diffinf.progress import clock, progress_bar


def test_without_a_terminal_there_are_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    progress.set_quiet(False)
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress_bar("work", 40) as advance:
        for _ in range(4):
            now[0] += 6.0
            advance(10)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == ["work: 20/40 (1.7/s, 0:12 left)", "work: 40/40 (1.7/s, 0:24)"]


def test_a_resumed_run_does_not_count_what_was_done_before(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    progress.set_quiet(False)
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress_bar("work", 1000) as advance:
        advance(900)
        now[0] += 10.0
        advance(50)
        now[0] += 1.0
        advance(50)
    assert capsys.readouterr().err.splitlines()[0] == "work: 950/1000 (5/s, 0:10 left)"


def test_quiet_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    progress.set_quiet(True)
    with progress_bar("work", 3) as advance:
        advance(3)
    progress.note("anything")
    assert capsys.readouterr().err == ""


def test_clock() -> None:
    assert [clock(seconds) for seconds in (0.4, 59.6, 3599, 3661)] == ["0:00", "1:00", "59:59", "1:01:01"]


def test_less_than_one_a_second_is_told_in_seconds_and_nothing_is_no_rate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    progress.set_quiet(False)
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress_bar("slow", 4) as advance:
        now[0] += 12.8
        advance(4)
    with progress_bar("slower", 2) as advance:
        now[0] += 80.0
        advance(2)
    with progress_bar("done before", 4) as advance:
        advance(4)
    with progress_bar("waiting", 4) as advance:
        now[0] += 11.0
        advance(0)
    assert capsys.readouterr().err.splitlines() == [
        "slow: 4/4 (3.2 s each, 0:13)",
        "slower: 2/2 (40 s each, 1:20)",
        "done before: 4/4 (0:00)",
        "waiting: 0/4 (0:11)",
    ]
