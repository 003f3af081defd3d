"""`diffinf inspect`: what a dataset is and what is wrong with it, before any run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from diffinf.cli.app import (
    Annotator,
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
    NormaliseLabels,
    Order,
    Root,
    Set,
    Split,
    Votes,
    app,
)
from diffinf.cli.settings import data_settings, given, run_settings

_LISTED = 10  # rows of a table for people; --json and inspect.json have all
_COUNTED = 50  # classes, or values of a group
_SPLITS = ("train", "validation", "test")


@app.command("inspect")
def inspect_(
    dataset: DatasetOrRun,
    format_: Format = None,
    image: Image = None,
    label: Label = None,
    root: Root = None,
    id_: Id = None,
    split: Split = None,
    identity: Identity = None,
    group: Group = None,
    bins: Bins = None,
    order: Order = None,
    votes: Votes = None,
    annotator: Annotator = None,
    normalise_labels: NormaliseLabels = None,
    icc: Icc = None,
    limit: Limit = None,
    set_: Set = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for inspect.json and the contact sheets (PNG).")
    ] = None,
    similarity: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="From which correlation pictures are nearly the same.")
    ] = 0.9,
    as_json: Json = False,
) -> None:
    """Look at a dataset: counts, sizes, duplicates, leaks across splits, label conflicts, unreadable files."""
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
        order=order,
        votes=votes,
        annotator=annotator,
        normalise_labels=normalise_labels,
        icc=icc,
        limit=limit,
    )
    values = {"data": given(data)}
    config = run_settings(dataset, values, None, set_ or [], None, False, otherwise="cpu")
    from diffinf.data import open_dataset
    from diffinf.data.inspect import inspect_dataset

    result = inspect_dataset(
        open_dataset(config.dataset, config.data, seed=config.seed), out, similarity=similarity
    )
    if as_json:
        print(json.dumps(result, indent=2))
        return
    _show(result)
    if out is not None:
        typer.echo(f"inspect.json and contact sheets: {out}")


def _show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console()
    left_out = result["left_out_by_limit"]
    console.print(
        f"[bold]{escape(result['dataset'])}[/bold]: {result['layout']}, {result['rows']:,} samples, "
        f"{result['read']:,} read, {result['unreadable']:,} not usable"
        + (f", {left_out:,} beyond the limit" if left_out else ""),
        soft_wrap=True,
    )
    _show_counts(console, "class", result["counts"]["classes"])
    for name, values in result["counts"]["groups"].items():
        _show_counts(console, name, values)
    console.print(escape(_images_line(result["images"])), soft_wrap=True)
    _show_duplicates(console, result["duplicates"])
    _show_people(console, result["people"])
    _show_votes(console, result["votes"])
    if result["quarantine"]:
        rows = [[entry["id"], entry["reason"]] for entry in result["quarantine"]]
        _show_table(console, "Not usable", ["id", "reason"], rows)


def _show_counts(console: Any, title: str, values: dict[str, dict[str, int]]) -> None:
    most = sorted(values, key=lambda name: -sum(values[name].values()))[:_COUNTED]
    rows = [
        [name, *(f"{counts[split]:,}" for split in _SPLITS), f"{sum(counts.values()):,}"]
        for name, counts in values.items()
        if name in most
    ]
    total = [f"{sum(counts[split] for counts in values.values()):,}" for split in _SPLITS]
    rows.append(["all", *total, f"{sum(sum(counts.values()) for counts in values.values()):,}"])
    _show_table(console, "", [title, *_SPLITS, "all"], rows, limit=None)
    if len(values) > _COUNTED:
        console.print(f"... the {_COUNTED} most frequent of {len(values):,}; 'all' counts every one")


def _images_line(images: dict[str, Any]) -> str:
    def listed(counts: dict[str, int]) -> str:
        return ", ".join(f"{name} {n:,}" for name, n in counts.items())

    sizes = ", ".join(f"{size['width']} x {size['height']} ({size['n']:,})" for size in images["sizes"][:3])
    more = images["distinct_sizes"] - len(images["sizes"][:3])
    return (
        f"{listed(images['formats'])}; modes {listed(images['modes'])}; sizes {sizes}"
        + (f" and {more:,} more" if more > 0 else "")
        + f"; {images['bytes']['total'] / 1e6:,.1f} MB"
        + (f"; {len(images['blank']):,} blank" if images["blank"] else "")
    )


def _show_duplicates(console: Any, duplicates: dict[str, Any]) -> None:
    titles = {"files": "same file", "pixels": "same pixels", "near": "nearly the same"}
    counts = ["groups", "images", "superfluous", "across_splits", "label_conflicts", "identity_conflicts"]
    rows = [
        [count.replace("_", " "), *(f"{duplicates[level][count]:,}" for level in titles)]
        for count in counts
        if count in duplicates["near"]
    ]
    _show_table(console, "", ["duplicates", *titles.values()], rows)  # fits 80 columns
    if not duplicates["near_complete"]:
        console.print("The search for near duplicates was stopped: there are too many.")
    worst = [
        [
            ", ".join(entry["ids"][:4]),
            ", ".join(sorted(set(entry["labels"]))),
            ", ".join(sorted(set(entry["splits"]))),
        ]
        for entry in duplicates["near"]["list"]
        if len(set(entry["labels"])) > 1 or len(set(entry["splits"])) > 1
    ]
    if worst:
        _show_table(console, "Across splits, or with several labels", ["ids", "labels", "splits"], worst)


def _show_votes(console: Any, votes: dict[str, Any] | None) -> None:
    if votes is None:
        return
    console.print(
        f"Votes of {votes['n']:,} images ({votes['without']:,} have none): {votes['agreement'] or 0:.1%} are for the "
        f"label, which {votes['outvoted']:,} images have against a choice of more votes",
        soft_wrap=True,
    )
    rows = [[name, f"{share:.1%}"] for name, share in votes["by_class"].items()]
    _show_table(console, "", ["class", "votes for the label"], rows, limit=None)


def _show_people(console: Any, people: dict[str, Any] | None) -> None:
    if people is None:
        console.print("No column of identities: leaks of people across splits were not looked for.")
        return
    leaks = people["across_splits"]
    console.print(
        f"{people['n']:,} people; "
        + (
            f"{leaks:,} of them are in several splits, with {people['images_across_splits']:,} images"
            if leaks
            else "each in one split"
        )
    )
    rows = [
        [leak["identity"], ", ".join(f"{split} {n:,}" for split, n in leak["splits"].items())]
        for leak in people["leaks"]
    ]
    if rows:
        _show_table(console, "", ["in several splits", "images"], rows)


def _show_table(
    console: Any,
    title: str,
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    limit: int | None = _LISTED,
) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title or None)
    for number, header in enumerate(headers):
        numeric = all(row[number].replace(",", "").isdecimal() for row in rows)
        table.add_column(escape(header), justify="right" if numeric else "left", overflow="fold")
    for row in rows[:limit]:
        table.add_row(*(escape(cell) for cell in row))
    console.print(table)
    if limit is not None and len(rows) > limit:
        console.print(f"... and {len(rows) - limit:,} more: --json, or inspect.json with --out, lists all")
