"""`diffinf evaluate`: measures of generated images, from saved features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from diffinf.cli.app import Json, app

evaluate = typer.Typer(no_args_is_help=True, help="Measure generated images from saved features.")
app.add_typer(evaluate, name="evaluate")

Features = "features (N, D): .npy, or .npz or Parquet that names them features, embeddings or embedding"


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
    as_json: Json = False,
) -> None:
    """Fréchet and kernel distance, precision, recall, density, coverage, and copies of training images."""
    from diffinf.stages.measuring import measure_fidelity

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
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
        return
    frechet, kernel, copies = found.frechet, found.kernel, found.copies
    rows = [
        ("Fréchet distance", "-" if frechet is None else f"{frechet.distance:.4g}"),
        (
            "kernel distance",
            f"{kernel.distance:.4g}" + ("" if kernel.std is None else f" ± {kernel.std:.2g} a block"),
        ),
        *_balls(found.prdc),
    ]
    if copies is not None:
        chance = "" if copies.held_out_share is None else f", by chance {copies.held_out_share:.2%}"
        rows.append(("near copies of training images", f"{copies.n_copies} ({copies.share:.2%}{chance})"))
    _table(f"{found.prdc.n_generated} generated, {found.prdc.n_real} real images", rows)
    for name, value in found.per_class.items():
        _table(f"{name}: {value.n_generated} generated, {value.n_real} real images", _balls(value))
    if frechet is None:
        print(
            "no Fréchet distance: it needs more samples than features (--allow-singular takes it all the same)"
        )
    if copies is not None and copies.n_copies:
        pairs = zip(copies.generated_indices, copies.train_indices, strict=True)
        print(
            "closest copies, row generated = row trained on:",
            ", ".join(f"{a} = {b}" for a, b in list(pairs)[:10]),
        )


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


def _balls(value: Any) -> list[tuple[str, str]]:
    return [(name, f"{getattr(value, name):.4f}") for name in ("precision", "recall", "density", "coverage")]


def _table(title: str, rows: list[tuple[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("measure", "value", title=title)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
