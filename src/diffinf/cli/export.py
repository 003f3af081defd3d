"""The command that hands results to other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffinf.cli.app import RunPath, app
from diffinf.errors import UserError

FORMATS = ("cleanlab", "csv", "parquet", "imagefolder")


@app.command()
def export(
    run: RunPath,
    out: Annotated[Path, typer.Argument(help="CSV file to write (cleanlab, csv), or folder (the others).")],
    to: Annotated[
        str,
        typer.Option(
            help="cleanlab: label issues in cleanlab's columns; csv: all scores and edits; parquet: the refined "
            "dataset as Hugging Face Parquet; imagefolder: the same as SPLIT/CLASS/IMAGE."
        ),
    ],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a CSV file that exists.")] = False,
) -> None:
    """Export the issues found in a run, or its refined dataset, in a format of other tools."""
    if to not in FORMATS:
        raise UserError(f"--to {to}: expected {', '.join(FORMATS)}")
    from diffinf.run import Run

    taken = Run.open(run)
    from diffinf.data import export as exporters

    if to in ("cleanlab", "csv"):
        if out.is_dir() or (out.exists() and not overwrite):
            raise UserError(f"{out}: exists already; choose another file, or --overwrite")
        table = exporters.cleanlab_issues(taken) if to == "cleanlab" else exporters.issues(taken)
        exporters.write_csv(table, out)
    else:
        if overwrite:
            raise UserError(f"--overwrite is for CSV files; delete {out} yourself, or choose another place")
        dataset, actions = exporters.refined_dataset(taken)
        write = exporters.export_parquet if to == "parquet" else exporters.export_imagefolder
        write(dataset, out, actions)
    print(out)
