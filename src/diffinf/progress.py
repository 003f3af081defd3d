"""Progress of long work on stderr: a bar with rate and time left in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int], None]

_PLAIN_INTERVAL = 10.0  # seconds between two plain lines: readable in a log file, alive enough for a watcher
_quiet = False


def set_quiet(quiet: bool) -> None:
    """Silence every progress bar and note of this process (``--quiet``, tests)."""
    global _quiet
    _quiet = quiet


@contextmanager
def silenced() -> Iterator[None]:
    """Silence every progress bar and note inside the block."""
    before = _quiet
    set_quiet(True)
    try:
        yield
    finally:
        set_quiet(before)


def note(message: str) -> None:
    """Print one line on stderr, unless quiet."""
    if not _quiet:
        print(message, file=sys.stderr, flush=True)


@contextmanager
def progress_bar(description: str, total: int) -> Iterator[Advance]:
    """Show the progress of ``total`` units of work.

    Yields a function to call with the number of units just done. In a terminal that draws a bar with count,
    rate and time left; elsewhere it prints a plain line at most every 10 seconds and one at the end. Several
    may be open at once: an inner one is shown only in plain mode, since a terminal holds one live display.

    Args:
        description: what is being done, a few words.
        total: the number of units of work, at least 0.
    """
    if _quiet or total <= 0:
        yield lambda _: None
    elif sys.stderr.isatty():
        with _terminal_bar(description, total) as advance:
            yield advance
    else:
        with _plain_lines(description, total) as advance:
            yield advance


_live = False


@contextmanager
def _terminal_bar(description: str, total: int) -> Iterator[Advance]:
    """A rich bar; a bar opened inside another one stays silent."""
    global _live
    if _live:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class RateColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(_rate(task.speed or 0.0), style="progress.data.speed")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("spent"),
        TimeElapsedColumn(),
    )
    _live = True
    try:
        with Progress(*columns, console=Console(stderr=True), speed_estimate_period=60.0) as bar:
            task = bar.add_task(description, total=total)
            yield lambda amount: bar.advance(task, amount)
    finally:
        _live = False


@contextmanager
def _plain_lines(description: str, total: int) -> Iterator[Advance]:
    """Lines such as ``train classifier: 300/1200 (25/s, 0:36 left)``."""
    start = time.monotonic()
    done, before, last, shown = 0, 0, start, -1

    def line() -> None:
        nonlocal shown
        shown = done
        speed = (done - before) / max(time.monotonic() - start, 1e-9)
        left = (
            f"{clock((total - done) / speed)} left"
            if before < done < total
            else clock(time.monotonic() - start)
        )
        figures = ", ".join(part for part in (_rate(speed), left) if part)
        note(f"{description}: {done}/{total} ({figures})")

    def advance(amount: int) -> None:
        nonlocal done, before, last
        if done == 0 and time.monotonic() - start < 0.1:
            before = (
                amount  # a resumed run reports at once what an earlier one did: no part of this one's rate
            )
        done += amount
        if time.monotonic() - last >= _PLAIN_INTERVAL:
            last = time.monotonic()
            line()

    yield advance
    if shown != done:
        line()


def clock(seconds: float) -> str:
    """Seconds as ``m:ss`` or ``h:mm:ss``."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, seconds_left = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{seconds_left:02}" if hours else f"{minutes}:{seconds_left:02}"


def _rate(per_second: float) -> str:
    """``12/s``, below one a second ``3.2 s each``, nothing for 0: what was done at once or before has no rate."""
    if per_second <= 0:
        return ""
    if per_second < 1:
        return f"{_two_digits(1 / per_second)} s each"
    return f"{_two_digits(per_second)}/s"


def _two_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"
