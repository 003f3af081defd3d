"""Commands about models, without a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from diffinf.cli.app import Json, app, say_loading


@app.command("import-diffae")
def import_diffae(
    checkpoint: Annotated[Path, typer.Argument(help="A released DiffAE checkpoint: .ckpt or .safetensors.")],
    out: Annotated[Path, typer.Argument(help="Folder to write, for autoencoder.weights=FOLDER.")],
    config: Annotated[
        str | None,
        typer.Option(
            help="What the shapes cannot tell: ffhq128, ffhq256, or a JSON file (default: from the shapes)."
        ),
    ] = None,
    latent_statistics: Annotated[
        Path | None, typer.Option(help="File with conds_mean and conds_std, which normalise the codes.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Import a released DiffAE autoencoder (arXiv 2111.15640): nothing in the checkpoint is executed."""
    say_loading()
    from diffinf.diffusion.diffae.convert import import_diffae

    report = import_diffae(checkpoint, out, config=config, latent_statistics=latent_statistics)
    if as_json:
        values = {
            "autoencoder": str(out),
            "config": report.config.to_fields(),
            "tensors": report.tensors,
            "parameters": report.parameters,
            "notes": report.notes,
        }
        print(json.dumps(values, indent=2))
        return
    print(f"{report.tensors} tensors, {report.parameters:,} parameters")
    for note in report.notes:
        print(f"- {note}")
    print(out)
