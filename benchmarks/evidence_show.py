"""The comparison as tables in the terminal and as charts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from diffinf.files import atomic_path
from evidence_results import EDITS_ALONE, REFERENCES

_LINES = ("oracle-edit", "clean")  # drawn as lines to hold the others against
_COLOURS = {"oracle-edit": "#3b7a57", "clean": "#777777"}


def show(found: dict[str, Any], console: Console) -> None:
    """Print the arms, the tests and what follows from them."""
    _show_arms(found, console)
    if found["tests"] is not None:
        _show_tests(found["tests"], console)
    if found["adjusted_minus"]:
        rivals = ", ".join(f"{rival} {interval(row)}" for rival, row in found["adjusted_minus"].items())
        console.print(f"logits freed of the label prior, descriptive: {found['tests']['arm']} minus {rivals}")


def _show_arms(found: dict[str, Any], console: Console) -> None:
    chosen = {found["chosen"]["diffinf"], found["chosen"]["robust"]} - {None}
    columns = (
        "primary",
        "all classes",
        "accuracy",
        "macro-F1",
        "ECE",
        "primary, adjusted",
        "gap closed",
        "cost",
    )
    table = Table("arm", "seeds", *columns, title=f"primary: {found['primary']}; *: chosen on validation")
    for arm, row in found["arms"].items():
        name = f"{arm} *" if arm in chosen else arm
        seeds = f"{len(row['seeds'])}"
        if row["diverged"]:
            seeds += f" (diverged: {', '.join(map(str, row['diverged']))})"
        if "as_trained" not in row:
            table.add_row(name, seeds)
            continue
        plain, cost = row["as_trained"], row.get("cost")
        table.add_row(
            name,
            seeds,
            interval(plain["primary"]),
            *(
                "-" if plain[key] is None else f"{plain[key]['estimate']:.3f}"
                for key in ("balanced_accuracy", "accuracy", "macro_f1", "ece")
            ),
            interval(row["adjusted"]["primary"] if "adjusted" in row else None),
            interval((row["gap_closed"] or {}).get("closed")),
            "" if cost is None else f"{cost['training']:.1f} / {cost['whole']:.1f}",
        )
    console.print(table)


def _show_tests(tests: dict[str, Any], console: Console) -> None:
    table = Table("against", "difference", "p", "p (Holm)", "won", title=f"{tests['arm']}, as trained")
    for rival, row in tests["confirmatory"].items():
        p_values = (f"{row['p_value']:.4f}", f"{row['p_holm']:.4f}")
        table.add_row(rival, interval(row), *p_values, "yes" if row["won"] else "no")
    console.print(table)
    claims = ", ".join(f"{rival} {interval(row)}" for rival, row in tests["claims"].items())
    verdict = {True: "shown", False: "not shown", None: "not tested"}[tests["editing_helps"]]
    console.print(f"editing helps ({EDITS_ALONE} minus {claims or 'nothing'}): {verdict}")
    if tests["missing"]:
        console.print(f"not tested, no such arm: {', '.join(tests['missing'])}")


def interval(row: Mapping[str, Any] | None) -> str:
    """An estimate with its ends."""
    return "-" if row is None else f"{row['estimate']:.3f} ({row['low']:.3f} to {row['high']:.3f})"


def draw_arms(found: dict[str, Any], target: Path, measure: str = "primary") -> None:
    """Draw each arm's figure with its interval as a PNG; the oracle edit and the clean labels as lines."""
    rows = {arm: row["as_trained"][measure] for arm, row in found["arms"].items() if "as_trained" in row}
    bars = {arm: row for arm, row in rows.items() if arm not in _LINES}
    ordered = sorted(bars, key=lambda arm: bars[arm]["estimate"])
    chosen = found["chosen"]["diffinf"]
    with _figure(target, (7.5, 1.2 + 0.34 * max(len(ordered), 1))) as figure:
        axes = figure.subplots()
        for place, arm in enumerate(ordered):
            colour = "#c4722d" if arm == chosen else "#9aa7b5" if arm in REFERENCES else "#35618f"
            _whisker(axes, bars[arm], place, colour)
        for arm in _LINES:
            if arm in rows:
                axes.axvline(rows[arm]["estimate"], color=_COLOURS[arm], linestyle="--", label=arm)
                axes.axvspan(rows[arm]["low"], rows[arm]["high"], color=_COLOURS[arm], alpha=0.1)
        axes.set_yticks(range(len(ordered)), ordered)
        axes.set_xlabel(found["primary"])
        axes.grid(axis="x", alpha=0.3)
        if any(arm in rows for arm in _LINES):
            axes.legend(fontsize=8.5, loc="lower right")


def draw_cases(study: dict[str, Any], target: Path) -> None:
    """Draw the arms of a study case by case as a PNG."""
    cases = study["cases"]
    arms = list(dict.fromkeys(arm for case in cases for arm in case["arms"]))
    with _figure(target, (max(6.0, 1.1 * len(cases) + 4.5), 3.6)) as figure:
        axes = figure.subplots()
        for place, arm in enumerate(arms):
            shift = 0.5 * ((place + 0.5) / len(arms) - 0.5)
            held = [
                (k + shift, case["arms"][arm]["primary"])
                for k, case in enumerate(cases)
                if arm in case["arms"]
            ]
            values = [row["estimate"] for _, row in held]
            below = [row["estimate"] - row["low"] for _, row in held]
            above = [row["high"] - row["estimate"] for _, row in held]
            ends = [below, above]
            axes.errorbar([x for x, _ in held], values, yerr=ends, fmt="o", label=arm, capsize=2)
        axes.set_xticks(range(len(cases)), [case["case"] for case in cases], rotation=20, ha="right")
        axes.set_ylabel(study["measure"])
        axes.set_title(study["title"], fontsize=10)
        axes.grid(axis="y", alpha=0.3)
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))


def _whisker(axes: Any, row: Mapping[str, float], place: int, colour: str) -> None:
    ends = [[row["estimate"] - row["low"]], [row["high"] - row["estimate"]]]
    axes.errorbar([row["estimate"]], [place], xerr=ends, fmt="o", color=colour, capsize=3)


@contextmanager
def _figure(target: Path, size: tuple[float, float]) -> Iterator[Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    yield figure
    with atomic_path(target) as partial:
        figure.savefig(partial, format="png", dpi=130)
