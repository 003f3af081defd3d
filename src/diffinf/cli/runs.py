"""Commands that begin a run, or take one further."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from diffinf.cli.app import (
    Annotator,
    Bins,
    Classifier,
    Config,
    DatasetOrRun,
    Device,
    Estimate,
    Flags,
    Format,
    Fresh,
    FromScratch,
    Group,
    Icc,
    Id,
    Identity,
    Image,
    Json,
    Label,
    Limit,
    Link,
    NormaliseLabels,
    Order,
    Out,
    Policy,
    Preset,
    Root,
    RunPath,
    Seed,
    Set,
    Split,
    Targets,
    Truth,
    Votes,
    app,
    say_loading,
)
from diffinf.cli.settings import (
    changed_settings,
    changes_in_words,
    data_settings,
    given,
    is_run,
    own_classifier,
    run_settings,
)
from diffinf.cli.show import show, show_costs, show_targets
from diffinf.errors import UserError


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

    settings = demo_settings(out, seed, given({"device": device}), set_ or [], from_scratch)
    _execute(settings, "report", out, fresh=fresh, estimate=estimate, as_json=as_json)


def _dataset_command(until: str, doc: str) -> Callable[..., None]:
    """Make the command that takes a dataset as far as the stage `until`."""

    def command(
        dataset: DatasetOrRun,
        format_: Format = None,
        image: Image = None,
        label: Label = None,
        targets: Targets = None,
        root: Root = None,
        id_: Id = None,
        split: Split = None,
        identity: Identity = None,
        group: Group = None,
        truth: Truth = None,
        bins: Bins = None,
        order: Order = None,
        votes: Votes = None,
        annotator: Annotator = None,
        normalise_labels: NormaliseLabels = None,
        icc: Icc = None,
        limit: Limit = None,
        link: Link = None,
        classifier: Classifier = None,
        flags: Flags = None,
        policy: Policy = None,
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
        data = data_settings(
            format=format_,
            image=image,
            label=label,
            root=root,
            id=id_,
            split=split,
            identity=identity,
            group=group,
            truth=truth,
            bins=bins,
            order=order,
            votes=votes,
            annotator=annotator,
            normalise_labels=normalise_labels,
            icc=icc,
            limit=limit,
            link=link,
        )
        values: dict[str, Any] = {
            "seed": seed,
            "device": device,
            "data": data,
            "classifier": own_classifier(classifier) if classifier else {},
            "influence": {"flags": flags and flags.resolve()},
            "repair": {"policy": policy},
        }
        settings = run_settings(dataset, given(values), config, set_ or [], preset, from_scratch)
        if targets is not None:
            _execute_targets(
                dataset, settings, targets, until, out, label, fresh=fresh, estimate=estimate, as_json=as_json
            )
            return
        path = Path(dataset) if out is None and is_run(dataset) else out
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
        _take_further(run, until, {"device": device}, set_, from_scratch, estimate, as_json)

    command.__doc__ = doc
    return command


def _take_further(
    run: Path,
    until: str,
    values: dict[str, Any],
    overrides: list[str] | None,
    from_scratch: bool,
    estimate: bool,
    as_json: bool,
) -> None:
    """Take a run as far as the stage `until` with some settings changed."""
    from diffinf.run import Run

    Run.open(run)  # a dataset would be taken too, but silently as another run
    settings = run_settings(str(run), given(values), None, overrides or [], None, from_scratch)
    _execute(settings, until, run, fresh=False, estimate=estimate, as_json=as_json)


for _name, _doc in (
    ("score", "Score every training sample (self-influence and others) and flag."),
    ("train-autoencoder", "Train the diffusion autoencoder, or take its weights."),
):
    app.command(_name)(_stage_command(_name, _doc + " Stages before it that are not done are run first."))


@app.command()
def repair(
    run: RunPath,
    policy: Policy = None,
    set_: Set = None,
    device: Device = None,
    from_scratch: FromScratch = False,
    estimate: Estimate = False,
    as_json: Json = False,
) -> None:
    """Edit the flagged samples, gate the edits, write the refined dataset.

    Stages before it that are not done are run first.
    """
    values = {"device": device, "repair": {"policy": policy}}
    _take_further(run, "repair", values, set_, from_scratch, estimate, as_json)


@app.command()
def compare(
    run: RunPath,
    arms: Annotated[
        str | None,
        typer.Option(
            help="Arms with commas between: baseline,gce,diffinf,diffinf+gce (default baseline,filter,relabel,"
            "resample,diffinf; docs/guide.md has them all)."
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Trainings of each arm (default 3).")] = None,
    set_: Set = None,
    device: Device = None,
    from_scratch: FromScratch = False,
    estimate: Estimate = False,
    as_json: Json = False,
) -> None:
    """Retrain with equal steps each way of treating the flagged samples, and robust training beside them.

    Stages before it that are not done are run first. An arm that is there already is not trained again.
    """
    names = None if arms is None else [name.strip() for name in arms.split(",") if name.strip()]
    values = {"device": device, "compare": {"arms": names, "seeds": seeds}}
    _take_further(run, "compare", values, set_, from_scratch, estimate, as_json)


@app.command()
def report(run: RunPath, as_json: Json = False) -> None:
    """Write summary.json and report.html anew from the files of a run; nothing is trained."""
    from diffinf.run import Run

    taken = Run.open(run)
    from diffinf.stages.summary import write_results

    write_results(taken)
    show(taken, as_json)


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
    say_loading()
    from diffinf.stages.predicting import predict_files

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


def _execute_targets(
    dataset: str,
    config: Any,
    targets: str,
    until: str,
    out: Path | None,
    label: str | None,
    *,
    fresh: bool,
    estimate: bool,
    as_json: bool,
) -> None:
    """Run the stages for several attributes and print what came out for each."""
    if is_run(dataset) or label is not None or estimate:
        raise UserError(
            "--targets goes with a dataset, and without --label and --estimate (of one: --label NAME --estimate)"
        )
    say_loading()
    from diffinf.targets import execute_targets

    show_targets(execute_targets(config, targets.split(","), until=until, out=out, fresh=fresh), as_json)


def _execute(
    config: Any, until: str, out: Path | None, *, fresh: bool, estimate: bool, as_json: bool
) -> None:
    """Run or estimate the stages up to `until`, and print the result."""
    say_loading()
    if estimate:
        from diffinf.estimate import estimate_costs

        show_costs(estimate_costs(config, until), as_json)
        return
    leads = os.environ.get("RANK", "0") == "0"  # under torchrun the others help, and say nothing
    if not leads:
        from diffinf.progress import set_quiet

        set_quiet(True)
    from diffinf.pipeline import default_directory, execute

    path = out or default_directory(config)
    if leads and not fresh and (changes := changed_settings(path, config)):
        typer.echo(changes_in_words(path, changes, "run" if until == "report" else until), err=True)
    run = execute(config, until=until, out=out, fresh=fresh)
    if leads:
        show(run, as_json)
