"""The evidence: diffinf against everything else that could be done, on rendered faces or photographs.

    python benchmarks/evidence.py --rendered                     [--run DIR] [--out runs/evidence-rendered]
    python benchmarks/evidence.py --data fer2013_ferplus.parquet [--run DIR] [--out runs/evidence-fer]
    python benchmarks/evidence.py --rendered --tune
    python benchmarks/evidence.py --rendered --studies           [--study noise]

The first two repair the dataset (or take the finished run in DIR), train the arms side by side, choose the variant
of diffinf and the robust loss on validation, and test those against the others. `--tune` searches the main knob of each
method on validation and writes it where the others read it; the studies render faces of their own. Everything goes on
where it stopped.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from datetime import date
from pathlib import Path
from typing import Any

from rich.console import Console

from diffinf.config import ROBUST_ARMS, RunConfig, apply_overrides, split_arm
from diffinf.errors import UserError
from diffinf.files import file_sha256, read_json, write_json
from diffinf.pipeline import execute
from diffinf.run import Run
from diffinf.stages.workspace import default_preset, resolve_device
from evidence_material import workspace_of
from evidence_results import choose, on_validation_truth, results
from evidence_show import draw_arms, show
from evidence_studies import STUDIES, run_study, show_study
from evidence_training import GRID, KNOBS_FILE, Budget, best_knobs, read_knobs, train_arms, tune
from fer_data import SPARSE
from fer_noise import hardware, shareable
from repair_run import dataset, faces_seed, settings

WITH_BEST = "diffinf+best"  # diffinf with the robust loss that is best on validation
ARMS = (
    "baseline",
    "gce",
    "elr",
    "filter",
    "relabel",
    "resample",
    "roundtrip",
    "diffinf",
    "clean",
    "oracle-edit",
)
ALL_ARMS = (
    "baseline",
    *ROBUST_ARMS,
    "cleanlab",
    "filter",
    "down-weight",
    "relabel",
    "resample",
    "roundtrip",
    "diffinf",
    "diffinf-edit-or-relabel",
    "diffinf-edit-or-drop",
    "diffinf-edit-or-resample",
    WITH_BEST,
    "diffinf-paper",
    "clean",
    "true-flags",
    "oracle-edit",
)
STEPS = 1500  # of an arm, unless the run's classifier has fewer
STUDY_STEPS, STUDY_SEEDS = 800, 3


def repaired(options: argparse.Namespace) -> Run:
    """The run that the arms are trained on: the one given, else one that is made here, or gone on with."""
    if options.run is not None:
        run = Run.open(options.run)
        run.key("refine")
        return run
    faces, _ = dataset(options)
    return execute(settings(options, faces), until="repair", out=options.out / "run")


def budget_of(options: argparse.Namespace, config: RunConfig) -> Budget:
    """Network, steps and knobs of all arms."""
    steps = options.steps or min(config.classifier.steps, STEPS)
    return Budget(
        classifier=config.classifier.model_copy(update={"steps": steps, "checkpoint": None}),
        seeds=options.seeds,
        workers=options.workers,
        knobs=read_knobs(options.knobs, _task(options)),
    )


def primary_classes(names: tuple[str, ...]) -> list[int]:
    """The classes of the primary figure: all but the one with too few true test images."""
    return [k for k, name in enumerate(names) if name != SPARSE]


def compare(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Train, choose, test; tables, chart, and what the report holds."""
    run = repaired(options)
    workspace = workspace_of(run)
    names = workspace.dataset.class_names
    workspace.config = config = apply_overrides(run.config, options.set)
    budget = budget_of(options, config)
    classes = primary_classes(names)
    arms = [arm for arm in options.arms if arm != WITH_BEST]
    trained = train_arms(workspace, arms, budget, options.out)
    if WITH_BEST in options.arms and (robust := choose(trained, classes)["robust"]) is not None:
        trained = train_arms(workspace, [*arms, f"diffinf+{robust}"], budget, options.out)
    found = results(trained, classes, names, run.timings())
    show(found, console)
    draw_arms(found, options.out / "evidence.png")
    found["validation_by_truth"] = None
    if (truth := workspace.dataset.truth_labels()) is not None:
        rows = workspace.dataset.rows("validation")
        found["validation_by_truth"] = on_validation_truth(trained, truth[rows], classes)
    counts = {split: len(workspace.dataset.rows(split)) for split in ("train", "validation", "test")}
    return {
        **_machine(run),
        "data": _data(options, config),
        "n": counts,
        "seeds": [workspace.seed + k for k in range(budget.seeds)],
        "classifier": budget.classifier.model_dump(mode="json"),
        "knobs": dict(budget.knobs),
        "settings": shareable(run.config.model_dump(mode="json")),
        "timings": run.timings(),
        "results": found,
    }


def search(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Search the knobs and put them into the file, beside those of the other task."""
    run = repaired(options)
    workspace = workspace_of(run)
    names = workspace.dataset.class_names
    methods = [arm for arm in options.arms if arm in GRID]
    workspace.config = apply_overrides(run.config, options.set)
    budget = budget_of(options, workspace.config)
    figures = tune(workspace, methods, budget, options.out, primary_classes(names))
    knobs = best_knobs(figures)
    for method, values in figures.items():
        tried = ", ".join(f"{value}: {figure:.3f}" for value, figure in values.items())
        console.print(f"{method}: {tried}; taken: {knobs.get(method, 'none, all diverged')}")
    known = read_json(options.knobs) if options.knobs.exists() else {}
    before = known.get(_task(options), {})
    found = {
        "knobs": {**before.get("knobs", {}), **knobs},
        "validation": {**before.get("validation", {}), **figures},
        "date": date.today().isoformat(),
        "steps": budget.classifier.steps,
    }
    write_json(options.knobs, {**known, _task(options): found})
    return {**_machine(run), "data": _data(options, run.config), "results": found}


def study(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Make the studies that were asked for, one after the other."""
    preset = options.preset or default_preset()
    overrides = [f"classifier.steps={options.steps or STUDY_STEPS}", *options.set]
    config = apply_overrides(RunConfig(dataset="", preset=preset), overrides)
    budget = Budget(
        config.classifier, options.seeds, options.workers, read_knobs(options.knobs, _task(options))
    )
    found = {}
    for name in options.study:
        found[name] = run_study(name, budget, options.out / "studies", overrides, preset)
        show_study(found[name], console)
    return {"hardware": hardware(str(resolve_device(config.device))), "results": found}


def _task(options: argparse.Namespace) -> str:
    return "rendered" if options.rendered else "photographs"


def _machine(run: Run) -> dict[str, Any]:
    summary = read_json(run.summary)
    return {"hardware": hardware(summary["device"]), "versions": summary["versions"]}


def _data(options: argparse.Namespace, config: RunConfig) -> dict[str, Any]:
    source = Path(config.dataset)
    found = {"task": _task(options), "file": source.name}
    return found | ({"sha256": file_sha256(source)} if source.is_file() else {})


def _names(text: str) -> list[str]:
    names = list(dict.fromkeys(ALL_ARMS if text == "all" else text.split(",")))
    for name in names:
        try:
            split_arm(name if name != WITH_BEST else "diffinf")
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
    return names


def _studies(text: str) -> list[str]:
    if unknown := set(text.split(",")) - set(STUDIES):
        raise argparse.ArgumentTypeError(f"{unknown.pop()}: no such study; expected {', '.join(STUDIES)}")
    return text.split(",")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--rendered", action="store_true", help="rendered faces: bench-1")
    data.add_argument("--data", type=Path, help="FER2013 with FER+ votes, as fer_noise.py --build makes it")
    parser.add_argument("--faces-seed", type=faces_seed, default=0, help="of the rendered faces (0)")
    task = parser.add_mutually_exclusive_group()
    task.add_argument("--tune", action="store_true", help="search the main knob of each method and stop")
    task.add_argument("--studies", action="store_true", help="the studies on rendered faces, and stop")
    parser.add_argument("--study", type=_studies, help=f"of {','.join(STUDIES)}; default all")
    parser.add_argument("--run", type=Path, help="a finished run of the same dataset: its scores and edits")
    parser.add_argument("--arms", type=_names, help=f"with commas between, or all; default {','.join(ARMS)}")
    parser.add_argument("--seeds", type=int, help="trainings of each arm (5; studies 3)")
    parser.add_argument(
        "--steps", type=int, help=f"of each training (the run's, at most {STEPS}; studies {STUDY_STEPS})"
    )
    parser.add_argument("--workers", type=int, help="trainings at once on a CPU (one a core)")
    parser.add_argument("--knobs", type=Path, default=KNOBS_FILE, help="file that --tune writes")
    parser.add_argument("--out", type=Path, help="folder for everything")
    parser.add_argument("--preset", help="as for `diffinf run`: gpu where there is one, else cpu")
    parser.add_argument("--set", action="append", default=[], metavar="stage.field=value", help="repeatable")
    options = parser.parse_args(arguments)
    if options.faces_seed and (not options.rendered or options.studies or options.run):
        parser.error(
            "--faces-seed: only where faces are rendered: with --rendered, without --studies and --run"
        )
    if options.studies and not options.rendered:
        parser.error("--studies: the studies are made on rendered faces, say --rendered")
    options.out = options.out or Path("runs/evidence-rendered" if options.rendered else "runs/evidence-fer")
    options.arms = options.arms or (list(GRID) if options.tune else list(ARMS))
    options.seeds = options.seeds or (STUDY_SEEDS if options.studies else 5)
    options.study = options.study or list(STUDIES)
    return options


def main(arguments: list[str] | None = None) -> None:
    """Train, measure, print tables, write JSON; a user's mistake is one line and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else 170)  # a file has room for the widest table
    try:
        name = "tune" if options.tune else "studies" if options.studies else "evidence"
        work = {"tune": search, "studies": study, "evidence": compare}[name]
        found = work(options, console)
        written = {
            "command": shlex.join(["python", "benchmarks/evidence.py", *shareable(arguments)]),
            "date": date.today().isoformat(),
            **found,
        }
        write_json(options.out / f"{name}.json", written)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
