"""Commands about datasets, without a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffinf.cli.app import app


@app.command()
def render(
    out: Annotated[Path, typer.Argument(help="A Parquet file to write, or a folder for faces.parquet.")],
    n: Annotated[int, typer.Option("--n", help="Number of faces.")] = 6600,
    size: Annotated[int, typer.Option(help="Side in pixels, 24 to 512.")] = 64,
    task: Annotated[str, typer.Option(help="expression or age.")] = "expression",
    identities: Annotated[
        int | None, typer.Option(help="Number of people (default: one for eight faces, at most 800).")
    ] = None,
    noise: Annotated[str, typer.Option(help="none, symmetric, asymmetric or confounded.")] = "confounded",
    rate: Annotated[float, typer.Option(help="Share of wrong labels in train and validation.")] = 0.27,
    seed: Annotated[int, typer.Option(help="Every random draw is a function of it.")] = 0,
    preset: Annotated[
        str | None, typer.Option(help="bench-1: a frozen recipe; only the seed is free.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
) -> None:
    """Render faces with known truth and an annotator's label noise: a Hugging Face datasets Parquet file."""
    from diffinf.data.rendered.write import render_dataset

    path = render_dataset(
        out,
        n=n,
        size=size,
        task=task,  # type: ignore[arg-type]
        identities=min(800, max(3, n // 8)) if identities is None else identities,
        noise=noise,  # type: ignore[arg-type]
        rate=rate,
        seed=seed,
        preset=preset,
        overwrite=overwrite,
    )
    print(path)
