"""`diffinf detect`: scores against the truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from diffinf.cli.app import Json, app, say_loading


@app.command()
def detect(
    scores: Annotated[Path, typer.Argument(help="The directory of a run, or a scores.parquet.")],
    truth: Annotated[
        Path | None,
        typer.Option(
            help="CSV or Parquet with id and truth, truth_label or wrong (default: what the run knows)."
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(help="PNG for the precision-recall curves (default detection.png in the run)."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstrap intervals.")] = 0,
    as_json: Json = False,
) -> None:
    """Measure every score against the truth: average precision, ROC AUC, precision at the flagged share, by class."""
    say_loading()
    from diffinf.stages.detecting import detect as measure

    if picture is None and scores.is_dir():
        picture = scores / "detection.png"
    found = measure(scores, truth, picture=picture, seed=seed)
    if as_json:
        print(json.dumps({name: value.to_dict() for name, value in found.items()}, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    first = next(iter(found.values()))
    title = f"{first.n} samples, {first.base_rate:.1%} labels wrong, {first.n_flagged} flagged"
    table = Table(
        "score", "average precision", "95 % interval", "ROC AUC", "precision of the flags", title=title
    )
    for name, value in found.items():
        low, high = value.ci or (0.0, 0.0)
        precision = "-" if value.precision_at_flagged is None else f"{value.precision_at_flagged:.3f}"
        figures = (
            f"{value.average_precision:.3f}",
            f"{low:.3f} to {high:.3f}",
            f"{value.roc_auc:.3f}",
            precision,
        )
        table.add_row(name, *figures)
    console = Console()
    console.print(table)
    classes = Table("label", "samples", "wrong", "average precision", "flagged", "of these wrong")
    for name, part in first.per_class.items():
        own = "-" if part.average_precision is None else f"{part.average_precision:.3f}"
        hits = "-" if part.precision_at_flagged is None else f"{part.precision_at_flagged:.3f}"
        classes.add_row(name, str(part.n), f"{part.base_rate:.3f}", own, str(part.n_flagged), hits)
    console.print(classes)
    if picture is not None:
        console.print(f"curves: {picture}", soft_wrap=True)
