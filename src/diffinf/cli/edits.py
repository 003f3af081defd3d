"""Commands about single edits: undoing those of a run, and editing pictures of one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from diffinf.cli.app import Device, Json, RunPath, app, say_loading


@app.command()
def restore(
    run: RunPath,
    id_: Annotated[
        list[str] | None, typer.Option("--id", help="Sample whose original is put back. Repeatable.")
    ] = None,
    reason: Annotated[
        list[str] | None,
        typer.Option(help="Put back what was relabelled or dropped for this reason. Repeatable."),
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Put back every original.")] = False,
    as_json: Json = False,
) -> None:
    """Put originals back into the refined dataset of a run: image and label as they came."""
    from diffinf.run import Run

    taken = Run.open(run)
    say_loading()
    from diffinf.stages.restoring import restore_originals

    found = restore_originals(taken, id_ or [], reasons=reason or [], everything=all_)
    if as_json:
        print(json.dumps({"run": str(run), **found}, indent=2))
        return
    print(f"{len(found['restored'])} put back, {len(found['unchanged'])} as they came already")
    if found["arms_stale"]:
        print(f"The comparison is out of date: refined/ has changed. Retrain with `diffinf compare {run}`.")


@app.command()
def edit(
    images: Annotated[list[Path], typer.Argument(help="Picture files, cropped to the face.")],
    to: Annotated[str, typer.Option(help="Class that they are to show.")],
    model: Annotated[Path, typer.Option(help="A run with an autoencoder, or the folder of an autoencoder.")],
    strength: Annotated[
        list[float] | None,
        typer.Option(help="How hard to edit. Repeatable (default: the strengths of the run's settings)."),
    ] = None,
    from_: Annotated[
        str | None, typer.Option("--from", help="Class that they show (default: what is read in each).")
    ] = None,
    out: Annotated[Path, typer.Option(help="PNG for the strip.")] = Path("strip.png"),
    save_all: Annotated[bool, typer.Option("--save-all", help="Save each edit beside the strip.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Edit pictures of your own: original, round trip and rising strengths side by side. No gate judges the result."""
    say_loading()
    from diffinf.stages.editing import check_edit, make_edits
    from diffinf.stages.strips import check_free, write_strip

    task = check_edit(images, to, model, strengths=strength, shown=from_, device=device or "auto")
    check_free(out, overwrite)  # before the work
    found = write_strip(make_edits(task), out, save_all=save_all, overwrite=overwrite)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    _show(found)


def _show(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    first = found["pictures"][0]
    title = f"P({first['to']}) as the {first['read_by']} reads it"
    strengths = [f"{row['strength']:g}" for row in first["after"]]
    table = Table("picture", "from", "before", "round trip", *strengths, title=title)
    for row in found["pictures"]:
        read = [row["before"], row["roundtrip"], *(after["probabilities"] for after in row["after"])]
        table.add_row(row["image"], row["from"], *(f"{shares[row['to']]:.3f}" for shares in read))
    console.print(table)
    for row in found["pictures"]:
        if row["resized"]:
            width, height = row["source_size"]
            console.print(
                f"{row['image']}: {width} x {height}, cropped to the centred square and resized to {row['size']} x "
                f"{row['size']}, the model's size; the edits have this size",
                soft_wrap=True,
                markup=False,
            )
    console.print(f"strip: {found['strip']}", soft_wrap=True, markup=False)
