"""`diffinf evaluate`: measures of generated images, from saved features or the images themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from diffinf.cli.app import (
    Bins,
    Config,
    Device,
    Format,
    Id,
    Identity,
    Image,
    Json,
    Label,
    Limit,
    NormaliseLabels,
    Preset,
    Root,
    Seed,
    Set,
    Split,
    app,
    say_loading,
)
from diffinf.cli.settings import data_settings, given, run_settings
from diffinf.errors import UserError

evaluate = typer.Typer(no_args_is_help=True, help="Measure generated images.")
app.add_typer(evaluate, name="evaluate")

Features = "features (N, D): .npy, or .npz or Parquet that names them features, embeddings or embedding"
_LISTED = 12  # classes in the terminal


@evaluate.command()
def fidelity(
    real: Annotated[Path, typer.Option(help=f"Real images' {Features}.")],
    generated: Annotated[Path, typer.Option(help="Generated images' features, by the same extractor.")],
    train: Annotated[
        Path | None, typer.Option(help="The generator's training images, to count copies.")
    ] = None,
    held_out: Annotated[
        Path | None, typer.Option(help="Real images not trained on: how many copies to expect by chance.")
    ] = None,
    nearest_k: Annotated[int, typer.Option(help="Neighbours of the balls of precision and the like.")] = 5,
    by_class: Annotated[
        bool, typer.Option("--by-class", help="Within classes too: by arrays called labels.")
    ] = False,
    allow_singular: Annotated[
        bool, typer.Option("--allow-singular", help="Fréchet distance even of no more samples than features.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the kernel distance's blocks.")] = 0,
    copies_picture: Annotated[
        Path | None, typer.Option(help="PNG of the closest copies; the features' files need ids.")
    ] = None,
    generated_images: Annotated[Path | None, typer.Option(help="The generated images, for that.")] = None,
    train_images: Annotated[Path | None, typer.Option(help="The images trained on, for that.")] = None,
    as_json: Json = False,
) -> None:
    """Fréchet and kernel distance, precision, recall, density, coverage, and copies of training images."""
    from diffinf.stages.measuring import measure_fidelity

    wanted = copies_picture, generated_images, train_images, train
    if copies_picture is not None and None in wanted:
        raise UserError("--copies-picture needs --train, --generated-images and --train-images")
    found = measure_fidelity(
        real,
        generated,
        train=train,
        held_out=held_out,
        nearest_k=nearest_k,
        per_class=by_class,
        allow_singular=allow_singular,
        seed=seed,
    )
    drawn = False
    if copies_picture is not None and generated_images is not None and train_images is not None:
        from diffinf.stages.copies import draw_copies

        drawn = draw_copies(found, generated_images, train_images, copies_picture)
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
        return
    frechet, kernel, copies = found.frechet, found.kernel, found.copies
    rows = [*_distances(frechet, kernel), *_balls(found.prdc)]
    if copies is not None:
        chance = "" if copies.held_out_share is None else f", by chance {copies.held_out_share:.2%}"
        rows.append(("near copies of training images", f"{copies.n_copies} ({copies.share:.2%}{chance})"))
    _table(f"{found.prdc.n_generated} generated, {found.prdc.n_real} real images", rows)
    for name, value in found.per_class.items():
        title = f"{name}: {value.n_generated} generated, {value.n_real} real images"
        _table(title, [*_distances(value.frechet, value.kernel), *_balls(value.prdc)])
    if found.one_sided:
        print("classes that only one side has:", ", ".join(found.one_sided))
    if frechet is None:
        print(
            "no Fréchet distance: it needs more samples than features (--allow-singular takes it all the same)"
        )
    if copies is not None and copies.n_copies:
        rows_ = list(zip(copies.generated_indices, copies.train_indices, strict=True))
        pairs = found.copy_ids or [(f"row {a}", f"row {b}") for a, b in rows_]
        print("closest copies, generated = trained on:", ", ".join(f"{a} = {b}" for a, b in pairs[:10]))
    if drawn:
        print(copies_picture)


@evaluate.command()
def separability(
    embeddings: Annotated[Path, typer.Argument(help=f"Embedded images: {Features}.")],
    identities: Annotated[
        Path | None, typer.Option(help="Who each shows, (N,), if the embeddings' file has no identities.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Genuine against impostor pairs: FDR, EER, FMR100, FMR1000, and diversity within identities; all pairs, exact."""
    from diffinf.stages.measuring import measure_separability

    found = measure_separability(embeddings, identities)
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
        return
    scores = found.separability
    rows = [
        ("Fisher discriminant ratio", "-" if scores.fdr is None else f"{scores.fdr:.4g}"),
        ("equal error rate", f"{scores.eer:.4f} at {scores.eer_threshold:.3f}"),
        ("FMR100", f"{scores.fmr100:.4f} at {scores.fmr100_threshold:.3f}"),
        ("FMR1000", f"{scores.fmr1000:.4f} at {scores.fmr1000_threshold:.3f}"),
        ("genuine cosine", f"{scores.genuine_mean:.3f} ± {scores.genuine_std:.3f}, {scores.n_genuine} pairs"),
        (
            "impostor cosine",
            f"{scores.impostor_mean:.3f} ± {scores.impostor_std:.3f}, {scores.n_impostor} pairs",
        ),
        ("diversity within identities", f"{found.diversity:.3f}, least {found.least_diverse[1]:.3f}"),
    ]
    _table(f"{found.n_images} images of {found.n_identities} identities", rows)
    if found.normalised:
        print(f"{found.normalised} embeddings were not of unit length and were brought to it")


@evaluate.command()
def rca(
    generated: Annotated[Path, typer.Option(help="Generated images, labelled with the class asked for.")],
    real: Annotated[str, typer.Option(help="Real images: a dataset, or a run.")],
    oracle: Annotated[
        Path | None, typer.Option(help="A saved classifier (default: one is trained and kept in OUT/oracle).")
    ] = None,
    train: Annotated[
        Path | None,
        typer.Option(help="Real images to train the oracle on (default: the training split of --real)."),
    ] = None,
    real_split: Annotated[
        str, typer.Option(help="Real images to measure on: test, validation, or all of --real.")
    ] = "test",
    out: Annotated[
        Path, typer.Option(help="Folder for rca.json, confusion.png, confused.png and the oracle.")
    ] = Path("rca"),
    generated_label: Annotated[
        str | None, typer.Option(help="Column of the generated images' table with the class.")
    ] = None,
    generated_format: Annotated[str | None, typer.Option(help="Their layout (default auto).")] = None,
    group: Annotated[
        str | None, typer.Option(help="Column of --real that groups classes which look alike.")
    ] = None,
    format_: Format = None,
    image: Image = None,
    label: Label = None,
    root: Root = None,
    id_: Id = None,
    split: Split = None,
    identity: Identity = None,
    bins: Bins = None,
    normalise_labels: NormaliseLabels = None,
    limit: Limit = None,
    config: Config = None,
    set_: Set = None,
    preset: Preset = None,
    seed: Seed = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Relative classification accuracy: do generated images show the class they were asked for, as real ones do?"""
    if real_split not in ("test", "validation", "all"):
        raise UserError(f"--real-split {real_split}: expected test, validation or all")
    data = data_settings(
        format=format_,
        image=image,
        label=label,
        root=root,
        id=id_,
        split=split,
        identity=identity,
        group=[group] if group else None,
        bins=bins,
        normalise_labels=normalise_labels,
        limit=limit,
    )
    values = given({"data": data, "seed": seed, "device": device})
    settings = run_settings(real, values, config, set_ or [], preset, False)
    made = {"label": generated_label, "format": generated_format, "normalise_labels": normalise_labels}
    say_loading()
    from diffinf.config import RunConfig, build
    from diffinf.stages.judging import measure_rca

    found = measure_rca(
        generated,
        settings,
        out,
        train=train,
        oracle=oracle,
        real_split=real_split,  # type: ignore[arg-type]
        generated_data=build(RunConfig, {"dataset": str(generated), "data": given(made)}, "--generated").data,
    )
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
        return
    _show_rca(found.accuracy)
    print(f"{', '.join(found.files)}: {out}")


def _show_rca(found: Any) -> None:
    rows = [
        ("relative classification accuracy", _interval(found.rca)),
        ("with every class weighing the same", _interval(found.balanced)),
        ("accuracy on generated images", _interval(found.generated_accuracy)),
        ("accuracy on real images", _interval(found.real_accuracy)),
        *(
            (
                f"group {name}: confusions that stay in it",
                f"{value.inside:.2f}, by chance {value.inside_by_chance:.2f}",
            )
            for name, value in found.groups.items()
            if value.inside is not None
        ),
    ]
    _table(f"{found.n_generated} generated, {found.n_real} real images of {len(found.classes)} classes", rows)
    measured = {name: value for name, value in found.per_class.items() if value.rca is not None}
    worst = sorted(measured.items(), key=lambda item: item[1].rca.estimate)
    if worst:
        _table("by class, the worst first", [(name, _interval(value.rca)) for name, value in worst[:_LISTED]])
    if len(worst) > _LISTED:
        print(f"and {len(worst) - _LISTED} more classes, see rca.json")
    if len(measured) < len(found.per_class):
        print(f"no figure by class: {_unmeasured(found.per_class)}")
    for pair in found.confused[:5]:
        print(f"{pair.asked} read as {pair.read}: {pair.n} images, {pair.share:.0%}")
    print(found.verdict)
    for warning in found.warnings:
        print(f"note: {warning}")


def _unmeasured(per_class: dict[str, Any]) -> str:
    """Name the classes that have no relative accuracy, by what they lack."""
    lacking: dict[str, list[str]] = {}
    for name, value in per_class.items():
        if value.rca is None:
            lack = "generated images" if not value.n_generated else "real images"
            lack += " that are read right" if value.n_generated and value.n_real else ""
            lacking.setdefault(lack, []).append(name)
    return "; ".join(
        f"{', '.join(names[:_LISTED])}{', ...' if len(names) > _LISTED else ''} ({len(names)} without {lack})"
        for lack, names in lacking.items()
    )


def _interval(value: Any) -> str:
    return "-" if value is None else f"{value.estimate:.3f} ({value.low:.3f} to {value.high:.3f})"


def _distances(frechet: Any, kernel: Any) -> list[tuple[str, str]]:
    spread = "" if kernel is None or kernel.std is None else f" ± {kernel.std:.2g} a block"
    return [
        ("Fréchet distance", "-" if frechet is None else f"{frechet.distance:.4g}"),
        ("kernel distance", "-" if kernel is None else f"{kernel.distance:.4g}{spread}"),
    ]


def _balls(value: Any) -> list[tuple[str, str]]:
    names = ("precision", "recall", "density", "coverage")
    return [(name, "-" if value is None else f"{getattr(value, name):.4f}") for name in names]


def _table(title: str, rows: list[tuple[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("measure", "value", title=title)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
