"""The command line. A command is a plain function; what is heavy is imported inside it."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from diffinf import __version__
from diffinf.errors import UserError

app = typer.Typer(
    name="diffinf",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

DatasetOrRun = Annotated[
    str,
    typer.Argument(help="Folder of class folders, or CSV, TSV or Parquet table; or the directory of a run."),
]
RunPath = Annotated[Path, typer.Argument(help="The directory of a run.")]

_DATA = "Dataset"
Image = Annotated[
    str | None, typer.Option(help="Column with the image: path or bytes.", rich_help_panel=_DATA)
]
Label = Annotated[str | None, typer.Option(help="Column with the label.", rich_help_panel=_DATA)]
Root = Annotated[Path | None, typer.Option(help="Folder that image paths start from.", rich_help_panel=_DATA)]
Id = Annotated[str | None, typer.Option("--id", help="Column with a stable id.", rich_help_panel=_DATA)]
Split = Annotated[
    str | None, typer.Option(help="Column with train, validation, test.", rich_help_panel=_DATA)
]
Identity = Annotated[str | None, typer.Option(help="Column naming the person.", rich_help_panel=_DATA)]
Truth = Annotated[
    list[str] | None,
    typer.Option(help="Column with the truth, read only to evaluate. Repeatable.", rich_help_panel=_DATA),
]
Limit = Annotated[int | None, typer.Option(help="Use about so many samples.", rich_help_panel=_DATA)]
Classifier = Annotated[
    str | None,
    typer.Option(
        help="Your own classifier instead of the baseline: NAME:FILE.safetensors with a timm NAME, or a "
        "folder with model.safetensors and config.json.",
        rich_help_panel=_DATA,
    ),
]
Flags = Annotated[
    Path | None,
    typer.Option(help="Ids to repair, found elsewhere: text, CSV or Parquet.", rich_help_panel=_DATA),
]
Seed = Annotated[int | None, typer.Option(help="Every random draw is a function of it (default 0).")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps (default auto).")]
Out = Annotated[Path | None, typer.Option(help="The run's directory (default runs/NAME-KEY).")]
Config = Annotated[Path | None, typer.Option(help="YAML file of settings, as config.yaml of a run.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="stage.field=value, such as classifier.steps=2000. Repeatable."),
]
Preset = Annotated[
    str | None, typer.Option(help="cpu, gpu or tiny (default: gpu where there is one, else cpu).")
]
Estimate = Annotated[bool, typer.Option("--estimate", help="Print what it will cost, and stop.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start over instead of continuing.")]
FromScratch = Annotated[
    bool,
    typer.Option("--from-scratch", help="Train the diffusion autoencoder instead of taking shipped weights."),
]


def _version(value: bool) -> None:
    if value:
        print(f"diffinf {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Repair face-attribute datasets: find the faces that disagree with their label, and edit the image."""
    if quiet:
        from diffinf.progress import set_quiet

        set_quiet(True)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The run's directory; the faces lie beside it.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, typer.Option(help="Every random draw is a function of it.")] = 0,
    device: Device = None,
    set_: Set = None,
    estimate: Estimate = False,
    as_json: Json = False,
    fresh: Fresh = False,
    from_scratch: FromScratch = False,
) -> None:
    """Render faces with confounded label noise, find it, repair it, compare, report."""
    if not (estimate or as_json):
        typer.echo("Rendering faces, finding the noise, repairing, retraining: about ten minutes.", err=True)
    from diffinf.demo import demo_settings

    settings = demo_settings(out, seed, _given({"device": device}), set_ or [], from_scratch)
    _execute(settings, "report", out, fresh=fresh, estimate=estimate, as_json=as_json)


@app.command()
def render(
    out: Annotated[Path, typer.Argument(help="A Parquet file to write, or a folder for faces.parquet.")],
    n: Annotated[int, typer.Option("--n", help="Number of faces.")] = 6600,
    size: Annotated[int, typer.Option(help="Side in pixels, 24 to 512.")] = 64,
    task: Annotated[str, typer.Option(help="expression or age.")] = "expression",
    identities: Annotated[int, typer.Option(help="Number of people.")] = 800,
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
        identities=identities,
        noise=noise,  # type: ignore[arg-type]
        rate=rate,
        seed=seed,
        preset=preset,
        overwrite=overwrite,
    )
    print(path)


def _dataset_command(until: str, doc: str) -> Callable[..., None]:
    """Make the command that takes a dataset as far as the stage `until`."""

    def command(
        dataset: DatasetOrRun,
        image: Image = None,
        label: Label = None,
        root: Root = None,
        id_: Id = None,
        split: Split = None,
        identity: Identity = None,
        truth: Truth = None,
        limit: Limit = None,
        classifier: Classifier = None,
        flags: Flags = None,
        seed: Seed = None,
        device: Device = None,
        out: Out = None,
        config: Config = None,
        set_: Set = None,
        preset: Preset = None,
        from_scratch: FromScratch = False,
        estimate: Estimate = False,
        as_json: Json = False,
        fresh: Fresh = False,
    ) -> None:
        data: dict[str, Any] = {
            "image": image,
            "label": label,
            "root": root and root.resolve(),
            "id": id_,
            "split": split,
        }
        data |= {"identity": identity, "truth": truth or None, "limit": limit}
        values: dict[str, Any] = {
            "seed": seed,
            "device": device,
            "data": data,
            "classifier": _own_classifier(classifier) if classifier else {},
            "influence": {"flags": flags and flags.resolve()},
        }
        settings = _settings(dataset, _given(values), config, set_ or [], preset, from_scratch)
        path = Path(dataset) if out is None and _is_run(dataset) else out
        _execute(settings, until, path, fresh=fresh, estimate=estimate, as_json=as_json)

    command.__doc__ = doc
    return command


app.command("run")(
    _dataset_command(
        "report", "Take a dataset all the way: scores, flags, edits, refined dataset, comparison, report."
    )
)
app.command("train")(
    _dataset_command("train", "Train the baseline classifier of a dataset, with checkpoints; begins a run.")
)


def _stage_command(until: str, doc: str) -> Callable[..., None]:
    """Make the command that takes a run as far as the stage `until`."""

    def command(
        run: RunPath,
        set_: Set = None,
        device: Device = None,
        from_scratch: FromScratch = False,
        estimate: Estimate = False,
        as_json: Json = False,
    ) -> None:
        from diffinf.run import Run

        Run.open(run)  # a dataset would be taken too, but silently as another run
        values = {} if device is None else {"device": device}
        settings = _settings(str(run), values, None, set_ or [], None, from_scratch)
        _execute(settings, until, run, fresh=False, estimate=estimate, as_json=as_json)

    command.__doc__ = doc
    return command


for _name, _doc in (
    ("score", "Score every training sample (self-influence and others) and flag."),
    ("train-autoencoder", "Train the diffusion autoencoder, or take its weights."),
    ("repair", "Edit the flagged samples, gate the edits, write the refined dataset."),
    ("compare", "Retrain: baseline, filter, relabel, resample, diffinf."),
):
    app.command(_name)(_stage_command(_name, _doc + " Stages before it that are not done are run first."))


@app.command()
def report(run: RunPath, as_json: Json = False) -> None:
    """Write summary.json and report.html anew from the files of a run; nothing is trained."""
    from diffinf.run import Run

    taken = Run.open(run)
    from diffinf.pipeline import write_results

    write_results(taken)
    _show(taken, as_json)


@app.command()
def predict(
    run: RunPath,
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Classify images with the retrained model of a run."""
    from diffinf.run import Run

    taken = Run.open(run)
    from diffinf.pipeline import predict_files

    predictions = predict_files(taken, images, device or "auto")
    if as_json:
        print(json.dumps(predictions, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("image", "class", "probability")
    for row in predictions:
        table.add_row(row["image"], row["label"], f"{row['probabilities'][row['label']]:.3f}")
    Console().print(table)


def _given(values: dict[str, Any]) -> dict[str, Any]:
    """Leave out what was not given, at every depth."""
    nested = {k: _given(v) if isinstance(v, dict) else v for k, v in values.items()}
    return {k: v for k, v in nested.items() if v is not None and v != {}}


def _own_classifier(text: str) -> dict[str, str]:
    """Read NAME:FILE.safetensors or a folder into the classifier's settings."""
    folder = Path(text)
    if folder.is_dir():
        from diffinf.run import read_json

        found = read_json(folder / "config.json")
        if not isinstance(found, dict) or not isinstance(found.get("name"), str):
            raise UserError(
                f"--classifier {text}: config.json has no name; expected a folder that diffinf wrote, or "
                "NAME:FILE.safetensors"
            )
        return {"name": found["name"], "checkpoint": str(folder.resolve())}
    name, colon, file = text.partition(":")
    if not colon or not Path(file).is_file():
        raise UserError(
            f"--classifier {text}: expected NAME:FILE.safetensors (NAME as timm calls the model) or a "
            "folder with model.safetensors and config.json, found neither"
        )
    return {"name": name, "checkpoint": str(Path(file).resolve())}


def _is_run(path: str) -> bool:
    from diffinf.run import Run

    return Run.exists(Path(path))


def _settings(
    dataset: str,
    values: dict[str, Any],
    file: Path | None,
    overrides: list[str],
    preset: str | None,
    from_scratch: bool,
) -> Any:
    """Put together the settings of the run, if `dataset` is one, or of the preset, and what was given."""
    from diffinf.config import apply_overrides, build, make_config, merge
    from diffinf.run import Run

    if from_scratch:
        overrides = [*overrides, "autoencoder.weights=null"]
    if _is_run(dataset):
        if file is not None or preset is not None:
            raise UserError(f"{dataset}: a run has its settings; change single ones with --set")
        config = Run.open(Path(dataset)).config
        merged = merge(config.model_dump(mode="json"), values)
        return apply_overrides(build(type(config), merged, "options"), overrides)
    if not Path(dataset).exists():
        raise UserError(
            f"{dataset}: no such file or directory; expected a folder of class folders, a table, or a run"
        )
    if preset not in (None, "cpu", "gpu", "tiny"):
        raise UserError(f"--preset {preset}: expected cpu, gpu or tiny")
    if preset is None:
        from diffinf.workspace import (
            default_preset,  # asks torch for a GPU: seconds that a mistake need not cost
        )

        preset = default_preset(values.get("device", "auto"))
    return make_config(
        str(Path(dataset).resolve()),
        preset_name=preset,  # type: ignore[arg-type]
        file=file,
        values=values,
        overrides=overrides,
    )


def _execute(
    config: Any, until: str, out: Path | None, *, fresh: bool, estimate: bool, as_json: bool
) -> None:
    """Run or estimate the stages up to `until`, and print the result."""
    if estimate:
        from diffinf.estimate import estimate_costs

        _show_costs(estimate_costs(config, until), as_json)
        return
    from diffinf.pipeline import execute

    _show(execute(config, until=until, out=out, fresh=fresh), as_json)


def _show(run: Any, as_json: bool) -> None:
    """Print what a run has so far: its summary as JSON, or the arms' table and the paths."""
    from diffinf.run import read_json

    summary = read_json(run.summary)
    if as_json:
        print(json.dumps({"run": str(run.path), **summary}, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if summary["arms"]:
        table = Table("arm", "balanced accuracy", "95 % interval", "accuracy", "seeds")
        for name, arm in summary["arms"].items():
            low, high = arm["ci"]
            interval, balanced = f"{low:.3f} to {high:.3f}", f"{arm['balanced_accuracy']:.3f}"
            table.add_row(name, balanced, interval, f"{arm['accuracy']:.3f}", str(arm["seeds"]))
        console.print(table)
    if summary["flagged"] is not None:
        parts = [f"{summary['flagged']} of {summary['dataset']['splits']['train']} training samples flagged"]
        if summary["edited"] is not None:
            parts += [f"{summary[name]} {name}" for name in ("edited", "kept", "relabelled", "dropped")]
        console.print(", ".join(parts))
    console.print(f"run: {run.path}", soft_wrap=True)
    if run.report.exists():
        console.print(f"report: {run.report}", soft_wrap=True)


def _show_costs(costs: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(costs, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    from diffinf.progress import clock

    table = Table("stage", "work", "time", title="Estimated cost on this machine")
    for row in costs:
        table.add_row(row["stage"], row["work"], clock(row["seconds"]))
    table.add_section()
    table.add_row("all", "", clock(sum(row["seconds"] for row in costs)))
    Console().print(table)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a user's mistake is one clear line on stderr and exit code 2."""
    try:
        app(args=arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT):
            raise
        print(f"error: {error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
