"""`diffinf crop`: a dataset again, each picture cut down to its face."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from diffinf.cli.app import (
    Bins,
    DatasetOrRun,
    Format,
    Group,
    Icc,
    Id,
    Identity,
    Image,
    Json,
    Label,
    Limit,
    Root,
    Set,
    Split,
    app,
    say_loading,
)
from diffinf.cli.settings import data_settings, given, run_settings


@app.command()
def crop(
    dataset: DatasetOrRun,
    out: Annotated[Path, typer.Argument(help="Folder to write, in the layout of the dataset.")],
    size: Annotated[int, typer.Option(help="Side of the crops in pixels, 16 to 1024.")] = 128,
    margin: Annotated[float, typer.Option(help="Room on each side, as a share of the face, 0 to 2.")] = 0.25,
    align: Annotated[
        bool, typer.Option("--align/--no-align", help="Level the eyes, and put them equally far apart.")
    ] = False,
    face: Annotated[str, typer.Option(help="Which of several: largest, surest or central.")] = "largest",
    min_score: Annotated[
        float, typer.Option(help="What the detector's score has to reach; -0.3 finds more in small pictures.")
    ] = 0.0,
    format_: Format = None,
    image: Image = None,
    label: Label = None,
    root: Root = None,
    id_: Id = None,
    split: Split = None,
    identity: Identity = None,
    group: Group = None,
    bins: Bins = None,
    icc: Icc = None,
    limit: Limit = None,
    set_: Set = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a folder that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Cut each picture of a dataset down to its face; pictures without one are left out and counted."""
    say_loading()
    from diffinf.data.crop import CropSettings, crop_dataset
    from diffinf.features.dlib_detector import DlibDetector

    settings = CropSettings(size=size, margin=margin, align=align, face=face)  # type: ignore[arg-type]
    detector = DlibDetector(min_score)
    data = data_settings(
        format=format_,
        image=image,
        label=label,
        root=root,
        id=id_,
        split=split,
        identity=identity,
        group=group,
        bins=bins,
        icc=icc,
        limit=limit,
    )
    config = run_settings(dataset, {"data": given(data)}, None, set_ or [], None, False, otherwise="cpu")
    from diffinf.data import open_dataset

    opened = open_dataset(config.dataset, config.data, seed=config.seed)
    result = crop_dataset(opened, out, detector, settings, overwrite=overwrite)
    if as_json:
        print(json.dumps(result, indent=2))
        return
    print(
        f"{out}: {result['cropped']:,} of {result['samples']:,} cropped; left out: {result['no_face']:,} without a"
        f" face, {result['not_cut_out']:,} whose face could not be cut out, {result['not_usable']:,} not usable before"
    )
    for column, values in {"class": result["classes"], **result["groups"]}.items():
        shares = ", ".join(f"{name or '(none)'} {n['cropped']:,} of {n['n']:,}" for name, n in values.items())
        print(f"{column}: {shares}")
    print(f"what was found in each: {result['provenance']}")
