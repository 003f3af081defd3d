"""What a command prints when it is done."""

from __future__ import annotations

import json
from typing import Any


def show(run: Any, as_json: bool) -> None:
    """Print what a run has so far: its summary as JSON, or the arms' table, warnings and the paths."""
    from diffinf.files import read_json

    summary = read_json(run.summary)
    if as_json:
        print(json.dumps({"run": str(run.path), **summary}, indent=2))
        return
    from rich.console import Console
    from rich.table import Column, Table

    from diffinf.report.groups import warning
    from diffinf.report.words import TINY

    console = Console()
    if summary["arms"]:
        ordered = any("mean_absolute_error" in arm for arm in summary["arms"].values())
        distance = ["mean error in classes"] if ordered else []
        table = Table(
            Column("arm", overflow="fold"),
            "balanced accuracy",
            "95 % interval",
            "accuracy",
            *distance,
            "seeds",
        )
        for name, arm in summary["arms"].items():
            low, high = arm["ci"]
            interval, balanced = f"{low:.3f} to {high:.3f}", f"{arm['balanced_accuracy']:.3f}"
            distance = [f"{arm['mean_absolute_error']:.3f}"] if ordered else []
            table.add_row(name, balanced, interval, f"{arm['accuracy']:.3f}", *distance, str(arm["seeds"]))
        console.print(table)
        if summary["arms_stale"]:
            console.print(
                "These arms were trained on an earlier refined/; `diffinf compare` brings them up to date."
            )
    if summary["flagged"] is not None:
        parts = [f"{summary['flagged']} of {summary['dataset']['splits']['train']} training samples flagged"]
        if summary["edited"] is not None:
            parts += [f"{summary[name]} {name}" for name in ("edited", "kept", "relabelled", "dropped")]
        console.print(", ".join(parts))
    if kept := {reason: n for reason, n in (summary["kept_reasons"] or {}).items() if n}:
        reasons = ", ".join(f"{reason} {n}" for reason, n in kept.items())
        console.print(f"kept because of: {reasons} (the report says what these are)", soft_wrap=True)
    if unusable := summary["dataset"]["quarantined"]:
        are = "are" if unusable > 1 else "is"
        console.print(f"{unusable} of the samples {are} not usable: quarantine.parquet", soft_wrap=True)
    for uneven in summary["group_warnings"]:
        console.print(f"warning: {warning(uneven)}", soft_wrap=True, markup=False)
    if summary["preset"] == "tiny":
        console.print(TINY, soft_wrap=True)
    console.print(f"run: {run.path}", soft_wrap=True)
    if run.report.exists():
        console.print(f"report: {run.report}", soft_wrap=True)


def show_targets(path: Any, as_json: bool) -> None:
    """Print what came out for several attributes: their summary as JSON, or a table and the path."""
    from diffinf.files import read_json

    summary = read_json(path / "summary.json")
    if as_json:
        print(json.dumps({"run": str(path), **summary}, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    from diffinf.report.groups import warning
    from diffinf.report.words import TINY

    columns = ("flagged", "edited", "kept", "relabelled")
    table = Table("attribute", *columns)
    for name, run in summary["targets"].items():
        table.add_row(name, *("" if run[column] is None else str(run[column]) for column in columns))
    console = Console()
    console.print(table)
    console.print(
        f"{summary['edited_for_several']} of {summary['edited_faces']} edited faces: for several attributes"
    )
    for name, run in summary["targets"].items():
        for uneven in run["group_warnings"]:
            console.print(f"warning: {name}: {warning(uneven)}", soft_wrap=True, markup=False)
    if any(run["preset"] == "tiny" for run in summary["targets"].values()):
        console.print(TINY, soft_wrap=True)
    console.print(f"directory: {path}", soft_wrap=True)


def show_costs(costs: list[dict[str, Any]], as_json: bool) -> None:
    """Print the estimated costs by stage: a table, in which little is called so, or JSON."""
    if as_json:
        print(json.dumps(costs, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    from diffinf.progress import clock

    table = Table("stage", "work", "time", title="Estimated cost on this machine")
    for row in costs:
        table.add_row(row["stage"], row["work"], "seconds" if row["seconds"] < 10 else clock(row["seconds"]))
    table.add_section()
    whole = sum(row["seconds"] for row in costs)
    table.add_row("all", "", "under a minute" if whole < 60 else clock(whole))
    console = Console()
    console.print(table)
    console.print("Not in it: the seconds that each process takes to start.")
